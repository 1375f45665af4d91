"""Gradients of attention: one kernel keeps queries, one keeps keys; each sum has one program and a fixed order.

With P the weights and dP = dO V^T, softmax has dS = P (dP - rowsum(dO O)) and sigmoid dS = P (1 - P) dP; then
dQ = scale dS K, dK = scale dS^T Q, dV = P^T dO. P is computed again, from the kept logarithm of its sum for softmax.
"""

import triton
import triton.language as tl
from torch import Tensor

from belvedere.kernels.triton.attention_tiles import (
    LOG2_E,
    chunk_of,
    dot,
    load,
    load_both,
    place,
    product,
    readable,
    slots_of,
    store_both,
    strides_of,
    tile_of,
    widths,
    zeros_both,
)
from belvedere.kernels.triton.elementary import reciprocal
from belvedere.kernels.triton.launch import INTERPRETED, helper, launch, register


@helper
def _weigh(logits, products, scale, shift, delta, SIGMOID: tl.constexpr):
    """Return the weights P and dS of logits and dP; ``shift`` is log2 of the keys' number or sum."""
    if SIGMOID:
        weights = reciprocal(1.0 + tl.exp2(shift - logits * scale))
        return weights, weights * (1.0 - weights) * products
    else:
        weights = tl.exp2(logits * scale - shift)
        return weights, weights * (products - delta)


@helper
def _fold_keys(
    q0, q1, do0, do1, q_ptr, do_ptr, k_ptr, v_ptr, q_n, do_n, k_n, v_n, own, left, scale, shift, delta, dq0, dq1,
    D: tl.constexpr, D0: tl.constexpr, D1: tl.constexpr, CHUNK: tl.constexpr, OWN: tl.constexpr,
    OTHER: tl.constexpr, SIGMOID: tl.constexpr, MASKED: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """Return dQ of a tile of queries with ``OTHER`` more keys, ``left`` of them real."""
    k0, k1 = load_both(k_ptr, k_n, left, D0, D1, D, OTHER, MASKED)
    if CHUNK:
        logits = product(q_ptr, q_n, own, k_ptr, k_n, left, D, OWN, OTHER, CHUNK)
        products = product(do_ptr, do_n, own, v_ptr, v_n, left, D, OWN, OTHER, CHUNK)
    else:
        zeros = tl.full((OWN, OTHER), 0, tl.float32)
        logits = dot(q0, tl.trans(k0), zeros, WIDE)
        products = dot(do0, tl.trans(load(v_ptr, v_n, left, 0, D0, D, OTHER, MASKED)), zeros, WIDE)
        if D1:
            logits = dot(q1, tl.trans(k1), logits, WIDE)
            products = dot(do1, tl.trans(load(v_ptr, v_n, left, D0, D1, D, OTHER, MASKED)), products, WIDE)
    _, slopes = _weigh(logits, products, scale, shift, delta, SIGMOID)
    if MASKED:  # a key of zeros may have an infinite weight
        slopes = tl.where(tl.arange(0, OTHER)[None, :] < left, slopes, 0.0)
    slopes = slopes.to(k_ptr.dtype.element_ty)
    dq0 = dot(slopes, k0, dq0, WIDE)
    if D1:
        dq1 = dot(slopes, k1, dq1, WIDE)
    return dq0, dq1


@triton.jit(do_not_specialize=["total", "n", "m"])
def _queries_kernel(
    do_ptr, q_ptr, k_ptr, v_ptr, o_ptr, lse_ptr, delta_ptr, dq_ptr, offsets_ptr, slots_ptr, scale, step, total, n, m,
    q_b, q_n, q_h, k_b, k_n, k_h, v_b, v_n, v_h,
    D: tl.constexpr, D0: tl.constexpr, D1: tl.constexpr, CHUNK: tl.constexpr, OWN: tl.constexpr, OTHER: tl.constexpr,
    UNIT: tl.constexpr, PACKED: tl.constexpr, SIGMOID: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    batch, first, start, n, m = place(offsets_ptr, slots_ptr, n, m, OWN, PACKED)
    if start >= n:
        return
    head = tl.program_id(1).to(tl.int64)
    heads = tl.num_programs(1)
    token = batch * n + first + start
    q_ptr += (batch * q_b + (first + start) * q_n + head * q_h) * UNIT
    k_ptr += (batch * k_b + first * k_n + head * k_h) * UNIT
    v_ptr += (batch * v_b + first * v_n + head * v_h) * UNIT
    own = (token * heads + head) * D
    do_ptr += own
    q0, q1 = load_both(q_ptr, q_n * UNIT, n - start, D0, D1, D, OWN, True)
    do0, do1 = load_both(do_ptr, heads * D, n - start, D0, D1, D, OWN, True)
    dq0, dq1 = zeros_both(D0, D1, OWN)
    if SIGMOID:
        shift = tl.log2(tl.maximum(m, 1).to(tl.float32))
        delta = 0.0
    else:
        o0, o1 = load_both(o_ptr + own, heads * D, n - start, D0, D1, D, OWN, True)
        inner = tl.sum(do0.to(tl.float32) * o0.to(tl.float32), 1)
        if D1:
            inner += tl.sum(do1.to(tl.float32) * o1.to(tl.float32), 1)
        row = tl.arange(0, OWN)
        shift = tl.load(lse_ptr + head * total + token + row, row < n - start, other=0.0)[:, None]
        tl.store(delta_ptr + head * total + token + row, inner, row < n - start)
        delta = inner[:, None]
    for _ in range(m // OTHER):
        dq0, dq1 = _fold_keys(
            q0, q1, do0, do1, q_ptr, do_ptr, k_ptr, v_ptr, q_n * UNIT, heads * D, k_n * UNIT, v_n * UNIT,
            n - start, OTHER, scale, shift, delta, dq0, dq1, D, D0, D1, CHUNK, OWN, OTHER, SIGMOID, False, WIDE,
        )  # fmt: skip
        k_ptr += OTHER * UNIT * k_n
        v_ptr += OTHER * UNIT * v_n
    if m % OTHER:
        dq0, dq1 = _fold_keys(
            q0, q1, do0, do1, q_ptr, do_ptr, k_ptr, v_ptr, q_n * UNIT, heads * D, k_n * UNIT, v_n * UNIT,
            n - start, m % OTHER, scale, shift, delta, dq0, dq1, D, D0, D1, CHUNK, OWN, OTHER, SIGMOID, True, WIDE,
        )  # fmt: skip
    store_both(dq_ptr + own, heads * D, n - start, dq0 * step, dq1 * step, D0, D1, D, OWN)


@helper
def _fold_queries(
    k0, k1, v0, v1, k_ptr, v_ptr, q_ptr, do_ptr, lse_ptr, delta_ptr, k_n, v_n, q_n, do_n, own, left, scale, shift,
    dk0, dk1, dv0, dv1,
    D: tl.constexpr, D0: tl.constexpr, D1: tl.constexpr, CHUNK: tl.constexpr, OWN: tl.constexpr,
    OTHER: tl.constexpr, SIGMOID: tl.constexpr, MASKED: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """Return dK and dV of a tile of keys with ``OTHER`` more queries; zeros after the last add nothing."""
    q0 = load(q_ptr, q_n, left, 0, D0, D, OTHER, MASKED)
    do0 = load(do_ptr, do_n, left, 0, D0, D, OTHER, MASKED)
    q1 = q0
    do1 = do0
    if D1:
        q1 = load(q_ptr, q_n, left, D0, D1, D, OTHER, MASKED)
        do1 = load(do_ptr, do_n, left, D0, D1, D, OTHER, MASKED)
    if CHUNK:
        logits = product(k_ptr, k_n, own, q_ptr, q_n, left, D, OWN, OTHER, CHUNK)
        products = product(v_ptr, v_n, own, do_ptr, do_n, left, D, OWN, OTHER, CHUNK)
    else:
        zeros = tl.full((OWN, OTHER), 0, tl.float32)
        logits = dot(k0, tl.trans(q0), zeros, WIDE)
        products = dot(v0, tl.trans(do0), zeros, WIDE)
        if D1:
            logits = dot(k1, tl.trans(q1), logits, WIDE)
            products = dot(v1, tl.trans(do1), products, WIDE)
    delta = 0.0
    if not SIGMOID:
        row = tl.arange(0, OTHER)
        shift = tl.load(lse_ptr + row, row < left, other=0.0)[None, :]
        delta = tl.load(delta_ptr + row, row < left, other=0.0)[None, :]
    weights, slopes = _weigh(logits, products, scale, shift, delta, SIGMOID)
    weights = weights.to(q_ptr.dtype.element_ty)
    slopes = slopes.to(q_ptr.dtype.element_ty)
    dv0 = dot(weights, do0, dv0, WIDE)
    dk0 = dot(slopes, q0, dk0, WIDE)
    if D1:
        dv1 = dot(weights, do1, dv1, WIDE)
        dk1 = dot(slopes, q1, dk1, WIDE)
    return dk0, dk1, dv0, dv1


@triton.jit(do_not_specialize=["total", "n", "m"])
def _keys_kernel(
    do_ptr, q_ptr, k_ptr, v_ptr, lse_ptr, delta_ptr, dk_ptr, dv_ptr, offsets_ptr, slots_ptr, scale, step, total, n, m,
    q_b, q_n, q_h, k_b, k_n, k_h, v_b, v_n, v_h,
    D: tl.constexpr, D0: tl.constexpr, D1: tl.constexpr, CHUNK: tl.constexpr, OWN: tl.constexpr, OTHER: tl.constexpr,
    UNIT: tl.constexpr, PACKED: tl.constexpr, SIGMOID: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    batch, first, start, m, n = place(offsets_ptr, slots_ptr, m, n, OWN, PACKED)
    if start >= m:
        return
    head = tl.program_id(1).to(tl.int64)
    heads = tl.num_programs(1)
    q_ptr += (batch * q_b + first * q_n + head * q_h) * UNIT
    k_ptr += (batch * k_b + (first + start) * k_n + head * k_h) * UNIT
    v_ptr += (batch * v_b + (first + start) * v_n + head * v_h) * UNIT
    do_ptr += ((batch * n + first) * heads + head) * D
    if not SIGMOID:
        lse_ptr += head * total + batch * n + first
        delta_ptr += head * total + batch * n + first
    # Not by load_both and zeros_both: in that order float32 spills registers on sm_100a.
    k0 = load(k_ptr, k_n * UNIT, m - start, 0, D0, D, OWN, True)
    v0 = load(v_ptr, v_n * UNIT, m - start, 0, D0, D, OWN, True)
    dk0 = tl.full((OWN, D0), 0, tl.float32)
    dv0 = tl.full((OWN, D0), 0, tl.float32)
    k1 = k0
    v1 = v0
    dk1 = dk0
    dv1 = dv0
    if D1:
        k1 = load(k_ptr, k_n * UNIT, m - start, D0, D1, D, OWN, True)
        v1 = load(v_ptr, v_n * UNIT, m - start, D0, D1, D, OWN, True)
        dk1 = tl.full((OWN, D1), 0, tl.float32)
        dv1 = tl.full((OWN, D1), 0, tl.float32)
    shift = tl.log2(tl.maximum(m, 1).to(tl.float32))
    for _ in range(n // OTHER):
        dk0, dk1, dv0, dv1 = _fold_queries(
            k0, k1, v0, v1, k_ptr, v_ptr, q_ptr, do_ptr, lse_ptr, delta_ptr, k_n * UNIT, v_n * UNIT, q_n * UNIT,
            heads * D, m - start, OTHER, scale, shift, dk0, dk1, dv0, dv1,
            D, D0, D1, CHUNK, OWN, OTHER, SIGMOID, False, WIDE,
        )  # fmt: skip
        q_ptr += OTHER * UNIT * q_n
        do_ptr += OTHER * D * heads
        if not SIGMOID:
            lse_ptr += OTHER
            delta_ptr += OTHER
    if n % OTHER:
        dk0, dk1, dv0, dv1 = _fold_queries(
            k0, k1, v0, v1, k_ptr, v_ptr, q_ptr, do_ptr, lse_ptr, delta_ptr, k_n * UNIT, v_n * UNIT, q_n * UNIT,
            heads * D, m - start, n % OTHER, scale, shift, dk0, dk1, dv0, dv1,
            D, D0, D1, CHUNK, OWN, OTHER, SIGMOID, True, WIDE,
        )  # fmt: skip
    own = ((batch * m + first + start) * heads + head) * D
    store_both(dk_ptr + own, heads * D, m - start, dk0 * step, dk1 * step, D0, D1, D, OWN)
    store_both(dv_ptr + own, heads * D, m - start, dv0, dv1, D0, D1, D, OWN)


def run(
    do: Tensor, q: Tensor, k: Tensor, v: Tensor, offsets: Tensor | None, scale: float, sigmoid: bool,
    o: Tensor | None = None, lse: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Return the gradients of q, k and v by that of the result; ``o`` and ``lse`` as kept, for softmax only."""
    do = do.contiguous()
    q, k, v, offsets = readable(q, k, v, offsets)
    *batch, n, h, d = q.shape
    b, m = batch[0] if batch else 1, k.shape[-3]
    delta = None if lse is None else lse.new_empty(lse.shape)
    dq, dk, dv = (x.new_empty(x.shape) for x in (q, k, v))
    (unit, steps), (d0, d1) = strides_of(q, k, v), widths(d)
    numbers = (scale * LOG2_E, scale, b * n, n, m, *steps)
    constants = {"D": d, "D0": d0, "D1": d1, "CHUNK": chunk_of(q), "UNIT": unit}
    constants |= {"PACKED": offsets is not None, "SIGMOID": sigmoid, "WIDE": INTERPRETED}
    for kernel, rows, kind, tensors in (
        (_queries_kernel, n, "queries", (do, q, k, v, o, lse, delta, dq)),
        (_keys_kernel, m, "keys", (do, q, k, v, lse, delta, dk, dv)),
    ):
        tile = tile_of(kind, q)
        slots, count = slots_of(offsets, b, rows, tile.own)
        launch(
            kernel, (count, h), *tensors, offsets, slots, *numbers, **constants, OWN=tile.own, OTHER=tile.other,
            **tile.options,
        )  # fmt: skip
    return dq, dk, dv


def _empty(do: Tensor, q: Tensor, k: Tensor, v: Tensor, *_: object) -> tuple[Tensor, Tensor, Tensor]:
    return q.new_empty(q.shape), k.new_empty(k.shape), v.new_empty(v.shape)


backward = register("attention_backward", run, _empty, None, None)
