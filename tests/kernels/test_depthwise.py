"""The residual depthwise convolution: values and gradients against the twin, and when its kernel runs."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from belvedere.kernels import backends, depthwise_residual, reference
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


@pytest.mark.parametrize(("asked", "runs"), [(None, False), ("plain", False), ("all", True)])
def test_a_kernel_that_no_gpu_has_timed_runs_only_where_it_is_asked_for(
    asked: str | None, runs: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if asked is None:
        monkeypatch.delenv("BELVEDERE_KERNELS", raising=False)
    else:
        monkeypatch.setenv("BELVEDERE_KERNELS", asked)
    monkeypatch.setattr(backends, "fused", lambda x: True)
    monkeypatch.setattr(backends, "_all_asked", backends._all_asked.__wrapped__)
    assert backends.fused_where_asked(torch.ones(1)) is runs
