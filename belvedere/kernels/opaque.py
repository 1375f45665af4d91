"""Plain PyTorch as one operation, and one for its backward, to a compiler that cannot see into it."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


def opaque(name: str, function: Callable[..., Tensor], like: int) -> Callable[..., Tensor]:
    """Return ``function`` as the operation ``belvedere::name``, differentiable once in its first three inputs.

    Those are tensors; a fourth, and an option, have no gradient. The result has the shape and dtype of input ``like``.
    """
    schema = torch.library.infer_schema(function, mutates_args=())
    given = schema.removeprefix("(").rpartition(") -> ")[0]

    def forward(*inputs: Any) -> Tensor:
        return function(*inputs).contiguous()

    def backward(gradient: Tensor, *inputs: Any) -> tuple[Tensor, ...]:
        _, pull = torch.func.vjp(lambda *tensors: function(*tensors, *inputs[3:]), *inputs[:3])  # type: ignore[misc]
        return tuple(x.contiguous() for x in pull(gradient))

    operation = torch.library.custom_op(f"belvedere::{name}", forward, mutates_args=(), schema=schema)
    pulled = torch.library.custom_op(
        f"belvedere::{name}_backward",
        backward,
        mutates_args=(),
        schema=f"(Tensor gradient, {given}) -> (Tensor, Tensor, Tensor)",
    )
    operation.register_fake(lambda *inputs: _empty(inputs[like]))
    pulled.register_fake(lambda gradient, *inputs: tuple(_empty(x) for x in inputs[:3]))

    def keep(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        *tensors, ctx.option = inputs
        ctx.save_for_backward(*tensors)

    def pull(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        return *pulled(gradient, *ctx.saved_tensors, ctx.option), None, None

    operation.register_autograd(pull, setup_context=keep)
    return operation


def _empty(x: Tensor) -> Tensor:
    return torch.empty(x.shape, dtype=x.dtype, device=x.device)
