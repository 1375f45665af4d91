"""x + gate[image] * y and the norm of it that follows: the sum is normalised while it is in registers.

Without a gate it is x + y; the norm is that of ``norms``, with or without a shift.
"""

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
    check_rows,
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
    NORM: tl.constexpr, ONE: tl.constexpr, C: tl.constexpr, ROWS: tl.constexpr, PART: tl.constexpr, COUNT: tl.constexpr,
):  # fmt: skip
    row, there, column, place = rows_at(tl.program_id(0).to(tl.int64) * ROWS, n, C, ROWS, PART)
    image = image_of(row, there, index_ptr, length)
    if gate_ptr is not None:
        gate = load_image_rows(gate_ptr, image, gate_stride, there, column, C, PART, COUNT)
    x = load_parts(x_ptr, place, there, column, C, PART, COUNT)
    y = load_parts(y_ptr, place, there, column, C, PART, COUNT)
    scale = load_image_rows(scale_ptr, image, scale_stride, there, column, C, PART, COUNT)
    gain = gains(scale, weight_ptr, ONE, C, PART, COUNT)
    if shift_ptr is not None:
        shift = load_image_rows(shift_ptr, image, shift_stride, there, column, C, PART, COUNT)
    added = ()
    for i in tl.static_range(COUNT):
        total = y[i]
        if gate_ptr is not None:
            total *= gate[i]
        total += x[i]
        tl.store(sum_ptr + place + i * PART, total, inside_of(there, column, i, C, PART))
        added += (total.to(sum_ptr.dtype.element_ty).to(tl.float32),)  # what a norm would read, and backward will
    added, mean, inverse = normalised(added, column + (COUNT - 1) * PART, eps, NORM, C, COUNT, COUNT * PART == C)
    keep(statistics_ptr, row, there, n, mean, inverse, NORM)
    for i in tl.static_range(COUNT):
        z = added[i] * gain[i]
        if shift_ptr is not None:
            z += shift[i]
        tl.store(z_ptr + place + i * PART, z, inside_of(there, column, i, C, PART))


@triton.jit
def _backward_kernel(
    dsum_ptr, dz_ptr, sum_ptr, y_ptr, dx_ptr, dy_ptr, statistics_ptr, gate_ptr, scale_ptr, weight_ptr, partial_ptr,
    starts_ptr, count, length, n, gate_stride, scale_stride, eps,
    NORM: tl.constexpr, ONE: tl.constexpr, SHIFT: tl.constexpr, CHUNK: tl.constexpr,
    C: tl.constexpr, ROWS: tl.constexpr, PART: tl.constexpr, COUNT: tl.constexpr,
):  # fmt: skip
    slot = tl.program_id(0).to(tl.int64)
    image, first, last = chunk_of(slot, starts_ptr, count, length, CHUNK)
    if gate_ptr is not None:
        gate = load_image_row(gate_ptr, image, gate_stride, C, PART, COUNT)
    scale = load_image_row(scale_ptr, image, scale_stride, C, PART, COUNT)
    gain = gains(scale, weight_ptr, ONE, C, PART, COUNT)
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
        if SHIFT:
            dshift = plus(dshift, dz, COUNT)
        dsum = load_parts(dsum_ptr, place, there, column, C, PART, COUNT)
        dsum = plus(dsum, pull_normal(times(dz, gain, COUNT), normal, inverse, eps, NORM, C, COUNT), COUNT)
        for i in tl.static_range(COUNT):
            tl.store(dx_ptr + place + i * PART, dsum[i], inside_of(there, column, i, C, PART))
        if gate_ptr is not None:
            y = load_parts(y_ptr, place, there, column, C, PART, COUNT)
            dgate = plus_products(dgate, dsum, y, COUNT)
            for i in tl.static_range(COUNT):
                tl.store(dy_ptr + place + i * PART, gate[i] * dsum[i], inside_of(there, column, i, C, PART))
    partial_ptr += slot * ((3 if SHIFT else 2) * C if gate_ptr is not None else (2 if SHIFT else 1) * C)
    store_sums(partial_ptr, dscale, C, PART, COUNT)
    if SHIFT:
        store_sums(partial_ptr + C, dshift, C, PART, COUNT)
    if gate_ptr is not None:
        store_sums(partial_ptr + (2 * C if SHIFT else C), dgate, C, PART, COUNT)


def _forward(
    x: Tensor,
    y: Tensor,
    gate: Tensor | None,
    shift: Tensor | None,
    scale: Tensor,
    index: Tensor | None,
    weight: Tensor | None,
    norm: str,
    eps: float,
    one: float,
) -> tuple[Tensor, Tensor, Tensor]:
    check_rows(x, index, gate, shift, scale)
    x, y, scale = x.contiguous(), y.contiguous(), rows_with_stride(scale)
    gate, shift = (None if rows is None else rows_with_stride(rows) for rows in (gate, shift))
    out, z, kept = _empty(x, y, gate, shift, scale, index, weight, norm, eps, one)
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
        n // max(len(scale), 1),
        0 if gate is None else gate.stride(0),
        0 if shift is None else shift.stride(0),
        scale.stride(0),
        eps,
        NORM=norm,
        ONE=one,
        **tile.constants(c),
    )
    return out, z, kept


def _backward(
    dsum: Tensor,
    dz: Tensor,
    out: Tensor,
    y: Tensor,
    kept: Tensor,
    gate: Tensor | None,
    scale: Tensor,
    index: Tensor | None,
    weight: Tensor | None,
    norm: str,
    eps: float,
    one: float,
    shifted: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    dsum, dz, out, scale = dsum.contiguous(), dz.contiguous(), out.contiguous(), rows_with_stride(scale)
    y, gate = y.contiguous(), None if gate is None else rows_with_stride(gate)
    dx, dy, sums = _empty_backward(dsum, dz, out, y, kept, gate, scale, index, weight, norm, eps, one, shifted)
    n, c = rows_of(out), out.shape[-1]
    segments = segments_of(n, len(scale), index)
    chunks = partial_sums(segments, out, sums.shape[1], c)
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
        0 if gate is None else gate.stride(0),
        scale.stride(0),
        eps,
        NORM=norm,
        ONE=one,
        SHIFT=shifted,
        CHUNK=segments.chunk,
        **tile_of(c, SUMMED).constants(c),
    )
    return dx, dy, add_chunks(chunks, segments, sums.dtype)


def _empty(x: Tensor, *others: Any) -> tuple[Tensor, Tensor, Tensor]:
    kept = x.new_empty((KEPT[others[-3]], rows_of(x)), dtype=torch.float32)
    return x.new_empty(x.shape), x.new_empty(x.shape), kept


def _empty_backward(
    dsum: Tensor, dz: Tensor, out: Tensor, y: Tensor, kept: Tensor, gate: Tensor | None, scale: Tensor, *others: Any
) -> tuple[Tensor, Tensor, Tensor]:
    rows, shifted = [x for x in (gate, scale) if x is not None], others[-1]
    sums = (len(scale), len(rows) + shifted, out.shape[-1])
    dy = y.new_empty(0 if gate is None else y.shape)  # without a gate it is dx
    return out.new_empty(out.shape), dy, out.new_empty(sums, dtype=summed_dtype(others[1], *rows))


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    _, y, gate, shift, scale, index, weight, *ctx.options = inputs
    ctx.shift_type, ctx.added_type = None if shift is None else shift.dtype, y.dtype
    gated = None if gate is None else y  # it is the gradient of the gate that needs it
    ctx.save_for_backward(output[0], gated, output[2], gate, scale, index, weight)
    ctx.set_materialize_grads(False)


def _pull(ctx: Any, dsum: Tensor | None, dz: Tensor | None, _: None) -> tuple[Tensor | None, ...]:
    out, y, kept, gate, scale, index, weight = ctx.saved_tensors
    dsum, dz = (torch.zeros_like(out) if gradient is None else gradient for gradient in (dsum, dz))
    shifted = ctx.shift_type is not None
    given = (dsum, dz, out, out if y is None else y, kept, gate, scale, index, weight)
    dx, dy, sums = gated_residual_norm_backward(*given, *ctx.options, shifted)
    dscale, dweight = pull_rows(sums[:, 0], scale, weight, ctx.options[-1])
    dshift = sums[:, 1].to(ctx.shift_type) if shifted else None
    if gate is None:
        return dx, dx.to(ctx.added_type), None, dshift, dscale, None, dweight, None, None, None
    return dx, dy, sums[:, -1].to(gate.dtype), dshift, dscale, None, dweight, None, None, None


gated_residual_norm_backward = register("gated_residual_norm_backward", _backward, _empty_backward, None, None)
gated_residual_norm = register("gated_residual_norm", _forward, _empty, _keep, _pull)
"""(x, y, gate, shift, scale, index, weight, norm, eps, one) -> the sum, ``scaled_norm`` of it, what is kept for
backward."""


def production() -> Iterator[tuple[str, Callable[[], Any]]]:
    """Yield launches at the sizes of published networks, by name; they are made under ``launch.noting``."""
    for name, c, packed in (("FiTv2-XL/2", 1152, True), ("FiTv2-3B/2", 2304, True), ("NViST", 768, False)):
        x = meta(64 * 256, c) if packed else meta(64, 256, c)
        gate, shift, scale = meta(64, 6 * c)[:, : 3 * c].chunk(3, -1)
        index = meta(64 * 256, dtype=torch.int64) if packed else None
        kept = meta(2, 64 * 256, dtype=torch.float32)
        yield (
            f"gate, adaLN {name} forward",
            partial(_forward, x, x, gate, shift, scale, index, None, "layer", 1e-6, 1.0),
        )
        yield (
            f"gate, adaLN {name} backward",
            partial(_backward, x, x, x, x, kept, gate, scale, index, None, "layer", 1e-6, 1.0, True),
        )
    x, rows = meta(64, 256, 4096, dtype=torch.float32), meta(64, 4096, dtype=torch.float32)
    yield (
        "gate, adaLN of the most channels",
        partial(_backward, x, x, x, x, kept, rows, rows, None, None, "layer", 1e-6, 1.0, True),
    )
    x, scale, kept = meta(64, 257, 960), meta(64, 2 * 960)[:, :960], meta(1, 64 * 257, dtype=torch.float32)
    rest = scale, None, None, "td-rms", 1e-8, 0.0
    yield "sum, TD-RMSN DiMR-XL/2R forward", partial(_forward, x, x, None, None, *rest)
    yield "sum, TD-RMSN DiMR-XL/2R backward", partial(_backward, x, x, x, x, kept, None, *rest, False)
