"""The tables stored with a model: values by hand, and everything a loader must refuse."""

import math
from collections.abc import Callable
from copy import deepcopy

import pytest
import torch
from torch import Tensor

from belvedere.compression.exact_tables import FRACTION, GATE, LIMIT, REACH, ExactTables, make
from belvedere.compression.official_tables import Tables, bottleneck_tables, gaussian_tables, scale_table
from belvedere.compression.probabilities import Bottleneck
from belvedere.errors import InputError
from tests.compression.test_segpic import small

UNIT = 2**FRACTION
MODEL = small()
STORED = make(MODEL)

Tensors = dict[str, Tensor]


def settled(bottleneck: Bottleneck) -> Tables:
    """The tables of a bottleneck whose quantiles are where they belong."""
    alone = deepcopy(bottleneck)
    alone.settle_quantiles()
    return bottleneck_tables(alone)


def test_what_is_made_is_loaded() -> None:
    tables = ExactTables.of(STORED, MODEL.config)
    assert all(tensor.dtype == torch.int32 for tensor in STORED.values())
    assert tables.numbers["y"] == gaussian_tables()
    assert tables.numbers["z"] == settled(MODEL.bottleneck)
    assert tables.numbers["prototypes2"] == settled(MODEL.prototypes2.bottleneck)
    assert {name: len(median) for name, median in tables.medians.items()} == {
        "z": 6,
        "prototypes1": 4,
        "prototypes2": 4,
    }


def test_curves_by_the_standard_library() -> None:
    curves = ExactTables.of(STORED, MODEL.config).curves
    for x in (-REACH, -1.5, -0.25, 0.0, 1 / UNIT, 0.75, 3.0, REACH):
        at = round((x + REACH) * UNIT)
        assert abs(curves["gelu"][at].item() - x * (1 + math.erf(x / math.sqrt(2))) / 2 * UNIT) <= 0.5001
        assert abs(curves["half_tanh"][at].item() - math.tanh(x) / 2 * UNIT) <= 0.5001
        assert abs(curves["sigmoid"][at].item() - 2**GATE / (1 + math.exp(-x))) <= 0.5001


def test_a_scale_has_the_table_that_is_nearest_in_its_logarithm() -> None:
    bounds = ExactTables.of(STORED, MODEL.config).scales
    scales = torch.arange(1, 300 * UNIT, 7)
    distance = (torch.log(scales / UNIT)[:, None] - torch.log(scale_table())).abs()  # (n, tables)
    found = distance.gather(1, torch.searchsorted(bounds, scales.int())[:, None])[:, 0]
    assert (found - distance.amin(1)).max() < 2 / UNIT / 0.11  # a unit of rounding, at the smallest scale
    assert len(bounds) == len(scale_table()) - 1


def test_the_tables_reach_as_far_as_the_distribution() -> None:
    model = small()
    with torch.no_grad():
        model.bottleneck.matrices[0].add_(2)  # much narrower than the quantiles say
    wide, narrow = (make(small())["z.length"], make(model)["z.length"])
    assert (narrow < wide).all()


def test_medians_are_rounded_and_the_model_stays_as_it_is() -> None:
    model = small().half()
    with torch.no_grad():
        model.bottleneck.quantiles[2, 0, 1] = 0.75
    assert make(model)["z.median"].tolist() == [0, 0, 0.75 * UNIT, 0, 0, 0]
    assert model.bottleneck.quantiles.dtype == torch.float16


@pytest.mark.parametrize("median", [1e9, -3000.0, float("nan")])
def test_a_median_decides_how_large_a_table_is_and_is_near(median: float) -> None:
    model = small()
    with torch.no_grad():
        model.prototypes2.bottleneck.quantiles[1, 0, 1] = median
    with pytest.raises(InputError, match=r"prototypes2 of a model has medians up to .*: at most 1024"):
        make(model)


def changed(name: str, change: Callable[[Tensor], Tensor]) -> Tensors:
    return STORED | {name: change(STORED[name].clone())}


def put(at: int, value: int) -> Callable[[Tensor], Tensor]:
    def change(tensor: Tensor) -> Tensor:
        tensor[at] = value
        return tensor

    return change


def swap(tensor: Tensor) -> Tensor:
    """Exchange the second and the third number."""
    return tensor[[0, 2, 1, *range(3, len(tensor))]]


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({}, "missing or unknown gelu, half_tanh, "),
        (STORED | {"extra": STORED["gelu"]}, "missing or unknown extra"),
        (changed("gelu", Tensor.float), "gelu of a model is torch.float32 .*must be int32"),
        (changed("gelu", Tensor.long), "gelu of a model is torch.int64"),
        (
            changed("sigmoid", lambda t: t[1:]),
            r"sigmoid of a model is torch.int32 \(16384,\): must be int32 \(16385,\)",
        ),
        (changed("half_tanh", lambda t: t[:, None]), r"half_tanh of a model is torch.int32 \(16385, 1\)"),
        (changed("gelu", put(0, -(2**31))), "gelu of a model has numbers from -2147483648"),
        (changed("half_tanh", put(5, UNIT)), "half_tanh of a model has numbers from -512 to 1024: must be from -512"),
        (changed("sigmoid", put(5, 2**GATE + 1)), "sigmoid of a model has numbers"),
        (changed("scales", swap), "scales of a model does not rise"),
        (changed("scales", put(62, LIMIT + 1)), "scales of a model has numbers"),
        (changed("z.median", put(0, LIMIT + 1)), "z.median of a model has numbers"),
        (changed("z.median", lambda t: t[1:]), r"z.median of a model is torch.int32 \(5,\): must be int32 \(6,\)"),
        (changed("y.length", put(0, 2)), "y.length of a model has numbers from 2"),
        (changed("y.length", put(0, -1)), "y.length of a model has numbers from -1"),
        (changed("y.length", put(0, 9)), "y.cdf of a model is"),
        (changed("y.cdf", put(0, 1)), "y.cdf of a model does not rise from 0 to 65536"),
        (changed("y.cdf", put(1, 0)), "y.cdf of a model does not rise"),
        (changed("y.cdf", put(-1, 65535)), "y.cdf of a model does not rise"),
        (changed("prototypes1.cdf", swap), "prototypes1.cdf of a model does not rise"),
        (changed("prototypes2.offset", put(1, 2**21)), "prototypes2.offset of a model has numbers"),
        (changed("z.offset", lambda t: t[:0]), "z.offset of a model is"),
    ],
)
def test_what_is_refused(tensors: Tensors, message: str) -> None:
    with pytest.raises(InputError, match=message):
        ExactTables.of(tensors, MODEL.config)


def test_tables_of_another_model() -> None:
    with pytest.raises(InputError, match="z"):
        ExactTables.of(STORED, small(hyper=[10, 8, 8, 8]).config)
