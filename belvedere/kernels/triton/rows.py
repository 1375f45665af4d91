"""Whole rows of channels in a program's registers: how many at a time, their statistics, and gradients of a norm."""

from typing import NamedTuple

import triton
import triton.language as tl
from torch import Tensor

from belvedere.kernels.triton.launch import helper
from belvedere.kernels.triton.reduce import CHUNK

KEPT = {"layer": 2, "rms": 1, "td-rms": 1, "none": 0}
"""How many statistics of a row are kept for backward: the inverse deviation, and the mean. In "td-rms", eps stands
outside the root."""


class Tile(NamedTuple):
    """The rows and channels that one program has in registers at a time, and its warps."""

    rows: int
    block: int
    warps: int

    def programs(self, n: int) -> int:
        """How many programs share the tiles of ``n`` rows: as many as a GPU runs at once, about 32 warps an SM."""
        return min(triton.cdiv(n, self.rows), 4096 // self.warps)


def tile_of(c: int, each: int = 16, most: int = 2048) -> Tile:
    """Return whole rows of ``c`` channels, several where they are short: ``each`` numbers a thread of each tensor."""
    block = triton.next_power_of_2(max(c, 16))
    rows = min(max(1, 2048 // block), most)
    return Tile(rows, block, min(max(1, rows * block // (32 * each)), 32))


def chunk_tile_of(c: int) -> Tile:
    """Return the same for programs that sum a chunk: there are few of them, and they have twice as much in hand."""
    return tile_of(c, 8, CHUNK)


@helper
def span_of(n, ROWS: tl.constexpr):
    """The first tile of this program and the one behind its last: neighbours, whose image's rows stay in its cache."""
    tiles = tl.cdiv(n, ROWS)
    span = tl.cdiv(tiles, tl.num_programs(0))
    first = tl.program_id(0) * span
    return first, tl.minimum(first + span, tiles)


@helper
def tile_at(begin, end, column, c, ROWS: tl.constexpr):
    """The rows of a tile of a tensor (n, c), which of them are before ``end``, which of their channels are there, and
    where those lie."""
    row = begin + tl.arange(0, ROWS)
    there = row < end
    return row, there, there[:, None] & (column < c), row[:, None] * c + column


@helper
def statistics(x, inside, c, eps, NORM: tl.constexpr):
    """The mean (or 0) and the inverse deviation of each row of ``x``, float32, zero outside."""
    mean = tl.zeros((x.shape[0],), tl.float32)
    if NORM == "layer":
        mean = tl.sum(x, 1) / c
        x = tl.where(inside, x - mean[:, None], 0.0)
    square = tl.sum(x * x, 1) / c
    if NORM == "td-rms":
        inverse = 1.0 / (tl.sqrt(square) + eps)
    else:
        inverse = tl.rsqrt(square + eps)
    return mean, inverse


@helper
def normalised(x, inside, c, eps, NORM: tl.constexpr):
    """The normalised rows of ``x``, float32, zero outside, their means and their inverse deviations."""
    mean = tl.zeros((x.shape[0],), tl.float32)
    inverse = tl.full((x.shape[0],), 1.0, tl.float32)
    if NORM != "none":
        mean, inverse = statistics(x, inside, c, eps, NORM)
        x = (x - mean[:, None]) * inverse[:, None]
    return x, mean, inverse


@helper
def keep(statistics_ptr, row, there, n, mean, inverse, NORM: tl.constexpr):
    """Store what backward needs of ``statistics``."""
    if NORM != "none":
        tl.store(statistics_ptr + row, inverse, there)
    if NORM == "layer":
        tl.store(statistics_ptr + n + row, mean, there)


@helper
def normal_of(x, statistics_ptr, row, there, n, NORM: tl.constexpr):
    """The normalised rows of ``x``, and the inverse deviations, from what was kept."""
    inverse = tl.full((x.shape[0],), 1.0, tl.float32)
    if NORM == "layer":
        x -= tl.load(statistics_ptr + n + row, there, 0.0)[:, None]
    if NORM != "none":
        inverse = tl.load(statistics_ptr + row, there, 0.0)
    return x * inverse[:, None], inverse


@helper
def pull_normal(g, normal, inverse, c, eps, NORM: tl.constexpr):
    """The gradient of x from that of the normalised rows."""
    if NORM != "none":
        along = tl.sum(g * normal, 1) / c
        if NORM == "td-rms":  # how much of the denominator is the root; eps is the rest
            along /= tl.maximum(1.0 - eps * inverse, 1e-6)
        if NORM == "layer":
            g -= (tl.sum(g, 1) / c)[:, None]
        g = (g - normal * along[:, None]) * inverse[:, None]
    return g


@helper
def row_of_image(rows_ptr, image, stride, column, inside):
    """Channels of the row of an image, float32."""
    return tl.load(rows_ptr + image.to(tl.int64) * stride + column, inside, 0.0).to(tl.float32)


@helper
def gain_of(scale_ptr, weight_ptr, image, stride, column, inside, c, ONE: tl.constexpr):
    """What normalised rows of an image are multiplied by: (one + scale) and the weight, if there is one."""
    gain = ONE + row_of_image(scale_ptr, image, stride, column, inside)
    if weight_ptr is not None:
        gain *= tl.load(weight_ptr + column, column < c, 0.0).to(tl.float32)
    return gain


def rows_with_stride(x: Tensor) -> Tensor:
    """Return rows (s, c), copied only when channels do not lie side by side."""
    return x if x.stride(-1) == 1 else x.contiguous()


def pull_rows(sums: Tensor, scale: Tensor, weight: Tensor | None, one: float) -> tuple[Tensor, Tensor | None]:
    """Return the gradients of ``scale`` and ``weight`` from the sums over each image of dy * normalise(x)."""
    if weight is None:
        return sums.to(scale.dtype), None
    return (sums * weight).to(scale.dtype), ((one + scale.float()) * sums).sum(0).to(weight.dtype)
