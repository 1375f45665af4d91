"""Exact layers: against sums of Python's own integers or float64 layers, in any shape, and bounds that hold."""

import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from belvedere import kernels
from belvedere.compression.exact_layers import (
    BITS,
    Conv3x3,
    Gelu,
    InverseGDN,
    Leaky,
    Pointwise,
    RegionFilter,
    exact,
    integers,
    rounded,
)
from belvedere.compression.exact_tables import FRACTION, LIMIT, REACH, make
from belvedere.compression.layers import GDN
from belvedere.errors import InputError
from tests.compression.test_segpic import small

UNIT = 2**FRACTION
GELU = Gelu(make(small())["gelu"])


def activations(*shape: int, most: int = 4 * UNIT, seed: int = 0) -> Tensor:
    return torch.randint(-most, most + 1, shape, generator=torch.Generator().manual_seed(seed)).double()


def conv(inputs: int, outputs: int, side: int, largest: float = 1.0, seed: int = 0, groups: int = 1) -> nn.Conv2d:
    torch.manual_seed(seed)
    layer = nn.Conv2d(inputs, outputs, side, padding=side // 2, groups=groups)
    with torch.no_grad():
        layer.weight.mul_(largest)
    return layer


def slowly(layer: nn.Conv2d, x: Tensor) -> Tensor:
    """Return the layer's activations by int64 sums, one neighbour at a time."""
    weight, shift = integers(layer.weight)
    weight, side = weight.long(), layer.kernel_size[0]
    bias = torch.zeros(len(shift)) if layer.bias is None else layer.bias.detach()
    sums = torch.floor(torch.ldexp(bias.double(), shift + FRACTION) + 0.5).long()[:, None, None]
    padded = F.pad(x.long(), [side // 2] * 4)
    for down in range(side):
        for right in range(side):
            near = padded[:, :, down : down + x.shape[2], right : right + x.shape[3]]
            sums = sums + (near[:, None] * weight[:, :, down, right, None, None]).sum(2)
    half = torch.bitwise_left_shift(torch.ones_like(shift), shift - 1)[:, None, None]
    return ((sums + half) >> shift[:, None, None]).clamp(-LIMIT, LIMIT).double()


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 3), st.integers(1, 7), st.integers(1, 7), st.integers(1, 5), st.integers(1, 5), st.floats(-9, 9))
def test_convolutions_are_integer_sums(b: int, c: int, o: int, h: int, w: int, log: float) -> None:
    for side, kind in ((1, Pointwise), (3, Conv3x3)):
        layer = conv(c, o, side, math.exp(log))
        x = activations(b, c, h, w, most=LIMIT)
        assert torch.equal(kind(layer)(x), slowly(layer, x))


def test_convolutions_at_the_bounds() -> None:
    layer = conv(64, 3, 3)
    with torch.no_grad():
        layer.weight.fill_(0.999)
    x = torch.full((1, 64, 4, 4), LIMIT, dtype=torch.float64)
    for signs in (1, -1):
        assert torch.equal(Conv3x3(layer)(x * signs), slowly(layer, x * signs))


@pytest.mark.parametrize("make_layer", [lambda: conv(5, 4, 1), lambda: conv(5, 4, 3), lambda: GDN(5, inverse=True)])
def test_layers_are_near_the_floats(make_layer: Callable[[], nn.Module]) -> None:
    layer, x = make_layer(), activations(2, 5, 6, 7)
    want = layer.double()(x / UNIT)
    assert torch.allclose(exact(layer, GELU)(x) / UNIT, want, atol=2 / UNIT, rtol=2e-3)


def test_region_filter() -> None:
    taps = conv(40, 360, 3, groups=40)  # more channels than are done together
    x, features = activations(2, 40, 5, 6), activations(2, 40, 5, 6, seed=1)
    want = kernels.region_filter(x / UNIT, features / UNIT, *taps.double().parameters())
    assert torch.allclose(RegionFilter(taps)(x, features) / UNIT, want, atol=9 * 4 / UNIT)


def test_inverse_gdn_takes_exact_roots() -> None:
    gdn = GDN(1, inverse=True)
    with torch.no_grad():
        gdn.beta.fill_(math.sqrt(2.0))
        gdn.gamma.fill_(1.0)
    layer = InverseGDN(gdn)
    for x in (0, 1, -5000, LIMIT // 3, LIMIT):
        square = (x * x + UNIT // 2) // UNIT
        (gamma,), (bias,), (step,) = (t.flatten().tolist() for t in (layer.weight, layer.bias, layer.step))
        root = math.isqrt(int((int(gamma) * square + int(bias)) * step))
        want = min(max((x * root + UNIT // 2) // UNIT, -LIMIT), LIMIT)
        assert layer(torch.full((1, 1, 1, 1), float(x), dtype=torch.float64)).item() == want


def test_gelu_and_leaky_everywhere() -> None:
    x = torch.cat([torch.arange(-9 * UNIT, 9 * UNIT), torch.tensor([-LIMIT, LIMIT])]).double()
    assert (GELU(x) - F.gelu(x / UNIT) * UNIT).abs().max() <= 0.5001
    assert GELU(x)[-2:].tolist() == [0, LIMIT] and REACH < 9
    assert (Leaky()(x) - F.leaky_relu(x, 0.1)).abs().max() <= 0.5 + LIMIT * 1e-5


def test_halves_are_rounded_up() -> None:
    assert rounded(torch.tensor([-6.0, -2.0, 2.0, 5.0, 6.0, 1e12]), 2).tolist() == [-1, 0, 1, 1, 2, LIMIT]


def test_weights_keep_their_precision_at_any_size() -> None:
    weight = torch.tensor([[1.0, -0.3], [3e-3, 1e-3], [700.0, 0.1], [0.0, 0.0]])
    whole, shift = integers(weight)
    assert torch.equal(whole, whole.round()) and (whole.abs() <= 2**BITS).all()
    error = (torch.ldexp(whole, -shift[:, None]) - weight).abs().amax(1)
    assert (error <= 2.0 ** -(shift + 1)).all() and shift.tolist() == [13, 22, 4, 14]


@pytest.mark.parametrize("value", [1e5, math.inf, math.nan])
@pytest.mark.parametrize("side", [1, 3])
def test_weights_too_large_are_refused(value: float, side: int) -> None:
    layer = conv(3, 2, side)
    with torch.no_grad():
        layer.weight[1, 2, 0, 0] = value
    with pytest.raises(InputError, match="exact sums take up to 8192"):
        exact(layer, GELU)


@pytest.mark.parametrize("value", [2.0**28, math.inf, math.nan])
@pytest.mark.parametrize("side", [1, 3])
def test_sums_too_large_are_refused(value: float, side: int) -> None:
    layer = conv(3, 2, side)
    assert layer.bias is not None
    with torch.no_grad():
        layer.bias[1] = value
    with pytest.raises(InputError, match="weights make sums up to"):
        exact(layer, GELU)


def test_many_large_weights_are_refused() -> None:
    for side, inputs in ((1, 2**17 + 2**10), (3, 2**12)):
        layer = nn.Conv2d(inputs, 1, side, padding=side // 2)
        torch.nn.init.constant_(layer.weight, 0.9999)
        with pytest.raises(InputError, match="weights make sums up to"):
            exact(layer, GELU)


@pytest.mark.parametrize(
    ("value", "message"), [(20.0, "weights make sums"), (40.0, "take up to 512"), (math.nan, "take up to 512")]
)
def test_an_inverse_gdn_too_large_is_refused(value: float, message: str) -> None:
    gdn = GDN(200, inverse=True)
    torch.nn.init.constant_(gdn.gamma, value)
    with pytest.raises(InputError, match=message):
        exact(gdn, GELU)


def test_layers_without_an_exact_form() -> None:
    with pytest.raises(TypeError, match="no exact layer for Tanh"):
        exact(nn.Tanh(), GELU)
