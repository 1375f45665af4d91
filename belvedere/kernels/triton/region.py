"""The region filter: the 3x3 kernel of every pixel and channel lives in registers, forward and backward.

With w (9, 9), b (9) of a channel, f its features, x its map and s_t the shift of tap t, the filter is

    y[p] = sum_t x[p + s_t] (b_t + sum_j w_tj f[p + s_j])

The gradients of x and f have one form, with the roles of x and f and the sides of w exchanged; those of w and b are
sums over all pixels, made share by share and then over the shares, in a fixed order.

Its 90 multiply-adds a pixel are more work than its three numbers are traffic, so what counts is how few other
instructions there are: a thread has a column of some rows, loads each pixel that it sees once and each weight once for
all its rows.
"""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from belvedere.kernels.triton.launch import empty_like_kept, helper, keep_inputs, launch, meta, register

COLUMNS = 128
"""Columns that one program has in hand, of one strip of rows or of several."""
ROWS = 8
"""Rows of a strip."""
GRADIENT_ROWS = 4
"""Rows of a strip where gradients are made: they see more around it, and those of weights are 90 sums."""
SHARES = 4
"""Programs that share the sums of a channel."""


@helper
def _strips(width, first, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """The first rows and the columns of ``COLUMNS`` columns of strips, counted strip by strip from ``first``."""
    place = first + tl.arange(0, COLUMNS)
    return place // width * ROWS, place % width


@helper
def _reach(map_ptr, row, column, height, width, COUNT: tl.constexpr, SIDE: tl.constexpr):
    """Load ``COUNT`` rows of ``SIDE`` columns around ``column``, float32, zeros around the map: a tuple of tuples."""
    first_ptr = map_ptr + row * width + column
    rows = ()
    for i in tl.static_range(COUNT):
        there = (row + i >= 0) & (row + i < height)
        across = ()
        for j in tl.static_range(SIDE):
            beside = column + (j - SIDE // 2)
            inside = there & (beside >= 0) & (beside < width)
            across += (tl.load(first_ptr + i * width + (j - SIDE // 2), inside, 0.0).to(tl.float32),)
        rows += (across,)
    return rows


@helper
def _store(map_ptr, row, column, height, width, values, ROWS: tl.constexpr):
    """Store a strip."""
    for r in tl.static_range(ROWS):
        tl.store(map_ptr + (row + r) * width + column, values[r], row + r < height)


@helper
def _same(value, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """A strip of one value."""
    strip = ()
    for _ in tl.static_range(ROWS):
        strip += (tl.zeros((COLUMNS,), tl.float32) + value,)
    return strip


@helper
def _plus(sums, weight, rows, DOWN: tl.constexpr, RIGHT: tl.constexpr, ROWS: tl.constexpr):
    """``sums`` and a weight times what lies ``DOWN`` and ``RIGHT`` in ``rows``."""
    added = ()
    for r in tl.static_range(ROWS):
        added += (sums[r] + weight * rows[r + DOWN][RIGHT],)
    return added


@helper
def _plus_product(sums, taps, rows, DOWN: tl.constexpr, RIGHT: tl.constexpr, ROWS: tl.constexpr):
    """``sums`` and the taps times what lies ``DOWN`` and ``RIGHT`` in ``rows``."""
    added = ()
    for r in tl.static_range(ROWS):
        added += (sums[r] + taps[r] * rows[r + DOWN][RIGHT],)
    return added


@triton.jit
def _forward_kernel(
    x_ptr, f_ptr, w_ptr, b_ptr, y_ptr, channels, height, width, ROWS: tl.constexpr, COLUMNS: tl.constexpr
):
    plane = tl.program_id(0).to(tl.int64)
    channel, start = plane % channels, plane * height * width
    row, column = _strips(width, tl.program_id(1) * COLUMNS, ROWS, COLUMNS)
    f = _reach(f_ptr + start, row - 1, column, height, width, ROWS + 2, 3)
    x = _reach(x_ptr + start, row - 1, column, height, width, ROWS + 2, 3)
    total = _same(0.0, ROWS, COLUMNS)
    for t in tl.static_range(9):
        taps = _same(tl.load(b_ptr + channel * 9 + t), ROWS, COLUMNS)
        for j in tl.static_range(9):
            taps = _plus(taps, tl.load(w_ptr + channel * 81 + t * 9 + j), f, j // 3, j % 3, ROWS)
        total = _plus_product(total, taps, x, t // 3, t % 3, ROWS)
    _store(y_ptr + start, row, column, height, width, total, ROWS)


@triton.jit
def _map_kernel(
    dy_ptr,
    other_ptr,
    w_ptr,
    b_ptr,
    dx_ptr,
    channels,
    height,
    width,
    OF_X: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """Gradient of x (``other`` the features) or of the features (``other`` x)."""
    plane = tl.program_id(0).to(tl.int64)
    channel, start = plane % channels, plane * height * width
    row, column = _strips(width, tl.program_id(1) * COLUMNS, ROWS, COLUMNS)
    other = _reach(other_ptr + start, row - 2, column, height, width, ROWS + 4, 5)
    dy = _reach(dy_ptr + start, row - 1, column, height, width, ROWS + 2, 3)
    total = _same(0.0, ROWS, COLUMNS)
    for t in tl.static_range(9):
        taps = _same(0.0, ROWS, COLUMNS)
        if OF_X:
            taps = _same(tl.load(b_ptr + channel * 9 + t), ROWS, COLUMNS)
        for j in tl.static_range(9):
            if OF_X:
                weight = tl.load(w_ptr + channel * 81 + t * 9 + j)
            else:
                weight = tl.load(w_ptr + channel * 81 + j * 9 + t)
            taps = _plus(taps, weight, other, j // 3 - t // 3 + 2, j % 3 - t % 3 + 2, ROWS)
        total = _plus_product(total, taps, dy, 2 - t // 3, 2 - t % 3, ROWS)
    _store(dx_ptr + start, row, column, height, width, total, ROWS)


@triton.jit
def _weight_kernel(
    dy_ptr, x_ptr, f_ptr, sums_ptr, images, channels, height, width, ROWS: tl.constexpr, COLUMNS: tl.constexpr
):
    """Sums over a share of a channel's strips: for each tap the nine weights, then the bias."""
    channel = tl.program_id(0)
    blocks = tl.cdiv(tl.cdiv(height, ROWS) * width, COLUMNS)
    sums = _same(0.0, 90, COLUMNS)
    for block in range(tl.program_id(1), images * blocks, tl.num_programs(1)):
        start = ((block // blocks).to(tl.int64) * channels + channel) * height * width
        row, column = _strips(width, block % blocks * COLUMNS, ROWS, COLUMNS)
        f = _reach(f_ptr + start, row - 1, column, height, width, ROWS + 2, 3)
        x = _reach(x_ptr + start, row - 1, column, height, width, ROWS + 2, 3)
        dy = _reach(dy_ptr + start, row, column, height, width, ROWS, 1)
        added = ()
        for t in tl.static_range(9):
            product = ()
            for r in tl.static_range(ROWS):
                product += (dy[r][0] * x[r + t // 3][t % 3],)
            for j in tl.static_range(10):
                total = sums[t * 10 + j]
                for r in tl.static_range(ROWS):
                    if j == 9:
                        total += product[r]
                    else:
                        total += product[r] * f[r + j // 3][j % 3]
                added += (total,)
        sums = added
    place = (tl.program_id(1) * channels + channel) * 90
    for i in tl.static_range(90):
        tl.store(sums_ptr + place + i, tl.sum(sums[i]))


def _forward(x: Tensor, features: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    x, features, weight, bias = x.contiguous(), features.contiguous(), *_wide(weight, bias)
    _, c, h, w = x.shape
    y = torch.empty_like(x)
    launch(
        _forward_kernel, _grid(x, ROWS), x, features, weight, bias, y, c, h, w, ROWS=ROWS, COLUMNS=COLUMNS, num_warps=4
    )
    return y


def _backward(
    dy: Tensor, x: Tensor, features: Tensor, weight: Tensor, bias: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    dy, x, features = (tensor.contiguous() for tensor in (dy, x, features))
    wide = _wide(weight, bias)
    b, c, h, w = x.shape
    dx, dfeatures = torch.empty_like(x), torch.empty_like(features)
    sizes = {"ROWS": GRADIENT_ROWS, "COLUMNS": COLUMNS, "num_warps": 4}
    for other, gradient, of_x in ((features, dx, True), (x, dfeatures, False)):
        maps = (dy, other, *wide, gradient)
        launch(_map_kernel, _grid(x, GRADIENT_ROWS), *maps, c, h, w, OF_X=of_x, **sizes)
    sums = x.new_empty((SHARES, c, 9, 10), dtype=torch.float32)
    launch(_weight_kernel, (c, SHARES), dy, x, features, sums, b, c, h, w, **sizes)
    of_weight, of_bias = sums.sum(0).to(weight.dtype).split((9, 1), -1)  # (c, 9, 9) and (c, 9, 1)
    return dx, dfeatures, of_weight.reshape(weight.shape).clone(), of_bias.reshape(bias.shape).clone()


def _wide(weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    """Return the few weights as every thread takes them."""
    return weight.float().contiguous(), bias.float().contiguous()


def _grid(x: Tensor, rows: int) -> tuple[int, int]:
    """Return the programs for the maps of ``x`` (b, c, h, w) in strips of ``rows``."""
    b, c, h, w = x.shape
    return b * c, triton.cdiv(triton.cdiv(h, rows) * w, COLUMNS)


def _pull(ctx: Any, dy: Tensor) -> tuple[Tensor, ...]:
    return tuple(backward(dy, *ctx.saved_tensors))


backward = register("region_filter_backward", _backward, empty_like_kept, None, None)
region_filter = register("region_filter", _forward, lambda x, *rest: x.new_empty(x.shape), keep_inputs, _pull)
"""``x``, ``features`` (b, c, h, w), ``weight`` (c, 9, 1, 3, 3), ``bias`` (c, 9) -> (b, c, h, w)."""


def production() -> Iterator[tuple[str, Callable[[], Any]]]:
    """Yield launches at the sizes of published networks, by name; they are made under ``launch.noting``."""
    for dtype, name in ((torch.float32, "float32"), (torch.bfloat16, "bfloat16")):
        x = meta(8, 192, 64, 64, dtype=dtype)
        weight, bias = meta(192, 9, 1, 3, 3, dtype=dtype), meta(192, 9, dtype=dtype)
        yield f"region filter SegPIC {name} forward", partial(_forward, x, x, weight, bias)
        yield f"region filter SegPIC {name} backward", partial(_backward, x, x, x, weight, bias)
