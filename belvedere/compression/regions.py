"""Where prototypes come from and where they belong: the cells of a fixed grid, or the regions of a label map."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from belvedere.compression.segpic_config import LARGEST
from belvedere.errors import InputError

MAX_REGIONS = 4096
"""Of one picture; more are a sign that labels are not numbered 0, 1, 2, ..."""


class Grid(NamedTuple):
    """The cells of a grid laid over each picture; prototypes are maps (b, c, side, side)."""

    side: int
    counts: list[int]
    """How many rows of prototypes each of the b pictures has: one."""

    def pool(self, x: Tensor) -> Tensor:
        """Return the mean of ``x`` (b, c, h, w) in each cell."""
        return F.adaptive_avg_pool2d(x, self.side)  # (b, c, side, side)

    def spread(self, prototypes: Tensor, size: Sequence[int]) -> Tensor:
        """Return the prototype of each pixel of a map of ``size``: (b, c, h, w)."""
        return F.interpolate(prototypes, size, mode="nearest")


class Regions(NamedTuple):
    """The regions of each picture of a batch; prototypes are (r, c, 1, 1), those of all pictures behind one another."""

    row: Tensor
    """That of each pixel's prototype: int64 (b, h, w)."""
    counts: list[int]
    """How many regions each picture has, up to its highest label; they may be empty."""

    @classmethod
    def of(cls, labels: Tensor) -> "Regions":
        """Return the regions of a label map, integers (b, h, w) from 0 on."""
        highest = labels.flatten(1).amax(1)  # (b,)
        first = F.pad(highest + 1, (1, 0)).cumsum(0)[:-1]
        return cls(labels.long() + first[:, None, None], (highest + 1).tolist())

    def pool(self, x: Tensor) -> Tensor:
        """Return the mean of ``x`` (b, c, h, w) over each region: its sum over the area + 0.0005, so 0 when empty."""
        pixels, index = x.float().permute(0, 2, 3, 1).flatten(0, 2), self.row.flatten()  # (n, c), (n,)
        count = sum(self.counts)
        total = pixels.new_zeros(count, x.shape[1]).index_add(0, index, pixels)
        area = torch.bincount(index, minlength=count)
        return (total / (area[:, None] + 0.0005))[:, :, None, None].to(x.dtype)

    def spread(self, prototypes: Tensor, size: Sequence[int]) -> Tensor:
        """Return the prototype of each pixel of a map of ``size``, that of the labels: (b, c, h, w)."""
        return F.embedding(self.row, prototypes.flatten(1)).permute(0, 3, 1, 2)


Places = Grid | Regions


def places(pictures: Tensor, regions: Tensor | None, grid: int) -> tuple[Places, Places]:
    """Return where prototypes are at a quarter and at a sixteenth of the resolution of ``pictures`` (b, 3, h, w).

    ``regions``: integer labels (b, h, w) of their pixels, numbered from 0 in each picture; None for a grid of ``grid``
    cells a side. Label maps are reduced by taking every fourth pixel, twice.
    """
    if not 1 <= grid <= LARGEST["grid"]:
        raise InputError(f"grid {grid}: must be from 1 to {LARGEST['grid']}")
    if regions is None:
        cells = Grid(grid, [1] * len(pictures))
        return cells, cells
    check_regions(pictures.shape, regions)
    quarter = regions[:, ::4, ::4]
    return Regions.of(quarter), Regions.of(quarter[:, ::4, ::4])


def check_regions(shape: Sequence[int], regions: Tensor) -> None:
    """Raise ``InputError`` unless ``regions`` labels the pixels of pictures of this ``shape`` (b, 3, h, w)."""
    batch, _, height, width = shape
    if regions.shape != (batch, height, width) or regions.is_floating_point():
        raise InputError(
            f"regions {tuple(regions.shape)} {regions.dtype}: must be integers ({batch}, {height}, {width})"
        )
    low, high = (bound.item() for bound in regions.aminmax())
    if low < 0 or high >= MAX_REGIONS:
        raise InputError(f"regions have labels {low} to {high}: number them 0, 1, 2, ... below {MAX_REGIONS}")
