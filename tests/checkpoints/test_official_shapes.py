"""Every published file fits, by the names and shapes of all its tensors, without memory.

``official_shapes.json.gz`` has the lists of the specifications; the HR variants of FiTv2 share those of the others.
"""

import gzip
import json
from functools import cache
from math import prod
from pathlib import Path

import pytest
import torch
from torch import Tensor

from belvedere.checkpoints.front import system_of
from belvedere.checkpoints.official import IMPORTERS, load_official
from belvedere.checkpoints.official_neti import neti_config, neti_names
from belvedere.generation.neti import NeTIMapper
from tests.checkpoints.test_official_nvist import table

LISTS = Path(__file__).with_name("official_shapes.json.gz")
DISTANCES = {"near": 0.3, "far": 1.9}
FILES = [
    ("dimr XL/2R-256", "XL/2R-256", 1018, 505_046_408),
    ("dimr G/2R-256", "G/2R-256", 1446, 1_056_352_904),
    ("fitv2 XL/2", "XL/2", 517, 671_045_776),
    ("fitv2 3B/2", "3B/2", 573, 2_971_928_080),
    ("fitv2 XL/2", "HR-XL/2", 517, 671_045_776),
    ("fitv2 3B/2", "HR-3B/2", 573, 2_971_928_080),
    ("nvist NViST", None, 397, 216_006_787),
    ("segpic SegPIC", None, 919, 92_050_130),
]


@cache
def lists() -> dict[str, dict[str, list[int]]]:
    found: dict[str, dict[str, list[int]]] = json.loads(gzip.decompress(LISTS.read_bytes()))
    return found


def published(name: str) -> dict[str, Tensor]:
    """An official state dict without memory; only positions, from which NViST's sizes are read, have numbers."""
    weights = {key: torch.empty(shape, device="meta") for key, shape in lists()[name].items()}
    if name.startswith("nvist"):
        weights["encoder.pos_embed"] = table(32, 18, 768, 0.0)
        weights["decoder.decoder_pos_embed"] = table(48, 17, 768, 0.5)
    return weights


@pytest.mark.parametrize(("name", "variant", "tensors", "numbers"), FILES, ids=[f"{a} {b or ''}" for a, b, *_ in FILES])
def test_the_published_file_fits(name: str, variant: str | None, tensors: int, numbers: int) -> None:
    shapes, system = lists()[name], name.split()[0]
    assert len(shapes) == tensors and sum(map(prod, shapes.values())) == numbers
    weights = published(name)
    assert {key: list(x.shape) for key, x in weights.items()} == shapes
    assert system_of(weights, name) == system
    model = load_official(system, weights, DISTANCES if system == "nvist" else variant)
    ours = IMPORTERS[system].names(weights)
    assert {key: x.shape for key, x in model.state_dict().items()} == {key: x.shape for key, x in ours.items()}
    if variant is not None:
        wanted = IMPORTERS[system].variants[variant]
        assert {field: model.config[field] for field in wanted} == wanted


@pytest.mark.parametrize("name", ["dimr XL/2R-256", "fitv2 3B/2", "nvist NViST", "segpic SegPIC"])
def test_a_tensor_less_is_noticed(name: str) -> None:
    system = name.split()[0]
    last = {"dimr": "stages.1.output_layer.2.bias", "fitv2": "final_layer.linear.bias"}
    weights = published(name)
    del weights[last.get(system, {"nvist": "renderer.rgb_mlp.2.bias", "segpic": "g_s1.3.bias"}.get(system, ""))]
    with pytest.raises(ValueError, match="1 differences: missing"):
        load_official(system, weights, DISTANCES if system == "nvist" else None)


def test_the_published_mapper_fits() -> None:
    weights = published("neti mapper")
    with torch.device("meta"):
        mapper = NeTIMapper(**neti_config(weights, {"target_norm": 0.4}))
    ours = neti_names(weights) | {"encode.w": torch.empty(1024, 2, device="meta")}
    assert {key: x.shape for key, x in mapper.state_dict().items()} == {key: x.shape for key, x in ours.items()}
    trained = sum(prod(shape) for key, shape in lists()["neti mapper"].items() if not key.startswith("net.0."))
    assert trained == 563_616
