"""Some activations folded into a norm over many: their moments joined to those seen, and they times the norm's gain,
side by side in one buffer, so that one matrix product takes them all. Each activation is read once.

Their gradients follow from the moments at the end alone. With mean m, and q the sum of squared distances from it, over
``count`` channels, dm/dx = 1 / count and dq/dx = 2 (x - m), for the distances from m add up to nothing.
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
    n, length, scaled_stride, gain_stride, before,
    C: tl.constexpr, ROWS: tl.constexpr, PART: tl.constexpr, COUNT: tl.constexpr,
):  # fmt: skip
    row, there, column, place = rows_at(tl.program_id(0).to(tl.int64) * ROWS, n, C, ROWS, PART)
    x = load_parts(x_ptr, place, there, column, C, PART, COUNT)
    gain = load_image_rows(gain_ptr, image_of(row, there, None, length), gain_stride, there, column, C, PART, COUNT)
    beside = row[:, None] * scaled_stride + column
    for i in tl.static_range(COUNT):
        tl.store(scaled_ptr + beside + i * PART, x[i] * gain[i], inside_of(there, column, i, C, PART))
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
    inner_ptr, x_ptr, dx_ptr, scaled_ptr, gain_ptr, mean_ptr, dmean_ptr, dsquare_ptr, partial_ptr,
    starts_ptr, images, length, scaled_stride, gain_stride, partial_stride, count,
    CHUNK: tl.constexpr,
    C: tl.constexpr, ROWS: tl.constexpr, PART: tl.constexpr, COUNT: tl.constexpr,
):  # fmt: skip
    slot = tl.program_id(0).to(tl.int64)
    image, first, last = chunk_of(slot, starts_ptr, images, length, CHUNK)
    gain = load_image_row(gain_ptr, image, gain_stride, C, PART, COUNT)
    dgain = zero_parts(ROWS, PART, COUNT)
    for begin in range(first, last, ROWS):
        row, there, column, place = rows_at(begin, last, C, ROWS, PART)
        beside = row[:, None] * scaled_stride + column
        x = load_parts(x_ptr, place, there, column, C, PART, COUNT)
        dscaled = load_parts(inner_ptr, beside, there, column, C, PART, COUNT)
        mean = tl.load(mean_ptr + row, there, 0.0)[:, None]
        even = tl.load(dmean_ptr + row, there, 0.0)[:, None] / count
        twice = 2.0 * tl.load(dsquare_ptr + row, there, 0.0)[:, None]
        dgain = plus_products(dgain, dscaled, x, COUNT)
        for i in tl.static_range(COUNT):
            inside = inside_of(there, column, i, C, PART)
            tl.store(scaled_ptr + beside + i * PART, x[i] * gain[i], inside)
            tl.store(dx_ptr + place + i * PART, dscaled[i] * gain[i] + even + twice * (x[i] - mean), inside)
    store_sums(partial_ptr + slot * partial_stride, dgain, C, PART, COUNT)


def _forward(
    xs: list[Tensor], gain: Tensor, mean: Tensor, square: Tensor, before: int
) -> tuple[Tensor, Tensor, Tensor]:
    mean, square, gain = mean.contiguous(), square.contiguous(), rows_with_stride(gain)
    scaled, *_ = _empty(xs, gain, mean, square, before)
    n, c = rows_of(xs[0]), xs[0].shape[-1]
    tile = tile_of(c)
    sizes = n, n // max(len(gain), 1), scaled.shape[-1], gain.stride(0)
    for i, x in enumerate(xs):
        part, joined = slice(i * c, (i + 1) * c), (torch.empty_like(mean), torch.empty_like(square))
        tensors = x.contiguous(), scaled[..., part], gain[:, part], mean, square, *joined
        launch(_forward_kernel, (tile.programs(n),), *tensors, *sizes, before + i * c, **tile.constants(c))
        mean, square = joined
    return scaled, mean, square


def _backward(
    inner: Tensor, xs: list[Tensor], gain: Tensor, mean: Tensor, dmean: Tensor, dsquare: Tensor, count: int
) -> tuple[list[Tensor], Tensor, Tensor]:
    inner, mean, dmean, dsquare = (one.contiguous() for one in (inner, mean, dmean, dsquare))
    gain, c = rows_with_stride(gain), xs[0].shape[-1]
    dxs, scaled, _ = _empty_backward(inner, xs, gain, mean, dmean, dsquare, count)
    segments = segments_of(rows_of(xs[0]), len(gain), None)
    sums = partial_sums(segments, inner, inner.shape[-1])
    sizes = inner.shape[-1], gain.stride(0), sums.shape[-1], count
    constants = {"CHUNK": segments.chunk} | tile_of(c, SUMMED).constants(c)
    for i, (x, dx) in enumerate(zip(xs, dxs, strict=True)):
        part = slice(i * c, (i + 1) * c)
        tensors = inner[..., part], x.contiguous(), dx, scaled[..., part], gain[:, part], mean, dmean, dsquare
        launch(_backward_kernel, (segments.slots,), *tensors, sums[:, part], *segments.arguments, *sizes, **constants)
    return dxs, scaled, add_chunks(sums, segments, torch.float32)


def _empty(xs: list[Tensor], gain: Tensor, mean: Tensor, square: Tensor, before: int) -> tuple[Tensor, Tensor, Tensor]:
    scaled = xs[0].new_empty((*xs[0].shape[:-1], gain.shape[-1]), dtype=gain.dtype)
    return scaled, mean.new_empty(mean.shape), square.new_empty(square.shape)


def _empty_backward(
    inner: Tensor, xs: list[Tensor], gain: Tensor, mean: Tensor, *others: Any
) -> tuple[list[Tensor], Tensor, Tensor]:
    return [x.new_empty(x.shape) for x in xs], inner.new_empty(inner.shape), mean.new_empty(gain.shape)


concat_scale = register("concat_scale", _forward, _empty, None, None)
"""(xs, gain, mean, square, before) -> the xs side by side, times gain, and mean and square joined with those of the xs.

``xs``: g of (b, n, c). ``gain`` (b', g c), one row for all or one an image; its dtype is that of the first result
(b, n, g c). ``mean`` and ``square`` float32 (b, n, 1) of the ``before`` channels already seen.
``belvedere.kernels.concat`` has the gradient, by ``concat_scale_backward``."""
concat_scale_backward = register("concat_scale_backward", _backward, _empty_backward, None, None)
"""(gradient of the scaled xs, xs, gain, the joined mean, gradients of the joined two, channels seen by then) -> of each
x; the scaled xs, in the dtype of their gradient; of gain, float32."""


def production() -> Iterator[tuple[str, Callable[[], Any]]]:
    """Yield launches at the sizes of published networks, by name; they are made under ``launch.noting``."""
    xs, moment, grouped = [meta(64, 257, 960)] * 8, meta(64, 257, 1, dtype=torch.float32), meta(64, 257, 8 * 960)
    gain = meta(64, 80 * 960)[:, : 8 * 960]
    yield "concat DiMR-XL/2R forward", partial(_forward, xs, gain, moment, moment, 15360)
    yield "concat DiMR-XL/2R backward", partial(_backward, grouped, xs, gain, moment, moment, moment, 23040)
