"""x + gate[image] * y and the norm of it that follows: the sum is normalised while it is in registers."""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from belvedere.kernels.triton.launch import launch, meta, register, rows_of
from belvedere.kernels.triton.reduce import CHUNK, add_chunks, chunk_of, image_of, partial_sums, segments_of
from belvedere.kernels.triton.rows import (
    KEPT,
    chunk_tile_of,
    gain_of,
    keep,
    normal_of,
    normalised,
    pull_normal,
    pull_rows,
    row_of_image,
    rows_with_stride,
    span_of,
    tile_at,
    tile_of,
)


@triton.jit
def _forward_kernel(
    x_ptr,
    y_ptr,
    sum_ptr,
    z_ptr,
    statistics_ptr,
    gate_ptr,
    shift_ptr,
    scale_ptr,
    weight_ptr,
    index_ptr,
    n,
    c,
    length,
    gate_stride,
    shift_stride,
    scale_stride,
    eps,
    NORM: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    first, last = span_of(n, ROWS)
    column = tl.arange(0, BLOCK)[None, :]
    for tile in range(first, last):
        row, there, inside, place = tile_at(tl.cast(tile, tl.int64) * ROWS, n, column, c, ROWS)
        image = image_of(row, there, index_ptr, length)[:, None]
        x = tl.load(x_ptr + place, inside, 0.0).to(tl.float32)
        y = tl.load(y_ptr + place, inside, 0.0).to(tl.float32)
        x += row_of_image(gate_ptr, image, gate_stride, column, inside) * y
        tl.store(sum_ptr + place, x, inside)
        x = x.to(sum_ptr.dtype.element_ty).to(tl.float32)  # what a norm would read, and backward will
        gain = gain_of(scale_ptr, weight_ptr, image, scale_stride, column, inside, c, 1.0)
        x, mean, inverse = normalised(x, inside, c, eps, NORM)
        keep(statistics_ptr, row, there, n, mean, inverse, NORM)
        z = x * gain + row_of_image(shift_ptr, image, shift_stride, column, inside)
        tl.store(z_ptr + place, z, inside)


@triton.jit
def _backward_kernel(
    dsum_ptr,
    dz_ptr,
    sum_ptr,
    y_ptr,
    dx_ptr,
    dy_ptr,
    statistics_ptr,
    gate_ptr,
    scale_ptr,
    weight_ptr,
    partial_ptr,
    starts_ptr,
    count,
    n,
    c,
    gate_stride,
    scale_stride,
    eps,
    NORM: tl.constexpr,
    CHUNK: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    slot = tl.program_id(0).to(tl.int64)
    image, first, last = chunk_of(slot, starts_ptr, count, CHUNK)
    column = tl.arange(0, BLOCK)[None, :]
    gate = row_of_image(gate_ptr, image, gate_stride, column, column < c)
    gain = gain_of(scale_ptr, weight_ptr, image, scale_stride, column, column < c, c, 1.0)
    gated = tl.zeros((ROWS, BLOCK), tl.float32)
    scaled = tl.zeros((ROWS, BLOCK), tl.float32)
    shifted = tl.zeros((ROWS, BLOCK), tl.float32)
    for begin in tl.range(first, last, ROWS, num_stages=2):  # one tile is on its way
        row, there, inside, place = tile_at(begin, last, column, c, ROWS)
        dz = tl.load(dz_ptr + place, inside, 0.0).to(tl.float32)
        x = tl.load(sum_ptr + place, inside, 0.0).to(tl.float32)
        normal, inverse = normal_of(x, statistics_ptr, row, there, n, NORM)
        scaled += dz * normal
        shifted += dz
        dsum = tl.load(dsum_ptr + place, inside, 0.0).to(tl.float32)
        dsum += pull_normal(dz * gain, normal, inverse, c, eps, NORM)
        tl.store(dx_ptr + place, dsum, inside)
        gated += dsum * tl.load(y_ptr + place, inside, 0.0).to(tl.float32)
        tl.store(dy_ptr + place, gate * dsum, inside)
    column = tl.arange(0, BLOCK)
    place = slot * 3 * c + column
    tl.store(partial_ptr + place, tl.sum(gated, 0), column < c)
    tl.store(partial_ptr + place + c, tl.sum(scaled, 0), column < c)
    tl.store(partial_ptr + place + 2 * c, tl.sum(shifted, 0), column < c)


def _forward(
    x: Tensor,
    y: Tensor,
    gate: Tensor,
    shift: Tensor,
    scale: Tensor,
    index: Tensor | None,
    weight: Tensor | None,
    norm: str,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor]:
    x, y = x.contiguous(), y.contiguous()
    out, z, kept = _empty(x, y, gate, shift, scale, index, weight, norm, eps)
    gate, shift, scale = rows_with_stride(gate), rows_with_stride(shift), rows_with_stride(scale)
    n, c = rows_of(x), x.shape[-1]
    tile = tile_of(c)
    launch(
        _forward_kernel,
        (tile.programs(n),),
        x,
        y,
        out,
        z,
        kept,
        gate,
        shift,
        scale,
        None if weight is None else weight.contiguous(),
        None if index is None else index.contiguous(),
        n,
        c,
        n // max(len(gate), 1),
        gate.stride(0),
        shift.stride(0),
        scale.stride(0),
        eps,
        NORM=norm,
        ROWS=tile.rows,
        BLOCK=tile.block,
        num_warps=tile.warps,
    )
    return out, z, kept


def _backward(
    dsum: Tensor,
    dz: Tensor,
    out: Tensor,
    y: Tensor,
    kept: Tensor,
    gate: Tensor,
    scale: Tensor,
    index: Tensor | None,
    weight: Tensor | None,
    norm: str,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor]:
    dsum, dz, out, y = (rows.contiguous() for rows in (dsum, dz, out, y))
    gate, scale = rows_with_stride(gate), rows_with_stride(scale)
    n, c = rows_of(out), out.shape[-1]
    segments = segments_of(n, len(gate), index, out)
    dx, dy, chunks = torch.empty_like(out), torch.empty_like(y), partial_sums(segments, 3, c)
    tile = chunk_tile_of(c)
    launch(
        _backward_kernel,
        (segments.slots,),
        dsum,
        dz,
        out,
        y,
        dx,
        dy,
        kept,
        gate,
        scale,
        None if weight is None else weight.contiguous(),
        chunks,
        segments.starts,
        segments.images,
        n,
        c,
        gate.stride(0),
        scale.stride(0),
        eps,
        NORM=norm,
        CHUNK=CHUNK,
        ROWS=tile.rows,
        BLOCK=tile.block,
        num_warps=tile.warps,
    )
    return dx, dy, add_chunks(chunks, segments)


def _empty(x: Tensor, *others: Any) -> tuple[Tensor, Tensor, Tensor]:
    kept = x.new_empty((KEPT[others[-2]], rows_of(x)), dtype=torch.float32)
    return x.new_empty(x.shape), x.new_empty(x.shape), kept


def _empty_backward(dsum: Tensor, dz: Tensor, out: Tensor, y: Tensor, *others: Any) -> tuple[Tensor, ...]:
    sums = (len(others[1]), 3, y.shape[-1])
    return out.new_empty(out.shape), y.new_empty(y.shape), y.new_empty(sums, dtype=torch.float32)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    _, y, gate, shift, scale, index, weight, *ctx.options = inputs
    ctx.shift_type = shift.dtype
    ctx.save_for_backward(output[0], y, output[2], gate, scale, index, weight)
    ctx.set_materialize_grads(False)


def _pull(ctx: Any, dsum: Tensor | None, dz: Tensor | None, _: None) -> tuple[Tensor | None, ...]:
    out, y, kept, gate, scale, index, weight = ctx.saved_tensors
    dsum, dz = (torch.zeros_like(out) if gradient is None else gradient for gradient in (dsum, dz))
    dx, dy, sums = gated_residual_norm_backward(dsum, dz, out, y, kept, gate, scale, index, weight, *ctx.options)
    dscale, dweight = pull_rows(sums[:, 1], scale, weight, 1.0)
    dshift = sums[:, 2].to(ctx.shift_type)
    return dx, dy, sums[:, 0].to(gate.dtype), dshift, dscale, None, dweight, None, None


gated_residual_norm_backward = register("gated_residual_norm_backward", _backward, _empty_backward, None, None)
gated_residual_norm = register("gated_residual_norm", _forward, _empty, _keep, _pull)
"""(x, y, gate, shift, scale, index, weight, norm, eps) -> the sum, ``scaled_norm`` of it, what is kept for backward."""


def production() -> Iterator[tuple[str, Callable[[], Any]]]:
    """Yield launches at the sizes of published networks, by name; they are made under ``launch.noting``."""
    for name, c, packed in (("FiTv2-XL/2", 1152, True), ("FiTv2-3B/2", 2304, True), ("NViST", 768, False)):
        x = meta(64 * 256, c) if packed else meta(64, 256, c)
        gate, shift, scale = meta(64, 6 * c)[:, : 3 * c].chunk(3, -1)
        index = meta(64 * 256, dtype=torch.int64) if packed else None
        kept = meta(2, 64 * 256, dtype=torch.float32)
        yield (
            f"gate, adaLN {name} forward",
            partial(_forward, x, x, gate, shift, scale, index, None, "layer", 1e-6),
        )
        yield (
            f"gate, adaLN {name} backward",
            partial(_backward, x, x, x, x, kept, gate, scale, index, None, "layer", 1e-6),
        )
    x, rows = meta(64, 256, 4096, dtype=torch.float32), meta(64, 4096, dtype=torch.float32)
    yield (
        "gate, adaLN of the most channels",
        partial(_backward, x, x, x, x, kept, rows, rows, None, None, "layer", 1e-6),
    )
