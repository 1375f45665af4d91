"""Gradients of queries, keys and their weights, from those of the normalised and turned ones."""

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
from belvedere.kernels.triton.launch import helper, launch, register
from belvedere.kernels.triton.reduce import add_chunks, partial_sums, segments_of
from belvedere.kernels.triton.rows import normalised, plus_products, pull_normal, times

CHUNK = 16
"""Tokens of a program that sums for the gradients of weights; where there are none, it has one."""


@helper
def _backward_of(
    dy_ptr, x_ptr, dx_ptr, weights, sums, cos, sin, head, columns, h, eps,
    NORM: tl.constexpr, D: tl.constexpr, HEADS: tl.constexpr,
    FIRST: tl.constexpr, SECOND: tl.constexpr, COUNT: tl.constexpr,
):  # fmt: skip
    """Store the gradient of x and return the sums for that of the weights, ``sin`` being that of the way back."""
    g = turn(load_heads(dy_ptr, head, columns, h, D, COUNT), cos, sin, HEADS, FIRST, SECOND, COUNT)
    x = load_heads(x_ptr, head, columns, h, D, COUNT)
    x, _, inverse = normalised(x, columns[COUNT - 1], eps, NORM, D, COUNT, FIRST + SECOND == D)
    dx = pull_normal(times(g, weights, COUNT), x, inverse, eps, NORM, D, COUNT)
    store_heads(dx_ptr, dx, head, columns, h, D, COUNT)
    return plus_products(sums, g, x, COUNT)


@helper
def _no_sums(HEADS: tl.constexpr, FIRST: tl.constexpr, SECOND: tl.constexpr):
    sums = (tl.zeros((HEADS, FIRST), tl.float32),)
    if SECOND:
        sums += (tl.zeros((HEADS, SECOND), tl.float32),)
    return sums


@triton.jit
def _backward_kernel(
    dq_ptr, dk_ptr, q_ptr, k_ptr, q_slope_ptr, k_slope_ptr, q_weight_ptr, k_weight_ptr, partial_ptr, cos_ptr, sin_ptr,
    n, h, length, q_stride, k_stride, q_weight_head, q_weight_column, k_weight_head, k_weight_column, eps,
    Q_NORM: tl.constexpr, K_NORM: tl.constexpr, SHARED: tl.constexpr, CHUNK: tl.constexpr,
    D: tl.constexpr, HEADS: tl.constexpr, FIRST: tl.constexpr, SECOND: tl.constexpr, COUNT: tl.constexpr,
):  # fmt: skip
    slot = tl.program_id(0).to(tl.int64)
    head, columns = tl.arange(0, HEADS)[:, None], columns_of(FIRST, SECOND)
    q_weights = weights_of(
        q_weight_ptr, head, columns, h, q_weight_head, q_weight_column, D, HEADS, FIRST, SECOND, COUNT
    )
    k_weights = weights_of(
        k_weight_ptr, head, columns, h, k_weight_head, k_weight_column, D, HEADS, FIRST, SECOND, COUNT
    )
    q_sums = _no_sums(HEADS, FIRST, SECOND)
    k_sums = _no_sums(HEADS, FIRST, SECOND)
    for token in range(slot * CHUNK, tl.minimum(slot * CHUNK + CHUNK, n)):
        cos = angles_of(cos_ptr, token, head, h, length, SHARED, D, FIRST, SECOND, COUNT)
        sin = negative(angles_of(sin_ptr, token, head, h, length, SHARED, D, FIRST, SECOND, COUNT), COUNT)
        flat = token * h * D
        q_sums = _backward_of(
            dq_ptr + flat, q_ptr + token * q_stride, q_slope_ptr + flat, q_weights, q_sums, cos, sin, head, columns,
            h, eps, Q_NORM, D, HEADS, FIRST, SECOND, COUNT,
        )  # fmt: skip
        k_sums = _backward_of(
            dk_ptr + flat, k_ptr + token * k_stride, k_slope_ptr + flat, k_weights, k_sums, cos, sin, head, columns,
            h, eps, K_NORM, D, HEADS, FIRST, SECOND, COUNT,
        )  # fmt: skip
    if partial_ptr is not None:
        store_heads(partial_ptr + slot * 2 * h * D, q_sums, head, columns, h, D, COUNT)
        store_heads(partial_ptr + slot * 2 * h * D + h * D, k_sums, head, columns, h, D, COUNT)


def backward(
    dq: Tensor,
    dk: Tensor,
    q: Tensor,
    k: Tensor,
    cos: Tensor,
    sin: Tensor,
    q_weight: Tensor | None,
    k_weight: Tensor | None,
    q_norm: str,
    k_norm: str,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor]:
    slopes = q.new_empty(q.shape), k.new_empty(k.shape)
    dq, dk, q, k = dq.contiguous(), dk.contiguous(), tokens_of(q), tokens_of(k)
    weighted = q_weight is not None or k_weight is not None
    segments = segments_of(len(q), 1, None, CHUNK if weighted else 1)
    chunks = partial_sums(segments, q, 2, *q.shape[1:]) if weighted else None
    launch(
        _backward_kernel,
        (segments.slots,),
        dq,
        dk,
        q,
        k,
        *slopes,
        q_weight,
        k_weight,
        chunks,
        cos.contiguous(),
        sin.contiguous(),
        len(q),
        q.shape[1],
        len(cos),
        q.stride(0),
        k.stride(0),
        *strides_of(q_weight, q),
        *strides_of(k_weight, q),
        eps,
        Q_NORM=q_norm,
        K_NORM=k_norm,
        SHARED=cos.shape[1] == 1,
        CHUNK=segments.chunk,
        **heads_tile(q, 8),
    )
    if chunks is None:
        return *slopes, q.new_empty(0, dtype=torch.float32)
    return *slopes, add_chunks(chunks, segments, torch.float32)[0]


def _empty(dq: Tensor, dk: Tensor, q: Tensor, k: Tensor, *others: Any) -> tuple[Tensor, Tensor, Tensor]:
    sums = (0,) if others[2] is None and others[3] is None else (2, *q.shape[-2:])
    return q.new_empty(q.shape), k.new_empty(k.shape), q.new_empty(sums, dtype=torch.float32)


qk_norm_rope_backward = register("qk_norm_rope_backward", backward, _empty, None, None)
