"""The residual depthwise convolution: values and gradients against the twin, and when its kernel runs."""

from functools import partial

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from belvedere.kernels import depthwise_packed, depthwise_residual, reference
from tests.kernels.test_ops import DTYPES, agree, random

fewer = settings(max_examples=25, deadline=None)
SIZES = st.integers(1, 9)


def inputs(b: int, h: int, w: int, c: int, side: int, dtype: torch.dtype = torch.float32) -> tuple[Tensor, ...]:
    weights = random(c, 1, side, side, dtype=dtype, seed=1), random(c, dtype=dtype, seed=2)
    return random(b, h, w, c, dtype=dtype), *weights


@fewer
@given(st.integers(1, 3), SIZES, SIZES, st.integers(1, 5), st.sampled_from([1, 3, 7, 9]), DTYPES)
def test_values_and_gradients(b: int, h: int, w: int, c: int, side: int, dtype: torch.dtype) -> None:
    agree(depthwise_residual, reference.depthwise_residual, *inputs(b, h, w, c, side, dtype))


def test_one_place_of_the_filter_shifts_and_the_picture_is_added() -> None:
    x, weight = torch.arange(6.0).view(1, 2, 3, 1), torch.zeros(1, 1, 3, 3)
    weight[0, 0, 1, 0] = 10  # the left neighbour
    assert depthwise_residual(x, weight, torch.ones(1)).flatten().tolist() == [1, 2, 13, 4, 35, 46]


# Packed pictures


def packed(sizes: list[tuple[int, int]], cells: int, c: int, dtype: torch.dtype = torch.float32) -> tuple[Tensor, ...]:
    count = sum(h * w for h, w in sizes) * cells**2
    weights = random(c, 1, 3, 3, dtype=dtype, seed=1), random(c, dtype=dtype, seed=2)
    return random(count, c, dtype=dtype), *weights


def one_by_one(x: Tensor, weight: Tensor, bias: Tensor, *, sizes: list[tuple[int, int]], cells: int) -> Tensor:
    """The twin: each picture made of its cells, filtered by the twin of one picture, and cut up again."""
    done = []
    for part, (h, w) in zip(x.split([h * w * cells**2 for h, w in sizes]), sizes, strict=True):
        picture = torch.stack(
            [
                torch.stack(
                    [
                        part[((i // cells * w + j // cells) * cells + i % cells) * cells + j % cells]
                        for j in range(w * cells)
                    ]
                )
                for i in range(h * cells)
            ]
        )[None]
        filtered = (reference.depthwise_residual(picture, weight, bias) - picture)[0]
        done += [
            filtered[row * cells + i, column * cells + j]
            for row in range(h)
            for column in range(w)
            for i in range(cells)
            for j in range(cells)
        ]
    return torch.stack(done)


@fewer
@given(st.lists(st.tuples(st.integers(1, 4), st.integers(1, 4)), min_size=1, max_size=3), st.integers(1, 3))
def test_packed_values_and_gradients(sizes: list[tuple[int, int]], cells: int) -> None:
    def run(*given: Tensor) -> Tensor:
        return depthwise_packed(*given, torch.tensor(sizes), cells)

    def compiled(*given: Tensor) -> Tensor:
        return torch.ops.belvedere.depthwise_packed(*given, torch.tensor(sizes), cells)

    given = packed(sizes, cells, 4)
    for function in (run, compiled):
        agree(function, partial(one_by_one, sizes=sizes, cells=cells), *given)


def test_packed_pictures_do_not_see_each_other() -> None:
    sizes = [(3, 5), (2, 2), (4, 1)]
    x, *weights = packed(sizes, 2, 8)
    whole = depthwise_packed(x, *weights, torch.tensor(sizes), 2).split([60, 16, 16])
    for part, alone, size in zip(whole, x.split([60, 16, 16]), sizes, strict=True):
        assert torch.equal(part, depthwise_packed(alone, *weights, torch.tensor([size]), 2))


@pytest.mark.parametrize("compiled", [False, True])
def test_packed_in_autocast_is_what_a_convolution_is_there(compiled: bool) -> None:
    x, weight, bias = packed([(2, 3)], 1, 4)
    run = torch.compile(depthwise_packed, fullgraph=True, backend="eager") if compiled else depthwise_packed
    with torch.autocast("cpu", torch.bfloat16):
        got = run(x, weight, bias, torch.tensor([(2, 3)]))
        want = F.conv2d(x.view(1, 2, 3, 4).permute(0, 3, 1, 2), weight, bias, padding=1, groups=4)
    assert got.dtype == torch.bfloat16 and torch.equal(got.view(2, 3, 4), want[0].permute(1, 2, 0))


def test_parts_of_pictures_are_refused() -> None:
    with pytest.raises(ValueError, match="pictures of 6 cells in all, given 5"):
        depthwise_packed(*packed([(1, 5)], 1, 4), torch.tensor([(2, 3)]))


def test_packed_is_one_operation_for_a_compiler() -> None:
    given = (*(x.requires_grad_() for x in packed([(2, 3), (1, 1)], 2, 4)), torch.tensor([(2, 3), (1, 1)]), 2)
    torch.library.opcheck(torch.ops.belvedere.depthwise_packed, given)
