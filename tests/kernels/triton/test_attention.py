"""Attention in Triton's interpreter against the plain twin: values, gradients, the same bits alone and among others."""

from collections.abc import Callable
from itertools import accumulate, pairwise

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor

pytest.importorskip("triton", reason="triton is not installed: pip install 'belvedere[test]'")

from belvedere.kernels import attend, backends, reference
from belvedere.kernels.triton import attention
from belvedere.kernels.triton.attention_tiles import tile_of, widths
from belvedere.kernels.triton.launch import meta, noting
from tests.kernels.test_ops import EPS, random
from tests.kernels.triton.fused import agree

EPS[torch.float16] = 4e-3
DTYPES = st.sampled_from([torch.float32, torch.bfloat16, torch.float16])
HEADS = st.sampled_from([4, 16, 40, 60, 64, 72, 80, 96, 128])


def ours(offsets: Tensor | None, scale: float, sigmoid: bool) -> Callable[..., Tensor]:
    return lambda q, k, v: attention.attention(q, k, v, offsets, scale, sigmoid)[0]


def twin(offsets: Tensor | None, scale: float, sigmoid: bool) -> Callable[..., Tensor]:
    name = "sigmoid" if sigmoid else "softmax"
    return lambda q, k, v: reference.attend(q, k, v, offsets, scale=scale, activation=name)


def starts(lengths: list[int]) -> Tensor:
    return torch.tensor([0, *accumulate(lengths)], dtype=torch.int32)


@settings(max_examples=5, deadline=None)
@given(st.integers(0, 2), st.integers(0, 20), st.integers(0, 20), HEADS, DTYPES, st.booleans(), st.floats(-1.5, 1.5))
@example(2, 3, 0, 72, torch.float32, False, 1.0)
@example(1, 0, 3, 72, torch.float32, False, 1.0)
@example(1, 1, 1, 60, torch.bfloat16, True, 1.0)
@example(1, 4, 5, 16, torch.float32, False, 0.0)
def test_dense(b: int, n: int, m: int, d: int, dtype: torch.dtype, sigmoid: bool, scale: float) -> None:
    q, k, v = (random(b, rows, 1, d, dtype=dtype, seed=i) for i, rows in enumerate((n, m, m)))
    scale *= d**-0.5
    agree(ours(None, scale, sigmoid), twin(None, scale, sigmoid), q, k, v)


@settings(max_examples=3, deadline=None)
@given(st.lists(st.integers(0, 20), min_size=1, max_size=2), HEADS, DTYPES, st.booleans())
@example([0, 1, 0], 72, torch.float32, False)
def test_packed(lengths: list[int], d: int, dtype: torch.dtype, sigmoid: bool) -> None:
    offsets, n = starts(lengths), sum(lengths)
    q, k, v = (random(n, 1, d, dtype=dtype, seed=i) for i in range(3))
    agree(ours(offsets, d**-0.5, sigmoid), twin(offsets, d**-0.5, sigmoid), q, k, v)


@pytest.mark.parametrize("sigmoid", [False, True])
def test_more_than_one_tile(sigmoid: bool) -> None:
    # 130: two tiles of queries, several of keys, the last not full; 3: less than one.
    q, k, v = (random(133, 1, 72, dtype=torch.bfloat16, seed=i) for i in range(3))
    assert tile_of("forward", q)[:2] == (128, 64)
    agree(ours(starts([130, 3]), 0.1, sigmoid), twin(starts([130, 3]), 0.1, sigmoid), q, k, v)


@pytest.mark.filterwarnings("ignore:overflow encountered", "ignore:invalid value encountered")
def test_logits_far_below_zero_in_a_last_tile() -> None:
    # The zeros that fill the tile would have weight 1 beside exp(-144): they must count for nothing.
    q, k = torch.full((1, 3, 1, 16), 6.0), torch.full((1, 5, 1, 16), -6.0)
    inputs = q.requires_grad_(), k.requires_grad_(), random(1, 5, 1, 16)
    agree(ours(None, 0.25, False), twin(None, 0.25, False), *inputs)


def test_cut_from_a_fused_projection_or_turned() -> None:
    qkv = random(2, 9, 3, 2, 40)
    agree(lambda x: ours(None, 0.2, False)(*x.unbind(2)), lambda x: twin(None, 0.2, False)(*x.unbind(2)), qkv)
    q, k, v = (random(1, 16, 2, 5, seed=i) for i in range(3))  # channels second: (b, d, h, n)
    turned = [ours(None, 0.2, False), twin(None, 0.2, False)]
    agree(*(lambda *x, f=f: f(*(y.transpose(1, 3) for y in x)) for f in turned), q, k, v)


@pytest.mark.parametrize("sigmoid", [False, True])
def test_a_sequence_has_the_same_bits_alone_and_among_others(sigmoid: bool) -> None:
    lengths = [5, 70]
    offsets = starts(lengths)
    q, k, v, do = (random(75, 1, 72, dtype=torch.bfloat16, seed=i).detach() for i in range(4))

    def run(rows: slice, offsets: Tensor) -> tuple[Tensor, ...]:
        inputs = [x[rows].clone().requires_grad_() for x in (q, k, v)]
        o = ours(offsets, 0.1, sigmoid)(*inputs)
        return o.detach(), *torch.autograd.grad(o, inputs, do[rows])

    together, again = run(slice(None), offsets), run(slice(None), offsets)
    assert all(torch.equal(x, y) for x, y in zip(together, again, strict=True))
    for start, stop in pairwise(offsets.tolist()):
        alone = run(slice(start, stop), starts([stop - start]))
        assert all(torch.equal(x[start:stop], y) for x, y in zip(together, alone, strict=True))


def test_a_row_of_a_dense_batch_has_the_same_bits_alone() -> None:
    q, k, v = (random(2, rows, 1, 60, dtype=torch.bfloat16, seed=i) for i, rows in enumerate((7, 9, 9)))
    together = ours(None, 0.1, False)(q, k, v)
    for i in range(2):
        assert torch.equal(together[i : i + 1], ours(None, 0.1, False)(*(x[i : i + 1] for x in (q, k, v))))
    # and a query whatever the other queries are
    assert torch.equal(together[:, 2:3], ours(None, 0.1, False)(q[:, 2:3], k, v))


@pytest.mark.slow
def test_registration() -> None:
    x, offsets = random(4, 1, 16), starts([1, 3])
    torch.library.opcheck(torch.ops.belvedere.attention, (x, x, x, offsets, 0.25, False))
    torch.library.opcheck(torch.ops.belvedere.attention, (x[None], x[None], x[None], None, 0.25, True))
    fixed = x.detach()
    o, lse = attention.attention(fixed, fixed, fixed, offsets, 0.25, False)
    arguments = (o, fixed, fixed, fixed, offsets, 0.25, False, o, lse)
    torch.library.opcheck(torch.ops.belvedere.attention_backward, arguments)


@pytest.fixture
def routed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Let the Triton kernels take tensors of the CPU; returns the names of what ran."""
    ran: list[str] = []
    monkeypatch.setattr(backends, "why_not_fused", lambda device, dtype: None)
    real = attention.attention
    monkeypatch.setitem(backends.OPERATIONS, "attention", lambda *x: ran.append(str(x[0].dtype)) or real(*x))
    return ran


def test_packed_softmax_and_any_sigmoid_come_here(routed: list[str]) -> None:
    x = random(5, 1, 16)
    attend(x, x, x, offsets=starts([2, 3]))
    attend(x[None], x[None], x[None], activation="sigmoid")
    attend(x[None], x[None], x[None])  # dense softmax does not, unless asked
    attend(x[None], x[None], x[None], bias=torch.zeros(5, 5), activation="sigmoid")
    assert len(routed) == 2
    attend(x[None], x[None], x[None], backend="triton")
    assert len(routed) == 3
    with pytest.raises(ValueError, match="bias"):
        attend(x[None], x[None], x[None], bias=torch.zeros(5, 5), backend="triton")


def test_autocast_narrows_it_as_it_narrows_sdpa(routed: list[str]) -> None:
    q, k, v = random(5, 1, 16), random(5, 1, 16), random(5, 1, 16, dtype=torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16):
        o = attend(q, k, v, offsets=starts([2, 3]))
    assert routed == ["torch.bfloat16"] and o.dtype == torch.bfloat16
    assert torch.autograd.grad(o.sum(), q)[0].dtype == torch.float32


def test_one_graph(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backends, "why_not_fused", lambda device, dtype: None)
    x, offsets = random(5, 1, 16), starts([2, 3])

    def function(x: Tensor) -> Tensor:
        return attend(x, x * 2, x, offsets=offsets) + 1

    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
    (got,), (want,) = (torch.autograd.grad(f(x).square().sum(), x) for f in (compiled, function))
    assert torch.equal(got, want)


@pytest.mark.parametrize(
    ("d", "parts"),
    [(4, (16, 0)), (40, (32, 16)), (60, (64, 0)), (72, (64, 16)), (80, (64, 16)), (96, (64, 32)), (128, (64, 64))],
)
def test_heads_are_split_where_that_is_less_than_the_next_power_of_two(d: int, parts: tuple[int, int]) -> None:
    assert widths(d) == parts


@pytest.mark.parametrize(
    ("shapes", "says"),
    [
        (((2, 3, 1, 8), (1, 3, 1, 8), (1, 3, 1, 8)), "do not fit"),
        (((1, 3, 2, 8), (1, 3, 1, 8), (1, 3, 1, 8)), "do not fit"),
        (((1, 3, 1, 8), (1, 3, 1, 8), (1, 4, 1, 8)), "do not fit"),
        (((1, 3, 1, 160),) * 3, "1 to 128 channels"),
    ],
)
def test_shapes_that_would_be_read_past_the_end(shapes: tuple[tuple[int, ...], ...], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        ours(None, 0.1, False)(*(torch.randn(shape) for shape in shapes))


def test_offsets_elsewhere_than_the_tokens_are_refused() -> None:
    x, offsets = torch.randn(4, 1, 16), starts([1, 3])
    with pytest.raises(ValueError, match="offsets on meta, tokens on cpu"):
        attention.check(x, x, x, offsets.to("meta"))


@pytest.mark.parametrize(
    ("capability", "tiles"),
    [
        (80, [(128, 64), (64, 32), (64, 16)]),
        (90, [(64, 32), (64, 64), (64, 32)]),
        (103, [(128, 64), (64, 64), (64, 32)]),
        (121, [(64, 32), (64, 32), (64, 16)]),
    ],
)
def test_tiles_are_those_of_the_generation(capability: int, tiles: list[tuple[int, int]]) -> None:
    with noting(capability):
        assert [tile_of(kind, meta(1, 96))[:2] for kind in ("forward", "queries", "keys")] == tiles
