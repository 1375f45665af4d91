"""Gradients of queries, keys and their weights, from those of the normalised and turned ones."""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from belvedere.kernels.triton.heads import angle_of, heads_tile, strides_of, tokens_of, turn, weight_of
from belvedere.kernels.triton.launch import helper, launch, register
from belvedere.kernels.triton.reduce import CHUNK, add_chunks, partial_sums, segments_of
from belvedere.kernels.triton.rows import normalised, pull_normal


@helper
def _backward_of(
    dy_ptr,
    x_ptr,
    dx_ptr,
    weight,
    cos,
    sin,
    inside,
    eps,
    NORM: tl.constexpr,
    D: tl.constexpr,
    HEADS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Store the gradient of x and return that of the weight."""
    g = turn(tl.load(dy_ptr, inside, 0.0).to(tl.float32), cos, -sin, HEADS, BLOCK)
    column = tl.arange(0, BLOCK)[None, :]
    x, _, inverse = normalised((tl.load(x_ptr, inside, 0.0).to(tl.float32),), column, eps, NORM, D, BLOCK, 1)
    dx = pull_normal((g * weight,), x, inverse, eps, NORM, D, 1)
    tl.store(dx_ptr, dx[0], inside)
    return g * x[0]


@triton.jit
def _backward_kernel(
    dq_ptr,
    dk_ptr,
    q_ptr,
    k_ptr,
    q_slope_ptr,
    k_slope_ptr,
    q_weight_ptr,
    k_weight_ptr,
    partial_ptr,
    cos_ptr,
    sin_ptr,
    n,
    h,
    length,
    q_stride,
    k_stride,
    q_weight_head,
    q_weight_column,
    k_weight_head,
    k_weight_column,
    eps,
    Q_NORM: tl.constexpr,
    K_NORM: tl.constexpr,
    SHARED: tl.constexpr,
    D: tl.constexpr,
    CHUNK: tl.constexpr,
    HEADS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    slot = tl.program_id(0).to(tl.int64)
    head, column = tl.arange(0, HEADS)[:, None], tl.arange(0, BLOCK)[None, :]
    inside = (head < h) & (column < D)
    place = head * D + column
    q_weight = weight_of(q_weight_ptr, head, column, q_weight_head, q_weight_column, inside, HEADS, BLOCK)
    k_weight = weight_of(k_weight_ptr, head, column, k_weight_head, k_weight_column, inside, HEADS, BLOCK)
    q_sum = tl.zeros((HEADS, BLOCK), tl.float32)
    k_sum = tl.zeros((HEADS, BLOCK), tl.float32)
    for token in range(slot * CHUNK, tl.minimum(slot * CHUNK + CHUNK, n)):
        cos = angle_of(cos_ptr, token, head, h, length, SHARED, D, BLOCK)
        sin = angle_of(sin_ptr, token, head, h, length, SHARED, D, BLOCK)
        flat = token * h * D + place
        q_sum += _backward_of(
            dq_ptr + flat,
            q_ptr + token * q_stride + place,
            q_slope_ptr + flat,
            q_weight,
            cos,
            sin,
            inside,
            eps,
            Q_NORM,
            D,
            HEADS,
            BLOCK,
        )
        k_sum += _backward_of(
            dk_ptr + flat,
            k_ptr + token * k_stride + place,
            k_slope_ptr + flat,
            k_weight,
            cos,
            sin,
            inside,
            eps,
            K_NORM,
            D,
            HEADS,
            BLOCK,
        )
    if partial_ptr is not None:
        flat = slot * 2 * h * D + place
        tl.store(partial_ptr + flat, q_sum, inside)
        tl.store(partial_ptr + flat + h * D, k_sum, inside)


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
    segments = segments_of(len(q), 1, None, q)
    chunks = partial_sums(segments, 2, *q.shape[1:]) if weighted else None
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
        CHUNK=CHUNK,
        **heads_tile(q, 8),
    )
    return *slopes, q.new_empty(0, dtype=torch.float32) if chunks is None else add_chunks(chunks, segments)[0]


def _empty(dq: Tensor, dk: Tensor, q: Tensor, k: Tensor, *others: Any) -> tuple[Tensor, Tensor, Tensor]:
    sums = (0,) if others[2] is None and others[3] is None else (2, *q.shape[-2:])
    return q.new_empty(q.shape), k.new_empty(k.shape), q.new_empty(sums, dtype=torch.float32)


qk_norm_rope_backward = register("qk_norm_rope_backward", backward, _empty, None, None)
