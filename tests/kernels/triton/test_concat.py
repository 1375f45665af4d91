"""The norm over many activations, folded in a few at a time in Triton's interpreter, against the plain twin."""

from collections.abc import Iterator
from unittest import mock

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

pytest.importorskip("triton", reason="triton is not installed: pip install 'belvedere[test]'")

from belvedere import kernels
from belvedere.kernels import concat as public
from belvedere.kernels import reference
from tests.generation import test_dimr
from tests.kernels.test_ops import DTYPES, random
from tests.kernels.triton.fused import agree, gradients, routed, same


@pytest.fixture(scope="module", autouse=True)
def _routed() -> Iterator[None]:
    with routed(public):
        yield


def streamed(gain: Tensor, bias: Tensor, weight: Tensor, linear_bias: Tensor, *xs: Tensor) -> Tensor:
    """The activations folded in as they come."""
    seen = kernels.concat_begin(xs[0], gain, weight)
    for x in xs:
        seen = kernels.concat_add(seen, x)
    return kernels.concat_end(seen, gain, bias, weight, linear_bias)


def plain(gain: Tensor, bias: Tensor, weight: Tensor, linear_bias: Tensor, *xs: Tensor) -> Tensor:
    """The concatenation made and normalised."""
    return reference.concat_norm_linear(xs, gain, bias, weight, linear_bias)


def inputs(
    b: int, n: int, parts: int, c: int, rows: int, dtype: torch.dtype = torch.float32
) -> tuple[list[Tensor], list[Tensor]]:
    """Parameters of the norm and the map, and activations."""
    total = parts * c
    parameters = [random(rows, total, seed=7), random(rows, total, seed=8), random(6, total, seed=9), random(6)]
    parameters = [x.detach().to(dtype).requires_grad_() for x in parameters]
    return parameters, [random(b, n, c, dtype=dtype, seed=i) for i in range(parts)]


@settings(max_examples=8, deadline=None)
@given(*(st.integers(1, most) for most in (3, 5, 4, 3)), st.sampled_from([4, 36]), DTYPES, st.booleans())
def test_values_and_gradients(b: int, n: int, parts: int, group: int, c: int, dtype: torch.dtype, shared: bool) -> None:
    parameters, xs = inputs(b, n, parts, c, 1 if shared else b, dtype)
    loosest = 7e-2 if dtype == torch.bfloat16 else None  # a variance of four numbers can be small
    with mock.patch.object(public, "GROUP", group):
        agree(streamed, plain, *parameters, *xs, loosest=loosest)


@pytest.mark.parametrize(("parts", "products"), [(7, 1), (8, 1), (17, 3)])
def test_a_product_takes_eight_activations(parts: int, products: int) -> None:
    parameters, xs = inputs(1, 2, parts, 4, 1)
    with mock.patch.object(public._Fold, "apply", wraps=public._Fold.apply) as folded:
        value = streamed(*parameters, *xs)
    assert folded.call_count == products
    assert torch.allclose(value, plain(*parameters, *xs), atol=1e-5)


def test_activations_of_two_dtypes() -> None:
    # As autocast makes them: a linear map narrows what a sum had widened.
    parameters, xs = inputs(2, 3, 3, 36, 2)
    xs[1] = xs[1].detach().bfloat16().requires_grad_()
    value, want = streamed(*parameters, *xs), plain(*parameters, *(x.float() for x in xs))
    assert torch.allclose(value, want, atol=1e-5)
    pulled = torch.autograd.grad(value, [*parameters, *xs], torch.ones_like(value))
    wanted = torch.autograd.grad(want, [*parameters, *xs], torch.ones_like(value))
    assert [x.dtype for x in pulled] == [x.dtype for x in (*parameters, *xs)]
    for got, expected in zip(pulled, wanted, strict=True):
        loosest = 2**-7 if got.dtype == torch.bfloat16 else 1e-4  # the interpreter cuts bits off where a GPU rounds
        assert torch.allclose(got.float(), expected.float(), rtol=loosest, atol=1e-4)


def test_missing_activations_are_an_error() -> None:
    parameters, xs = inputs(1, 2, 3, 4, 1)
    gain, bias, weight, linear_bias = parameters
    seen = kernels.concat_add(kernels.concat_begin(xs[0], gain, weight), xs[0])
    with pytest.raises(ValueError, match="12 channels, and 0 were folded in"):
        kernels.concat_end(seen, gain, bias, weight, linear_bias)


def test_images_of_many_chunks() -> None:
    parameters, xs = inputs(2, 35, 2, 12, 2)
    agree(streamed, plain, *parameters, *xs)


def test_precision_far_from_zero() -> None:
    # Statistics by sums of squares would lose everything at a mean of 1e4 with a deviation of 1.
    gain, xs = torch.ones(1, 64), [random(2, 3, 16, seed=i).detach() + 1e4 for i in range(4)]
    seen = kernels.concat_begin(xs[0], gain, torch.ones(5, 64))
    for x in xs:
        seen = kernels.concat_add(seen, x)
    deviation = (seen.square / seen.channels).sqrt().double()
    assert torch.allclose(deviation, torch.cat(xs, -1).double().std(-1, correction=0, keepdim=True), rtol=1e-3)


def test_no_tokens() -> None:
    parameters, xs = inputs(2, 0, 2, 4, 2)
    value = streamed(*parameters, *xs)
    assert value.shape == (2, 0, 6) and not torch.autograd.grad(value.sum(), parameters[0])[0].any()


def test_an_image_has_the_same_moments_alone_and_among_others() -> None:
    xs, gain = [random(3, 35, 60, seed=i).detach() for i in (0, 1)], random(3, 120).detach()
    zeros, direction = torch.zeros(3, 35, 1), random(3, 35, 120, seed=2).detach()
    ones = torch.ones(3, 35, 1)

    def both(part: slice) -> tuple[Tensor, ...]:
        some, rows = [x[part] for x in xs], (gain[part], zeros[part], ones[part], ones[part])
        forward = torch.ops.belvedere.concat_scale(some, *rows[:3], 0)
        dxs, *others = torch.ops.belvedere.concat_scale_backward(direction[part], some, *rows, 120)
        return *forward, *dxs, *others

    one = slice(1, 2)
    assert same(both(slice(None)), both(slice(None)))
    assert same(both(one), tuple(made[one] for made in both(slice(None))))


@pytest.mark.parametrize("rows", [1, 2])
def test_nothing_of_the_activations_is_kept_but_themselves(rows: int) -> None:
    saved: list[Tensor] = []
    xs, gain, weight = [random(2, 3, 8, seed=i) for i in (0, 1)], random(rows, 16), random(4, 16)
    seen = kernels.concat_begin(xs[0], gain, weight)

    def pack(tensor: Tensor) -> Tensor:
        saved.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        after = kernels.concat_add(kernels.concat_add(seen, xs[0]), xs[1])
    kept = (*xs, gain, weight, seen.mean, after.mean)
    assert {tensor.data_ptr() for tensor in saved} == {one.data_ptr() for one in kept}


@pytest.mark.parametrize("rows", [1, 2])
def test_registration(rows: int) -> None:
    xs, moment = [torch.randn(2, 3, 8) for _ in range(2)], torch.ones(2, 3, 1)
    inner, gain = torch.randn(2, 3, 16), torch.ones(rows, 16)
    torch.library.opcheck(torch.ops.belvedere.concat_scale, (xs, gain, moment, moment, 8))
    given = inner, xs, gain, moment, moment, moment, 24
    torch.library.opcheck(torch.ops.belvedere.concat_scale_backward, given)


def test_compiles_whole() -> None:
    parameters, xs = inputs(2, 3, 9, 8, 2)
    values = [x.detach() for x in (*parameters, *xs)]
    compiled = torch.compile(streamed, fullgraph=True, backend="aot_eager")
    for got, want in zip(gradients(compiled, *values), gradients(streamed, *values), strict=True):
        assert torch.allclose(got, want, atol=1e-6)  # gradients of three uses may be added in another order


@pytest.mark.parametrize("times", [1, 2])
def test_a_network_of_more_activations_than_a_product_takes(times: int) -> None:
    lower = test_dimr.TRANSFORMER | {"patch": 2, "blocks": 11}  # 12 activations: 8 and 4
    network = test_dimr.tiny(stage_configs=[lower, test_dimr.CONVNEXT])
    x, _, y = test_dimr.inputs()
    time = network.evaluate_time(torch.linspace(-1, 1, times)).detach()
    weight = network.stages[1].upsample.linear.weight.detach()

    def call(time: Tensor, weight: Tensor) -> Tensor:
        return torch.func.functional_call(network, {"stages.1.upsample.linear.weight": weight}, (x, None, y, time))[-1]

    with mock.patch.object(public, "fused", lambda x: False):
        want = gradients(call, time, weight)
    for got, wanted in zip(gradients(call, time, weight), want, strict=True):
        assert (got - wanted).abs().max() < 1e-5 * wanted.abs().max()
