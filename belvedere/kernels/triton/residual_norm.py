"""x + gate[image] * y and the norm of it that follows: the sum is normalised while it is in registers."""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from belvedere.kernels.triton.launch import launch, meta, register, rows_of
from belvedere.kernels.triton.reduce import add_chunks, chunk_of, image_of, partial_sums, segments_of
from belvedere.kernels.triton.rows import (
    KEPT,
    SUMMED,
    gains,
    inside_of,
    keep,
    load_image_row,
    load_image_rows,
    load_parts,
    normal_of,
    normalised,
    plus,
    plus_products,
    pull_normal,
    pull_rows,
    rows_at,
    rows_with_stride,
    store_sums,
    summed_dtype,
    tile_of,
    times,
    zero_parts,
)


@triton.jit
def _forward_kernel(
    x_ptr, y_ptr, sum_ptr, z_ptr, statistics_ptr, gate_ptr, shift_ptr, scale_ptr, weight_ptr, index_ptr,
    n, length, gate_stride, shift_stride, scale_stride, eps,
    NORM: tl.constexpr, C: tl.constexpr, ROWS: tl.constexpr, PART: tl.constexpr, COUNT: tl.constexpr,
):  # fmt: skip
    row, there, column, place = rows_at(tl.program_id(0).to(tl.int64) * ROWS, n, C, ROWS, PART)
    image = image_of(row, there, index_ptr, length)
    gate = load_image_rows(gate_ptr, image, gate_stride, there, column, C, PART, COUNT)
    x = load_parts(x_ptr, place, there, column, C, PART, COUNT)
    y = load_parts(y_ptr, place, there, column, C, PART, COUNT)
    scale = load_image_rows(scale_ptr, image, scale_stride, there, column, C, PART, COUNT)
    gain = gains(scale, weight_ptr, 1.0, C, PART, COUNT)
    shift = load_image_rows(shift_ptr, image, shift_stride, there, column, C, PART, COUNT)
    added = ()
    for i in tl.static_range(COUNT):
        total = x[i] + gate[i] * y[i]
        tl.store(sum_ptr + place + i * PART, total, inside_of(there, column, i, C, PART))
        added += (total.to(sum_ptr.dtype.element_ty).to(tl.float32),)  # what a norm would read, and backward will
    added, mean, inverse = normalised(added, column + (COUNT - 1) * PART, eps, NORM, C, COUNT, COUNT * PART == C)
    keep(statistics_ptr, row, there, n, mean, inverse, NORM)
    for i in tl.static_range(COUNT):
        tl.store(z_ptr + place + i * PART, added[i] * gain[i] + shift[i], inside_of(there, column, i, C, PART))


@triton.jit
def _backward_kernel(
    dsum_ptr, dz_ptr, sum_ptr, y_ptr, dx_ptr, dy_ptr, statistics_ptr, gate_ptr, scale_ptr, weight_ptr, partial_ptr,
    starts_ptr, count, length, n, gate_stride, scale_stride, eps,
    NORM: tl.constexpr, CHUNK: tl.constexpr,
    C: tl.constexpr, ROWS: tl.constexpr, PART: tl.constexpr, COUNT: tl.constexpr,
):  # fmt: skip
    slot = tl.program_id(0).to(tl.int64)
    image, first, last = chunk_of(slot, starts_ptr, count, length, CHUNK)
    gate = load_image_row(gate_ptr, image, gate_stride, C, PART, COUNT)
    scale = load_image_row(scale_ptr, image, scale_stride, C, PART, COUNT)
    gain = gains(scale, weight_ptr, 1.0, C, PART, COUNT)
    dgate = zero_parts(ROWS, PART, COUNT)
    dscale = zero_parts(ROWS, PART, COUNT)
    dshift = zero_parts(ROWS, PART, COUNT)
    for begin in range(first, last, ROWS):
        row, there, column, place = rows_at(begin, last, C, ROWS, PART)
        dz = load_parts(dz_ptr, place, there, column, C, PART, COUNT)
        x = load_parts(sum_ptr, place, there, column, C, PART, COUNT)
        edge = column + (COUNT - 1) * PART
        normal, inverse = normal_of(x, statistics_ptr, row, there, n, edge, NORM, C, COUNT, COUNT * PART == C)
        dscale = plus_products(dscale, dz, normal, COUNT)
        dshift = plus(dshift, dz, COUNT)
        dsum = load_parts(dsum_ptr, place, there, column, C, PART, COUNT)
        dsum = plus(dsum, pull_normal(times(dz, gain, COUNT), normal, inverse, eps, NORM, C, COUNT), COUNT)
        y = load_parts(y_ptr, place, there, column, C, PART, COUNT)
        dgate = plus_products(dgate, dsum, y, COUNT)
        for i in tl.static_range(COUNT):
            inside = inside_of(there, column, i, C, PART)
            tl.store(dx_ptr + place + i * PART, dsum[i], inside)
            tl.store(dy_ptr + place + i * PART, gate[i] * dsum[i], inside)
    partial_ptr += slot * 3 * C
    store_sums(partial_ptr, dgate, C, PART, COUNT)
    store_sums(partial_ptr + C, dscale, C, PART, COUNT)
    store_sums(partial_ptr + 2 * C, dshift, C, PART, COUNT)


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
        n // max(len(gate), 1),
        gate.stride(0),
        shift.stride(0),
        scale.stride(0),
        eps,
        NORM=norm,
        **tile.constants(c),
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
    segments = segments_of(n, len(gate), index)
    dx, dy, chunks = torch.empty_like(out), torch.empty_like(y), partial_sums(segments, y, 3, c)
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
        *segments.arguments,
        n,
        gate.stride(0),
        scale.stride(0),
        eps,
        NORM=norm,
        CHUNK=segments.chunk,
        **tile_of(c, SUMMED).constants(c),
    )
    return dx, dy, add_chunks(chunks, segments, summed_dtype(weight, gate, scale))


def _empty(x: Tensor, *others: Any) -> tuple[Tensor, Tensor, Tensor]:
    kept = x.new_empty((KEPT[others[-2]], rows_of(x)), dtype=torch.float32)
    return x.new_empty(x.shape), x.new_empty(x.shape), kept


def _empty_backward(dsum: Tensor, dz: Tensor, out: Tensor, y: Tensor, *others: Any) -> tuple[Tensor, ...]:
    sums = (len(others[1]), 3, y.shape[-1])
    dtype = summed_dtype(others[4], *others[1:3])
    return out.new_empty(out.shape), y.new_empty(y.shape), y.new_empty(sums, dtype=dtype)


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
