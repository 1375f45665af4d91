"""NeTI's published files, made as the official code writes them; what else is in one is refused and does not run."""

import os
import sys
import types
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from belvedere.checkpoints.concepts import load_concept, save_concept
from belvedere.checkpoints.converter import Separator
from belvedere.checkpoints.official_neti import OfficialFile, concept_from, official_concept
from belvedere.errors import InputError
from belvedere.generation.neti_text import TextEncoder
from tests.generation.neti_models import tiny_text_model, tiny_tokenizer

WIDTH, LAYERS, ANCHORS = 16, 16, 2
NORM = 0.83
MODEL: dict[str, Any] = {
    "target_norm": NORM,
    "output_bypass": True,
    "use_nested_dropout": True,
    "nested_dropout_prob": 0.5,
    "num_pe_time_anchors": ANCHORS,
    "use_positional_encoding": True,
    "pe_sigmas": {"sigma_t": 0.03, "sigma_l": 2.0},
    "pretrained_model_name_or_path": "CompVis/stable-diffusion-v1-4",
}
DATA = {"placeholder_token": "<my-cat>", "super_category_token": "cat", "train_data_dir": "/somewhere"}


@pytest.fixture
def encodings() -> Iterator[types.ModuleType]:
    """The module of the official encodings, as far as a pickle names it; gone before anything is read."""

    class NeTIPositionalEncoding(nn.Module):
        def __init__(self, w: Tensor, registered: bool):
            super().__init__()
            self.sigma_t, self.sigma_l, self.num_w = 0.03, 2.0, len(w)
            self.w = nn.Parameter(w) if registered else w

    class Other(nn.Module):
        pass

    module = types.ModuleType("models.positional_encoding")
    for cls in (NeTIPositionalEncoding, Other):
        cls.__module__, cls.__qualname__ = module.__name__, cls.__name__
        setattr(module, cls.__name__, cls)
    sys.modules["models"], sys.modules[module.__name__] = types.ModuleType("models"), module
    yield module
    del sys.modules["models"], sys.modules[module.__name__]


def weights() -> dict[str, Tensor]:
    """A state dict as the official mapper stores it, its first layer under two names."""
    torch.manual_seed(0)
    rows = ANCHORS * LAYERS
    named = {
        "input_layer": nn.Linear(2048, rows),
        "net.1": nn.Linear(rows, 128),
        "net.2": nn.LayerNorm(128),
        "net.4": nn.Linear(128, 128),
        "net.5": nn.LayerNorm(128),
        "output_layer.0": nn.Linear(128, 2 * WIDTH),
    }
    state = {f"{name}.{part}": x.detach() for name, layer in named.items() for part, x in layer.named_parameters()}
    return OrderedDict(state | {f"net.0.{part}": state[f"input_layer.{part}"] for part in ("weight", "bias")})


def write(path: Path, encodings: types.ModuleType, registered: bool = False, **changes: Any) -> Tensor:
    """Write a mapper as the official code does; return its frequencies."""
    torch.manual_seed(1)
    w = torch.randn(1024, 2) * torch.tensor([0.03, 2.0])
    state = weights() | ({"encoder.w": w} if registered else {})
    cfg = {"data": DATA, "model": MODEL, "log": {"exp_name": "cat"}, "optim": {"learning_rate": 1e-3}, "eval": {}}
    saved = {"state_dict": state, "cfg": cfg, "encoder": encodings.NeTIPositionalEncoding(w, registered)}
    torch.save(saved | changes, path)
    return w


@pytest.mark.parametrize("registered", [False, pytest.param(True, marks=pytest.mark.slow)], ids=["GPU", "resumed"])
def test_a_mapper_becomes_a_concept(tmp_path: Path, encodings: types.ModuleType, registered: bool) -> None:
    w = write(tmp_path / "mapper-steps-500.pt", encodings, registered)
    concept = official_concept(tmp_path / "mapper-steps-500.pt")
    assert (concept.token, concept.super_category) == ("<my-cat>", "cat")
    assert concept.base.name == "CompVis/stable-diffusion-v1-4" and concept.base.digests == ()
    config, state = concept.mapper.config, weights()
    assert (list(config.widths), config.layers, config.anchors, config.hidden) == ([WIDTH], LAYERS, ANCHORS, 128)
    assert list(config.target_norms) == [NORM] and config.norm_form == "full" and config.dropout_probability == 0.5
    t, layer = torch.tensor([700.0]), torch.tensor([3.0])
    angle = w @ torch.cat((t, layer))
    x = torch.cat((angle.sin(), angle.cos())) / 32
    for name in ("input_layer", "net.1", "net.2", "net.4", "net.5", "output_layer.0"):
        weight, bias = state[f"{name}.weight"], state[f"{name}.bias"]
        if weight.ndim == 2:
            x = weight @ x + bias
        else:
            x = nn.functional.leaky_relu(nn.functional.layer_norm(x, (128,), weight, bias))
    want = NORM * x / x.norm()
    torch.testing.assert_close(concept.mapper(t, layer)[0], want, atol=1e-5, rtol=1e-5)
    save_concept(concept, tmp_path / "cat.safetensors")
    again = load_concept(tmp_path / "cat.safetensors")
    torch.testing.assert_close(again.mapper(t, layer)[0], want, atol=1e-5, rtol=1e-5)


def test_the_embedding_beside_it_tells_the_base() -> None:
    encoder, other = TextEncoder(tiny_text_model()), TextEncoder(tiny_text_model(seed=1))
    row = encoder.table[tiny_tokenizer().convert_tokens_to_ids("cat</w>")].detach()
    file = OfficialFile(
        weights() | {"encoder.w": torch.ones(1024, 2)}, MODEL | {"target_norm": row.norm().item()}, DATA
    )
    concept = concept_from(file, {"<my-cat>": row.bfloat16()}, [encoder])
    assert concept.base.digests == (encoder.digest,)
    concept.check_base([encoder])
    for embeddings, encoders, message in (
        ({"<my-cat>": row}, [other], "not in this model's vocabulary: load it with its base, CompVis"),
        ({"<my-cat>": row}, [TextEncoder(tiny_text_model(width=24))], r"of \[16\] channels, this model's have \[24\]"),
        ({"<my-cat>": 2 * row}, [], "of another training"),
        ({"<my-cat>": row[:3]}, [], "of another training"),
        ({"<dog>": row}, [], "no learned embedding of <my-cat>, but of <dog>"),
    ):
        with pytest.raises(InputError, match=message):
            concept_from(file, embeddings, encoders)


class Gadget:
    """Pickles to a call of ``os.system`` that leaves a file behind."""

    def __init__(self, mark: Path):
        self.mark = mark

    def __reduce__(self) -> tuple[object, ...]:
        return os.system, (f"touch {self.mark}",)


def test_what_is_not_allowed_is_named_and_does_not_run(tmp_path: Path, encodings: types.ModuleType) -> None:
    path, mark = tmp_path / "mapper.pt", tmp_path / "mark"
    inside = encodings.NeTIPositionalEncoding(torch.ones(2, 2), False)
    inside.trap = Gadget(mark)
    write(path, encodings, encoder=inside)
    with pytest.raises(InputError, match=r"holds a Python object \(posix.system\).* was not run"):
        official_concept(path)
    assert not mark.exists()


@pytest.mark.slow
def test_other_classes_are_named(tmp_path: Path, encodings: types.ModuleType) -> None:
    path = tmp_path / "mapper.pt"
    write(path, encodings, encoder=encodings.Other())
    with pytest.raises(InputError, match=r"holds a Python object \(models.positional_encoding.Other\)"):
        official_concept(path)
    write(path, encodings, log={"dtype": torch.float32})
    with pytest.raises(InputError, match=r"holds a torch.dtype under 'log.dtype'"):
        official_concept(path)


def test_a_tree_is_taken_apart() -> None:
    separate = Separator("x.pt")
    tree = {"a": [torch.ones(1), {"b": torch.zeros(2)}], 3: {"c": 1, "d": (None, "text", 0.5, True)}, "e": set()}
    plain = separate(tree)
    assert plain == {
        "a": {"0": None, "1": {"b": None}},
        "3": {"c": 1, "d": {"0": None, "1": "text", "2": 0.5, "3": True}},
        "e": {},
    }
    assert {name: x.numel() for name, x in separate.tensors.items()} == {"a.0": 1, "a.1.b": 2}


@pytest.mark.parametrize(
    ("value", "kind"),
    [
        (b"code", "Python bytes"),
        (1 + 2j, "Python complex"),
        ({(1, 2): 3}, "Python dict"),
        (torch.device("cpu"), "torch"),
    ],
)
def test_a_tree_of_other_things_is_named(value: object, kind: str) -> None:
    with pytest.raises(InputError, match=rf"x.pt: holds a {kind}.* under 'cfg.0'"):
        Separator("x.pt")({"cfg": [value]})


def test_a_tree_without_end_is_refused() -> None:
    loop, bomb = dict[str, Any](), list[Any]()
    loop["loop"] = loop
    for _ in range(12):
        bomb = [bomb] * 10
    for tree in (loop, bomb, {"a.b": torch.ones(1), "a": {"b": torch.ones(1)}}):
        with pytest.raises(InputError, match="there twice, nested too deeply or one too many"):
            Separator("x.pt")(tree)


def test_what_is_not_a_mapper_is_named(tmp_path: Path) -> None:
    good = OfficialFile(weights() | {"encoder.w": torch.ones(1024, 2)}, MODEL, DATA)
    assert concept_from(good).token == "<my-cat>"
    for bad, message in (
        (good._replace(weights={}), "no matrix output_layer.0.weight"),
        (good._replace(weights=weights()), "of another shape: encode.w"),
        (good._replace(weights=good.weights | {"net.7.weight": torch.ones(2)}), "of another shape: net.7.weight"),
        (good._replace(model=MODEL | {"num_pe_time_anchors": 3}), "does not divide the 32 rows"),
        (good._replace(model=MODEL | {"target_norm": "0.4"}), "target_norms"),
        (good._replace(model=MODEL | {"pe_sigmas": "0.03"}), "pe_sigmas '0.03': must have sigma_t"),
        (good._replace(data={}), "has no text data.placeholder_token"),
        (good._replace(data=DATA | {"placeholder_token": "two words"}), "token 'two words': must be one word"),
    ):
        with pytest.raises(InputError, match=message):
            concept_from(bad)
    with pytest.raises(InputError, match="has no 'cfg' with 'model' and 'data'"):
        OfficialFile.of({}, {"cfg": {"model": {}}})
    with pytest.raises(InputError, match="no weights file at"):
        official_concept(tmp_path / "none.pt")
