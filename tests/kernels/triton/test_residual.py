"""Gate and residual, alone and with the norm after them, in Triton's interpreter against the plain twins."""

from collections.abc import Callable, Iterator
from types import ModuleType

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

pytest.importorskip("triton", reason="triton is not installed: pip install 'belvedere[test]'")

from belvedere import kernels
from belvedere.kernels import norms as public
from belvedere.kernels import reference
from belvedere.kernels.triton import residual
from tests.kernels.test_ops import DTYPES, EPS, NORMS, Batch, batches, random
from tests.kernels.triton.fused import agree, gradients, routed, same
from tests.kernels.triton.test_norms import WIDTHS, ragged

fewer = settings(max_examples=8, deadline=None)


@pytest.fixture(scope="module", autouse=True)
def _routed() -> Iterator[None]:
    with routed(public):
        yield


@fewer
@given(batches(), WIDTHS, DTYPES, DTYPES)
def test_gated_residual(batch: Batch, d: int, dtype: torch.dtype, rows: torch.dtype) -> None:
    shape, images, index = batch
    x, y = random(*shape, d, dtype=dtype), random(*shape, d, dtype=dtype, seed=1)

    def of(ops: ModuleType) -> Callable[..., Tensor]:
        return lambda x, y, gate: ops.gated_residual(x, y, gate, index)

    gate = random(images, d, dtype=rows, seed=2)
    agree(of(kernels), of(reference), x, y, gate, loosest=max(EPS[dtype], EPS[rows]))


def joined(ops: ModuleType, index: Tensor | None, norm: kernels.Norm = "layer") -> Callable[..., Tensor]:
    """Sum and norm in one tensor, of x, y, gate, shift, scale and perhaps a weight."""

    def op(x: Tensor, y: Tensor, gate: Tensor, shift: Tensor, scale: Tensor, weight: Tensor | None = None) -> Tensor:
        made = ops.gated_residual_norm(x, y, gate, shift, scale, index, norm=norm, weight=weight)
        return torch.cat(made, -1)

    return op


@fewer
@given(batches(), WIDTHS, DTYPES, NORMS)
def test_gated_residual_norm(batch: Batch, d: int, dtype: torch.dtype, norm: kernels.Norm) -> None:
    shape, images, index = batch
    x, y = random(*shape, d, dtype=dtype), random(*shape, d, dtype=dtype, seed=1)
    rows = [random(images, d, seed=seed) for seed in (2, 3, 4)]
    loosest = 6e-2 if dtype == torch.bfloat16 else None  # the norm is of the rounded sum, as of two ops
    if d > 1 or norm != "layer":  # the deviation of one channel is none at all
        agree(joined(kernels, index, norm), joined(reference, index, norm), x, y, *rows, random(d), loosest=loosest)


def test_images_of_many_chunks() -> None:
    x, index, *rows = ragged(20)
    inputs = [x.clone().requires_grad_() for x in (x, x.flip(0), rows[0], *rows)]
    agree(joined(kernels, index), joined(reference, index), *inputs)
    agree(lambda *x: kernels.gated_residual(*x, index), lambda *x: reference.gated_residual(*x, index), *inputs[:3])


def test_an_image_has_the_same_bits_alone_and_among_others() -> None:
    x, index, *rows = ragged(60, torch.bfloat16)
    inputs = x, x.flip(0), rows[0].flip(0), *rows
    together, again = (gradients(joined(kernels, index), *inputs) for _ in range(2))
    assert same(together, again)
    for image in (1, 2):
        own = index == image
        parts = [x[own] if len(x) == len(index) else x[image, None] for x in inputs]
        among = tuple(x[own] if len(x) == len(index) else x[image, None] for x in together)
        assert same(gradients(joined(kernels, index[own] - image), *parts), among)


def test_one_of_two_results_may_be_unused() -> None:
    x, y, rows = random(1, 3, 8), random(1, 3, 8, seed=1), random(1, 8)
    for which in (0, 1):
        agree(
            lambda x, y, rows: kernels.gated_residual_norm(x, y, rows, rows, rows)[which],  # noqa: B023
            lambda x, y, rows: reference.gated_residual_norm(x, y, rows, rows, rows)[which],  # noqa: B023
            *(x, y, rows),
        )


@pytest.mark.slow
def test_registration() -> None:
    x, y, rows, index = random(5, 8), random(5, 8), random(2, 8), torch.tensor([0, 0, 1, 1, 1])
    torch.library.opcheck(torch.ops.belvedere.gated_residual, (x, y, rows, index))
    torch.library.opcheck(torch.ops.belvedere.gated_residual, (x, y, None, None))
    inputs = (x, y, rows, rows, rows, index, random(8), "rms", 1e-6, 1.0)
    torch.library.opcheck(torch.ops.belvedere.gated_residual_norm, inputs)
    for shift in (None, rows):
        inputs = (x, y, None, shift, rows, index, None, "td-rms", 1e-8, 0.0)
        torch.library.opcheck(torch.ops.belvedere.gated_residual_norm, inputs)
    x, y, rows = x.detach(), y.detach(), rows.detach()
    torch.library.opcheck(torch.ops.belvedere.gated_residual_backward, (x, y, rows, index))
    for gate, shifted in ((rows, True), (None, True), (None, False)):
        inputs = (x, x, x, y, torch.ones(1, 5), gate, rows, index, None, "rms", 1e-6, 1.0, shifted)
        torch.library.opcheck(torch.ops.belvedere.gated_residual_norm_backward, inputs)


def test_compiles_whole() -> None:
    x, index, *rows = ragged(12)
    inputs, op = (x, x.flip(0), rows[0], *rows), joined(kernels, index)
    compiled = torch.compile(op, fullgraph=True, backend="aot_eager")
    assert same(gradients(compiled, *inputs), gradients(op, *inputs))


@fewer
@given(st.integers(1, 3), st.integers(0, 5), WIDTHS, DTYPES, DTYPES, st.booleans(), st.booleans())
def test_residual_time_norm(
    b: int, n: int, d: int, dtype: torch.dtype, added: torch.dtype, shared: bool, layer: bool
) -> None:
    parameters = [random(1 if shared else b, d, seed=seed) for seed in range(2, 4 if layer else 3)]

    def of(ops: ModuleType) -> Callable[..., Tensor]:
        return lambda *inputs: torch.cat(ops.residual_time_norm(*inputs), -1)

    loosest = max(EPS[dtype], EPS[added])
    agree(
        of(kernels),
        of(reference),
        random(b, n, d, dtype=dtype),
        random(b, n, d, dtype=added, seed=1),
        *parameters,
        loosest=loosest,
    )


@pytest.mark.parametrize("layer", [True, False])
def test_residual_time_norm_is_the_norm_of_the_sum(layer: bool) -> None:
    x, y, weight = random(3, 35, 60), random(3, 35, 60, seed=1), random(3, 60, seed=2)
    bias = random(3, 60, seed=3) if layer else None
    total, normal = kernels.residual_time_norm(x, y, weight, bias)
    assert torch.equal(total, x + y) and torch.equal(normal, kernels.time_norm(total, weight, bias))
    for which in (0, 1):  # one of the two alone is needed

        def op(x: Tensor, y: Tensor, weight: Tensor, which: int = which) -> Tensor:
            return kernels.residual_time_norm(x, y, weight)[which]

        def twin(x: Tensor, y: Tensor, weight: Tensor, which: int = which) -> Tensor:
            return reference.residual_time_norm(x, y, weight)[which] + 0 * weight.sum()

        agree(op, twin, x, y, weight)


def test_a_sum_without_a_gate() -> None:
    x, y = random(2, 5, 36), random(2, 5, 36, dtype=torch.bfloat16, seed=1)

    def op(x: Tensor, y: Tensor) -> Tensor:
        return residual.gated_residual(x, y, None, None)

    assert same(gradients(op, x, y), gradients(torch.add, x, y))


def test_rows_that_do_not_fit_are_refused() -> None:
    x, index = torch.ones(4, 6, 8), torch.zeros(24, dtype=torch.int64)
    for count, width in ((2, 8), (3, 8), (1, 4)):
        rows = torch.ones(count, width)
        for call in (
            lambda rows=rows: kernels.gated_residual(x, x, rows),
            lambda rows=rows: kernels.modulate_norm(x, rows, rows),
            lambda rows=rows: kernels.time_norm(x, rows),
        ):
            with pytest.raises(ValueError, match="one for all or for each image"):
                call()
    with pytest.raises(ValueError, match="as many of each"):
        kernels.gated_residual_norm(x, x, torch.ones(4, 8), torch.ones(1, 8), torch.ones(1, 8))
    with pytest.raises(ValueError, match="for each image"):
        kernels.modulate_norm(x.flatten(0, 1), torch.ones(2, 8), torch.ones(2, 8), index[1:])
