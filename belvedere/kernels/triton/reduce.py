"""Sums over the rows of each image, in a fixed order: what gradients of adaLN's rows and of weights need.

An image's rows follow one another. They are cut into chunks of ``CHUNK``, counted from the image's own first row, so
that its sum does not depend on the images beside it. A program sums a chunk while it has the rows anyway, and a second
kernel adds an image's chunks in order. Chunk j of image s has slot start[s] // CHUNK + s + j: slots of two images never
meet, their number is known without asking the device, and the few without rows hold zero.
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


class Segments(NamedTuple):
    """Where the rows of each of s images begin."""

    starts: Tensor
    """int64 (s + 1,), on the device; the last is the number of rows."""
    images: int
    """s."""
    slots: int
    """How many chunks may be needed at most."""


def segments_of(rows: int, count: int, index: Tensor | None, like: Tensor) -> Segments:
    """Return the images of ``rows``: ``index`` ascends and names each row's, or all have the same number of rows."""
    numbers = torch.arange(count + 1, device=like.device)
    starts = numbers * (rows // max(count, 1)) if index is None else torch.searchsorted(index, numbers)
    return Segments(starts, count, rows // CHUNK + count if count else 0)


@helper
def image_of(row, there, index_ptr, length):
    """The image of each row: by ``index``, or every ``length`` rows."""
    if index_ptr is None:
        image = row.to(tl.int32) // length  # there are not so many rows that it would need to be the long division
    else:
        image = tl.load(index_ptr + row, there, 0).to(tl.int64)
    return image


@helper
def chunk_of(slot, starts_ptr, count, CHUNK: tl.constexpr):
    """The image of a slot, and its first row and the row behind its last; none where the two are equal or cross."""
    before = 0
    for first in range(0, count, 128):
        image = first + tl.arange(0, 128)
        start = tl.load(starts_ptr + image, image < count, 0)
        before += tl.sum(((image < count) & (start // CHUNK + image <= slot)).to(tl.int32))
    image = before - 1
    start = tl.load(starts_ptr + image)
    first = start + (slot - start // CHUNK - image) * CHUNK
    return image, first, tl.minimum(first + CHUNK, tl.load(starts_ptr + image + 1))


@triton.jit
def _sum_kernel(
    partial_ptr, sum_ptr, starts_ptr, width, CHUNK: tl.constexpr, SLOTS: tl.constexpr, COLUMNS: tl.constexpr
):
    image = tl.program_id(0)
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    first = tl.load(starts_ptr + image) // CHUNK + image
    last = tl.load(starts_ptr + image + 1) // CHUNK + image + 1
    total = tl.zeros((COLUMNS,), tl.float32)
    for begin in range(first, last, SLOTS):
        slot = begin + tl.arange(0, SLOTS)
        inside = (slot < last)[:, None] & (column < width)[None, :]
        total += tl.sum(tl.load(partial_ptr + slot[:, None] * width + column[None, :], inside, 0.0), 0)
    tl.store(sum_ptr + image.to(tl.int64) * width + column, total, column < width)


def partial_sums(segments: Segments, *width: int) -> Tensor:
    """Return the memory for the sum of every chunk: float32 (slots, *width)."""
    return segments.starts.new_empty((segments.slots, *width), dtype=torch.float32)


def add_chunks(partial: Tensor, segments: Segments) -> Tensor:
    """Return the sum of each image, float32 (s, ...), from those of its chunks (slots, ...)."""
    sums = partial.new_empty((segments.images, *partial.shape[1:]))
    width = sums[0].numel() if segments.images else 0
    grid = (segments.images, triton.cdiv(width, COLUMNS))
    constants = {"CHUNK": CHUNK, "SLOTS": SLOTS, "COLUMNS": COLUMNS}
    launch(_sum_kernel, grid, partial, sums, segments.starts, width, **constants, num_warps=4)
    return sums
