"""What tests of kernels share: the public ops led to their kernels on a CPU, where Triton's interpreter runs them."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any
from unittest import mock

import torch
from torch import Tensor

import belvedere.kernels.triton  # noqa: F401  registers the ops
from belvedere.kernels.triton.launch import Operation
from tests.kernels import test_ops


@contextmanager
def routed(*modules: ModuleType) -> Iterator[None]:
    """Let the public ops of ``modules`` take any tensor to its kernel."""
    with mock.patch.multiple(modules[0], fused=lambda x: True):
        if len(modules) == 1:
            yield
        else:
            with routed(*modules[1:]):
                yield


def agree(op: Callable[..., Tensor], twin: Callable[..., Tensor], *inputs: Tensor, **options: float | None) -> None:
    """Compare ``op`` and ``twin`` as ``tests.kernels.test_ops.agree``, and fail where ``op`` asked no kernel."""
    asked: list[str] = []
    call = Operation.__call__

    def noted(self: Operation, *given: Any) -> Any:
        asked.append(self.name)
        return call(self, *given)

    with mock.patch.object(Operation, "__call__", noted):
        test_ops.agree(op, twin, *inputs, **options)
    assert asked, "no kernel was asked: only the plain way was compared"


@contextmanager
def deterministic() -> Iterator[None]:
    """Have PyTorch's deterministic algorithms on."""
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


def gradients(op: Callable[..., Tensor], *inputs: Tensor) -> tuple[Tensor, ...]:
    """Return the value of ``op`` and the gradient of each input, for one direction that depends on the shape alone."""
    inputs = tuple(x.detach().requires_grad_() for x in inputs)
    value = op(*inputs)
    direction = torch.randn(value.shape[1:], generator=torch.Generator().manual_seed(1)).to(value.dtype)
    return value.detach(), *torch.autograd.grad(value, inputs, direction.expand_as(value))


def same(left: tuple[Tensor, ...], right: tuple[Tensor, ...]) -> bool:
    """Return whether two lists of tensors agree bit for bit."""
    return all(torch.equal(a, b) for a, b in zip(left, right, strict=True))
