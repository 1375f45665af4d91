"""Sums over the rows of each image, in a fixed order: what gradients of adaLN's rows and of weights need.

An image's rows follow one another. They are cut into chunks of ``CHUNK``, counted from the image's own first row, so
that its sum does not depend on the images beside it. A program sums a chunk while it has the rows anyway, and a second
kernel adds an image's chunks in order. Where images differ in length, chunk j of image s has slot start[s] // CHUNK + s
+ j: slots of two images never meet, their number is known without asking the device, and the few without rows hold
zero.
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from belvedere.kernels.triton.launch import helper, launch

CHUNK = 32
"""Rows of a chunk: its partial sum is then a small part of the memory traffic, and 16k tokens still fill a GPU."""
COLUMNS = 64
"""Channels whose chunks one program adds, ``SLOTS`` chunks at a time."""
SLOTS = 32
STARTS = 1024
"""Rows of which one program looks where images begin."""


class Segments(NamedTuple):
    """Where the rows of each of s images begin."""

    starts: Tensor | None
    """int64 (s + 1,), on the device; the last is the number of rows. None: all images have as many."""
    length: int
    """Rows of an image, where all have as many."""
    images: int
    """s."""
    chunk: int
    """Rows of a chunk."""
    slots: int
    """How many chunks may be needed at most."""

    @property
    def arguments(self) -> tuple[Tensor | None, int, int]:
        """What ``chunk_of`` is given."""
        return self.starts, self.images, self.length


@triton.jit
def _starts_kernel(index_ptr, starts_ptr, n, count, ROWS: tl.constexpr):
    """An image begins at the row whose own is the first that is not before it; those after the last row end there."""
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    image = tl.load(index_ptr + row, row < n, count)
    before = tl.load(index_ptr + row - 1, (row > 0) & (row <= n), -1)
    before = tl.where(row <= n, before, count)
    for step in range(1, tl.max(image - before).to(tl.int32) + 1):
        tl.store(starts_ptr + before + step, row, before + step <= image)


def segments_of(rows: int, count: int, index: Tensor | None, chunk: int | None = None) -> Segments:
    """Return the images of ``rows``: ``index`` ascends and names each row's, or all have the same number of rows.

    ``chunk``: the rows of a chunk, ``CHUNK`` where it is not told.
    """
    chunk = chunk or CHUNK
    if index is None:
        length = rows // max(count, 1)
        return Segments(None, length, count, chunk, count * triton.cdiv(length, chunk))
    starts = index.new_empty(count + 1)
    launch(_starts_kernel, (rows // STARTS + 1,), index.contiguous(), starts, rows, count, ROWS=STARTS, num_warps=4)
    return Segments(starts, 0, count, chunk, rows // chunk + count if count else 0)


@helper
def image_of(row, there, index_ptr, length):
    """The image of each row: by ``index``, or every ``length`` rows."""
    if index_ptr is None:
        image = row.to(tl.int32) // length  # there are not so many rows that it would need to be the long division
    else:
        image = tl.load(index_ptr + row, there, 0).to(tl.int64)
    return image


@helper
def chunk_of(slot, starts_ptr, count, length, CHUNK: tl.constexpr):
    """The image of a slot, and its first row and the row behind its last; none where the two are equal or cross."""
    if starts_ptr is None:
        chunks = tl.cdiv(length, CHUNK)
        image = slot // chunks
        first = image * length + slot % chunks * CHUNK
        last = (image + 1) * length
    else:
        before = 0
        for lowest in range(0, count, 128):
            some = lowest + tl.arange(0, 128)
            start = tl.load(starts_ptr + some, some < count, 0)
            before += tl.sum(((some < count) & (start // CHUNK + some <= slot)).to(tl.int32))
        image = before - 1
        start = tl.load(starts_ptr + image)
        first = start + (slot - start // CHUNK - image) * CHUNK
        last = tl.load(starts_ptr + image + 1)
    return image, first, tl.minimum(first + CHUNK, last)


@triton.jit
def _sum_kernel(
    partial_ptr, sum_ptr, starts_ptr, length, width,
    CHUNK: tl.constexpr, SLOTS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    image = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    if starts_ptr is None:
        first = image * tl.cdiv(length, CHUNK)
        last = first + tl.cdiv(length, CHUNK)
    else:
        first = tl.load(starts_ptr + image) // CHUNK + image
        last = tl.load(starts_ptr + image + 1) // CHUNK + image + 1
    total = tl.zeros((COLUMNS,), tl.float32)
    for begin in range(first, last, SLOTS):
        slot = begin + tl.arange(0, SLOTS)
        inside = (slot < last)[:, None] & (column < width)[None, :]
        total += tl.sum(tl.load(partial_ptr + slot[:, None] * width + column[None, :], inside, 0.0), 0)
    tl.store(sum_ptr + image * width + column, total, column < width)


def partial_sums(segments: Segments, like: Tensor, *width: int) -> Tensor:
    """Return the memory for the sum of every chunk: float32 (slots, *width)."""
    return like.new_empty((segments.slots, *width), dtype=torch.float32)


def add_chunks(partial: Tensor, segments: Segments, dtype: torch.dtype) -> Tensor:
    """Return the sum of each image, (s, ...) of ``dtype``, from those of its chunks (slots, ...)."""
    sums = partial.new_empty((segments.images, *partial.shape[1:]), dtype=dtype)
    width = sums[0].numel() if segments.images else 0
    grid = (segments.images, triton.cdiv(width, COLUMNS))
    constants = {"CHUNK": segments.chunk, "SLOTS": SLOTS, "COLUMNS": COLUMNS}
    launch(_sum_kernel, grid, partial, sums, segments.starts, segments.length, width, **constants, num_warps=4)
    return sums
