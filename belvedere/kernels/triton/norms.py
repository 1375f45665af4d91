"""Normalise over channels, scale and shift by rows of the image: every norm of the backbone is this one operation.

    y = normalise(x) * weight * (one + scale[image]) + shift[image]

A row of channels stays in registers (``rows``): x is read once forward; x and dy once backward, where the sums over an
image's rows are made in the same pass (``reduce``).
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
    x_ptr, y_ptr, statistics_ptr, shift_ptr, scale_ptr, weight_ptr, index_ptr,
    n, length, shift_stride, scale_stride, eps,
    NORM: tl.constexpr, ONE: tl.constexpr, C: tl.constexpr, ROWS: tl.constexpr, PART: tl.constexpr, COUNT: tl.constexpr,
):  # fmt: skip
    row, there, column, place = rows_at(tl.program_id(0).to(tl.int64) * ROWS, n, C, ROWS, PART)
    x = load_parts(x_ptr, place, there, column, C, PART, COUNT)
    image = image_of(row, there, index_ptr, length)
    scale = load_image_rows(scale_ptr, image, scale_stride, there, column, C, PART, COUNT)
    gain = gains(scale, weight_ptr, ONE, C, PART, COUNT)
    if shift_ptr is not None:
        shift = load_image_rows(shift_ptr, image, shift_stride, there, column, C, PART, COUNT)
    x, mean, inverse = normalised(x, column + (COUNT - 1) * PART, eps, NORM, C, COUNT, COUNT * PART == C)
    keep(statistics_ptr, row, there, n, mean, inverse, NORM)
    for i in tl.static_range(COUNT):
        y = x[i] * gain[i]
        if shift_ptr is not None:
            y += shift[i]
        tl.store(y_ptr + place + i * PART, y, inside_of(there, column, i, C, PART))


@triton.jit
def _backward_kernel(
    dy_ptr, x_ptr, dx_ptr, statistics_ptr, scale_ptr, weight_ptr, partial_ptr, starts_ptr,
    count, length, n, scale_stride, eps,
    NORM: tl.constexpr, ONE: tl.constexpr, SHIFT: tl.constexpr, CHUNK: tl.constexpr,
    C: tl.constexpr, ROWS: tl.constexpr, PART: tl.constexpr, COUNT: tl.constexpr,
):  # fmt: skip
    slot = tl.program_id(0).to(tl.int64)
    image, first, last = chunk_of(slot, starts_ptr, count, length, CHUNK)
    scale = load_image_row(scale_ptr, image, scale_stride, C, PART, COUNT)
    gain = gains(scale, weight_ptr, ONE, C, PART, COUNT)
    dscale = zero_parts(ROWS, PART, COUNT)
    dshift = zero_parts(ROWS, PART, COUNT)
    for begin in range(first, last, ROWS):
        row, there, column, place = rows_at(begin, last, C, ROWS, PART)
        x = load_parts(x_ptr, place, there, column, C, PART, COUNT)
        dy = load_parts(dy_ptr, place, there, column, C, PART, COUNT)
        edge = column + (COUNT - 1) * PART
        normal, inverse = normal_of(x, statistics_ptr, row, there, n, edge, NORM, C, COUNT, COUNT * PART == C)
        dscale = plus_products(dscale, dy, normal, COUNT)
        if SHIFT:
            dshift = plus(dshift, dy, COUNT)
        dx = pull_normal(times(dy, gain, COUNT), normal, inverse, eps, NORM, C, COUNT)
        for i in tl.static_range(COUNT):
            tl.store(dx_ptr + place + i * PART, dx[i], inside_of(there, column, i, C, PART))
    store_sums(partial_ptr + slot * (2 * C if SHIFT else C), dscale, C, PART, COUNT)
    if SHIFT:
        store_sums(partial_ptr + slot * 2 * C + C, dshift, C, PART, COUNT)


def _forward(
    x: Tensor,
    shift: Tensor | None,
    scale: Tensor,
    index: Tensor | None,
    weight: Tensor | None,
    norm: str,
    eps: float,
    one: float,
) -> tuple[Tensor, Tensor]:
    check_rows(x, index, shift, scale)
    x, scale = x.contiguous(), rows_with_stride(scale)
    shift = None if shift is None else rows_with_stride(shift)
    y, kept = _empty(x, shift, scale, index, weight, norm, eps, one)
    n, c = rows_of(x), x.shape[-1]
    tile = tile_of(c)
    launch(
        _forward_kernel,
        (tile.programs(n),),
        x,
        y,
        kept,
        shift,
        scale,
        None if weight is None else weight.contiguous(),
        None if index is None else index.contiguous(),
        n,
        n // max(len(scale), 1),
        0 if shift is None else shift.stride(0),
        scale.stride(0),
        eps,
        NORM=norm,
        ONE=one,
        **tile.constants(c),
    )
    return y, kept


def _backward(
    dy: Tensor,
    x: Tensor,
    kept: Tensor,
    scale: Tensor,
    index: Tensor | None,
    weight: Tensor | None,
    norm: str,
    eps: float,
    one: float,
    shifted: bool,
) -> tuple[Tensor, Tensor]:
    dy, x, scale = dy.contiguous(), x.contiguous(), rows_with_stride(scale)
    n, c = rows_of(x), x.shape[-1]
    segments = segments_of(n, len(scale), index)
    dx, chunks = torch.empty_like(x), partial_sums(segments, x, 2 if shifted else 1, c)
    launch(
        _backward_kernel,
        (segments.slots,),
        dy,
        x,
        dx,
        kept,
        scale,
        None if weight is None else weight.contiguous(),
        chunks,
        *segments.arguments,
        n,
        scale.stride(0),
        eps,
        NORM=norm,
        ONE=one,
        SHIFT=shifted,
        CHUNK=segments.chunk,
        **tile_of(c, SUMMED).constants(c),
    )
    return dx, add_chunks(chunks, segments, summed_dtype(weight, scale))


def _empty(x: Tensor, shift: Any, scale: Tensor, index: Any, weight: Any, norm: str, eps: float, one: float) -> Any:
    return x.new_empty(x.shape), x.new_empty((KEPT[norm], rows_of(x)), dtype=torch.float32)


def _empty_backward(dy: Tensor, x: Tensor, kept: Tensor, scale: Tensor, *others: Any) -> tuple[Tensor, Tensor]:
    sums = (len(scale), 2 if others[-1] else 1, x.shape[-1])
    return x.new_empty(x.shape), x.new_empty(sums, dtype=summed_dtype(others[1], scale))


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    x, shift, scale, index, weight, *ctx.options = inputs
    ctx.shift_type = None if shift is None else shift.dtype
    ctx.save_for_backward(x, output[1], scale, index, weight)
    ctx.set_materialize_grads(False)


def _pull(ctx: Any, dy: Tensor | None, _: None) -> tuple[Tensor | None, ...]:
    if dy is None:
        return (None,) * 8
    x, kept, scale, index, weight = ctx.saved_tensors
    dx, sums = scaled_norm_backward(dy, x, kept, scale, index, weight, *ctx.options, ctx.shift_type is not None)
    dshift = None if ctx.shift_type is None else sums[:, 1].to(ctx.shift_type)
    dscale, dweight = pull_rows(sums[:, 0], scale, weight, ctx.options[-1])
    return dx, dshift, dscale, None, dweight, None, None, None


scaled_norm_backward = register("scaled_norm_backward", _backward, _empty_backward, None, None)
scaled_norm = register("scaled_norm", _forward, _empty, _keep, _pull)
"""(x, shift, scale, index, weight, norm, eps, one) -> y, and what is kept for backward.

``x`` (n, c) packed with ``index`` (n,) ascending, or (b, ..., c); ``shift``, ``scale`` (s, c), s = 1 or b where
there is no index; ``weight`` (c,); ``norm`` a key of ``KEPT``."""


def production() -> Iterator[tuple[str, Callable[[], Any]]]:
    """Yield launches at the sizes of published networks, by name; they are made under ``launch.noting``."""
    for name, c, norm, packed, one in (
        ("adaLN FiTv2-XL/2", 1152, "layer", True, 1.0),
        ("adaLN FiTv2-3B/2", 2304, "layer", True, 1.0),
        ("adaLN NViST", 768, "layer", False, 1.0),
        ("TD-LN DiMR-XL/2R", 960, "layer", False, 0.0),
        ("TD-RMSN DiMR-XL/2R", 960, "td-rms", False, 0.0),
        ("TD-RMSN DiMR-XL/2R, high", 480, "td-rms", False, 0.0),
    ):
        x = meta(64 * 256, c) if packed else meta(64, 256, c)
        rows = meta(64, 6 * c)
        shift, scale = (None if norm == "td-rms" else rows[:, :c]), rows[:, c : 2 * c]
        index = meta(64 * 256, dtype=torch.int64) if packed else None
        kept = meta(KEPT[norm], 64 * 256, dtype=torch.float32)
        yield f"{name} forward", partial(_forward, x, shift, scale, index, None, norm, 1e-6, one)
        yield (
            f"{name} backward",
            partial(_backward, x, x, kept, scale, index, None, norm, 1e-6, one, shift is not None),
        )
