"""The norm kernels in Triton's interpreter, by way of the public ops: values and gradients against the plain twins."""

from collections.abc import Callable, Iterator
from types import ModuleType

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor

pytest.importorskip("triton", reason="triton is not installed: pip install 'belvedere[test]'")

from belvedere import kernels
from belvedere.kernels import norms as public
from belvedere.kernels import reference
from belvedere.kernels.triton import norms
from tests.kernels import test_ops
from tests.kernels.test_ops import DTYPES, EPS, NORMS, Batch, batches, random
from tests.kernels.triton.fused import agree, gradients, routed, same

fewer = settings(max_examples=8, deadline=None)
WIDTHS = st.sampled_from([1, 7, 36, 60])
LENGTHS = torch.tensor([0, 1, 35, 0, 32])
"""Of images: none, one token, more than one chunk, exactly one."""


@pytest.fixture(scope="module", autouse=True)
def _routed() -> Iterator[None]:
    with routed(public):
        yield


def ragged(c: int, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Tokens of images of ``LENGTHS``, the image of each, shift and scale cut from one tensor."""
    index = torch.arange(len(LENGTHS)).repeat_interleave(LENGTHS)
    shift, scale = random(len(LENGTHS), 2 * c, dtype=dtype, seed=1).detach().chunk(2, -1)
    return random(len(index), c, dtype=dtype).detach(), index, shift, scale


@fewer
@given(batches(), WIDTHS, DTYPES, DTYPES, NORMS, st.booleans())
def test_modulate_norm(
    batch: Batch, d: int, dtype: torch.dtype, rows: torch.dtype, norm: kernels.Norm, weighted: bool
) -> None:
    shape, images, index = batch
    weight = [random(d, seed=3)] if weighted else []
    modulation = random(images, d, dtype=rows, seed=1), random(images, d, dtype=rows, seed=2)

    def of(ops: ModuleType) -> Callable[..., Tensor]:
        return lambda x, shift, scale, w=None: ops.modulate_norm(x, shift, scale, index, norm=norm, weight=w)

    x = random(*shape, d, dtype=dtype)
    agree(of(kernels), of(reference), x, *modulation, *weight, loosest=max(EPS[dtype], EPS[rows]))


@fewer
@given(
    st.integers(1, 4), st.lists(st.integers(0, 4), min_size=1, max_size=2), WIDTHS, DTYPES, st.booleans(), st.booleans()
)
def test_time_norm(b: int, shape: list[int], d: int, dtype: torch.dtype, shared: bool, layer: bool) -> None:
    parameters = [random(1 if shared else b, d, seed=seed) for seed in range(1, 3 if layer else 2)]
    agree(kernels.time_norm, reference.time_norm, random(b, *shape, d, dtype=dtype), *parameters)


@fewer
@given(st.integers(1, 4), st.integers(0, 5), WIDTHS, DTYPES, st.sampled_from(["all", "a row", "a place"]))
def test_rms_norm(b: int, n: int, d: int, dtype: torch.dtype, kind: str) -> None:
    weight = random(*{"all": (d,), "a row": (b, 1, d), "a place": (b, n, d)}[kind], seed=1)
    assume(d > 1 or dtype == torch.float32)  # a number over its own root mean square is 1: what is left is rounding
    compare = test_ops.agree if kind == "a place" else agree  # which may go the plain way
    compare(kernels.rms_norm, reference.rms_norm, random(b, n, d, dtype=dtype), weight)


def test_images_of_many_chunks() -> None:
    x, index, shift, scale = (x.requires_grad_() if x.is_floating_point() else x for x in ragged(20))

    def of(ops: ModuleType) -> Callable[..., Tensor]:
        return lambda x, shift, scale: ops.modulate_norm(x, shift, scale, index)

    agree(of(kernels), of(reference), x, shift, scale)


def test_rows_wider_than_a_tile_of_many() -> None:
    agree(kernels.modulate_norm, reference.modulate_norm, random(1, 3, 1100), random(1, 1100), random(1, 1100, seed=2))


def test_other_strides() -> None:
    x = random(6, 3, 2).detach().permute(1, 2, 0).requires_grad_()
    rows = [random(6, 3, seed=seed).detach().T.requires_grad_() for seed in (1, 2)]
    agree(kernels.modulate_norm, reference.modulate_norm, x, *rows)


@pytest.mark.parametrize("norm", ["layer", "rms"])
def test_an_image_has_the_same_bits_alone_and_among_others(norm: kernels.Norm) -> None:
    x, index, shift, scale = ragged(60, torch.bfloat16)

    def op(index: Tensor) -> Callable[..., Tensor]:
        return lambda x, shift, scale: kernels.modulate_norm(x, shift, scale, index, norm=norm)

    together, again = (gradients(op(index), x, shift, scale) for _ in range(2))
    assert same(together, again)
    y, dx, dshift, dscale = together
    for image in (1, 2):
        own = index == image
        among = y[own], dx[own], dshift[image, None], dscale[image, None]
        alone = gradients(op(index[own] - image), x[own], shift[image, None], scale[image, None])
        assert same(alone, among)


def test_no_tokens_have_no_gradient() -> None:
    x, rows, index = random(0, 8), random(2, 8), torch.zeros(0, dtype=torch.int64)
    (gradient,) = torch.autograd.grad(kernels.modulate_norm(x, rows, rows, index).sum(), rows)
    assert torch.equal(gradient, torch.zeros(2, 8))


def test_rms_of_zeros() -> None:
    value, slope, _ = gradients(kernels.time_norm, torch.zeros(1, 2, 8), torch.ones(1, 8))
    assert not value.any() and slope.isfinite().all()


def test_rows_too_wide_go_the_plain_way() -> None:
    x = torch.ones(1, 1, public.WIDEST + 1)
    assert torch.allclose(kernels.time_norm(x, torch.ones_like(x[0])), x)


def test_unknown_norms_are_named() -> None:
    with pytest.raises(ValueError, match="norm 'batch': choose layer, rms or none"):
        kernels.modulate_norm(torch.ones(1, 2, 4), *torch.ones(2, 1, 4), norm="batch")  # type: ignore[arg-type]


@pytest.mark.parametrize(("norm", "one"), [("layer", 1.0), ("td-rms", 0.0)])
def test_registration(norm: str, one: float) -> None:
    x, shift, scale, weight = random(5, 8), random(2, 8, seed=1), random(2, 8, seed=2), random(8)
    index = torch.tensor([0, 0, 1, 1, 1])
    torch.library.opcheck(torch.ops.belvedere.scaled_norm, (x, shift, scale, index, weight, norm, 1e-6, one))
    kept = torch.ones(norms.KEPT[norm], 5)
    inputs = (x.detach(), x.detach(), kept, scale.detach(), index, None, norm, 1e-6, one, True)
    torch.library.opcheck(torch.ops.belvedere.scaled_norm_backward, inputs)


def test_compiles_whole() -> None:
    x, index, shift, scale = ragged(12)

    def op(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
        return kernels.modulate_norm(x, shift, scale, index).sin()

    compiled = torch.compile(op, fullgraph=True, backend="aot_eager")
    assert same(gradients(compiled, x, shift, scale), gradients(op, x, shift, scale))
