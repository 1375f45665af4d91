import json
from pathlib import Path

import pytest
from transformers import CLIPTokenizer

from belvedere.errors import InputError
from belvedere.generation.clip_words import END, START, learn_merges, save_tokenizer, word_tokenizer

WORDS = ("car", "chair", "red", "grass", "green", "a", "an", "-", "up")
TOKENS = word_tokenizer(WORDS, 8)


def test_each_word_is_one_token() -> None:
    assert [TOKENS.tokenize(word) for word in WORDS] == [[word + "</w>"] for word in WORDS]
    assert TOKENS("A  Red car").input_ids == TOKENS("a red car").input_ids
    assert TOKENS.decode(TOKENS("a green chair").input_ids, skip_special_tokens=True) == "a green chair"


def test_any_other_text_is_spelled() -> None:
    pieces = TOKENS.tokenize("greens éclair 7!")
    assert len(pieces) > 6 and TOKENS.unk_token not in pieces
    assert TOKENS.decode(TOKENS("zebra").input_ids, skip_special_tokens=True) == "zebra"


def test_special_tokens_as_in_clip() -> None:
    ids = TOKENS("a car", padding="max_length").input_ids
    first, last = TOKENS.convert_tokens_to_ids([START, END])
    assert len(ids) == 8 and ids[0] == first and ids[3:] == [last] * 5 and last == len(TOKENS) - 1 == first + 1
    assert len(TOKENS("a car " * 9, truncation=True).input_ids) == 8


def test_merges_by_hand() -> None:
    """ab is commonest, inside two words; every word ends as one piece."""
    merges = learn_merges(["abc", "abcd", "ab"])
    assert merges[0] == ("a", "b")
    assert set(merges[1:]) == {("a", "b</w>"), ("ab", "c</w>"), ("ab", "c"), ("abc", "d</w>")}


def test_stable_diffusions_files_are_enough(tmp_path: Path) -> None:
    save_tokenizer(TOKENS, tmp_path)
    (tmp_path / "tokenizer.json").unlink()
    again = CLIPTokenizer.from_pretrained(tmp_path)
    assert again("a red chair up").input_ids == TOKENS("a red chair up").input_ids and again.model_max_length == 8
    assert json.loads((tmp_path / "vocab.json").read_text())[END] == len(TOKENS) - 1


def test_a_word_can_be_added() -> None:
    tokens = word_tokenizer(WORDS, 8)
    assert tokens.add_tokens(["<toy>"]) == 1
    assert tokens.tokenize("a red <toy>") == ["a</w>", "red</w>", "<toy>"]
    assert tokens.convert_tokens_to_ids("<toy>") == len(TOKENS)


@pytest.mark.parametrize("word", ["Car", "é", "a\n"])
def test_bad_words(word: str) -> None:
    with pytest.raises(InputError, match="cannot be a word"):
        word_tokenizer([word], 8)
