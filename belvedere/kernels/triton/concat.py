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
from belvedere.kernels.triton.reduce import add_chunks, chunk_of, image_of, partial_sums, segments_of
from belvedere.kernels.triton.rows import (
    SUMMED,
    centred,
    inside_of,
    load_image_row,
    load_image_rows,
    load_parts,
    plus_products,
    product_sum,
    row_sum,
    rows_at,
    rows_with_stride,
    store_sums,
    tile_of,
    zero_parts,
)


@triton.jit
def _forward_kernel(
    x_ptr, scaled_ptr, gain_ptr, mean_ptr, square_ptr, mean_out_ptr, square_out_ptr,
    n, length, gain_stride, before,
    C: tl.constexpr, ROWS: tl.constexpr, PART: tl.constexpr, COUNT: tl.constexpr,
):  # fmt: skip
    row, there, column, place = rows_at(tl.program_id(0).to(tl.int64) * ROWS, n, C, ROWS, PART)
    x = load_parts(x_ptr, place, there, column, C, PART, COUNT)
    if gain_ptr is not None:
        image = image_of(row, there, None, length)
        gain = load_image_rows(gain_ptr, image, gain_stride, there, column, C, PART, COUNT)
        for i in tl.static_range(COUNT):
            tl.store(scaled_ptr + place + i * PART, x[i] * gain[i], inside_of(there, column, i, C, PART))
    own = row_sum(x, COUNT) / C
    distance = centred(x, own, column + (COUNT - 1) * PART, C, COUNT, COUNT * PART == C)
    mean = tl.load(mean_ptr + row, there, 0.0)
    delta = own - mean
    share = C / (before + C)
    tl.store(mean_out_ptr + row, mean + delta * share, there)
    square = tl.load(square_ptr + row, there, 0.0) + product_sum(distance, distance, COUNT)
    tl.store(square_out_ptr + row, square + delta * delta * (before * share), there)


@triton.jit
def _backward_kernel(
    inner_ptr, x_ptr, dx_ptr, scaled_ptr, gain_ptr, mean_ptr, dmean_out_ptr, dsquare_ptr, dmean_ptr, partial_ptr,
    starts_ptr, count, length, gain_stride, before,
    CHUNK: tl.constexpr,
    C: tl.constexpr, ROWS: tl.constexpr, PART: tl.constexpr, COUNT: tl.constexpr,
):  # fmt: skip
    slot = tl.program_id(0).to(tl.int64)
    image, first, last = chunk_of(slot, starts_ptr, count, length, CHUNK)
    if gain_ptr is not None:
        gain = load_image_row(gain_ptr, image, gain_stride, C, PART, COUNT)
    dgain = zero_parts(ROWS, PART, COUNT)
    share = C / (before + C)
    for begin in range(first, last, ROWS):
        row, there, column, place = rows_at(begin, last, C, ROWS, PART)
        x = load_parts(x_ptr, place, there, column, C, PART, COUNT)
        dscaled = load_parts(inner_ptr, place, there, column, C, PART, COUNT)
        own = row_sum(x, COUNT) / C
        dmean = tl.load(dmean_out_ptr + row, there, 0.0)
        dsquare = tl.load(dsquare_ptr + row, there, 0.0)
        delta = own - tl.load(mean_ptr + row, there, 0.0)
        ddelta = dmean * share + 2.0 * dsquare * delta * (before * share)
        tl.store(dmean_ptr + row, dmean - ddelta, there)
        if gain_ptr is not None:
            dgain = plus_products(dgain, dscaled, x, COUNT)
        for i in tl.static_range(COUNT):
            inside = inside_of(there, column, i, C, PART)
            dx = dscaled[i]
            if gain_ptr is not None:
                dx *= gain[i]
                tl.store(scaled_ptr + place + i * PART, x[i] * gain[i], inside)
            dx += (ddelta / C)[:, None] + 2.0 * dsquare[:, None] * (x[i] - own[:, None])
            tl.store(dx_ptr + place + i * PART, dx, inside)
    if gain_ptr is not None:
        store_sums(partial_ptr + slot * C, dgain, C, PART, COUNT)


def _forward(
    x: Tensor, gain: Tensor | None, mean: Tensor, square: Tensor, before: int
) -> tuple[Tensor, Tensor, Tensor]:
    x, mean, square = x.contiguous(), mean.contiguous(), square.contiguous()
    gain = None if gain is None else rows_with_stride(gain)
    scaled, mean_out, square_out = _empty(x, gain, mean, square, before)
    n, c = rows_of(x), x.shape[-1]
    tile = tile_of(c)
    sizes = n, 1 if gain is None else n // max(len(gain), 1), 0 if gain is None else gain.stride(0), before
    tensors = x, None if gain is None else scaled, gain, mean, square, mean_out, square_out
    launch(_forward_kernel, (tile.programs(n),), *tensors, *sizes, **tile.constants(c))
    return scaled, mean_out, square_out


def _backward(
    inner: Tensor, x: Tensor, gain: Tensor | None, mean: Tensor, dmean: Tensor, dsquare: Tensor, before: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    inner, x, mean, dmean, dsquare = (one.contiguous() for one in (inner, x, mean, dmean, dsquare))
    gain = None if gain is None else rows_with_stride(gain)
    dx, scaled, sums, dmean_in = _empty_backward(inner, x, gain, mean, dmean, dsquare, before)
    c = x.shape[-1]
    segments = segments_of(rows_of(x), 1 if gain is None else len(gain), None)
    chunks = None if gain is None else partial_sums(segments, x, c)
    tensors = inner, x, dx, None if gain is None else scaled, gain, mean, dmean, dsquare, dmean_in, chunks
    sizes = 0 if gain is None else gain.stride(0), before
    constants = {"CHUNK": segments.chunk} | tile_of(c, SUMMED).constants(c)
    launch(_backward_kernel, (segments.slots,), *tensors, *segments.arguments, *sizes, **constants)
    return dx, scaled, sums if chunks is None else add_chunks(chunks, segments, torch.float32), dmean_in


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
