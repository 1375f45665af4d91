"""The residual depthwise convolution in Triton's interpreter, by the public function, against the plain twin."""

from collections.abc import Iterator
from unittest import mock

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("triton", reason="triton is not installed: pip install 'belvedere[test]'")

from belvedere.kernels import depthwise, reference
from belvedere.kernels.triton import depthwise as fused_depthwise
from tests.kernels.test_depthwise import SIZES, inputs
from tests.kernels.test_ops import DTYPES, random
from tests.kernels.triton.fused import agree, gradients, same

fewer = settings(max_examples=4, deadline=None)


@pytest.fixture(scope="module", autouse=True)
def _routed() -> Iterator[None]:
    with mock.patch.object(depthwise, "fused", lambda x: True):
        yield


@fewer
@given(st.integers(1, 2), SIZES, SIZES, st.integers(1, 3), st.sampled_from(depthwise.SIDES), DTYPES)
def test_values_and_gradients(b: int, h: int, w: int, c: int, side: int, dtype: torch.dtype) -> None:
    agree(depthwise.depthwise_residual, reference.depthwise_residual, *inputs(b, h, w, c, side, dtype))


def test_pictures_and_channels_larger_than_a_program(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, size in (("ROWS", 2), ("SUMMED_ROWS", 2), ("COLUMNS", 4), ("CHANNELS", 4), ("TILES", 2)):
        monkeypatch.setattr(fused_depthwise, name, size)
    agree(depthwise.depthwise_residual, reference.depthwise_residual, *inputs(2, 3, 6, 6, 3))


def test_no_picture_at_all() -> None:
    value, *slopes = gradients(depthwise.depthwise_residual, *inputs(0, 3, 3, 2, 3))
    assert value.shape == (0, 3, 3, 2) and not any(slope.any() for slope in slopes)


def test_other_strides() -> None:
    x, weight, bias = inputs(1, 4, 5, 3, 3)
    turned = x.detach().permute(0, 3, 1, 2).contiguous().permute(0, 2, 3, 1).requires_grad_()
    agree(depthwise.depthwise_residual, reference.depthwise_residual, turned, weight, bias)


def test_weights_of_another_type_than_the_picture() -> None:
    x, weight, bias = inputs(1, 4, 5, 3, 3)
    value, *slopes = gradients(depthwise.depthwise_residual, x.bfloat16(), weight, bias)
    assert [part.dtype for part in (value, *slopes)] == [torch.bfloat16, torch.bfloat16, torch.float32, torch.float32]


def test_a_picture_alone_or_among_others() -> None:
    x, weight, bias = inputs(2, 5, 4, 3, 3)
    whole, among, *_ = gradients(depthwise.depthwise_residual, x, weight, bias)
    alone, slope, *_ = gradients(depthwise.depthwise_residual, x[1:], weight, bias)
    assert same((whole[1:], among[1:]), (alone, slope))


@pytest.mark.slow
def test_registration() -> None:
    given = random(1, 3, 4, 2), random(2, 1, 3, 3), random(2)
    parts = ("test_schema", "test_autograd_registration", "test_faketensor")
    torch.library.opcheck(torch.ops.belvedere.depthwise_residual, given, test_utils=parts)
    for dtype in (torch.float32, torch.bfloat16):
        kept = [x.detach().to(dtype) for x in (given[0], *given)]
        torch.library.opcheck(torch.ops.belvedere.depthwise_residual_backward, kept)
