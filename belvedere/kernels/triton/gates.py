"""GEGLU and SwiGLU on a fused projection: each half is read once, forward and backward, and nothing else is written."""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from belvedere.kernels.triton.elementary import logistic, normal_share
from belvedere.kernels.triton.launch import launch, meta, register, rows_of

COLUMNS = 1024
"""Channels of a row that one program takes."""


@triton.jit
def _forward_kernel(x_ptr, y_ptr, c, GELU: tl.constexpr, COLUMNS: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    inside = column < c
    gate = tl.load(x_ptr + row * 2 * c + column, inside).to(tl.float32)
    value = tl.load(x_ptr + row * 2 * c + c + column, inside).to(tl.float32)
    if GELU:
        share, _ = normal_share(gate)
        active = gate * share
    else:
        active = gate * logistic(gate)
    tl.store(y_ptr + row * c + column, active * value, inside)


@triton.jit
def _backward_kernel(x_ptr, dy_ptr, dx_ptr, c, GELU: tl.constexpr, COLUMNS: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    inside = column < c
    gate = tl.load(x_ptr + row * 2 * c + column, inside).to(tl.float32)
    value = tl.load(x_ptr + row * 2 * c + c + column, inside).to(tl.float32)
    dy = tl.load(dy_ptr + row * c + column, inside).to(tl.float32)
    if GELU:
        share, bell = normal_share(gate)
        slope = share + gate * 0.3989422804014327 * bell
    else:
        share = logistic(gate)
        slope = share * (1 + gate * (1 - share))
    tl.store(dx_ptr + row * 2 * c + column, slope * value * dy, inside)
    tl.store(dx_ptr + row * 2 * c + c + column, gate * share * dy, inside)


def _forward(x: Tensor, activation: str) -> Tensor:
    x = x.contiguous()
    c = x.shape[-1] // 2
    y = x.new_empty((*x.shape[:-1], c))
    grid = (rows_of(y), triton.cdiv(c, COLUMNS))
    launch(_forward_kernel, grid, x, y, c, GELU=activation == "gelu", COLUMNS=COLUMNS, num_warps=4)
    return y


def _backward(dy: Tensor, x: Tensor, activation: str) -> Tensor:
    x, dy = x.contiguous(), dy.contiguous()
    c = dy.shape[-1]
    dx = torch.empty_like(x)
    grid = (rows_of(dy), triton.cdiv(c, COLUMNS))
    launch(_backward_kernel, grid, x, dy, dx, c, GELU=activation == "gelu", COLUMNS=COLUMNS, num_warps=4)
    return dx


def _keep(ctx: Any, inputs: tuple[Tensor, str], output: Tensor) -> None:
    x, ctx.activation = inputs
    ctx.save_for_backward(x)


def _pull(ctx: Any, dy: Tensor) -> tuple[Tensor, None]:
    return backward(dy, *ctx.saved_tensors, ctx.activation), None


def _empty(x: Tensor, activation: str) -> Tensor:
    return x.new_empty((*x.shape[:-1], x.shape[-1] // 2))


backward = register("gated_mlp_backward", _backward, lambda dy, x, activation: x.new_empty(x.shape), None, None)
gated_mlp = register("gated_mlp", _forward, _empty, _keep, _pull)


def production() -> Iterator[tuple[str, Callable[[], Any]]]:
    """Yield launches at the sizes of published networks, by name; they are made under ``launch.noting``."""
    for name, activation, c in (("GEGLU DiMR-XL/2R", "gelu", 1920), ("SwiGLU FiTv2-3B/2", "silu", 6144)):
        x = meta(64, 256, 2 * c)
        yield f"{name} forward", partial(_forward, x, activation)
        yield f"{name} backward", partial(_backward, meta(64, 256, c), x, activation)
