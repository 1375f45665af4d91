"""Large pictures as tiles of one size that overlap, each compressed alone; where they overlap they are blended.

A region-adaptive transform looks at the whole map (its gate is a global mean), so a tile cannot be cut out of a larger
pass: it is a picture of its own. What differs between neighbours in the overlap is crossfaded.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import numpy as np

from belvedere.errors import InputError

SIDES = (256, 1024)
"""Least and largest side of a tile in pixels: the memory that a file can ask for at once grows with its area."""
MAX_OVERLAP = 64


class Span(NamedTuple):
    """A range of pixels on one axis."""

    start: int
    stop: int

    def meets(self, other: "Span") -> bool:
        """Return whether the two share a pixel."""
        return self.start < other.stop and other.start < self.stop


class Box(NamedTuple):
    """Where a tile lies in its picture."""

    rows: Span
    columns: Span

    def meets(self, other: "Box") -> bool:
        """Return whether the two share a pixel."""
        return self.rows.meets(other.rows) and self.columns.meets(other.columns)


@dataclass(frozen=True)
class Layout:
    """Tiles of at most ``side`` pixels a side that share at least ``overlap`` pixels with their neighbours."""

    side: int = 768
    overlap: int = 32

    def __post_init__(self) -> None:
        if not SIDES[0] <= self.side <= SIDES[1] or not 0 <= self.overlap <= MAX_OVERLAP:
            raise InputError(
                f"tiles of {self.side} pixels that overlap by {self.overlap}: {SIDES[0]} to {SIDES[1]}, and 0 to "
                f"{MAX_OVERLAP} allowed"
            )

    def spans(self, length: int) -> list[Span]:
        """Return the tiles of an axis of ``length`` pixels: as few as will do, of equal length, evenly spread."""
        count = self._along(length)
        size = -(-(length + (count - 1) * self.overlap) // count)
        starts = [i * (length - size) // max(1, count - 1) for i in range(count)]
        return [Span(start, start + size) for start in starts]

    def count(self, width: int, height: int) -> int:
        """Return how many tiles a picture has."""
        return self._along(width) * self._along(height)

    def _along(self, length: int) -> int:
        return 1 if length <= self.side else -(-(length - self.overlap) // (self.side - self.overlap))

    def boxes(self, width: int, height: int) -> list[Box]:
        """Return the tiles of a picture, row by row."""
        columns = self.spans(width)
        return [Box(rows, span) for rows in self.spans(height) for span in columns]


def ramps(spans: list[Span]) -> list[np.ndarray]:
    """Return the weight of each pixel of each tile of an axis, float32; over the tiles they sum to 1.

    Across an overlap the weights run linearly; no pixel belongs to more than two tiles.
    """
    weights = [np.ones(span.stop - span.start, np.float32) for span in spans]
    for (before, after), (left, right) in zip(pairwise(spans), pairwise(weights), strict=True):
        shared = before.stop - after.start
        rising = (np.arange(shared, dtype=np.float32) + 0.5) / max(1, shared)
        left[len(left) - shared :] = 1 - rising
        right[:shared] = rising
    return weights


Row = Callable[[Sequence[int]], Sequence[np.ndarray]]
"""Returns the pixels, uint8 (h, w, 3), of tiles of one row by their numbers in ``Layout.boxes``."""


def assemble(layout: Layout, size: tuple[int, int], region: Box, row: Row) -> np.ndarray:
    """Return the pixels of ``region``, uint8 (h, w, 3), of a picture of ``size`` (width, height).

    ``row`` is asked for no tiles but those that ``region`` meets. Besides the result, one row of tiles is in memory.
    """
    columns, rows = layout.spans(size[0]), layout.spans(size[1])
    across, down = ramps(columns), ramps(rows)
    chosen = [i for i, span in enumerate(columns) if span.meets(region.columns)]
    result = np.empty((region.rows.stop - region.rows.start, region.columns.stop - region.columns.start, 3), np.uint8)
    carry = np.zeros((0, result.shape[1], 3), np.float32)
    for number, span in enumerate(rows):
        if not span.meets(region.rows):
            continue
        strip = np.zeros((span.stop - span.start, result.shape[1], 3), np.float32)
        for i, tile in zip(chosen, row([number * len(columns) + i for i in chosen]), strict=True):
            here, there = _overlap(columns[i], region.columns)
            strip[:, there] += tile[:, here] * across[i][here, None]
        strip *= down[number][:, None, None]
        strip[: len(carry)] += carry
        last = rows[number + 1].start if number + 1 < len(rows) else span.stop
        done = last - span.start
        here, there = _overlap(Span(span.start, last), region.rows)
        part = strip[:done][here]
        result[there] = np.rint(part, out=part).clip(0, 255, out=part)
        carry = strip[done:].copy()
        del strip, part  # before the next row has its own
    return result


def _overlap(a: Span, b: Span) -> tuple[slice, slice]:
    """Return what two spans share, as a slice of the first and of the second; empty slices where they do not meet."""
    start, stop = max(a.start, b.start), max(a.start, b.start, min(a.stop, b.stop))
    return slice(start - a.start, stop - a.start), slice(start - b.start, stop - b.start)
