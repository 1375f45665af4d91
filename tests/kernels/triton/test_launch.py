"""A kernel as an operation: to compilers and fake tensors the custom op, to all others its own functions."""

from unittest import mock

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

pytest.importorskip("triton", reason="triton is not installed: pip install 'belvedere[test]'")

from belvedere.kernels.backends import OPERATIONS
from belvedere.kernels.triton.gates import gated_mlp
from tests.kernels.triton.fused import gradients, same

CUSTOM = torch.ops.belvedere.gated_mlp


def direct(x: torch.Tensor) -> torch.Tensor:
    return gated_mlp(x, "gelu")


def custom(x: torch.Tensor) -> torch.Tensor:
    return CUSTOM(x, "gelu")


@pytest.fixture
def uncalled() -> "mock._patch[mock.Mock]":
    """Have the custom op fail when it is called."""
    return mock.patch.object(torch.ops.belvedere, "gated_mlp", side_effect=AssertionError("the custom op was called"))


def test_values_and_gradients_are_those_of_the_custom_op(uncalled: "mock._patch[mock.Mock]") -> None:
    x = torch.randn(3, 8)
    want = gradients(custom, x)
    with uncalled:
        assert same(gradients(direct, x), want)
        with torch.no_grad():
            assert torch.equal(direct(x.clone().requires_grad_()), want[0])
    assert OPERATIONS["gated_mlp"] is gated_mlp


def test_who_looks_at_operations_sees_one(uncalled: "mock._patch[mock.Mock]") -> None:
    seen: list[str] = []

    def look(graph: torch.fx.GraphModule, inputs: list[torch.Tensor]) -> torch.fx.GraphModule:
        seen.extend(str(node.target) for node in graph.graph.nodes if node.op == "call_function")
        return graph

    torch.compiler.reset()
    x = torch.randn(3, 8)
    assert torch.equal(torch.compile(direct, fullgraph=True, backend=look)(x), direct(x))
    assert seen == ["belvedere.gated_mlp"] or seen == ["belvedere.gated_mlp.default"]
    with FakeTensorMode() as mode:
        assert direct(mode.from_tensor(x)).shape == (3, 4)
        with uncalled, pytest.raises(AssertionError, match="was called"):
            direct(mode.from_tensor(x))


def test_gradients_of_gradients_are_refused() -> None:
    x = torch.randn(3, 8, requires_grad=True)
    (pulled,) = torch.autograd.grad(direct(x).sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="no autograd formula"):
        pulled.sum().backward()
