"""Normalised and turned queries and keys in Triton's interpreter, by way of the public ops, against the plain twins."""

from collections.abc import Callable, Iterator
from types import ModuleType

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

pytest.importorskip("triton", reason="triton is not installed: pip install 'belvedere[test]'")

from belvedere import kernels
from belvedere.kernels import reference
from belvedere.kernels import rope as public
from tests.kernels import test_ops
from tests.kernels.test_ops import DTYPES, NORMS, random
from tests.kernels.triton.fused import agree, gradients, routed, same

fewer = settings(max_examples=8, deadline=None)


@pytest.fixture(scope="module", autouse=True)
def _routed() -> Iterator[None]:
    with routed(public):
        yield


def angles(n: int, h: int, d: int) -> tuple[Tensor, Tensor]:
    """Cosines and sines (n, h, d / 2) of random angles."""
    angle = random(n, h, d // 2, seed=3).detach()
    return angle.cos(), angle.sin()


def both(ops: ModuleType, cos: Tensor, sin: Tensor, norms: tuple[kernels.Norm, kernels.Norm]) -> Callable[..., Tensor]:
    """q and k in one tensor, of q, k and perhaps their weights."""

    def op(q: Tensor, k: Tensor, *weights: Tensor) -> Tensor:
        options = dict(zip(("q_weight", "k_weight"), weights, strict=False))
        return torch.cat(ops.qk_norm_rope(q, k, cos, sin, q_norm=norms[0], k_norm=norms[1], **options), -1)

    return op


@fewer
@given(
    st.lists(st.integers(0, 2), max_size=1),
    st.integers(0, 5),
    st.integers(1, 3),
    st.sampled_from([4, 8, 36, 60]),
    DTYPES,
    st.tuples(NORMS, NORMS),
    st.sampled_from(["none", "a head", "a channel", "only of q"]),
    st.booleans(),
)
def test_qk_norm_rope(
    batch: list[int], n: int, h: int, d: int, dtype: torch.dtype, norms: tuple, weighted: str, shared: bool
) -> None:
    shapes = {"none": [], "a head": [(h, 1)] * 2, "a channel": [(d,)] * 2, "only of q": [(h, d)]}[weighted]
    weights = [random(*shape, seed=4 + i) for i, shape in enumerate(shapes)]
    q, k = random(*batch, n, h, d, dtype=dtype), random(*batch, n, h, d, dtype=dtype, seed=1)
    turn = angles(n, 1 if shared else h, d)
    wide = [x.double() for x in turn]
    loosest = 0.12 if dtype == torch.bfloat16 and weighted == "a head" else None  # a gradient summed over all tokens
    agree(both(kernels, *turn, norms), both(reference, *wide, norms), q, k, *weights, loosest=loosest)


def test_cut_from_a_fused_projection() -> None:
    qkv, (cos, sin) = random(2, 17, 3, 3, 8), angles(17, 1, 8)  # more tokens than a chunk has

    def of(ops: ModuleType) -> Callable[..., Tensor]:
        def op(qkv: Tensor, weight: Tensor) -> Tensor:
            q, k, v = qkv.unbind(2)  # (b, n, h, d)
            q, k = ops.qk_norm_rope(q, k, cos.to(q.dtype), sin.to(q.dtype), q_weight=weight, k_weight=weight)
            return torch.cat((q, k, ops.rotate_pairs(v, cos.to(q.dtype), sin.to(q.dtype))), -1)

        return op

    agree(of(kernels), of(reference), qkv, random(8))


@fewer
@given(st.integers(0, 4), st.integers(1, 3), st.sampled_from([2, 8, 60]), DTYPES, st.booleans())
def test_rotate_pairs(n: int, h: int, d: int, dtype: torch.dtype, transposed: bool) -> None:
    x, (cos, sin) = random(n, h, d, dtype=dtype), angles(n, h, d)
    if transposed:
        x = x.detach().transpose(0, 1).contiguous().transpose(0, 1).requires_grad_()
    wide = cos.double(), sin.double()
    agree(lambda x: kernels.rotate_pairs(x, cos, sin), lambda x: reference.rotate_pairs(x, *wide), x)


def test_gradients_of_angles_come_the_plain_way() -> None:
    x, turn = random(3, 2, 8), [angle.requires_grad_() for angle in angles(3, 2, 8)]
    test_ops.agree(kernels.rotate_pairs, reference.rotate_pairs, x, *turn)


def test_a_token_has_the_same_bits_alone_and_among_others() -> None:
    q, k = random(4, 3, 60, dtype=torch.bfloat16).detach(), random(4, 3, 60, dtype=torch.bfloat16, seed=1).detach()
    cos, sin = angles(4, 1, 60)
    op = both(kernels, cos, sin, ("rms", "layer"))
    together, one = gradients(op, q, k), slice(2, 3)
    alone = gradients(both(kernels, cos[one], sin[one], ("rms", "layer")), q[one], k[one])
    assert same(alone, tuple(x[one] for x in together))


def test_weights_have_the_same_gradients_each_time() -> None:
    x, weight = random(5, 2, 8).detach(), random(8).detach()
    runs = [gradients(both(kernels, *angles(5, 1, 8), ("rms", "rms")), x, x, weight, weight) for _ in range(2)]
    assert same(*runs)


@pytest.mark.slow
def test_registration() -> None:
    q, k, (cos, sin), weight = random(3, 2, 8), random(3, 2, 8, seed=1), angles(3, 1, 8), random(2, 1)
    torch.library.opcheck(torch.ops.belvedere.qk_norm_rope, (q, k, cos, sin, weight, None, "rms", "layer", 1e-6))
    torch.library.opcheck(torch.ops.belvedere.rotate_pairs, (q, cos, sin, 1.0))
    q, k, weight = q.detach(), k.detach(), weight.detach()
    inputs = (q, k, q, k, cos, sin, weight, None, "rms", "layer", 1e-6)
    torch.library.opcheck(torch.ops.belvedere.qk_norm_rope_backward, inputs)


def test_compiles_whole() -> None:
    x, weight = random(5, 2, 8).detach(), random(8).detach()
    op = both(kernels, *angles(5, 1, 8), ("layer", "rms"))
    compiled = torch.compile(op, fullgraph=True, backend="aot_eager")
    assert same(gradients(compiled, x, x, weight, weight), gradients(op, x, x, weight, weight))
