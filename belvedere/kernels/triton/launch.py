"""How kernels are launched; or only noted down, so that they can be compiled for a machine that is not here."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import triton
from torch import Tensor, nn

from belvedere.kernels.backends import OPERATIONS

INTERPRETED: bool = triton.knobs.runtime.interpret
"""Whether kernels run in Triton's interpreter, on any device (TRITON_INTERPRET=1). It multiplies bfloat16 matrices
wrongly: a kernel with ``tl.dot`` takes this as a constant and widens its operands first."""


PROCESSORS = {80: 108, 90: 132, 100: 148, 120: 170}
"""Multiprocessors of A100, H100 SXM, B200 and RTX 5090, by compute capability (NVIDIA's white papers)."""


def helper(function: Callable[..., Any]) -> Any:
    """Return a function that kernels call: compiled with them, plain Python in the interpreter, which would otherwise
    spend 10 ms on each call of it."""
    return function if INTERPRETED else triton.jit(function)


@dataclass(frozen=True)
class Launch:
    """One launch that was noted down: the kernel, its grid of programs, its arguments in order, and its constants and
    options by name."""

    kernel: Any
    grid: tuple[int, ...]
    arguments: tuple[Any, ...]
    named: dict[str, Any]


_noted: list[Launch] | None = None
_noted_capability = 80


def launch(kernel: Any, grid: tuple[int, ...], *arguments: Any, **named: Any) -> None:
    """Run ``kernel`` on the device of its first tensor; nothing when the grid is empty.

    ``named`` are its compile-time constants and Triton's options (``num_warps``, ``num_stages``).
    """
    if _noted is not None:
        _noted.append(Launch(kernel, grid, arguments, named))
    elif all(grid):
        with torch.cuda.device_of(next(x for x in arguments if isinstance(x, Tensor))):
            kernel[grid](*arguments, **named)


def capability_of(x: Tensor) -> int:
    """Return the compute capability, 80 for 8.0, of the device of ``x``; or that which launches are noted down for."""
    if not x.is_cuda:
        return _noted_capability
    major, minor = torch.cuda.get_device_capability(x.device)
    return 10 * major + minor


def processors_of(x: Tensor) -> int:
    """Return how many multiprocessors the device of ``x`` has; or that which launches are noted down for."""
    if not x.is_cuda:
        return PROCESSORS[_noted_capability]
    return torch.cuda.get_device_properties(x.device).multi_processor_count


@contextmanager
def noting(capability: int = 80) -> Iterator[list[Launch]]:
    """Note launches down, as a GPU of this capability would get them, instead of running them; tensors may be on the
    device ``meta``."""
    global _noted, _noted_capability
    launches: list[Launch] = []
    _noted = launches
    _noted_capability = capability
    try:
        yield launches
    finally:
        _noted, _noted_capability = None, 80


class Operation:
    """A kernel as the operation ``belvedere::name`` to who looks at operations (compilers, tensors without memory),
    which costs more than many kernels take; to all others the functions that it is made of."""

    def __init__(self, name: str, forward: Callable[..., Any], keep: Any, pull: Any):
        self.name, self.forward = name, forward
        self.function = None if pull is None else _function(forward, keep, pull)

    def __call__(self, *inputs: Any) -> Any:
        """Return the results; differentiable once, where there are gradients at all, else an error tells who asks."""
        if torch.compiler.is_compiling() or not all(map(_plain, inputs)):
            return getattr(torch.ops.belvedere, self.name)(*inputs)
        if not torch.is_grad_enabled():
            return self.forward(*inputs)
        return (self.function.apply if self.function else getattr(torch.ops.belvedere, self.name))(*inputs)


def _plain(x: Any) -> bool:
    """Return whether an input is no stand-in for a tensor, and no list, which may have some."""
    if isinstance(x, Tensor):
        return type(x) in (Tensor, nn.Parameter) and not x.is_meta
    return not isinstance(x, list)


def _function(forward: Callable[..., Any], keep: Callable[..., None], pull: Callable[..., Any]) -> Any:
    class Function(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, *inputs: Any) -> Any:
            output = forward(*inputs)
            keep(ctx, inputs, output)
            return output

        backward = staticmethod(pull)

    return Function


def register(
    name: str,
    forward: Callable[..., Any],
    fake: Callable[..., Any],
    keep: Callable[..., None] | None,
    pull: Callable[..., Any] | None,
) -> Operation:
    """Return ``forward`` as the operation ``belvedere::name``; ``fake`` gives empty results, ``pull`` the gradients."""
    custom = torch.library.custom_op(f"belvedere::{name}", forward, mutates_args=())
    custom.register_fake(fake)
    if pull is not None:
        custom.register_autograd(pull, setup_context=keep)
    operation = OPERATIONS[name] = Operation(name, forward, keep, pull)
    return operation


def keep_inputs(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
    """Keep what an operation was given, and nothing of what it made, for its gradients."""
    ctx.save_for_backward(*inputs)


def empty_like_kept(dy: Tensor, *kept: Tensor) -> tuple[Tensor, ...]:
    """Return the empty gradients of inputs that were kept."""
    return tuple(x.new_empty(x.shape) for x in kept)


def rows_of(x: Tensor) -> int:
    """Return how many rows a contiguous tensor (..., c) has."""
    return x.numel() // x.shape[-1] if x.shape[-1] else 0


def meta(*shape: int, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    """Return a tensor without memory, for launches that are only noted down."""
    return torch.empty(shape, dtype=dtype, device="meta")
