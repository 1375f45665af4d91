"""CLIP's tokenizers: the same words as their library reads, and no file or setting but those that are known."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
from transformers import CLIPTokenizer

from belvedere.checkpoints.tokenizer import copy_tokenizer, load_tokenizer
from belvedere.errors import InputError
from tests.generation.neti_models import save_tiny_base, tiny_tokenizer

TEXTS = ["a photo of cat", "Red  painting!", "", "xyz"]


@pytest.fixture(scope="module", params=["one file", "two files"])
def saved(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tokenizer as transformers saves it now, or as Stable Diffusion's were published."""
    folder = tmp_path_factory.mktemp("tokenizer")
    if request.param == "two files":
        return save_tiny_base(folder) / "tokenizer"
    tiny_tokenizer(77).save_pretrained(folder)
    return folder


@pytest.fixture
def folder(saved: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(saved, tmp_path / "tokenizer"))


def ids(tokenizer: Any) -> list[list[int]]:
    return tokenizer(TEXTS, padding="max_length", truncation=True)["input_ids"]


def edit(path: Path, **change: Any) -> None:
    path.write_text(json.dumps((json.loads(path.read_text()) if path.exists() else {}) | change))


def test_it_is_as_its_library_reads_it(folder: Path) -> None:
    ours, theirs = load_tokenizer(CLIPTokenizer, folder), CLIPTokenizer.from_pretrained(folder)
    assert ids(ours) == ids(theirs) and len(ids(ours)[0]) == ours.model_max_length == 77
    assert ours.special_tokens_map == theirs.special_tokens_map and ours.get_vocab() == theirs.get_vocab()
    assert ours.name_or_path == str(folder)


def test_settings_as_they_were_published_are_known(folder: Path) -> None:
    token = {"__type": "AddedToken", "content": "<|endoftext|>", "lstrip": False, "normalized": True, "rstrip": False}
    edit(
        folder / "tokenizer_config.json", unk_token=token | {"single_word": False}, errors="replace", do_lower_case=True
    )
    edit(folder / "tokenizer_config.json", special_tokens_map_file="./special_tokens_map.json", name_or_path="x")
    edit(folder / "special_tokens_map.json", pad_token="!")
    tokenizer = load_tokenizer(CLIPTokenizer, folder)
    assert str(tokenizer.unk_token) == "<|endoftext|>" and tokenizer.name_or_path == str(folder)
    assert ids(tokenizer) == ids(CLIPTokenizer.from_pretrained(folder))


def test_files_of_other_tokenizers_and_settings_that_name_files_are_left_out(saved: Path, folder: Path) -> None:
    for name in ("tokenizer.model", "tekken.json", "tokenizer.4.0.0.json", "chat_template.jinja", "tiktoken.model"):
        (folder / name).write_text("junk")
    names = {"tokenizer_file": "/etc/passwd", "gguf_file": "../x", "fast_tokenizer_files": ["tokenizer.4.0.0.json"]}
    edit(folder / "tokenizer_config.json", **names, init_inputs=["/etc/passwd"])
    edit(folder / "special_tokens_map.json", **names)
    assert ids(load_tokenizer(CLIPTokenizer, folder)) == ids(load_tokenizer(CLIPTokenizer, saved))


def test_what_is_copied_is_known(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "fresh").mkdir()
    (folder / "tokenizer.model").write_text("junk")
    edit(folder / "tokenizer_config.json", gguf_file="x")
    copy_tokenizer(folder, tmp_path / "fresh")
    known = {"vocab.json", "merges.txt", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"}
    assert {path.name for path in (tmp_path / "fresh").iterdir()} <= known
    assert "gguf_file" not in json.loads((tmp_path / "fresh" / "tokenizer_config.json").read_text())


def test_what_is_refused(folder: Path) -> None:
    settings = folder / "tokenizer_config.json"
    before = settings.read_text()
    edit(settings, model_max_length=10**9)
    with pytest.raises(InputError, match="1000000000 is larger than any size"):
        load_tokenizer(CLIPTokenizer, folder)
    settings.unlink()
    os.mkfifo(settings)
    with pytest.raises(InputError, match="no plain file"):
        load_tokenizer(CLIPTokenizer, folder)
    settings.unlink()
    settings.write_text(before)
    whole = folder / "tokenizer.json"
    if whole.exists():
        edit(whole, padding={"strategy": {"Fixed": 10**9}})
        with pytest.raises(InputError, match="larger than any size"):
            load_tokenizer(CLIPTokenizer, folder)
        whole.unlink()
    else:
        (folder / "merges.txt").unlink()
        (folder / "merges.txt").symlink_to("/dev/zero")
        with pytest.raises(InputError, match="no plain file of at most 16 MB"):
            load_tokenizer(CLIPTokenizer, folder)
        (folder / "merges.txt").unlink()
    with pytest.raises(InputError, match=r"neither tokenizer\.json nor vocab\.json and merges\.txt"):
        load_tokenizer(CLIPTokenizer, folder)
