"""A CLIP tokenizer for a few words: each is one token, and every other text falls into its pieces, bytes at worst."""

from collections import Counter
from collections.abc import Iterable
from itertools import pairwise
from pathlib import Path
from typing import Any

from belvedere.errors import InputError

START, END = "<|startoftext|>", "<|endoftext|>"
WORD_END = "</w>"

Pair = tuple[str, str]


def word_tokenizer(words: Iterable[str], length: int) -> Any:
    """Return the ``CLIPTokenizer`` that knows ``words`` (lower case ASCII), for texts of ``length`` tokens.

    Tokens: the 256 bytes, the same at the end of a word, what the words are merged from, the words, and last the two
    special ones, ``END`` having the highest number, as in CLIP.
    """
    from tokenizers.pre_tokenizers import ByteLevel
    from transformers import CLIPTokenizer

    known = sorted(set(words))
    if wrong := [word for word in known if not (word.isascii() and word.isprintable() and word == word.lower())]:
        raise InputError(f"{wrong[0]!r} cannot be a word of a tokenizer: give lower case ASCII")
    merges = learn_merges(known)
    letters = sorted(ByteLevel.alphabet())
    tokens = [*letters, *(letter + WORD_END for letter in letters), *("".join(pair) for pair in merges), START, END]
    vocabulary = {token: number for number, token in enumerate(tokens)}
    return CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=length)  # type: ignore[arg-type]


def learn_merges(words: Iterable[str]) -> list[Pair]:
    """Return the merges that make each word one token: always the commonest pair next (Sennrich et al. 2016, 3.2)."""
    pieces = [[*word[:-1], word[-1] + WORD_END] for word in words]
    merges = []
    while pairs := Counter(pair for word in pieces for pair in pairwise(word)):
        best = min(pairs, key=lambda pair: (-pairs[pair], pair))
        merges.append(best)
        pieces = [_merged(word, best) for word in pieces]
    return merges


def _merged(word: list[str], pair: Pair) -> list[str]:
    result: list[str] = []
    for piece in word:
        if result and (result[-1], piece) == pair:
            result[-1] += piece
        else:
            result.append(piece)
    return result


def save_tokenizer(tokenizer: Any, folder: Path) -> None:
    """Write a tokenizer as today's transformers do, and ``vocab.json`` and ``merges.txt`` as Stable Diffusion has."""
    tokenizer.save_pretrained(folder)
    tokenizer.backend_tokenizer.model.save(str(folder))
