"""The norm over many activations, folded in one by one in Triton's interpreter, against the plain twin."""

from collections.abc import Iterator

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

pytest.importorskip("triton", reason="triton is not installed: pip install 'belvedere[test]'")

from belvedere import kernels
from belvedere.kernels import concat as public
from belvedere.kernels import reference
from tests.kernels.test_ops import DTYPES, random
from tests.kernels.triton.fused import agree, gradients, routed, same


@pytest.fixture(scope="module", autouse=True)
def _routed() -> Iterator[None]:
    with routed(public):
        yield


def streamed(gain: Tensor, bias: Tensor, weight: Tensor, linear_bias: Tensor, *xs: Tensor) -> Tensor:
    """The activations folded in one by one."""
    seen, c = kernels.concat_begin(xs[0], len(weight)), xs[0].shape[-1]
    for i, x in enumerate(xs):
        part = slice(i * c, (i + 1) * c)
        seen = kernels.concat_add(seen, x, gain[:, part], weight[:, part])
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
@given(st.integers(1, 3), st.integers(1, 5), st.integers(1, 3), st.sampled_from([4, 36]), DTYPES, st.booleans())
def test_values_and_gradients(b: int, n: int, parts: int, c: int, dtype: torch.dtype, shared: bool) -> None:
    parameters, xs = inputs(b, n, parts, c, 1 if shared else b, dtype)
    loosest = 7e-2 if dtype == torch.bfloat16 else None  # a variance of four numbers can be small
    agree(streamed, plain, *parameters, *xs, loosest=loosest)


def test_images_of_many_chunks() -> None:
    parameters, xs = inputs(2, 35, 2, 12, 2)
    agree(streamed, plain, *parameters, *xs)


def test_precision_far_from_zero() -> None:
    # Statistics by sums of squares would lose everything at a mean of 1e4 with a deviation of 1.
    gain, xs = torch.ones(1, 64), [random(2, 3, 16, seed=i).detach() + 1e4 for i in range(4)]
    seen = kernels.concat_begin(xs[0], 5)
    for x in xs:
        seen = kernels.concat_add(seen, x, gain[:, :16], torch.ones(5, 16))
    deviation = (seen.square / seen.channels).sqrt().double()
    assert torch.allclose(deviation, torch.cat(xs, -1).double().std(-1, correction=0, keepdim=True), rtol=1e-3)


def test_no_tokens() -> None:
    parameters, xs = inputs(2, 0, 2, 4, 2)
    value = streamed(*parameters, *xs)
    assert value.shape == (2, 0, 6) and not torch.autograd.grad(value.sum(), parameters[0])[0].any()


def test_an_image_has_the_same_moments_alone_and_among_others() -> None:
    x, gain = random(3, 35, 60).detach(), random(3, 60).detach()
    zeros, direction = torch.zeros(3, 35, 1), random(3, 35, 60, seed=2).detach()
    ones = torch.ones(3, 35, 1)

    def both(part: slice) -> tuple[Tensor, ...]:
        forward = torch.ops.belvedere.concat_scale(x[part], gain[part], zeros[part], zeros[part], 0)
        backward = torch.ops.belvedere.concat_scale_backward(
            direction[part], x[part], gain[part], zeros[part], ones[part], ones[part], 0
        )
        return *forward, *backward

    one = slice(1, 2)
    assert same(both(slice(None)), both(slice(None)))
    assert same(both(one), tuple(made[one] for made in both(slice(None))))


@pytest.mark.parametrize("rows", [1, 2])
def test_nothing_of_the_activation_is_kept_but_itself(rows: int) -> None:
    saved: list[Tensor] = []
    x, gain, weight = random(2, 3, 8), random(rows, 8), random(4, 8)
    seen = kernels.concat_begin(x, 4)

    def pack(tensor: Tensor) -> Tensor:
        saved.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        kernels.concat_add(seen, x, gain, weight)
    assert {tensor.data_ptr() for tensor in saved} == {one.data_ptr() for one in (x, gain, weight, seen.mean)}


@pytest.mark.parametrize("gain", [torch.ones(2, 8), None])
def test_registration(gain: Tensor | None) -> None:
    x, moment = torch.randn(2, 3, 8), torch.ones(2, 3, 1)
    torch.library.opcheck(torch.ops.belvedere.concat_scale, (x, gain, moment, moment, 8))
    torch.library.opcheck(torch.ops.belvedere.concat_scale_backward, (x, x, gain, moment, moment, moment, 8))


def test_compiles_whole() -> None:
    parameters, xs = inputs(2, 3, 2, 8, 2)
    values = [x.detach() for x in (*parameters, *xs)]
    compiled = torch.compile(streamed, fullgraph=True, backend="aot_eager")
    for got, want in zip(gradients(compiled, *values), gradients(streamed, *values), strict=True):
        assert torch.allclose(got, want, atol=1e-6)  # gradients of three uses may be added in another order
