"""Attention of few queries: keys in parts, each with programs of its own, and what they found put together after.

Where there are at most half as many tiles of queries as multiprocessors, as with a batch of one, the forward kernel
leaves most of the device idle. Here a program takes a part of the keys; the parts' results, float32, are weighted by
the sums they stand for, known from their logarithms ("flash-decoding", Dao et al., 2023,
https://pytorch.org/blog/flash-decoding/): the same but for rounding. Gradients are those of ``attention``.

Deterministic, but not batch-invariant: into how many parts keys are cut depends on all the queries of a call.
"""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from belvedere.kernels.triton.attention import check, empty, fold, keep, programs_of, pull
from belvedere.kernels.triton.attention_tiles import tile_of
from belvedere.kernels.triton.launch import launch, meta, processors_of, register

LEAST = 2
"""Tiles of keys in a part, so that its result costs less than it saves."""
MOST = 16
"""Parts."""
ROWS = 16
"""Whose parts a program puts together."""


@triton.jit(do_not_specialize=["total", "parts"])
def _combine_kernel(
    parts_ptr, lses_ptr, o_ptr, lse_ptr, total, parts, D: tl.constexpr, WIDTH: tl.constexpr, ROWS: tl.constexpr,
    SIGMOID: tl.constexpr,
):  # fmt: skip
    head, heads = tl.program_id(1).to(tl.int64), tl.num_programs(1)
    row, column = tl.program_id(0) * ROWS + tl.arange(0, ROWS), tl.arange(0, WIDTH)[None, :]
    there = row < total
    at, inside = (row[:, None] * heads + head) * D + column, there[:, None] & (column < D)
    step = heads.to(tl.int64) * total
    sums, mass = tl.full((ROWS, WIDTH), 0, tl.float32), tl.full((ROWS,), 0, tl.float32)
    peak = tl.full((ROWS,), float("-inf"), tl.float32)
    lses_ptr += head * total + row
    if not SIGMOID:
        for part in range(parts):
            peak = tl.maximum(peak, tl.load(lses_ptr + part * step, there, 0.0))
    base = tl.where(peak > float("-inf"), peak, 0.0)  # no keys: zeros
    for part in range(parts):
        found = tl.load(parts_ptr + part * step * D + at, inside, 0.0)
        if SIGMOID:
            sums += found
        else:
            share = tl.exp2(tl.load(lses_ptr + part * step, there, 0.0) - base)
            mass += share
            sums += share[:, None] * found
    if not SIGMOID:
        mass = tl.where(mass > 0, mass, 1.0)
        sums = sums / mass[:, None]
        tl.store(lse_ptr + head * total + row, peak + tl.log2(mass), there)
    tl.store(o_ptr + at, sums.to(o_ptr.dtype.element_ty), inside)


def parts_of(programs: int, keys: int, tile: int, processors: int) -> int:
    """Return into how many parts keys are cut: as many as keep to one program a multiprocessor.

    ``programs``: that there are without; ``keys``: of the longest sequence, or more; ``tile``: keys taken at a time.
    """
    return max(1, min(processors // max(1, programs), keys // (LEAST * tile), MOST))


def _forward(
    q: Tensor, k: Tensor, v: Tensor, offsets: Tensor | None, scale: float, sigmoid: bool
) -> tuple[Tensor, Tensor]:
    check(q, k, v, offsets)
    o, lse = empty(q, k, v, offsets, scale, sigmoid)
    h, d = q.shape[-2:]
    parts = parts_of(programs_of(q, offsets) * h, k.shape[-3], tile_of("forward", q).other, processors_of(q))
    if parts == 1:
        fold(q, k, v, o, lse, offsets, scale, sigmoid)
        return o, lse
    found, lses = (x.new_empty((parts, *x.shape), dtype=torch.float32) for x in (o, lse))
    fold(q, k, v, found, lses, offsets, scale, sigmoid, parts)
    total = q.numel() // (h * d)
    launch(
        _combine_kernel, (triton.cdiv(total, ROWS), h), found, lses, o, lse, total, parts,
        D=d, WIDTH=triton.next_power_of_2(d), ROWS=ROWS, SIGMOID=sigmoid, num_warps=4,
    )  # fmt: skip
    return o, lse


attention_split = register("attention_split", _forward, empty, keep, pull)


def production() -> Iterator[tuple[str, Callable[[], Any]]]:
    """Yield launches at the sizes of published networks, by name; they are made under ``launch.noting``."""
    for name, h, d in (("FiTv2-XL/2", 16, 72), ("FiTv2-3B/2", 24, 96)):
        q, k, v = meta(256, 3, h, d).unbind(1)  # (n, h, d)
        offsets = meta(2, dtype=torch.int32)
        yield f"split packed attention {name}", partial(_forward, q, k, v, offsets, d**-0.5, False)
        yield f"split packed sigmoid attention {name}", partial(_forward, q, k, v, offsets, d**-0.5, True)
    for name, n, h, d in (("DiMR-XL/2R", 256, 16, 60), ("SD 1.5, 32x32", 1024, 8, 80)):
        q, k, v = meta(1, n, 3, h, d).unbind(2)  # (b, n, h, d)
        yield f"split attention {name}", partial(_forward, q, k, v, None, d**-0.5, False)
