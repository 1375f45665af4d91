"""x + a depthwise convolution, channels last: a loaded row serves every row of results that it reaches.

A program has a few columns and channels of some rows of one picture. For each column of the filter it loads the rows
that its results see, each once, and adds their products to all results: 7 (r + 6) loads for r rows of results where
49 r are needed, and weights that threads hold for seven of them. The gradient of x is the same with the filter turned
round; those of the filter and of the bias are sums over shares of pictures, which are added up in a fixed order.
"""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from belvedere.kernels.triton.launch import empty_like_kept, helper, keep_inputs, launch, meta, register
from belvedere.kernels.triton.rows import repeated, zero_parts

ROWS = 8
"""Rows of results that one program makes."""
SUMMED_ROWS = 8
"""Rows that a program of the filter's gradient has in hand."""
COLUMNS = 16
CHANNELS = 32
TILES = 16
"""Tiles of ``SUMMED_ROWS`` by ``COLUMNS`` pixels that one program sums for the gradients of filter and bias."""


@helper
def _reach(image_ptr, row, column, channel, height, width, c, COUNT: tl.constexpr):
    """Load ``COUNT`` neighbouring rows of columns and channels of a picture (h, w, c), float32, zeros around it."""
    first_ptr = image_ptr + ((row * width + column)[:, None] * c + channel[None, :])
    inside = ((column >= 0) & (column < width))[:, None] & (channel < c)[None, :]
    rows = ()
    for i in tl.static_range(COUNT):
        there = (row + i).to(tl.uint32) < height  # false above the picture too
        rows += (tl.load(first_ptr + i * width * c, inside & there, 0.0).to(tl.float32),)
    return rows


@triton.jit
def _filter_kernel(
    x_ptr,
    weight_ptr,
    bias_ptr,
    y_ptr,
    height,
    width: tl.constexpr,
    c: tl.constexpr,
    SIDE: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    across = tl.cdiv(width, COLUMNS)
    start = tl.program_id(0).to(tl.int64) * height * width * c
    x_ptr += start
    y_ptr += start
    row = tl.program_id(1) // across * ROWS
    column = tl.program_id(1) % across * COLUMNS + tl.arange(0, COLUMNS)
    channel = tl.program_id(2) * CHANNELS + tl.arange(0, CHANNELS)
    start = tl.zeros((COLUMNS, CHANNELS), tl.float32)
    if bias_ptr is not None:
        start += tl.load(bias_ptr + channel, channel < c, 0.0).to(tl.float32)[None, :]
    sums = repeated(start, ROWS)
    seen = _reach(x_ptr, row - SIDE // 2, column - SIDE // 2, channel, height, width, c, ROWS + SIDE - 1)
    for right in range(SIDE):
        # The next column is on its way while this one is multiplied; behind the last there is none to be loaded.
        beyond = tl.where(right + 1 < SIDE, column + right + 1 - SIDE // 2, width)
        ahead = _reach(x_ptr, row - SIDE // 2, beyond, channel, height, width, c, ROWS + SIDE - 1)
        weights = ()
        for down in tl.static_range(SIDE):
            weight = tl.load(weight_ptr + (down * SIDE + right) * c + channel, channel < c, 0.0)
            if down == SIDE // 2:
                weight += tl.where(right == SIDE // 2, 1.0, 0.0)  # x itself
            weights += (weight,)
        added = ()
        for r in tl.static_range(ROWS):
            total = sums[r]
            for down in tl.static_range(SIDE):
                total += seen[r + down] * weights[down][None, :]
            added += (total,)
        sums, seen = added, ahead
    for r in tl.static_range(ROWS):
        inside = ((row + r < height) & (column < width))[:, None] & (channel < c)[None, :]
        tl.store(y_ptr + ((row + r) * width + column)[:, None] * c + channel[None, :], sums[r], inside)


@triton.jit
def _weight_kernel(
    dy_ptr,
    x_ptr,
    sums_ptr,
    height,
    width: tl.constexpr,
    c: tl.constexpr,
    SIDE: tl.constexpr,
    TILES: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    """Sums over a share of a picture for one column of the filter; that of the bias goes with the first."""
    across = tl.cdiv(width, COLUMNS)
    tiles = tl.cdiv(height, ROWS) * across
    share, right = tl.program_id(0) % tl.cdiv(tiles, TILES), tl.program_id(1)
    start = (tl.program_id(0) // tl.cdiv(tiles, TILES)).to(tl.int64) * height * width * c
    dy_ptr += start
    x_ptr += start
    channel = tl.program_id(2) * CHANNELS + tl.arange(0, CHANNELS)
    sums = zero_parts(COLUMNS, CHANNELS, SIDE + 1)
    for tile in range(share * TILES, tl.minimum((share + 1) * TILES, tiles)):
        row, column = tile // across * ROWS, tile % across * COLUMNS + tl.arange(0, COLUMNS)
        dy = _reach(dy_ptr, row, column, channel, height, width, c, ROWS)
        seen = _reach(x_ptr, row - SIDE // 2, column + right - SIDE // 2, channel, height, width, c, ROWS + SIDE - 1)
        added = ()
        for down in tl.static_range(SIDE):
            total = sums[down]
            for r in tl.static_range(ROWS):
                total += dy[r] * seen[r + down]
            added += (total,)
        total = sums[SIDE]
        for r in tl.static_range(ROWS):
            total += dy[r]
        added += (total,)
        sums = added
    place = tl.program_id(0).to(tl.int64) * (SIDE * SIDE + 1) * c + channel
    for down in tl.static_range(SIDE):
        tl.store(sums_ptr + place + (down * SIDE + right) * c, tl.sum(sums[down], 0), channel < c)
    if right == 0:
        tl.store(sums_ptr + place + SIDE * SIDE * c, tl.sum(sums[SIDE], 0), channel < c)


def _filter(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Return ``x`` + ``x`` filtered; ``weight`` (s s, c): a row for each place of the filter."""
    b, h, w, c = x.shape
    y, side = torch.empty_like(x), int(len(weight) ** 0.5)
    grid = (b, triton.cdiv(h, ROWS) * triton.cdiv(w, COLUMNS), triton.cdiv(c, CHANNELS))
    sizes = {"SIDE": side, "ROWS": ROWS, "COLUMNS": COLUMNS, "CHANNELS": CHANNELS, "num_warps": 4}
    launch(_filter_kernel, grid, x, weight, bias, y, h, width=w, c=c, **sizes)
    return y


def _forward(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return _filter(x.contiguous(), weight.float().flatten(1).mT.contiguous(), bias.contiguous())


def _backward(dy: Tensor, x: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    dy, x = dy.contiguous(), x.contiguous()
    dx = _filter(dy, weight.float().flatten(1).mT.flip(0).contiguous(), None)
    b, h, w, c = x.shape
    side = weight.shape[-1]
    shares = b * triton.cdiv(triton.cdiv(h, SUMMED_ROWS) * triton.cdiv(w, COLUMNS), TILES)
    sums = x.new_empty((shares, side * side + 1, c), dtype=torch.float32)
    sizes = {"SIDE": side, "TILES": TILES, "ROWS": SUMMED_ROWS, "COLUMNS": COLUMNS, "CHANNELS": CHANNELS}
    grid = (shares, side, triton.cdiv(c, CHANNELS))
    launch(_weight_kernel, grid, dy, x, sums, h, width=w, c=c, **sizes, num_warps=4)
    of_weight, of_bias = sums.sum(0).split((side * side, 1))
    of_weight = of_weight.mT.reshape(weight.shape).to(weight.dtype).contiguous()
    return dx, of_weight, of_bias[0].to(bias.dtype).clone()


def _pull(ctx: Any, dy: Tensor) -> tuple[Tensor, ...]:
    return tuple(backward(dy, *ctx.saved_tensors))


backward = register("depthwise_residual_backward", _backward, empty_like_kept, None, None)
depthwise_residual = register("depthwise_residual", _forward, lambda x, *rest: x.new_empty(x.shape), keep_inputs, _pull)
"""``x`` (b, h, w, c), ``weight`` (c, 1, s, s), ``bias`` (c,) -> (b, h, w, c)."""


def production() -> Iterator[tuple[str, Callable[[], Any]]]:
    """Yield launches at the sizes of published networks, by name; they are made under ``launch.noting``."""
    for name, side, c in (("DiMR-XL/2R", 32, 480), ("DiMR-G/2R", 32, 576), ("DiMR-XL/3R", 64, 240)):
        for dtype, kind in ((torch.bfloat16, ""), (torch.float32, " float32")):
            x = meta(64, side, side, c, dtype=dtype)
            weight, bias = meta(c, 1, 7, 7, dtype=dtype), meta(c, dtype=dtype)
            yield f"depthwise {name}{kind} forward", partial(_forward, x, weight, bias)
            yield f"depthwise {name}{kind} backward", partial(_backward, x, x, weight, bias)
