"""Normalise queries and keys over the channels of a head, weigh them, turn pairs of channels: both in one launch.

A program has all heads of a token; q, k and v are read where they lie, in a fused projection too. Statistics
are cheaper taken again in backward than kept: a head is short.
"""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from belvedere.kernels.triton.heads import (
    angles_of,
    columns_of,
    heads_tile,
    load_heads,
    negative,
    store_heads,
    strides_of,
    tokens_of,
    turn,
    weights_of,
)
from belvedere.kernels.triton.launch import helper, launch, meta, register
from belvedere.kernels.triton.rope_backward import backward, qk_norm_rope_backward
from belvedere.kernels.triton.rows import normalised, times


@helper
def _forward_of(
    x_ptr, y_ptr, weights, cos, sin, head, columns, h, eps,
    NORM: tl.constexpr, D: tl.constexpr, HEADS: tl.constexpr,
    FIRST: tl.constexpr, SECOND: tl.constexpr, COUNT: tl.constexpr,
):  # fmt: skip
    x = load_heads(x_ptr, head, columns, h, D, COUNT)
    x, _, _ = normalised(x, columns[COUNT - 1], eps, NORM, D, COUNT, FIRST + SECOND == D)
    y = turn(times(x, weights, COUNT), cos, sin, HEADS, FIRST, SECOND, COUNT)
    store_heads(y_ptr, y, head, columns, h, D, COUNT)


@triton.jit
def _forward_kernel(
    q_ptr, k_ptr, q_out_ptr, k_out_ptr, q_weight_ptr, k_weight_ptr, cos_ptr, sin_ptr,
    h, length, q_stride, k_stride, q_weight_head, q_weight_column, k_weight_head, k_weight_column, eps,
    Q_NORM: tl.constexpr, K_NORM: tl.constexpr, SIGN: tl.constexpr, SHARED: tl.constexpr,
    D: tl.constexpr, HEADS: tl.constexpr, FIRST: tl.constexpr, SECOND: tl.constexpr, COUNT: tl.constexpr,
):  # fmt: skip
    head, columns = tl.arange(0, HEADS)[:, None], columns_of(FIRST, SECOND)
    q_weights = weights_of(
        q_weight_ptr, head, columns, h, q_weight_head, q_weight_column, D, HEADS, FIRST, SECOND, COUNT
    )
    k_weights = weights_of(
        k_weight_ptr, head, columns, h, k_weight_head, k_weight_column, D, HEADS, FIRST, SECOND, COUNT
    )
    token = tl.program_id(0).to(tl.int64)
    cos = angles_of(cos_ptr, token, head, h, length, SHARED, D, FIRST, SECOND, COUNT)
    sin = angles_of(sin_ptr, token, head, h, length, SHARED, D, FIRST, SECOND, COUNT)
    if SIGN < 0:
        sin = negative(sin, COUNT)
    _forward_of(
        q_ptr + token * q_stride, q_out_ptr + token * h * D, q_weights, cos, sin, head, columns, h, eps,
        Q_NORM, D, HEADS, FIRST, SECOND, COUNT,
    )  # fmt: skip
    if k_ptr is not None:
        _forward_of(
            k_ptr + token * k_stride, k_out_ptr + token * h * D, k_weights, cos, sin, head, columns, h, eps,
            K_NORM, D, HEADS, FIRST, SECOND, COUNT,
        )  # fmt: skip


def _launch_forward(
    q: Tensor,
    k: Tensor | None,
    out: tuple[Tensor, Tensor | None],
    weights: tuple[Tensor | None, Tensor | None],
    cos: Tensor,
    sin: Tensor,
    norms: tuple[str, str],
    eps: float,
    sign: float,
) -> None:
    q, k = tokens_of(q), None if k is None else tokens_of(k)
    launch(
        _forward_kernel,
        (len(q),),
        q,
        k,
        *out,
        *weights,
        cos.contiguous(),
        sin.contiguous(),
        q.shape[1],
        len(cos),
        q.stride(0),
        0 if k is None else k.stride(0),
        *strides_of(weights[0], q),
        *strides_of(weights[1], q),
        eps,
        Q_NORM=norms[0],
        K_NORM=norms[1],
        SIGN=sign,
        SHARED=cos.shape[1] == 1,
        **heads_tile(q, 16),
    )


def _forward(
    q: Tensor,
    k: Tensor,
    cos: Tensor,
    sin: Tensor,
    q_weight: Tensor | None,
    k_weight: Tensor | None,
    q_norm: str,
    k_norm: str,
    eps: float,
) -> tuple[Tensor, Tensor]:
    out = q.new_empty(q.shape), k.new_empty(k.shape)
    _launch_forward(q, k, out, (q_weight, k_weight), cos, sin, (q_norm, k_norm), eps, 1.0)
    return out


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.options = inputs[6:]
    ctx.save_for_backward(*inputs[:6])


def _pull(ctx: Any, dq: Tensor, dk: Tensor) -> tuple[Tensor | None, ...]:
    saved = ctx.saved_tensors  # may be asked for once only: under checkpointing
    dq, dk, sums = qk_norm_rope_backward(dq, dk, *saved, *ctx.options)
    slopes = [None if w is None else sums[i].sum_to_size(w.shape).to(w.dtype) for i, w in enumerate(saved[4:])]
    return dq, dk, None, None, *slopes, None, None, None


def _rotate(x: Tensor, cos: Tensor, sin: Tensor, sign: float) -> Tensor:
    out = x.new_empty(x.shape)
    _launch_forward(x, None, (out, None), (None, None), cos, sin, ("none", "none"), 0.0, sign)
    return out


def _rotate_keep(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    _, cos, sin, ctx.sign = inputs
    ctx.save_for_backward(cos, sin)


def _rotate_pull(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
    return rotate_pairs(dy, *ctx.saved_tensors, -ctx.sign), None, None, None


qk_norm_rope = register(
    "qk_norm_rope", _forward, lambda q, k, *_: (q.new_empty(q.shape), k.new_empty(k.shape)), _keep, _pull
)
"""(q, k, cos, sin, q_weight, k_weight, q_norm, k_norm, eps) -> q, k; shapes as in ``belvedere.kernels``, angles
float32 (n, h or 1, d / 2) without gradient."""
rotate_pairs = register("rotate_pairs", _rotate, lambda x, *_: x.new_empty(x.shape), _rotate_keep, _rotate_pull)
"""(x, cos, sin, sign) -> x turned by the angles, or back where ``sign`` is -1."""


def production() -> Iterator[tuple[str, Callable[[], Any]]]:
    """Yield launches at the sizes of published networks, by name; they are made under ``launch.noting``."""
    for name, h, d, norm, shape in (
        ("q, k FiTv2-XL/2", 16, 72, "layer", (64 * 256,)),
        ("q, k FiTv2-3B/2", 24, 96, "layer", (64 * 256,)),
        ("q, k DiMR-XL/2R, axial", 16, 60, "rms", (64, 257)),
    ):
        q, k, v = meta(*shape, 3, h, d).unbind(-3)
        weight = meta(h, 1, dtype=torch.float32) if norm == "rms" else None
        cos = meta(shape[-1], h if norm == "rms" else 1, d // 2, dtype=torch.float32)
        dq = meta(*shape, h, d)
        yield f"{name} forward", partial(_forward, q, k, cos, cos, weight, weight, norm, norm, 1e-6)
        yield f"{name} backward", partial(backward, dq, dq, q, k, cos, cos, weight, weight, norm, norm, 1e-6)
        yield f"v {name[5:]}", partial(_rotate, v, cos, cos, 1.0)
