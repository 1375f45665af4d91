"""Crops of photographs with a map of their regions, for codecs that learn from regions."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from belvedere.data.folders import SUFFIXES, holds_encoded
from belvedere.data.images import open_image, open_labels, to_tensor
from belvedere.errors import InputError
from belvedere.seeds import derive

CELLS = 4
"""Cells a side of the grid, over the whole photograph, that stands for the regions of one without a map."""
Box = tuple[int, int, int, int]


class _Crops:
    """A ``belvedere.data.Dataset`` of random square crops.

    ``size``: of a crop in pixels; ``crops``: items a photograph, each a crop of its own, so that as many visits differ;
    ``scale``: how far at most a photograph is scaled down before it is cut, 1 for not at all. Crops are mirrored and
    turned over at random. Item i is a function of (seed, i). ``regions`` False leaves the maps out. A photograph
    smaller than a crop is cut to a square and scaled up.
    """

    classes: tuple[str, ...] = ()
    count: int
    """How many photographs there are."""

    def __init__(self, size: int, crops: int, scale: float, seed: int, regions: bool):
        if not 1 <= size <= 4096 or crops < 1:
            raise InputError(f"crops of {size} pixels, {crops} a photograph: give 1 to 4096 pixels, 1 crop or more")
        if not 0 < scale <= 1:
            raise InputError(f"scale {scale}: must be above 0 and at most 1")
        self.size, self.crops, self.scale, self.seed, self.regions = size, crops, scale, seed, regions

    def image(self, number: int) -> Image.Image:
        """Return photograph ``number``."""
        raise NotImplementedError

    def labels(self, number: int) -> Image.Image | None:
        """Return its map, a picture of as many pixels in which each region has a colour of its own; None without."""
        raise NotImplementedError

    def __len__(self) -> int:
        return self.count * self.crops

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Return ``image`` float32 (3, size, size) in [-1, 1], ``label`` 0 and ``regions`` int64 (size, size)."""
        if not 0 <= index < len(self):
            raise IndexError(index)
        number, draw = index // self.crops, np.random.default_rng(derive(self.seed, "crop", index))
        image = self.image(number)
        box, turns = self._box(image.size, draw), draw.integers(0, 2, 2)
        crop = image.resize((self.size, self.size), Image.Resampling.BICUBIC, box)
        item = {"image": _turned(to_tensor(crop).float() / 127.5 - 1, turns), "label": 0}
        if self.regions:
            item["regions"] = _turned(self._regions(self.labels(number), image.size, box), turns)
        return item

    def batch(self, indices: Sequence[int]) -> dict[str, Tensor]:
        """Return ``image`` (b, 3, size, size), ``label`` (b,) and, unless left out, ``regions`` (b, size, size)."""
        items = [self[i] for i in indices]
        return {key: torch.stack([torch.as_tensor(item[key]) for item in items]) for key in items[0]}

    def _box(self, size: tuple[int, int], draw: np.random.Generator) -> Box:
        """Return a random square of the photograph, left, upper, right, lower, that becomes the crop."""
        largest = min(*size, int(self.size / self.scale))
        side = int(draw.integers(min(self.size, largest), largest + 1))
        left, upper = (int(draw.integers(0, length - side + 1)) for length in size)
        return left, upper, left + side, upper + side

    def _regions(self, labels: Image.Image | None, size: tuple[int, int], box: Box) -> Tensor:
        """Return the labels of a crop (size, size), int64, numbered from 0."""
        if labels is None:
            side = box[2] - box[0]
            column, row = (self._cells(start, side, length) for start, length in zip(box, size, strict=False))
            return (row[:, None] * CELLS + column).unique(return_inverse=True)[1]
        if labels.size != size:
            raise InputError(f"a map of {labels.size} pixels for a photograph of {size}: they must be of one size")
        colours = np.array(labels.resize((self.size, self.size), Image.Resampling.NEAREST, box), dtype=np.int64)
        return torch.from_numpy(colours @ np.array([1, 1 << 8, 1 << 16])).unique(return_inverse=True)[1]

    def _cells(self, start: int, side: int, length: int) -> Tensor:
        """Return the cell (size,) of each pixel of a crop on an axis of a photograph of ``length`` pixels."""
        centre = start + (torch.arange(self.size) + 0.5) * side / self.size
        return (centre * CELLS / length).long()


class Photographs(_Crops):
    """Crops of the photographs in parquet files.

    ``paths``: files whose rows have a struct ``image`` with the encoded photograph in ``bytes`` and, where there are
    maps, a struct ``regions`` with a PNG of labels of the same size. A photograph without a map has the cells of a
    grid over all of it as its regions. The encoded photographs are held in memory.
    """

    def __init__(
        self,
        paths: Sequence[Path | str],
        size: int,
        crops: int = 64,
        scale: float = 0.5,
        seed: int = 0,
        regions: bool = True,
    ):
        super().__init__(size, crops, scale, seed, regions)
        if isinstance(paths, str) or not paths:
            raise InputError(f"paths {paths!r}: must be a list of parquet files")
        self._rows = [(table, row, f"{path}, row {row}") for path in paths for table, row in _rows(Path(path))]
        self.count = len(self._rows)

    def image(self, number: int) -> Image.Image:
        table, row, name = self._rows[number]
        return open_image(_encoded(table.column("image")[row].as_py(), f"{name} has no image"), name=name)

    def labels(self, number: int) -> Image.Image | None:
        table, row, name = self._rows[number]
        value = table.column("regions")[row].as_py() if "regions" in table.column_names else None
        return (
            None if value is None else open_labels(_encoded(value, f"{name} has no regions"), name=f"{name}, regions")
        )


class PanopticPhotographs(_Crops):
    """Crops of photographs in a folder with panoptic maps in another, as COCO has them: the published training data.

    ``path``: folder of the photographs; ``regions_path``: folder of PNG maps of the same names, whose colours tell
    regions apart. A photograph without a map raises ``InputError`` at once. Published are 400 visits of
    each photograph.
    """

    def __init__(
        self,
        path: Path | str,
        regions_path: Path | str,
        size: int = 256,
        crops: int = 400,
        scale: float = 1.0,
        seed: int = 0,
        regions: bool = True,
    ):
        super().__init__(size, crops, scale, seed, regions)
        for folder in (path, regions_path):
            if not Path(folder).is_dir():
                raise InputError(f"no folder {folder}: give one of photographs and one of their maps")
        self._images = sorted(f for f in Path(path).iterdir() if f.suffix.lower() in SUFFIXES and f.is_file())
        self._maps = [Path(regions_path) / f"{file.stem}.png" for file in self._images]
        if not self._images:
            raise InputError(f"no PNG, JPEG or WebP files in {path}: give a folder that has some")
        if missing := [file for file in self._maps if not file.is_file()]:
            raise InputError(f"{len(missing)} photographs have no map, such as {missing[0]}")
        self.count = len(self._images)

    def image(self, number: int) -> Image.Image:
        return open_image(self._images[number])

    def labels(self, number: int) -> Image.Image | None:
        return open_labels(self._maps[number])


def _rows(path: Path) -> list[tuple[Any, int]]:
    """Return (table, row) of each photograph in a parquet file."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        names = pq.read_schema(path).names
        table = pq.read_table(path, columns=[name for name in ("image", "regions") if name in names])
    except (OSError, pa.ArrowException) as error:
        raise InputError(f"cannot read photographs from {path}: give a parquet file") from error
    types = [field.type for field in table.schema]
    if "image" not in names or not all(map(holds_encoded, types)):
        raise InputError(
            f"{path} holds no photographs: it needs rows with a struct 'image', and with maps 'regions', that has "
            "binary 'bytes'"
        )
    return [(table, row) for row in range(len(table))]


def _encoded(value: Any, problem: str) -> bytes:
    encoded: bytes | None = None if value is None else value["bytes"]
    if encoded is None:
        raise InputError(f"{problem}: fill it or remove the row")
    return encoded


def _turned(x: Tensor, turns: np.ndarray) -> Tensor:
    """Return ``x`` (..., h, w) turned over and mirrored as drawn."""
    return x.flip([axis - 2 for axis in range(2) if turns[axis]])
