"""What tests of kernels share: the public ops led to their kernels on a CPU, where Triton's interpreter runs them."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import ModuleType
from unittest import mock

import torch
from torch import Tensor

import belvedere.kernels.triton  # noqa: F401  registers the ops


@contextmanager
def routed(*modules: ModuleType) -> Iterator[None]:
    """Let the public ops of ``modules`` take any tensor to its kernel."""
    with mock.patch.multiple(modules[0], fused=lambda x: True):
        if len(modules) == 1:
            yield
        else:
            with routed(*modules[1:]):
                yield


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
