"""GEGLU and SwiGLU in Triton's interpreter against the plain twin: values and gradients."""

from collections.abc import Iterator

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("triton", reason="triton is not installed: pip install 'belvedere[test]'")

from belvedere.kernels import gates as public
from belvedere.kernels import reference
from belvedere.kernels.triton import gates
from tests.kernels.test_ops import DTYPES, random
from tests.kernels.triton.fused import agree, routed

fewer = settings(max_examples=15, deadline=None)


@pytest.fixture(scope="module", autouse=True)
def _routed() -> Iterator[None]:
    with routed(public):
        yield


@fewer
@given(st.lists(st.integers(0, 4), max_size=3), st.sampled_from([1, 7, 60]), DTYPES, st.sampled_from(["gelu", "silu"]))
def test_values_and_gradients(shape: list[int], c: int, dtype: torch.dtype, activation: str) -> None:
    x = random(*shape, 2 * c, dtype=dtype)
    agree(lambda x: public.gated_mlp(x, activation), lambda x: reference.gated_mlp(x, activation), x)


def test_rows_longer_than_a_program() -> None:
    x = random(2, 2 * (gates.COLUMNS + 3))
    agree(lambda x: public.gated_mlp(x, "gelu"), reference.gated_mlp, x)


def test_other_strides() -> None:
    x = random(8, 3).detach().T.requires_grad_()
    agree(lambda x: public.gated_mlp(x, "silu"), lambda x: reference.gated_mlp(x, "silu"), x)


@pytest.mark.parametrize("activation", ["gelu", "silu"])
def test_registration(activation: str) -> None:
    torch.library.opcheck(torch.ops.belvedere.gated_mlp, (random(3, 8), activation))


def test_the_tail_of_gelu_is_right_relative_to_itself() -> None:
    gate = torch.linspace(-6, 6, 1201)
    value = public.gated_mlp(torch.cat((gate, torch.ones_like(gate)))[None], "gelu")
    want = gate.double() * torch.special.ndtr(gate.double())
    torch.testing.assert_close(value[0].double(), want, rtol=3e-6, atol=1e-12)


def test_what_gates_make_of_numbers_that_are_none() -> None:
    gate = torch.tensor([float("inf"), float("nan"), 1e30, -1e30])
    value = public.gated_mlp(torch.stack((gate, torch.ones_like(gate)), -1), "gelu")[:, 0]
    assert value.isnan().tolist() == [False, True, False, False]
    assert value[[0, 2, 3]].tolist() == [float("inf"), gate[2].item(), 0]
