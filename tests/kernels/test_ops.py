"""Every op against its plain twin in float64: values and gradients, over random shapes and dtypes."""

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from belvedere import kernels
from belvedere.kernels import reference

SIZES = st.integers(1, 5)
WIDTHS = st.sampled_from([4, 8, 36, 60])
DTYPES = st.sampled_from([torch.float32, torch.bfloat16])
EPS = {torch.float32: 2e-5, torch.bfloat16: 3e-2}
fewer = settings(max_examples=25, deadline=None)


def random(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    numbers = torch.randn(shape, generator=torch.Generator().manual_seed(seed + sum(shape)))
    return numbers.to(dtype).requires_grad_()


def agree(op: Callable[..., Tensor], twin: Callable[..., Tensor], *inputs: Tensor) -> None:
    """Compare values and gradients of ``op`` with those of ``twin`` on the same numbers in float64."""
    dtype = inputs[0].dtype
    wide = [x.detach().double().requires_grad_() for x in inputs]
    got, want = op(*inputs), twin(*wide)
    assert got.shape == want.shape
    direction = torch.randn(want.shape, generator=torch.Generator().manual_seed(9)).to(got.dtype)
    got_grads = torch.autograd.grad(got, inputs, direction)
    want_grads = torch.autograd.grad(want, wide, direction.double())
    for ours, theirs in zip((got, *got_grads), (want, *want_grads), strict=True):
        scale = max(1.0, theirs.abs().max().item()) if theirs.numel() else 1.0
        assert (ours.double() - theirs).abs().max().item() <= EPS[dtype] * scale if ours.numel() else True


@fewer
@given(SIZES, st.integers(1, 9), WIDTHS, DTYPES, st.booleans())
def test_time_layer_norm(b: int, n: int, d: int, dtype: torch.dtype, shared: bool) -> None:
    rows = 1 if shared else b
    x, weight, bias = random(b, n, d, dtype=dtype), random(rows, d, seed=1), random(rows, d, seed=2)
    agree(kernels.time_norm, reference.time_norm, x, weight, bias)


@fewer
@given(SIZES, st.integers(1, 9), WIDTHS, DTYPES, st.booleans())
def test_time_rms_norm(b: int, n: int, d: int, dtype: torch.dtype, shared: bool) -> None:
    agree(
        kernels.time_norm, reference.time_norm, random(b, n, 2, d, dtype=dtype), random(1 if shared else b, d, seed=1)
    )


def test_rms_norm_of_zeros_is_zero() -> None:
    assert kernels.time_norm(torch.zeros(1, 2, 8), torch.ones(1, 8)).abs().max() == 0


@fewer
@given(SIZES, st.integers(1, 9), WIDTHS, DTYPES)
def test_rms_norm(b: int, n: int, d: int, dtype: torch.dtype) -> None:
    agree(kernels.rms_norm, reference.rms_norm, random(b, n, d, dtype=dtype), random(b, 1, d, seed=1))


@fewer
@given(SIZES, st.integers(1, 9), WIDTHS, DTYPES, st.sampled_from(["gelu", "silu"]))
def test_gated_mlp(b: int, n: int, d: int, dtype: torch.dtype, activation: str) -> None:
    x = random(b, n, 2 * d, dtype=dtype)
    agree(lambda x: kernels.gated_mlp(x, activation), lambda x: reference.gated_mlp(x, activation), x)


@fewer
@given(SIZES, st.integers(1, 4), st.integers(1, 3), st.sampled_from([4, 8, 60]), DTYPES)
def test_qk_norm_rope(b: int, side: int, h: int, d: int, dtype: torch.dtype) -> None:
    n = side * 3
    angle = random(n, h, d // 2, seed=3).detach().repeat_interleave(2, -1)
    q, k, gain = random(b, n, h, d, dtype=dtype), random(b, n, h, d, dtype=dtype, seed=1), random(h, seed=2)

    def joined(op: Callable[..., tuple[Tensor, Tensor]]) -> Callable[..., Tensor]:
        return lambda q, k, gain: torch.cat(op(q, k, angle.to(gain).cos(), angle.to(gain).sin(), gain))

    agree(joined(kernels.qk_norm_rope), joined(reference.qk_norm_rope), q, k, gain)


def test_rotation_by_a_right_angle() -> None:
    x = torch.tensor([[[[1.0, 2.0, 3.0, 4.0]]]])
    turned = kernels.rotate_pairs(x, torch.zeros(1, 1, 4), torch.ones(1, 1, 4))
    assert turned.flatten().tolist() == [-2.0, 1.0, -4.0, 3.0]


def test_cell_centres_of_a_wide_grid() -> None:
    # Width 4 spans [-1, 1]: centres -0.75, -0.25, 0.25, 0.75. Height 2 spans [-0.5, 0.5]: centres -0.25, 0.25.
    centres = kernels.cell_centres(2, 4)
    assert centres[:4, 0].tolist() == [-0.25] * 4
    assert centres[4:, 1].tolist() == [-0.75, -0.25, 0.25, 0.75]


@fewer
@given(SIZES, st.integers(1, 6), st.integers(1, 4), WIDTHS, DTYPES, st.booleans())
def test_concat_norm_linear(b: int, n: int, parts: int, c: int, dtype: torch.dtype, shared: bool) -> None:
    rows, total = 1 if shared else b, parts * c
    activations = [random(b, n, c, dtype=dtype, seed=i) for i in range(parts)]
    gain, bias = random(rows, total, dtype=dtype, seed=7), random(rows, total, dtype=dtype, seed=8)
    weight, linear_bias = random(6, total, dtype=dtype, seed=9), random(6, dtype=dtype, seed=10)

    def streamed(gain: Tensor, bias: Tensor, weight: Tensor, linear_bias: Tensor, *xs: Tensor) -> Tensor:
        seen = kernels.concat_begin(gain, xs[0], len(weight))
        for i, x in enumerate(xs):
            part = slice(i * c, (i + 1) * c)
            seen = kernels.concat_add(seen, x, gain[:, part], bias[:, part], weight[:, part])
        return kernels.concat_end(seen, linear_bias)

    def plain(gain: Tensor, bias: Tensor, weight: Tensor, linear_bias: Tensor, *xs: Tensor) -> Tensor:
        return reference.concat_norm_linear(xs, gain, bias, weight, linear_bias)

    agree(streamed, plain, gain, bias, weight, linear_bias, *activations)


def test_concat_keeps_precision_far_from_zero() -> None:
    # Statistics by sums of squares would lose everything at a mean of 1e4 with a deviation of 1.
    parts = [random(2, 3, 16, seed=i).detach() + 1e4 for i in range(4)]
    gain, bias = torch.ones(1, 64), torch.zeros(1, 64)
    weight, linear_bias = random(5, 64).detach(), torch.zeros(5)
    seen = kernels.concat_begin(gain, parts[0], 5)
    for i, x in enumerate(parts):
        part = slice(16 * i, 16 * (i + 1))
        seen = kernels.concat_add(seen, x, gain[:, part], bias[:, part], weight[:, part])
    wide = [x.double() for x in (gain, bias, weight, linear_bias)]
    want = reference.concat_norm_linear([x.double() for x in parts], *wide)
    deviation = (seen.square / seen.channels).sqrt().double()
    assert torch.allclose(deviation, torch.cat(parts, -1).double().std(-1, correction=0, keepdim=True), rtol=1e-3)
    assert (kernels.concat_end(seen, linear_bias) - want).abs().max() < 0.05 * want.abs().max()


def test_scaled_linear_keeps_no_copy_of_its_input() -> None:
    saved: list[Tensor] = []
    x, gain, weight = random(2, 3, 8), random(1, 1, 8), random(4, 8)

    def pack(tensor: Tensor) -> Tensor:
        saved.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        kernels.concat._ScaledLinear.apply(x, gain, weight)
    assert {tensor.data_ptr() for tensor in saved} == {x.data_ptr(), gain.data_ptr(), weight.data_ptr()}


@pytest.mark.parametrize("shape", [(2, 0, 8), (2, 1, 8)])
def test_norms_of_empty_and_single_rows(shape: tuple[int, ...]) -> None:
    x, weight = torch.randn(shape), torch.ones(1, 8)
    assert kernels.time_norm(x, weight, weight).shape == shape
    assert kernels.time_norm(x, weight).shape == shape
