"""A concept: a word that stands for what a few pictures show, learned for one base model; and its conditioning."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from tokenizers import AddedToken
from torch import Tensor

from belvedere.errors import InputError
from belvedere.generation.neti import NeTIMapper
from belvedere.generation.neti_text import Encoded, TextEncoder

LOWEST = 16
"""Channels that a truncation leaves at the highest editability, where nobody measured what this concept needs."""
_TOKEN = re.compile(r"[^\s{}]{1,64}")
_WORD = re.compile(r"[^\s{}]{1,64}( [^\s{}]{1,64})*")
_LETTERS = re.compile(r"\w(.*\w)?")
"""Tokens that count only as whole words, as ``toy7``: not in ``toy77``. Others, as ``<toy>``, do anywhere."""


@dataclass(frozen=True)
class Base:
    """The model a concept was learned for."""

    name: str
    """What people call it; only shown."""
    digests: tuple[str, ...] = ()
    """Of its text encoders (``TextEncoder.digest``); empty when nobody knows."""


@dataclass(frozen=True)
class Concept:
    """A token, the network that gives it its meaning and what it was made for.

    Raises ``InputError`` for a token that is not one word, or numbers out of range.
    """

    token: str
    """How prompts write it, such as ``<my-cat>``."""
    super_category: str
    """The word for what it is, such as ``cat``."""
    mapper: NeTIMapper
    base: Base
    lowest: int = LOWEST
    """The truncation at editability 1."""

    def __post_init__(self) -> None:
        if not _TOKEN.fullmatch(self.token) or not self.token.isprintable():
            raise InputError(f"token {self.token[:80]!r}: must be one word of at most 64 letters, such as <my-cat>")
        if not _WORD.fullmatch(self.super_category) or not self.super_category.isprintable():
            raise InputError(f"super-category {self.super_category[:80]!r}: must be a word, such as cat")
        if not 1 <= self.lowest <= self.mapper.config.hidden:
            raise InputError(f"lowest truncation {self.lowest}: must be from 1 to {self.mapper.config.hidden}")

    @classmethod
    def create(
        cls,
        token: str,
        super_category: str,
        encoders: Sequence[TextEncoder],
        tokenizers: Sequence[Any],
        layers: int,
        base_name: str,
        **config: Any,
    ) -> "Concept":
        """Return a fresh concept for a base model: its mapper scales to the norm of the super-category's embedding.

        ``encoders``, ``tokenizers``: the base model's, in order. ``layers``: of its U-Net (``neti_attention``).
        ``config``: other fields of ``NeTIMapper``. Raises ``InputError`` for a super-category that is not one token.
        """
        norms = [word.norm().item() for word in embeddings_of(super_category, encoders, tokenizers)]
        widths = [encoder.width for encoder in encoders]
        mapper = NeTIMapper(**{"widths": widths, "layers": layers, "target_norms": norms, **config})
        return cls(token, super_category, mapper, Base(base_name, tuple(encoder.digest for encoder in encoders)))

    def truncation(self, editability: float) -> int:
        """Return how many channels of the hidden vector are kept for an editability from 0 (all) to 1 (``lowest``).

        Raises ``InputError`` for another number, or above 0 for a concept that was not learned with nested dropout.
        """
        if not 0 <= editability <= 1:
            raise InputError(f"editability {editability}: must be from 0, most like its pictures, to 1")
        if editability and not self.mapper.config.nested_dropout:
            raise InputError(f"{self.token} was learned without nested dropout: its editability can only be 0")
        hidden = self.mapper.config.hidden
        return round(hidden * (self.lowest / hidden) ** editability)

    def spelled(self, prompt: str) -> str:
        """Return a prompt with the super-category in place of the token, for a model that knows no concepts.

        SDXL's pooled embedding, which is one for all layers, is that of the prompt so spelled.
        """
        pattern = re.escape(self.token)
        if _LETTERS.fullmatch(self.token):
            pattern = rf"(?<!\w){pattern}(?!\w)"
        return re.sub(pattern, lambda match: self.super_category, prompt, flags=re.IGNORECASE)

    def check_base(self, encoders: Sequence[TextEncoder]) -> None:
        """Raise ``InputError`` unless a model with these text encoders is the base of this concept.

        Where digests are not known, only widths are compared.
        """
        widths, digests = [encoder.width for encoder in encoders], tuple(encoder.digest for encoder in encoders)
        if widths != list(self.mapper.config.widths):
            reason = f"for text encoders of {list(self.mapper.config.widths)} channels, this model's have {widths}"
        elif self.base.digests and digests != self.base.digests:
            reason = "with another text encoder than this model's"
        else:
            return
        raise InputError(f"concept {self.token} was learned {reason}: load it into {self.base.name}")


def check_new(tokenizer: Any, token: str) -> None:
    """Raise ``InputError`` for a concept's token that the tokenizer reads as one it has from the start.

    As a prompt would have it: in whatever case, and as a whole word.
    """
    if _added(tokenizer, token):
        return
    ids = tokenizer(token, add_special_tokens=False)["input_ids"]
    if token in tokenizer.get_vocab() or (len(ids) == 1 and ids[0] != tokenizer.unk_token_id):
        raise _known(token)


def token_id(tokenizer: Any, token: str) -> int:
    """Return the id of a concept's token, adding it to the tokenizer where it is new.

    Raises ``InputError`` for an entry of the tokenizer's vocabulary, which cannot be added.
    """
    if token in tokenizer.get_vocab() and not _added(tokenizer, token):
        raise _known(token)
    tokenizer.add_tokens([AddedToken(token, normalized=True, single_word=bool(_LETTERS.fullmatch(token)))])
    index: int = tokenizer.convert_tokens_to_ids(token)
    return index


def _added(tokenizer: Any, token: str) -> bool:
    return token in tokenizer.get_added_vocab() and token not in tokenizer.all_special_tokens


def _known(token: str) -> InputError:
    return InputError(f"token {token}: the model has this word already, choose one it does not know, as <my-cat>")


def embeddings_of(word: str, encoders: Sequence[TextEncoder], tokenizers: Sequence[Any]) -> list[Tensor]:
    """Return the embedding of a word (c,), float32, in each text encoder.

    Raises ``InputError`` for a word that is not one token.
    """
    rows = []
    for encoder, tokenizer in zip(encoders, tokenizers, strict=True):
        ids = tokenizer(word, add_special_tokens=False)["input_ids"]
        if len(ids) != 1 or ids[0] == tokenizer.unk_token_id:
            raise InputError(
                f"super-category {word!r}: must be one token of the model ({len(ids)}), try a simpler word"
            )
        rows.append(encoder.table[ids[0]].detach().float())
    return rows


def prompt_ids(tokenizer: Any, prompts: Sequence[str], tokens: Sequence[str], length: int) -> Tensor:
    """Return the token ids (b, length) of prompts, padded.

    Raises ``InputError`` for a prompt that has none of ``tokens``, or more than ``length`` tokens in all.
    """
    placeholders = {token_id(tokenizer, token) for token in tokens}
    for prompt, whole in zip(prompts, tokenizer(list(prompts), verbose=False)["input_ids"], strict=True):
        if not placeholders & set(whole):
            raise InputError(f"prompt {prompt[:80]!r}: lacks the concept, write {' or '.join(tokens)} into it")
    check_lengths(tokenizer, prompts, length)
    padded = tokenizer(list(prompts), padding="max_length", max_length=length, return_tensors="pt")
    ids: Tensor = padded["input_ids"]
    return ids


def check_lengths(tokenizer: Any, prompts: Sequence[str], length: int) -> None:
    """Raise ``InputError`` for a prompt of more than ``length`` tokens, the marks of its start and end included."""
    for prompt in prompts:
        if (count := len(tokenizer(prompt, verbose=False)["input_ids"])) > length:
            raise InputError(f"prompt {prompt[:80]!r}: {count} tokens, this model reads {length}; shorten it")


class Conditioning:
    """What a U-Net is conditioned on by prompts with concepts, computed for the time at which it is asked.

    ``encoders``, ``tokenizers``: of the base model, in order. ``editability``: one for all concepts or one each. All
    concepts have the same number of layers. ``keep`` remembers, for further seeds, the hidden states of every time
    asked (without gradients): half the memory of a table of contexts, or less. Raises ``InputError`` for another base,
    and as ``prompt_ids`` and ``Concept.truncation`` do.
    """

    def __init__(
        self,
        encoders: Sequence[TextEncoder],
        tokenizers: Sequence[Any],
        prompts: Sequence[str],
        concepts: Sequence[Concept],
        editability: float | Sequence[float] = 0.0,
        keep: bool = False,
    ):
        self.layers: int = concepts[0].mapper.config.layers
        if any(concept.mapper.config.layers != self.layers for concept in concepts):
            raise InputError("concepts of different numbers of layers cannot share a prompt: learn them for one U-Net")
        for concept in concepts:
            concept.check_base(encoders)
        each = editability if isinstance(editability, Sequence) else [editability] * len(concepts)
        tokens = [concept.token for concept in concepts]
        self.encoders, self.concepts, self.count = encoders, concepts, len(prompts)
        self.truncations = [concept.truncation(value) for concept, value in zip(concepts, each, strict=True)]
        self.prompts = [
            encoder.begin(
                prompt_ids(tokenizer, prompts, tokens, encoder.length), [token_id(tokenizer, token) for token in tokens]
            )
            for encoder, tokenizer in zip(encoders, tokenizers, strict=True)
        ]
        self.kept: dict[float, list[Encoded]] | None = {} if keep else None

    def __call__(self, t: float | Tensor, truncation: Tensor | None = None) -> Tensor:
        """Return the conditioning (b, layers, 2, n, c) at ``t``, one time for all prompts or one each (b,).

        It can be expanded to a batch of pictures of one prompt. ``truncation`` (b, layers): of a training batch, in
        place of the editability.
        """
        common = not isinstance(t, Tensor) or not t.ndim
        if self.kept is not None and common and truncation is None:
            encoded = self._recall(self.kept, float(t))
        else:
            encoded = self._encode(torch.as_tensor(t), truncation)
        triples = zip(self.encoders, self.prompts, encoded, strict=True)
        return torch.cat([encoder.contexts(prompt, part) for encoder, prompt, part in triples], -1)

    @torch.no_grad()
    def _recall(self, kept: dict[float, list[Encoded]], t: float) -> list[Encoded]:
        if t not in kept:
            kept[t] = self._encode(torch.tensor(t, device="cpu"), None)
        return kept[t]

    def _encode(self, t: Tensor, truncation: Tensor | None) -> list[Encoded]:
        vectors = []
        for concept, fixed in zip(self.concepts, self.truncations, strict=True):
            mapper = concept.mapper
            times = t.to(mapper.device).expand(self.count)[:, None]
            layers = torch.arange(self.layers, device=mapper.device)
            vectors.append(mapper.vectors(mapper(times, layers, fixed if truncation is None else truncation)))
        pairs = zip(self.encoders, self.prompts, zip(*vectors, strict=True), strict=True)
        return [encoder.encode(prompt, given) for encoder, prompt, given in pairs]
