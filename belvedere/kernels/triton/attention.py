"""Attention in one pass over the keys, dense or packed, softmax or sigmoid; the weights are never written.

Forward (Dao, arXiv 2307.08691): a program keeps a tile of queries and folds the keys in, with a running maximum and sum
for softmax; kept for the backward pass is the logarithm of the sum, in base 2. Sigmoid (Ramapuram et al., arXiv
2409.04431) needs neither. A packed batch runs no program for padding, and reads ``offsets`` on the device only.

Deterministic and batch-invariant: each row, of gradients too, is summed by one program, in an order that depends on its
own sequence alone.
"""

import math
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from belvedere.kernels.backends import TRITON_HEAD
from belvedere.kernels.triton import attention_backward
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
from belvedere.kernels.triton.launch import INTERPRETED, helper, launch, meta, register

NO_SCALE = 1e-37
"""For a scale of zero, which keys that are not there, minus infinity, would make a number that is none."""


@helper
def _fold(
    q0, q1, q_ptr, k_ptr, v_ptr, q_n, k_n, v_n, own, left, scale, shift, sums0, sums1, peak, mass,
    D: tl.constexpr, D0: tl.constexpr, D1: tl.constexpr, CHUNK: tl.constexpr, OWN: tl.constexpr,
    OTHER: tl.constexpr, SIGMOID: tl.constexpr, FLIP: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """Return sums, maximum and mass of a tile of queries with ``OTHER`` more keys, at most ``left`` of them real."""
    if CHUNK:
        logits = product(q_ptr, q_n, own, k_ptr, k_n, left, D, OWN, OTHER, CHUNK)
    else:
        logits = tl.full((OWN, OTHER), 0, tl.float32)
        logits = dot(q0, tl.trans(load(k_ptr, k_n, left, 0, D0, D, OTHER, True)), logits, WIDE)
        if D1:
            logits = dot(q1, tl.trans(load(k_ptr, k_n, left, D0, D1, D, OTHER, True)), logits, WIDE)
    if FLIP:
        logits = -logits
    if SIGMOID:
        weights = reciprocal(1.0 + tl.exp2(shift - logits * scale))
    else:
        logits = tl.where(tl.arange(0, OTHER)[None, :] < left, logits, float("-inf"))
        higher = tl.maximum(peak, tl.max(logits, 1) * scale)
        weights = tl.exp2(logits * scale - higher[:, None])  # one instruction, and one for the power
        fade = tl.exp2(peak - higher)
        mass = mass * fade + tl.sum(weights, 1)
        peak = higher
        sums0 = sums0 * fade[:, None]
        if D1:
            sums1 = sums1 * fade[:, None]
    weights = weights.to(v_ptr.dtype.element_ty)
    sums0 = dot(weights, load(v_ptr, v_n, left, 0, D0, D, OTHER, True), sums0, WIDE)
    if D1:
        sums1 = dot(weights, load(v_ptr, v_n, left, D0, D1, D, OTHER, True), sums1, WIDE)
    return sums0, sums1, peak, mass


@triton.jit(do_not_specialize=["total", "n", "m"])
def _forward_kernel(
    q_ptr, k_ptr, v_ptr, o_ptr, lse_ptr, offsets_ptr, slots_ptr, scale, total, n, m,
    q_b, q_n, q_h, k_b, k_n, k_h, v_b, v_n, v_h,
    D: tl.constexpr, D0: tl.constexpr, D1: tl.constexpr, CHUNK: tl.constexpr, OWN: tl.constexpr, OTHER: tl.constexpr,
    UNIT: tl.constexpr, PACKED: tl.constexpr, SIGMOID: tl.constexpr, FLIP: tl.constexpr, WIDE: tl.constexpr,
    SPLIT: tl.constexpr,
):  # fmt: skip
    batch, first, start, n, m = place(offsets_ptr, slots_ptr, n, m, OWN, PACKED)
    if start >= n:
        return
    head = tl.program_id(1).to(tl.int64)
    q_ptr += (batch * q_b + (first + start) * q_n + head * q_h) * UNIT
    k_ptr += (batch * k_b + first * k_n + head * k_h) * UNIT
    v_ptr += (batch * v_b + first * v_n + head * v_h) * UNIT
    q0, q1 = load_both(q_ptr, q_n * UNIT, n - start, D0, D1, D, OWN, True)
    sums0, sums1 = zeros_both(D0, D1, OWN)
    peak = tl.full((OWN,), float("-inf"), tl.float32)
    mass = tl.full((OWN,), 0, tl.float32)
    shift = tl.log2(tl.maximum(m, 1).to(tl.float32))
    heads = tl.num_programs(1)
    if SPLIT:
        part, parts = tl.program_id(2).to(tl.int64), tl.num_programs(2)
        span = ((m + OTHER - 1) // OTHER + parts - 1) // parts * OTHER
        skipped = tl.minimum(part * span, m)
        m = tl.minimum(m - skipped, span).to(tl.int32)
        k_ptr += skipped * k_n * UNIT
        v_ptr += skipped * v_n * UNIT
        o_ptr += part * total * heads * D
        lse_ptr += part * total * heads
    for begin in range(0, m, OTHER):  # last tiles too: Triton 3.6 makes wrong code of products in two parts behind it
        sums0, sums1, peak, mass = _fold(
            q0, q1, q_ptr, k_ptr, v_ptr, q_n * UNIT, k_n * UNIT, v_n * UNIT, n - start, m - begin, scale, shift,
            sums0, sums1, peak, mass, D, D0, D1, CHUNK, OWN, OTHER, SIGMOID, FLIP, WIDE,
        )  # fmt: skip
        k_ptr += OTHER * UNIT * k_n
        v_ptr += OTHER * UNIT * v_n
    token = batch * n + first + start
    if not SIGMOID:
        mass = tl.where(mass > 0, mass, 1.0)  # no keys: zeros
        share = 1.0 / mass[:, None]
        sums0 = sums0 * share
        if D1:
            sums1 = sums1 * share
        row = tl.arange(0, OWN)
        tl.store(lse_ptr + head * total + token + row, peak + tl.log2(mass), row < n - start)
    o_ptr += (token * heads + head) * D
    store_both(o_ptr, heads * D, n - start, sums0, sums1, D0, D1, D, OWN)


def check(q: Tensor, k: Tensor, v: Tensor, offsets: Tensor | None) -> None:
    """Raise ``ValueError`` unless the tensors fit together: the kernels would read past the end of one."""
    shapes = f"q {tuple(q.shape)}, k {tuple(k.shape)}, v {tuple(v.shape)}"
    tokens = slice(0, None) if offsets is not None else slice(2, None)
    if k.shape != v.shape or q.shape[tokens] != k.shape[tokens] or (offsets is None and len(q) != len(k)):
        raise ValueError(f"{shapes}: queries, keys and values do not fit together")
    if not 1 <= q.shape[-1] <= TRITON_HEAD:
        raise ValueError(f"{shapes}: heads of 1 to {TRITON_HEAD} channels")
    if offsets is not None and offsets.device != q.device:
        raise ValueError(f"offsets on {offsets.device}, tokens on {q.device}: must be on one device")
    if not q.dtype == k.dtype == v.dtype:
        raise ValueError(f"q {q.dtype}, k {k.dtype}, v {v.dtype}: must be of one dtype")


def _forward(
    q: Tensor, k: Tensor, v: Tensor, offsets: Tensor | None, scale: float, sigmoid: bool
) -> tuple[Tensor, Tensor]:
    check(q, k, v, offsets)
    o, lse = empty(q, k, v, offsets, scale, sigmoid)
    fold(q, k, v, o, lse, offsets, scale, sigmoid)
    return o, lse


def programs_of(q: Tensor, offsets: Tensor | None) -> int:
    """Return how many programs a head has: the tiles of its queries; packed, one a sequence more at most."""
    n, own = q.shape[-3], tile_of("forward", q).own
    return q.shape[0] * triton.cdiv(n, own) if offsets is None else n // own + len(offsets) - 1


def fold(
    q: Tensor, k: Tensor, v: Tensor, o: Tensor, lse: Tensor, offsets: Tensor | None, scale: float, sigmoid: bool,
    parts: int = 1,
) -> None:  # fmt: skip
    """Write the result to ``o``, and logarithms of sums to ``lse``, as ``attention`` gives them.

    More ``parts`` than one: each of so many behind one another is the result of a part of the keys, in whole tiles,
    alone; for sigmoid, they add up to the result.
    """
    q, k, v, offsets = readable(q, k, v, offsets)
    n, h, d = q.shape[-3:]
    b = len(q) if offsets is None else 1
    tile, (unit, steps), (d0, d1) = tile_of("forward", q), strides_of(q, k, v), widths(d)
    slots, count = slots_of(offsets, b, n, tile.own)
    launch(
        _forward_kernel, (count, h, parts),
        q, k, v, o, lse, offsets, slots, max(abs(scale) * LOG2_E, NO_SCALE), b * n, n, k.shape[-3], *steps,
        D=d, D0=d0, D1=d1, CHUNK=chunk_of(q), OWN=tile.own, OTHER=tile.other, UNIT=unit,
        PACKED=offsets is not None, SIGMOID=sigmoid, FLIP=scale < 0, WIDE=INTERPRETED, SPLIT=parts > 1,
        **tile.options,
    )  # fmt: skip


def empty(
    q: Tensor, k: Tensor, v: Tensor, offsets: Tensor | None, scale: float, sigmoid: bool
) -> tuple[Tensor, Tensor]:
    """Return the result, and (h, all tokens) logarithms of sums, none for sigmoid."""
    logarithms = (0 if sigmoid else q.shape[-2], math.prod(q.shape[:-2]))
    return q.new_empty(q.shape), q.new_empty(logarithms, dtype=torch.float32)


def keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    q, k, v, offsets, ctx.scale, ctx.sigmoid = inputs
    o, lse = output
    ctx.mark_non_differentiable(lse)
    ctx.save_for_backward(q, k, v, offsets, *((None, None) if ctx.sigmoid else (o, lse)))


def pull(ctx: Any, do: Tensor, _: Any) -> tuple[Tensor | None, ...]:
    q, k, v, offsets, o, lse = ctx.saved_tensors
    return *attention_backward.backward(do, q, k, v, offsets, ctx.scale, ctx.sigmoid, o, lse), None, None, None


attention = register("attention", _forward, empty, keep, pull)


def _passes(name: str, q: Tensor, k: Tensor, v: Tensor, offsets: Tensor | None, sigmoid: bool) -> Iterator[Any]:
    scale, (o, lse) = q.shape[-1] ** -0.5, empty(q, k, v, offsets, 1.0, sigmoid)
    kept = {} if sigmoid else {"o": o, "lse": lse}
    yield f"{name} forward", partial(_forward, q, k, v, offsets, scale, sigmoid)
    yield f"{name} backward", partial(attention_backward.run, o, q, k, v, offsets, scale, sigmoid, **kept)


def production() -> Iterator[tuple[str, Callable[[], Any]]]:
    """Yield launches at the sizes of published networks, by name; they are made under ``launch.noting``."""
    offsets = meta(65, dtype=torch.int32)
    for name, h, d, dtype in (
        ("FiTv2-XL/2", 16, 72, torch.bfloat16),
        ("FiTv2-3B/2", 24, 96, torch.bfloat16),
        ("FiTv2-XL/2 float32", 16, 72, torch.float32),
    ):
        q, k, v = meta(64 * 256, 3, h, d, dtype=dtype).unbind(1)  # (n, h, d)
        yield from _passes(f"packed attention {name}", q, k, v, offsets, False)
    q, k, v = meta(64 * 256, 3, 16, 72).unbind(1)  # (n, h, d)
    yield from _passes("packed sigmoid attention FiTv2-XL/2", q, k, v, offsets, True)
    for name, b, n, m, h, d in (
        ("DiMR-XL/2R", 64, 257, 257, 16, 60),
        ("NViST encoder", 64, 197, 197, 12, 64),
        ("SD 1.5, text, 64x64", 2, 4096, 77, 8, 40),
        ("SD 1.5, text, 32x32", 2, 1024, 77, 8, 80),
    ):
        q, k, v = meta(b, n, h, d), meta(b, m, h, d), meta(b, m, h, d)
        yield from _passes(f"attention {name}", q, k, v, None, False)
