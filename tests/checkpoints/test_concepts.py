"""Concept files: there and back, and what is refused."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from belvedere.checkpoints.concepts import KEY, load_concept, save_concept
from belvedere.checkpoints.tensors import metadata
from belvedere.errors import InputError
from belvedere.generation.concept import Base, Concept
from belvedere.generation.neti import NeTIMapper

Facts = dict[str, Any]


@pytest.fixture
def concept() -> Concept:
    torch.manual_seed(0)
    mapper = NeTIMapper(widths=[6, 10], layers=4, anchors=5, hidden=16, frequencies=32, target_norms=[0.4, 0.5])
    return Concept("<my-cat>", "cat", mapper, Base("tiny", ("a" * 64, "b" * 64)), lowest=5)


def rewrite(path: Path, change: Callable[[Facts], None]) -> None:
    """Change the JSON in a concept file's header."""
    with safe_open(path, framework="pt") as file:
        facts = json.loads(file.metadata()[KEY])
    change(facts)
    save_file(load_file(path), path, {KEY: json.dumps(facts)})


def test_there_and_back(tmp_path: Path, concept: Concept) -> None:
    path = tmp_path / "cat.safetensors"
    save_concept(concept, path)
    again = load_concept(path)
    assert (again.token, again.super_category, again.base, again.lowest) == ("<my-cat>", "cat", concept.base, 5)
    wanted, found = concept.mapper.state_dict(), again.mapper.state_dict()
    assert wanted.keys() == found.keys() and all(torch.equal(found[name], x) for name, x in wanted.items())
    t, layer = torch.tensor([[3], [900]]), torch.arange(4)
    torch.testing.assert_close(again.mapper(t, layer, 7), concept.mapper(t, layer, 7))
    assert all(p.requires_grad for p in again.mapper.parameters())
    save_concept(again, tmp_path / "again.safetensors")
    assert path.read_bytes() == (tmp_path / "again.safetensors").read_bytes()


def test_what_it_says_can_be_read_by_anybody(tmp_path: Path, concept: Concept) -> None:
    save_concept(concept, tmp_path / "cat.safetensors")
    with safe_open(tmp_path / "cat.safetensors", framework="pt") as file:
        facts = json.loads(file.metadata()[KEY])
    assert facts["base"] == {"name": "tiny", "text_encoders": ["a" * 64, "b" * 64]}
    assert facts["truncation"] == {"lowest": 5} and facts["mapper"]["target_norms"] == [0.4, 0.5]
    assert facts["mapper"]["sigma_layer"] == 2.0 and not any(key.startswith("_") for key in facts["mapper"])


CHANGES: dict[str, tuple[Callable[[Facts], object], str]] = {
    "version": (lambda facts: facts.update(version=2), "version 2 of concept files; this Belvedere reads 1"),
    "missing": (lambda facts: facts.pop("token"), "must be an object with version, token"),
    "unknown": (lambda facts: facts.update(code="import os"), "must be an object with"),
    "kind": (lambda facts: facts.update(token=3), "token must be a JSON str"),
    "token": (lambda facts: facts.update(token="two words"), "must be one word"),
    "base": (lambda facts: facts.update(base={"name": "x"}), "'base' must have"),
    "digests": (lambda facts: facts["base"].update(text_encoders=[1]), "'base' must have"),
    "lowest": (lambda facts: facts.update(truncation={}), "integer 'lowest'"),
    "lowest true": (lambda facts: facts.update(truncation={"lowest": True}), "integer 'lowest'"),
    "too low": (lambda facts: facts.update(truncation={"lowest": 0}), "lowest truncation 0"),
    "field": (lambda facts: facts["mapper"].update(module="os"), "unknown key 'module'"),
    "size": (lambda facts: facts["mapper"].update(hidden=17), "tensors missing, unknown or of another shape"),
    "huge": (lambda facts: facts["mapper"].update(hidden=10**9), "hidden 1000000000: must be an integer"),
    "many": (lambda facts: facts["mapper"].update(layers=1024, anchors=1000, frequencies=8192), "choose fewer"),
    "norms": (lambda facts: facts["mapper"].update(target_norms=[1e308, 1.0]), "above 0 and at most 10000"),
    "text": (lambda facts: facts["mapper"].update(layers="4"), "layers '4'"),
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_file_that_does_not_fit_together_is_refused(tmp_path: Path, concept: Concept, name: str) -> None:
    path, (change, message) = tmp_path / "cat.safetensors", CHANGES[name]
    save_concept(concept, path)
    rewrite(path, lambda facts: change(facts) and None)
    with pytest.raises(InputError, match=message) as caught:
        load_concept(path)
    assert "\n" not in str(caught.value)


def test_other_files_are_refused(tmp_path: Path, concept: Concept) -> None:
    path = tmp_path / "cat.safetensors"
    with pytest.raises(InputError, match="no concept file at"):
        load_concept(path)
    save_file({"w": torch.ones(2)}, path)
    with pytest.raises(InputError, match=f"its header has no {KEY}"):
        load_concept(path)
    save_file({"w": torch.ones(2)}, path, {KEY: "{"})
    with pytest.raises(InputError, match="not readable JSON"):
        load_concept(path)
    save_file({"w": torch.ones(2)}, path, {KEY: "[" * 100_000})
    with pytest.raises(InputError, match="not readable JSON"):
        load_concept(path)
    path.write_bytes(b"PK\x03\x04 and more")
    with pytest.raises(InputError, match=r"renamed \.safetensors"):
        load_concept(path)
    (tmp_path / "mapper.pt").write_bytes(b"x")
    with pytest.raises(InputError, match=r"ends in \.safetensors"):
        load_concept(tmp_path / "mapper.pt")
    with pytest.raises(InputError, match=r"ends in \.safetensors"):
        save_concept(concept, tmp_path / "cat.pt")


@pytest.mark.parametrize("dtype", [torch.bool, torch.int64, torch.complex64])
def test_weights_of_another_kind_are_refused(tmp_path: Path, concept: Concept, dtype: torch.dtype) -> None:
    path = tmp_path / "cat.safetensors"
    save_concept(concept, path)
    weights, texts = load_file(path), metadata(path)
    save_file(weights | {"head.bias": weights["head.bias"].to(dtype)}, path, texts)
    with pytest.raises(InputError, match=r"no floating-point numbers: head\.bias; get it again"):
        load_concept(path)


def test_weights_that_are_not_finite_are_refused(tmp_path: Path, concept: Concept) -> None:
    path = tmp_path / "cat.safetensors"
    torch.nn.init.constant_(concept.mapper.head.bias, float("nan"))
    save_concept(concept, path)
    with pytest.raises(InputError, match=r"'head.bias' holds NaN"):
        load_concept(path)
