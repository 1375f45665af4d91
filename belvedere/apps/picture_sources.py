"""Where pictures that are measured come from: a model, a folder, parquet, or the array of the ADM suite."""

import hashlib
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from torch import Tensor

from belvedere.apps import work
from belvedere.apps.order import permute
from belvedere.apps.prepare import open_pictures, pictures_at
from belvedere.apps.requests import MAX_SIDE
from belvedere.data.images import to_tensor
from belvedere.data.picture_batches import PictureBatch
from belvedere.errors import InputError
from belvedere.seeds import derive

PREPARED = "pictures of another size cropped as ADM does"
"""What is done to pictures of a reference before a network's own preprocessing."""
_READERS = 4
_AHEAD = 64
"""Pictures that are opened at once, and before they are asked for."""


@dataclass(frozen=True)
class Source:
    """``count`` pictures of one size (height, width)."""

    name: str
    count: int
    size: tuple[int, int]
    pictures: Callable[[range], Iterable[Tensor]]
    """Yields pictures by their rising numbers, uint8 (3, h, w)."""
    files: tuple[Path, ...] = ()
    """What they are read from."""
    batch: PictureBatch | None = None
    """The array, where they are in one."""
    by_class: bool = False
    """Whether they may come one class after another."""

    def digest(self) -> str:
        """Return the SHA-256 of the files: their names below the folder, and every byte."""
        total, base = hashlib.sha256(), Path(self.name)
        for path in self.files:
            name = path.relative_to(base).as_posix() if base.is_dir() else path.name
            with path.open("rb") as file:
                total.update(f"{name} {hashlib.file_digest(file, 'sha256').hexdigest()}\n".encode())
        return total.hexdigest()


def made_by(job: work.Job) -> Source:
    """Return the pictures of a job, all of one size."""
    size = job.size(0)
    if len(set(job.request.sizes)) > 1:
        raise InputError("cannot evaluate pictures of several sizes together: give one")
    return Source(
        job.request.model,
        job.request.count,
        size,
        lambda indices: (to_tensor(picture.image.convert("RGB")) for picture in work.run(job, indices)),
    )


def found_at(path: Path, size: tuple[int, int] | None = None, count: int | None = None) -> Source:
    """Return the pictures in a folder, in parquet, in tars or in an ``.npz`` of the ADM suite.

    With ``size`` (height, width), those of a square are cropped to it, as training sets are for the ADM suite; without,
    all must be as large as the first. ``count`` of them, None for all: the first of an ``.npz``, else drawn at random,
    always the same. What does not fit raises ``InputError``, a single picture when it is read.
    """
    if not path.exists():
        raise InputError(f"no pictures at {path}; check the path")
    if path.suffix == ".npz":
        batch = PictureBatch(path)
        _check_size(batch.size, size or batch.size, str(path))
        return Source(str(path), _count(path, batch.count, count), batch.size, batch.pictures, (path,), batch)
    square = size is not None and size[0] == size[1]
    side, unit = (size[0], None) if size is not None and square else (MAX_SIDE, 1)  # with a unit of 1: as they are
    pictures = open_pictures(pictures_at(path), side, unit)
    wanted = size or (pictures.pixels(0).shape[1], pictures.pixels(0).shape[2])
    asked = _count(path, len(pictures), count)
    numbers = np.sort(permute(np.arange(asked), len(pictures), derive("pictures that are measured"))).tolist()

    def read(place: int) -> Tensor:
        number = numbers[place]
        image = pictures.image(number)
        if square and min(image.size) < side:
            raise InputError(
                f"{path}, picture {number}: has {image.width}x{image.height} pixels, fewer than {side}x{side}: "
                "none is enlarged; give larger pictures"
            )
        pixels = pictures.cut(image)
        _check_size((pixels.shape[1], pixels.shape[2]), wanted, f"{path}, picture {number}")
        return pixels

    return Source(
        str(path), asked, wanted, lambda places: _read_ahead(read, places), tuple(pictures.files), by_class=True
    )


def _count(path: Path, total: int, count: int | None) -> int:
    """Return how many of the ``total`` pictures in a place are wanted."""
    count = total if count is None else count
    if not 1 <= count <= total:
        raise InputError(f"{path} holds {total} pictures, not {count}; leave out --count for all")
    return count


def _read_ahead(read: Callable[[int], Tensor], numbers: range) -> Iterator[Tensor]:
    with ThreadPoolExecutor(_READERS) as pool:
        for start in range(0, len(numbers), _AHEAD):
            yield from pool.map(read, numbers[start : start + _AHEAD])


def _check_size(found: tuple[int, int], wanted: tuple[int, int], name: str) -> None:
    if found != wanted:
        sizes = [f"{width}x{height}" for height, width in (found, wanted)]
        raise InputError(f"{name}: has {sizes[0]} pixels, not {sizes[1]}: what is compared must be of one size")
