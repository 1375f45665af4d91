"""The region filter in Triton's interpreter, by the public function, against the plain twin: values and gradients."""

from collections.abc import Iterator
from unittest import mock

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("triton", reason="triton is not installed: pip install 'belvedere[test]'")

from belvedere.kernels import reference, region
from belvedere.kernels.triton import region as fused_region
from tests.kernels.test_ops import DTYPES, random
from tests.kernels.test_region import SIDES, inputs
from tests.kernels.triton.fused import agree, routed

fewer = settings(max_examples=4, deadline=None)


@pytest.fixture(scope="module", autouse=True)
def _routed() -> Iterator[None]:
    with routed(region):
        yield


@pytest.fixture(scope="module")
def low() -> Iterator[None]:
    """Strips of two rows: the interpreter takes as long for each row as for a whole row of columns."""
    with mock.patch.multiple(fused_region, ROWS=2, GRADIENT_ROWS=2, SHARES=2):
        yield


@pytest.mark.slow
@fewer
@given(st.integers(1, 2), st.integers(1, 2), SIDES, SIDES, DTYPES)
@pytest.mark.usefixtures("low")
def test_values_and_gradients(b: int, c: int, h: int, w: int, dtype: torch.dtype) -> None:
    agree(region.region_filter, reference.region_filter, *inputs(b, c, h, w, dtype))


@pytest.mark.usefixtures("low")
def test_maps_larger_than_a_program(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fused_region, "COLUMNS", 4)
    agree(region.region_filter, reference.region_filter, *inputs(2, 1, 3, 5))


def test_other_strides() -> None:
    x, features, weight, bias = inputs(1, 2, 4, 5)
    turned = [map_.detach().transpose(2, 3).requires_grad_() for map_ in (x, features)]
    agree(region.region_filter, reference.region_filter, *turned, weight, bias)


def test_a_picture_alone_or_among_others() -> None:
    x, features, weight, bias = (tensor.detach() for tensor in inputs(2, 1, 5, 4))
    whole = region.region_filter(x, features, weight, bias)
    assert torch.equal(whole[1:], region.region_filter(x[1:], features[1:], weight, bias))


@pytest.mark.slow
@mock.patch.multiple(fused_region, ROWS=1, GRADIENT_ROWS=1, SHARES=1)
def test_registration() -> None:
    weights = random(2, 9, 1, 3, 3), random(2, 9)
    given = random(1, 2, 2, 3), random(1, 2, 2, 3), *weights
    parts = ("test_schema", "test_autograd_registration", "test_faketensor")
    torch.library.opcheck(torch.ops.belvedere.region_filter, given, test_utils=parts)
    torch.library.opcheck(torch.ops.belvedere.region_filter_backward, [x.detach() for x in (given[0], *given)])
