"""One activation folded into a norm over many: its moments joined to theirs, and it times the norm's gain, in one pass.

Where one gain serves all rows, the linear map after the norm takes it and nothing of the activation's size is written.
"""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from belvedere.kernels.triton.launch import launch, meta, register, rows_of
from belvedere.kernels.triton.reduce import CHUNK, add_chunks, chunk_of, partial_sums, segments_of
from belvedere.kernels.triton.rows import chunk_tile_of, row_of_image, rows_with_stride, span_of, tile_of


@triton.jit
def _forward_kernel(
    x_ptr,
    scaled_ptr,
    gain_ptr,
    mean_ptr,
    square_ptr,
    mean_out_ptr,
    square_out_ptr,
    n,
    c,
    length,
    gain_stride,
    before,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    first, last = span_of(n, ROWS)
    column = tl.arange(0, BLOCK)[None, :]
    for tile in range(first, last):
        row = tl.cast(tile, tl.int64) * ROWS + tl.arange(0, ROWS)
        there = row < n
        inside = there[:, None] & (column < c)
        place = row[:, None] * c + column
        x = tl.load(x_ptr + place, inside, 0.0).to(tl.float32)
        if gain_ptr is not None:
            gain = row_of_image(gain_ptr, (row // length)[:, None], gain_stride, column, inside)
            tl.store(scaled_ptr + place, x * gain, inside)
        own = tl.sum(x, 1) / c
        distance = tl.where(inside, x - own[:, None], 0.0)
        mean = tl.load(mean_ptr + row, there, 0.0)
        delta = own - mean
        share = c / (before + c)
        tl.store(mean_out_ptr + row, mean + delta * share, there)
        square = tl.load(square_ptr + row, there, 0.0) + tl.sum(distance * distance, 1)
        tl.store(square_out_ptr + row, square + delta * delta * (before * share), there)


@triton.jit
def _backward_kernel(
    inner_ptr,
    x_ptr,
    dx_ptr,
    scaled_ptr,
    gain_ptr,
    mean_ptr,
    dmean_out_ptr,
    dsquare_ptr,
    dmean_ptr,
    partial_ptr,
    starts_ptr,
    count,
    c,
    gain_stride,
    before,
    CHUNK: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    slot = tl.program_id(0).to(tl.int64)
    image, first, last = chunk_of(slot, starts_ptr, count, CHUNK)
    column = tl.arange(0, BLOCK)[None, :]
    if gain_ptr is not None:
        gain = row_of_image(gain_ptr, image, gain_stride, column, column < c)
    total = tl.zeros((ROWS, BLOCK), tl.float32)
    share = c / (before + c)
    for begin in tl.range(first, last, ROWS, num_stages=2):  # one tile is on its way
        row = begin + tl.arange(0, ROWS)
        there = row < last
        inside = there[:, None] & (column < c)
        place = row[:, None] * c + column
        x = tl.load(x_ptr + place, inside, 0.0).to(tl.float32)
        dx = tl.load(inner_ptr + place, inside, 0.0).to(tl.float32)
        own = tl.sum(x, 1) / c
        dmean = tl.load(dmean_out_ptr + row, there, 0.0)
        dsquare = tl.load(dsquare_ptr + row, there, 0.0)
        delta = own - tl.load(mean_ptr + row, there, 0.0)
        ddelta = dmean * share + 2.0 * dsquare * delta * (before * share)
        tl.store(dmean_ptr + row, dmean - ddelta, there)
        if gain_ptr is not None:
            total += dx * x
            dx *= gain
            tl.store(scaled_ptr + place, x * gain, inside)
        dx += (ddelta / c)[:, None] + 2.0 * dsquare[:, None] * (x - own[:, None])
        tl.store(dx_ptr + place, dx, inside)
    if gain_ptr is not None:
        column = tl.arange(0, BLOCK)
        tl.store(partial_ptr + slot * c + column, tl.sum(total, 0), column < c)


def _forward(
    x: Tensor, gain: Tensor | None, mean: Tensor, square: Tensor, before: int
) -> tuple[Tensor, Tensor, Tensor]:
    x, mean, square = x.contiguous(), mean.contiguous(), square.contiguous()
    gain = None if gain is None else rows_with_stride(gain)
    scaled, mean_out, square_out = _empty(x, gain, mean, square, before)
    n, c = rows_of(x), x.shape[-1]
    tile = tile_of(c)
    sizes = n, c, 1 if gain is None else n // max(len(gain), 1), 0 if gain is None else gain.stride(0), before
    tensors = x, None if gain is None else scaled, gain, mean, square, mean_out, square_out
    constants = {"ROWS": tile.rows, "BLOCK": tile.block, "num_warps": tile.warps}
    launch(_forward_kernel, (tile.programs(n),), *tensors, *sizes, **constants)
    return scaled, mean_out, square_out


def _backward(
    inner: Tensor, x: Tensor, gain: Tensor | None, mean: Tensor, dmean: Tensor, dsquare: Tensor, before: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    inner, x, mean, dmean, dsquare = (one.contiguous() for one in (inner, x, mean, dmean, dsquare))
    gain = None if gain is None else rows_with_stride(gain)
    dx, scaled, sums, dmean_in = _empty_backward(inner, x, gain, mean, dmean, dsquare, before)
    n, c = rows_of(x), x.shape[-1]
    segments = segments_of(n, 1 if gain is None else len(gain), None, x)
    chunks = None if gain is None else partial_sums(segments, c)
    tile = chunk_tile_of(c)
    tensors = inner, x, dx, None if gain is None else scaled, gain, mean, dmean, dsquare, dmean_in, chunks
    sizes = segments.images, c, 0 if gain is None else gain.stride(0), before
    constants = {"CHUNK": CHUNK, "ROWS": tile.rows, "BLOCK": tile.block, "num_warps": tile.warps}
    launch(_backward_kernel, (segments.slots,), *tensors, segments.starts, *sizes, **constants)
    return dx, scaled, sums if chunks is None else add_chunks(chunks, segments), dmean_in


def _empty(x: Tensor, gain: Tensor | None, mean: Tensor, square: Tensor, before: int) -> tuple[Tensor, Tensor, Tensor]:
    scaled = x.new_empty(0 if gain is None else x.shape)
    return scaled, mean.new_empty(mean.shape), square.new_empty(square.shape)


def _empty_backward(
    inner: Tensor, x: Tensor, gain: Tensor | None, mean: Tensor, *others: Any
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    scaled, sums = (0, 0) if gain is None else (x.shape, gain.shape)
    return x.new_empty(x.shape), x.new_empty(scaled), mean.new_empty(sums), mean.new_empty(mean.shape)


concat_scale = register("concat_scale", _forward, _empty, None, None)
"""(x, gain, mean, square, before) -> x * gain, and mean and square joined with those of x.

``x`` (b, n, c), ``gain`` (b, c) or None (then the first result is empty), ``mean`` and ``square`` float32 (b, n, 1) of
the ``before`` channels already seen. ``belvedere.kernels.concat`` has the gradient, by ``concat_scale_backward``."""
concat_scale_backward = register("concat_scale_backward", _backward, _empty_backward, None, None)
"""(gradient of x * gain, x, gain, mean, gradients of the joined two, before) -> of x; x * gain; of gain; of mean."""


def production() -> Iterator[tuple[str, Callable[[], Any]]]:
    """Yield launches at the sizes of published networks, by name; they are made under ``launch.noting``."""
    x, moment = meta(64, 256, 960), meta(64, 256, 1, dtype=torch.float32)
    for kind, gain in (("a gain a row", meta(64, 80 * 960)[:, :960]), ("one gain", None)):
        yield f"concat DiMR-XL/2R, {kind} forward", partial(_forward, x, gain, moment, moment, 19200)
        yield f"concat DiMR-XL/2R, {kind} backward", partial(_backward, x, x, gain, moment, moment, moment, 19200)
