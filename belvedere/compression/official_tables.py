"""The probability tables of the official streams: 16-bit cumulative counts, quantised as the official coder does it."""

import math
from collections.abc import Sequence
from statistics import NormalDist
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from belvedere.compression.probabilities import LEAST_SCALE, TAIL_MASS, Bottleneck, normal_cdf

PRECISION = 16
SCALES = 64
LARGEST_SCALE = 256.0


class Tables(NamedTuple):
    """Tables of the values that numbers have; the last symbol of each is the escape."""

    cdf: list[list[int]]
    """Of each table the cumulative counts of its symbols, from 0 to 65536."""
    offset: list[int]
    """Of each table the value of its first symbol."""

    def padded(self) -> np.ndarray:
        """Return the tables as the official code stores them: int32, one a row, zeros behind."""
        rows = np.zeros((len(self.cdf), max(map(len, self.cdf))), dtype="<i4")
        for row, cdf in zip(rows, self.cdf, strict=True):
            row[: len(cdf)] = cdf
        return rows


def scale_table() -> Tensor:
    """Return the scales (64,) that have a table, evenly spaced in their logarithm."""
    return torch.exp(torch.linspace(math.log(LEAST_SCALE), math.log(LARGEST_SCALE), SCALES))


def scale_index(scale: Tensor) -> Tensor:
    """Return the table of each scale: how many of the table's scales are below it, at most the last."""
    inner = scale_table()[:-1].to(scale.device)
    return torch.searchsorted(inner, scale.clamp(min=LEAST_SCALE).contiguous())


def gaussian_tables() -> Tables:
    """Return the tables of rounded normal numbers, one for each scale of ``scale_table``."""
    scales = scale_table()
    reach = torch.ceil(scales * -NormalDist().inv_cdf(TAIL_MASS / 2)).int()
    distance = (torch.arange(2 * int(reach.max()) + 1) - reach[:, None]).abs()
    upper, lower = (normal_cdf((half - distance) / scales[:, None]) for half in (0.5, -0.5))
    return _tables(upper - lower, 2 * lower[:, 0], 2 * reach + 1, -reach)


@torch.no_grad()
def bottleneck_tables(bottleneck: Bottleneck) -> Tables:
    """Return the tables of rounded distances from the median, one for each channel."""
    low, median, high = bottleneck.quantiles[:, 0].unbind(1)  # (c,) each
    below, above = ((reach.ceil().int()).clamp(min=0) for reach in (median - low, high - median))
    length = below + above + 1
    rows = torch.arange(int(length.max())) + (median - below)[:, None, None]  # (c, 1, n)
    outside = torch.sigmoid(bottleneck.logits(rows[..., :1] - 0.5)) + torch.sigmoid(
        -bottleneck.logits(rows[..., -1:] + 0.5)
    )
    return _tables(bottleneck.interval(rows)[:, 0], outside.flatten(), length, -below)


def _tables(pmf: Tensor, escape: Tensor, length: Tensor, offset: Tensor) -> Tables:
    rows = zip(pmf, escape, length.tolist(), strict=True)
    return Tables([quantised_cdf([*row[:n].tolist(), rest.item()]) for row, rest, n in rows], offset.tolist())


def quantised_cdf(pmf: Sequence[float]) -> list[int]:
    """Return cumulative counts from 0 to 65536 in which no symbol has none.

    A symbol without a count takes one from the symbol that has the fewest above one, the first of them.
    """
    counts = np.floor(np.asarray(pmf, dtype=np.float64) * 2**PRECISION + 0.5).astype(np.int64)
    counts = counts * 2**PRECISION // counts.sum()
    counts[-1] += 2**PRECISION - counts.sum()
    for symbol in np.flatnonzero(counts == 0):
        donor = np.where(counts > 1, counts, 2**PRECISION + 1).argmin()
        counts[donor] -= 1
        counts[symbol] += 1
    return [0, *np.cumsum(counts).tolist()]
