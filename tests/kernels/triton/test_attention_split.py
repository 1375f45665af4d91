"""Attention with its keys in parts, in Triton's interpreter: values and gradients, and when keys are divided."""

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

pytest.importorskip("triton", reason="triton is not installed: pip install 'belvedere[test]'")

from belvedere.kernels import attend, backends
from belvedere.kernels.triton import attention, attention_split
from belvedere.kernels.triton.attention_split import LEAST, MOST, parts_of
from belvedere.kernels.triton.launch import noting
from tests.kernels.test_ops import random
from tests.kernels.triton.fused import agree
from tests.kernels.triton.test_attention import DTYPES, HEADS, starts, twin


def ours(offsets: torch.Tensor | None, scale: float, sigmoid: bool, parts: int):  # type: ignore[no-untyped-def]
    """Return the operation with keys in so many parts, as a function of q, k and v."""

    def function(*x: torch.Tensor) -> torch.Tensor:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(attention_split, "parts_of", lambda *_: parts)
            return attention_split.attention_split(*x, offsets, scale, sigmoid)[0]

    return function


@settings(max_examples=4, deadline=None)
@given(st.integers(0, 2), st.integers(0, 9), st.integers(0, 100), HEADS, DTYPES, st.booleans(), st.integers(2, 5))
@example(1, 3, 0, 72, torch.float32, False, 3)
@example(1, 3, 0, 72, torch.float32, True, 2)
@example(2, 2, 65, 60, torch.bfloat16, False, 2)
@example(1, 2, 40, 16, torch.float32, False, 5)
def test_dense(b: int, n: int, m: int, d: int, dtype: torch.dtype, sigmoid: bool, parts: int) -> None:
    q, k, v = (random(b, rows, 1, d, dtype=dtype, seed=i) for i, rows in enumerate((n, m, m)))
    agree(ours(None, d**-0.5, sigmoid, parts), twin(None, d**-0.5, sigmoid), q, k, v)


@pytest.mark.slow
@settings(max_examples=3, deadline=None)
@given(st.lists(st.integers(0, 70), min_size=1, max_size=2), HEADS, DTYPES, st.booleans(), st.integers(2, 3))
@example([0, 1, 0], 72, torch.float32, False, 2)
@example([3, 67], 40, torch.float32, False, 2)
def test_packed(lengths: list[int], d: int, dtype: torch.dtype, sigmoid: bool, parts: int) -> None:
    offsets, n = starts(lengths), sum(lengths)
    q, k, v = (random(n, 2, d, dtype=dtype, seed=i) for i in range(3))
    agree(ours(offsets, d**-0.5, sigmoid, parts), twin(offsets, d**-0.5, sigmoid), q, k, v)


@pytest.mark.filterwarnings("ignore:overflow encountered", "ignore:invalid value encountered")
def test_a_part_far_below_the_other() -> None:
    # Logits of 144 and of -144: the second part must not count, nor make anything infinite.
    q, k = torch.full((1, 2, 1, 16), 6.0), torch.full((1, 64, 1, 16), 6.0)
    k[:, 32:] = -6
    inputs = q.requires_grad_(), k.requires_grad_(), random(1, 64, 1, 16)
    agree(ours(None, 0.25, False, 2), twin(None, 0.25, False), *inputs)


def test_logarithms_of_sums_are_those_of_the_whole() -> None:
    q, k, v = (random(1, rows, 2, 40, seed=i).detach() for i, rows in enumerate((3, 70, 70)))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(attention_split, "parts_of", lambda *_: 3)
        got = attention_split.attention_split(q, k, v, None, 0.2, False)
    for split, whole in zip(got, attention.attention(q, k, v, None, 0.2, False), strict=True):
        torch.testing.assert_close(split, whole, atol=1e-5, rtol=1e-5)


def test_into_how_many_parts() -> None:
    assert parts_of(132, 4096, 64, 132) == parts_of(67, 4096, 64, 132) == 1  # enough programs
    assert parts_of(66, 4096, 64, 132) == 2 and parts_of(32, 4096, 64, 132) == 4
    assert parts_of(1, 2**20, 64, 132) == MOST
    assert parts_of(1, LEAST * 64 * 2 - 1, 64, 132) == 1  # few keys
    assert parts_of(1, LEAST * 64 * 3, 64, 132) == 3 and parts_of(0, 0, 64, 132) == 1


def test_a_batch_of_one_is_divided_and_a_large_one_is_as_ever() -> None:
    x = torch.empty(1, 512, 8, 64, device="meta", dtype=torch.bfloat16)
    with noting(90) as small:
        attention_split._forward(x, x, x, None, 0.1, False)
    with noting(90) as large:
        attention_split._forward(*(x.expand(64, -1, -1, -1) for _ in range(3)), None, 0.1, False)
    assert [one.named.get("SPLIT") for one in small] == [True, None]
    assert [one.named.get("SPLIT") for one in large] == [False]


def test_nothing_is_divided_unless_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backends, "why_not_fused", lambda device, dtype: None)
    monkeypatch.setattr(attention_split, "parts_of", lambda *_: pytest.fail("divided"))
    x, offsets = random(70, 1, 16), starts([70])
    attend(x, x, x, offsets=offsets)
    attend(x[None], x[None], x[None], activation="sigmoid")
    with monkeypatch.context() as patch:
        patch.setattr(attention_split, "parts_of", lambda *_: 2)
        got = attend(x, x, x, offsets=offsets, backend="split")
    torch.testing.assert_close(got, attend(x, x, x, offsets=offsets), atol=1e-5, rtol=1e-5)
    request = backends.Request("cuda", "softmax", packed=True, bias=False)
    reasons = {name: reason for name, _, reason in backends.explain(request)}
    assert "depend on the size of the batch" in reasons["split"]
    with pytest.raises(ValueError, match="bias"):
        attend(x[None], x[None], x[None], bias=torch.zeros(70, 70), backend="split")


@pytest.mark.slow
def test_registration(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention_split, "parts_of", lambda *_: 2)
    x, offsets = random(36, 1, 16), starts([1, 35])
    torch.library.opcheck(torch.ops.belvedere.attention_split, (x, x, x, offsets, 0.25, False))
    torch.library.opcheck(torch.ops.belvedere.attention_split, (x[None], x[None], x[None], None, 0.25, True))
