"""Every op against its plain twin in float64: values and gradients, over random shapes and dtypes."""

from collections.abc import Callable
from types import ModuleType
from typing import get_args

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
NORMS = st.sampled_from(get_args(kernels.Norm))
EPS = {torch.float32: 2e-5, torch.bfloat16: 3e-2}
fewer = settings(max_examples=25, deadline=None)


def random(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    numbers = torch.randn(shape, generator=torch.Generator().manual_seed(seed + sum(shape)))
    return numbers.to(dtype).requires_grad_()


def agree(
    op: Callable[..., Tensor], twin: Callable[..., Tensor], *inputs: Tensor, loosest: float | None = None
) -> None:
    """Compare values and gradients of ``op`` with those of ``twin`` on the same numbers in float64."""
    eps = EPS[inputs[0].dtype] if loosest is None else loosest
    wide = [x.detach().double().requires_grad_() for x in inputs]
    got, want = op(*inputs), twin(*wide)
    assert got.shape == want.shape
    direction = torch.randn(want.shape, generator=torch.Generator().manual_seed(9)).to(got.dtype)
    got_grads = torch.autograd.grad(got, inputs, direction)
    want_grads = torch.autograd.grad(want, wide, direction.double())
    for ours, theirs in zip((got, *got_grads), (want, *want_grads), strict=True):
        scale = max(1.0, theirs.abs().max().item()) if theirs.numel() else 1.0
        assert (ours.double() - theirs).abs().max().item() <= eps * scale if ours.numel() else True


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
@given(st.lists(st.integers(0, 4), max_size=3), WIDTHS, DTYPES, NORMS, st.booleans())
def test_normalise(shape: list[int], d: int, dtype: torch.dtype, norm: kernels.Norm, weighted: bool) -> None:
    weight = [random(d, dtype=dtype, seed=1)] if weighted else []
    inputs = random(*shape, d, dtype=dtype), *weight
    agree(lambda x, *w: kernels.normalise(x, norm, *w), lambda x, *w: reference.normalise(x, norm, *w), *inputs)


def test_unknown_norms_are_named() -> None:
    with pytest.raises(ValueError, match="norm 'batch': choose layer, rms or none"):
        kernels.normalise(torch.ones(2, 4), "batch")  # type: ignore[arg-type]


@st.composite
def batches(draw: st.DrawFn) -> tuple[tuple[int, ...], int, Tensor | None]:
    """The shape of the tokens, the number of images and each token's image: a packed batch, or a dense one."""
    if draw(st.booleans()):
        b, n = draw(SIZES), draw(st.integers(0, 5))
        return (b, n), b, None
    lengths = draw(st.lists(st.integers(0, 5), min_size=1, max_size=4).filter(any))
    return (sum(lengths),), len(lengths), torch.arange(len(lengths)).repeat_interleave(torch.tensor(lengths))


Batch = tuple[tuple[int, ...], int, Tensor | None]


@fewer
@given(batches(), WIDTHS, DTYPES, DTYPES, NORMS, st.booleans())
def test_modulate_norm(
    batch: Batch, d: int, dtype: torch.dtype, rows: torch.dtype, norm: kernels.Norm, weighted: bool
) -> None:
    shape, images, index = batch
    weight = [random(d, seed=3)] if weighted else []
    inputs = (
        random(*shape, d, dtype=dtype),
        random(images, d, dtype=rows, seed=1),
        random(images, d, dtype=rows, seed=2),
    )

    def of(ops: ModuleType) -> Callable[..., Tensor]:
        return lambda x, shift, scale, w=None: ops.modulate_norm(x, shift, scale, index, norm=norm, weight=w)

    agree(of(kernels), of(reference), *inputs, *weight, loosest=max(EPS[dtype], EPS[rows]))


@fewer
@given(batches(), WIDTHS, DTYPES, DTYPES)
def test_gated_residual(batch: Batch, d: int, dtype: torch.dtype, rows: torch.dtype) -> None:
    shape, images, index = batch
    x, y = random(*shape, d, dtype=dtype), random(*shape, d, dtype=dtype, seed=1)
    gate = random(images, d, dtype=rows, seed=2)

    def of(ops: ModuleType) -> Callable[..., Tensor]:
        return lambda x, y, gate: ops.gated_residual(x, y, gate, index)

    agree(of(kernels), of(reference), x, y, gate, loosest=max(EPS[dtype], EPS[rows]))


@fewer
@given(batches(), WIDTHS, DTYPES, NORMS)
def test_gated_residual_norm_is_the_two_calls(batch: Batch, d: int, dtype: torch.dtype, norm: kernels.Norm) -> None:
    shape, images, index = batch
    x, y = random(*shape, d, dtype=dtype), random(*shape, d, dtype=dtype, seed=1)
    gate, shift, scale = (random(images, d, seed=seed) for seed in (2, 3, 4))
    added, normal = kernels.gated_residual_norm(x, y, gate, shift, scale, index, norm=norm)
    assert torch.equal(added, kernels.gated_residual(x, y, gate, index))
    assert torch.equal(normal, kernels.modulate_norm(added, shift, scale, index, norm=norm))


def test_modulation_of_no_tokens() -> None:
    x, rows = random(0, 8), random(2, 8)
    index = torch.zeros(0, dtype=torch.int64)
    for out in (kernels.modulate_norm(x, rows, rows, index), kernels.gated_residual(x, x, rows, index)):
        (gradient,) = torch.autograd.grad(out.sum(), rows)
        assert out.shape == (0, 8) and torch.equal(gradient, torch.zeros(2, 8))


@fewer
@given(
    st.lists(st.integers(1, 2), max_size=1),
    st.integers(0, 6),
    st.integers(1, 3),
    st.sampled_from([4, 8, 60]),
    DTYPES,
    st.tuples(NORMS, NORMS),
    st.sampled_from(["none", "a head", "a channel"]),
    st.booleans(),
)
def test_qk_norm_rope(
    batch: list[int], n: int, h: int, d: int, dtype: torch.dtype, norms: tuple, weighted: str, shared: bool
) -> None:
    """Packed (n, h, d) and dense (b, n, h, d); weights of none, (h, 1) or (d,); angles of all heads or one a head."""
    angle = random(n, 1 if shared else h, d // 2, seed=3).detach()
    cos, sin = angle.cos().requires_grad_(), angle.sin().requires_grad_()
    shape = {"none": None, "a head": (h, 1), "a channel": (d,)}[weighted]
    weights = [random(*shape, seed=seed) for seed in (4, 5)] if shape else []
    q, k = random(*batch, n, h, d, dtype=dtype), random(*batch, n, h, d, dtype=dtype, seed=1)

    def of(ops: ModuleType) -> Callable[..., Tensor]:
        def joined(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, *weights: Tensor) -> Tensor:
            options = dict(zip(("q_weight", "k_weight"), weights, strict=False))
            return torch.cat(ops.qk_norm_rope(q, k, cos, sin, q_norm=norms[0], k_norm=norms[1], **options))

        return joined

    loosest = 0.12 if dtype == torch.bfloat16 and weighted == "a head" else None  # a gradient summed over all tokens
    agree(of(kernels), of(reference), q, k, cos, sin, *weights, loosest=loosest)


def test_rotation_by_a_right_angle() -> None:
    x = torch.tensor([[[[1.0, 2.0, 3.0, 4.0]]]])
    turned = kernels.rotate_pairs(x, torch.zeros(1, 1, 2), torch.ones(1, 1, 2))
    assert turned.flatten().tolist() == [-2.0, 1.0, -4.0, 3.0]


def test_angles_are_not_rounded_to_bfloat16() -> None:
    x, angle = random(200, 2, 8, dtype=torch.bfloat16).detach(), torch.arange(200.0).view(200, 1, 1).expand(-1, -1, 4)
    wide = reference.rotate_pairs(x.double(), angle.double().cos(), angle.double().sin())
    got = kernels.rotate_pairs(x, angle.cos(), angle.sin())
    assert ((got.double() - wide).abs() <= 2**-8 * wide.abs() + 1e-4).all()  # one rounding, of the result


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
        seen = kernels.concat_begin(xs[0], gain, weight)
        for x in xs:
            seen = kernels.concat_add(seen, x)
        return kernels.concat_end(seen, gain, bias, weight, linear_bias)

    def plain(gain: Tensor, bias: Tensor, weight: Tensor, linear_bias: Tensor, *xs: Tensor) -> Tensor:
        return reference.concat_norm_linear(xs, gain, bias, weight, linear_bias)

    loosest = 7e-2 if dtype == torch.bfloat16 else None  # a variance of four numbers can be small
    agree(streamed, plain, gain, bias, weight, linear_bias, *activations, loosest=loosest)


def test_concat_keeps_precision_far_from_zero() -> None:
    # Statistics by sums of squares would lose everything at a mean of 1e4 with a deviation of 1.
    parts = [random(2, 3, 16, seed=i).detach() + 1e4 for i in range(4)]
    gain, bias = torch.ones(1, 64), torch.zeros(1, 64)
    weight, linear_bias = random(5, 64).detach(), torch.zeros(5)
    seen = kernels.concat_begin(parts[0], gain, weight)
    for x in parts:
        seen = kernels.concat_add(seen, x)
    wide = [x.double() for x in (gain, bias, weight, linear_bias)]
    want = reference.concat_norm_linear([x.double() for x in parts], *wide)
    deviation = (seen.square / seen.channels).sqrt().double()
    assert torch.allclose(deviation, torch.cat(parts, -1).double().std(-1, correction=0, keepdim=True), rtol=1e-3)
    assert (kernels.concat_end(seen, gain, bias, weight, linear_bias) - want).abs().max() < 0.05 * want.abs().max()


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
