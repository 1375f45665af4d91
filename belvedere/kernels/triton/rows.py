"""Whole rows of channels in a program's registers: how they are cut, their statistics, and gradients of a norm.

A row is cut into parts of as many columns as some warps take side by side, four numbers a thread; a tuple holds them.
So a row of 1,152 channels is nine parts of 128 and one warp has all of it, and not a block of 2,048 that is half empty:
a sum over the row stays in the warp, and what is spent on a number is spent on numbers that are there. That is what a
kernel needs that has some fifteen instructions for 32 numbers before they, and not the memory, take the time.
"""

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from belvedere.kernels.triton.launch import helper

KEPT = {"layer": 2, "rms": 1, "td-rms": 1, "none": 0}
"""How many statistics of a row are kept for backward: the inverse deviation, and the mean. In "td-rms", eps stands
outside the root."""
NUMBERS = 40
"""Most numbers of a row that a thread has."""
SUMMED = 20
"""The same where it keeps sums of them too."""
REGISTERS = 255
"""The bound that a thread has anyway: where none is named, the assembler spills some to have more threads."""


class Tile(NamedTuple):
    """The rows that one program has in registers at a time, in ``count`` parts of ``part`` columns, and its warps."""

    rows: int
    part: int
    count: int
    warps: int

    def programs(self, n: int) -> int:
        """How many programs ``n`` rows take."""
        return triton.cdiv(n, self.rows)

    def constants(self, c: int) -> dict[str, Any]:
        """Return what kernels of rows of ``c`` channels are compiled for."""
        sizes = {"C": c, "ROWS": self.rows, "PART": self.part, "COUNT": self.count}
        return sizes | {"num_warps": self.warps, "maxnreg": REGISTERS}


def tile_of(c: int, each: int | None = None) -> Tile:
    """Return whole rows of ``c`` channels, of which a thread has ``each`` (``NUMBERS``) at most."""
    across, each = 1, each or NUMBERS
    while c > 32 * each * across:
        across *= 2
    part, warps = min(triton.next_power_of_2(max(c, 16)), 128 * across), max(across, 4)
    return Tile(128 * warps // part, part, triton.cdiv(c, part), warps)


@helper
def rows_at(begin, end, C: tl.constexpr, ROWS: tl.constexpr, PART: tl.constexpr):
    """Rows of a tensor (n, C) from ``begin``, which of them are before ``end``, the columns of a part, and where the
    first part lies."""
    row = begin + tl.arange(0, ROWS)
    column = tl.arange(0, PART)[None, :]
    return row, row < end, column, row[:, None] * C + column


@helper
def inside_of(there, column, i: tl.constexpr, C: tl.constexpr, PART: tl.constexpr):
    """Which numbers of part ``i`` are there."""
    inside = there[:, None]
    if (i + 1) * PART > C:
        inside = inside & (column + i * PART < C)
    return inside


@helper
def load_parts(ptr, place, there, column, C: tl.constexpr, PART: tl.constexpr, COUNT: tl.constexpr):
    """Load rows as float32 parts, zero outside."""
    parts = ()
    for i in tl.static_range(COUNT):
        inside = inside_of(there, column, i, C, PART)
        parts += (tl.load(ptr + place + i * PART, inside, 0.0).to(tl.float32),)
    return parts


@helper
def repeated(part, COUNT: tl.constexpr):
    """The same part, ``COUNT`` times."""
    parts = ()
    for _ in tl.static_range(COUNT):
        parts += (part,)
    return parts


@helper
def zero_parts(ROWS: tl.constexpr, PART: tl.constexpr, COUNT: tl.constexpr):
    """Parts of zeros."""
    return repeated(tl.zeros((ROWS, PART), tl.float32), COUNT)


@helper
def store_sums(ptr, parts, C: tl.constexpr, PART: tl.constexpr, COUNT: tl.constexpr):
    """Store the sums of parts over their rows."""
    column = tl.arange(0, PART)
    for i in tl.static_range(COUNT):
        tl.store(ptr + i * PART + column, tl.sum(parts[i], 0), column + i * PART < C)


@helper
def times(left, right, COUNT: tl.constexpr):
    """Products of parts."""
    products = ()
    for i in tl.static_range(COUNT):
        products += (left[i] * right[i],)
    return products


@helper
def row_sum(parts, COUNT: tl.constexpr):
    """The sum of each row: parts as wide as the first are added up before, another by itself."""
    alike = parts[0]
    for i in tl.static_range(1, COUNT):
        if parts[i].shape[1] == parts[0].shape[1]:
            alike += parts[i]
    total = tl.sum(alike, 1)
    for i in tl.static_range(1, COUNT):
        if parts[i].shape[1] != parts[0].shape[1]:
            total += tl.sum(parts[i], 1)
    return total


@helper
def product_sum(left, right, COUNT: tl.constexpr):
    """The sum of products of each row."""
    return row_sum(times(left, right, COUNT), COUNT)


@helper
def plus(sums, parts, COUNT: tl.constexpr):
    """Sums of parts, with more of them."""
    added = ()
    for i in tl.static_range(COUNT):
        added += (sums[i] + parts[i],)
    return added


@helper
def plus_products(sums, left, right, COUNT: tl.constexpr):
    """Sums of products of parts, with more of them."""
    added = ()
    for i in tl.static_range(COUNT):
        added += (sums[i] + left[i] * right[i],)
    return added


@helper
def centred(parts, mean, last, C: tl.constexpr, COUNT: tl.constexpr, WHOLE: tl.constexpr):
    """Rows without their means, zero outside: at those of the ``last`` columns that there are not, unless all are."""
    moved = ()
    for i in tl.static_range(COUNT):
        distance = parts[i] - mean[:, None]
        if i == COUNT - 1 and not WHOLE:
            distance = tl.where(last < C, distance, 0.0)
        moved += (distance,)
    return moved


@helper
def scaled(parts, factor, COUNT: tl.constexpr):
    """Rows times a factor each."""
    times = ()
    for i in tl.static_range(COUNT):
        times += (parts[i] * factor[:, None],)
    return times


@helper
def normalised(parts, last, eps, NORM: tl.constexpr, C: tl.constexpr, COUNT: tl.constexpr, WHOLE: tl.constexpr):
    """The normalised rows, zero outside (see ``centred``), their means (or 0) and their inverse deviations."""
    mean = tl.zeros((parts[0].shape[0],), tl.float32)
    inverse = tl.full((parts[0].shape[0],), 1.0, tl.float32)
    if NORM == "layer":
        mean = row_sum(parts, COUNT) / C
        parts = centred(parts, mean, last, C, COUNT, WHOLE)
    if NORM != "none":
        square = product_sum(parts, parts, COUNT) / C
        if NORM == "td-rms":
            inverse = 1.0 / (tl.sqrt(square) + eps)
        else:
            inverse = tl.rsqrt(square + eps)
        parts = scaled(parts, inverse, COUNT)
    return parts, mean, inverse


@helper
def keep(statistics_ptr, row, there, n, mean, inverse, NORM: tl.constexpr):
    """Store what backward needs of the statistics."""
    if NORM != "none":
        tl.store(statistics_ptr + row, inverse, there)
    if NORM == "layer":
        tl.store(statistics_ptr + n + row, mean, there)


@helper
def normal_of(
    parts, statistics_ptr, row, there, n, last,
    NORM: tl.constexpr, C: tl.constexpr, COUNT: tl.constexpr, WHOLE: tl.constexpr,
):  # fmt: skip
    """The normalised rows and the inverse deviations, from what was kept."""
    inverse = tl.full((parts[0].shape[0],), 1.0, tl.float32)
    if NORM == "layer":
        parts = centred(parts, tl.load(statistics_ptr + n + row, there, 0.0), last, C, COUNT, WHOLE)
    if NORM != "none":
        inverse = tl.load(statistics_ptr + row, there, 0.0)
        parts = scaled(parts, inverse, COUNT)
    return parts, inverse


@helper
def pull_normal(g, normal, inverse, eps, NORM: tl.constexpr, C: tl.constexpr, COUNT: tl.constexpr):
    """The gradient of rows from that of the normalised rows; what it is outside does not count."""
    if NORM != "none":
        along = product_sum(g, normal, COUNT) / C
        if NORM == "td-rms":  # how much of the denominator is the root; eps is the rest
            along /= tl.maximum(1.0 - eps * inverse, 1e-6)
        shift = tl.zeros_like(along)
        if NORM == "layer":
            shift = row_sum(g, COUNT) / C
        pulled = ()
        for i in tl.static_range(COUNT):
            pulled += ((g[i] - shift[:, None] - normal[i] * along[:, None]) * inverse[:, None],)
        g = pulled
    return g


@helper
def load_image_rows(rows_ptr, image, stride, there, column, C: tl.constexpr, PART: tl.constexpr, COUNT: tl.constexpr):
    """Load the row of each row's image as float32 parts, zero outside.

    Loads are made in the order in which they are written: this one belongs before the first result is waited for.
    """
    parts = ()
    for i in tl.static_range(COUNT):
        inside = inside_of(there, column, i, C, PART)
        place = image.to(tl.int64)[:, None] * stride + column + i * PART
        parts += (tl.load(rows_ptr + place, inside, 0.0).to(tl.float32),)
    return parts


@helper
def load_image_row(rows_ptr, image, stride, C: tl.constexpr, PART: tl.constexpr, COUNT: tl.constexpr):
    """Load the row of one image, for all rows of a program."""
    parts, column = (), tl.arange(0, PART)[None, :]
    for i in tl.static_range(COUNT):
        place = image.to(tl.int64) * stride + column + i * PART
        parts += (tl.load(rows_ptr + place, column + i * PART < C, 0.0).to(tl.float32),)
    return parts


@helper
def gains(scale, weight_ptr, ONE: tl.constexpr, C: tl.constexpr, PART: tl.constexpr, COUNT: tl.constexpr):
    """What normalised rows are multiplied by: (one + scale) and the weight, if there is one."""
    parts, column = (), tl.arange(0, PART)[None, :]
    for i in tl.static_range(COUNT):
        gain = scale[i]
        if ONE != 0.0:
            gain += ONE
        if weight_ptr is not None:
            gain *= tl.load(weight_ptr + column + i * PART, column + i * PART < C, 0.0).to(tl.float32)
        parts += (gain,)
    return parts


def check_rows(x: Tensor, index: Tensor | None, *rows: Tensor | None) -> None:
    """Raise ``ValueError`` unless ``rows`` (s, c) serve ``x`` (..., c): one for all, or one an image, as many of each.

    An image is a part of ``x`` along its first axis, or what ``index`` names for each row of a packed one.
    """
    shapes = [one.shape for one in rows if one is not None]
    if not shapes:
        return
    fit = shapes[0][0] in (1, len(x)) if index is None else index.shape == x.shape[:-1]
    if not fit or shapes[0][1:] != x.shape[-1:] or shapes.count(shapes[0]) < len(shapes):
        told = [tuple(shape) for shape in shapes]
        raise ValueError(f"rows {told} for {tuple(x.shape)}: one for all or for each image, as many of each")


def rows_with_stride(x: Tensor) -> Tensor:
    """Return rows (s, c), copied only when channels do not lie side by side."""
    return x if x.stride(-1) == 1 else x.contiguous()


def summed_dtype(weight: Tensor | None, *rows: Tensor) -> torch.dtype:
    """Return the dtype of sums over each image: that of the rows whose gradients they are; float32 where rows differ,
    or where those of a weight are made of them."""
    return rows[0].dtype if weight is None and len({x.dtype for x in rows}) == 1 else torch.float32


def pull_rows(sums: Tensor, scale: Tensor, weight: Tensor | None, one: float) -> tuple[Tensor, Tensor | None]:
    """Return the gradients of ``scale`` and ``weight`` from the sums over each image of dy * normalise(x)."""
    if weight is None:
        return sums, None
    return (sums * weight).to(scale.dtype), ((one + scale.float()) * sums).sum(0).to(weight.dtype)
