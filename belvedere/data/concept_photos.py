"""A few photographs of one thing, and the sentences that they are learned with."""

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from belvedere.data.folders import SUFFIXES
from belvedere.data.images import centre_crop, open_photograph, to_srgb, to_tensor
from belvedere.errors import InputError

FEWEST, MOST = 2, 1000
"""Photographs of a concept."""
CAPTIONS = {".txt", ".json"}
"""Endings of what often stands beside photographs, and is none."""
NAMED = 3
"""Files that a message names at most."""
_A = ("", "clean ", "dirty ", "cool ", "nice ", "small ")
_THE = ("", "clean ", "cool ", "nice ", "small ", "weird ", "large ")
_STYLED = ("clean", "dirty", "dark", "cool", "close-up", "bright", "cropped", "good", "nice", "small", "weird", "large")
TEMPLATES: dict[str, tuple[str, ...]] = {
    "objects": (
        *(f"a photo of a {word}{{}}" for word in _A),
        *(f"a photo of the {word}{{}}" for word in _THE),
        *(f"a {kind} photo of {which} {{}}" for kind in ("cropped", "close-up", "good") for which in ("a", "the")),
        *(f"a {kind} photo of the {{}}" for kind in ("dark", "bright")),
        *(f"a {kind} of a {{}}" for kind in ("rendering", "rendition")),
        *(f"{start} {{}}" for start in ("the photo of a", "a photo of my", "a photo of one", "a rendition of the")),
    ),
    "styles": (
        *(f"a {word} painting in the style of {{}}" for word in _STYLED),
        *(f"{what} in the style of {{}}" for what in ("a painting", "the painting", "a picture")),
        *(f"a {kind} in the style of {{}}" for kind in ("rendering", "rendition", "drawing", "sketch")),
    ),
}
"""Sentences in which ``{}`` is the concept: 27 for an object, 19 for a style, as many as published."""
Box = tuple[int, int, int, int]
"""Part of a photograph: x, y, width, height in pixels."""


class ConceptPhotos:
    """The photographs in a folder as squares of ``size`` pixels; a ``belvedere.data.Dataset``.

    PNG, JPEG and WebP files of ``path`` itself, in the order of their names; each is opened by ``open_photo``, cut to
    its middle square, or to one around its part in ``regions`` (by file name), and scaled: aspects are kept. With
    ``flip``, item 2 i + 1 is the mirror image of item 2 i. Raises ``InputError`` at once for a folder with fewer than
    two, an unreadable file, or a region that is not in its photograph.
    """

    classes: tuple[str, ...] = ()

    def __init__(
        self, path: Path | str, size: int = 512, flip: bool = True, regions: Mapping[str, Sequence[int]] | None = None
    ):
        if not 8 <= size <= 4096:
            raise InputError(f"photographs of {size} pixels a side: give 8 to 4096")
        self.files = photo_files(path)
        self.size, self.flip = size, flip
        self.regions = dict(regions or {})
        if unknown := sorted(self.regions.keys() - {file.name for file in self.files}):
            raise InputError(f"region of {unknown[0]}: {path} has no such photograph")
        self.pixels = torch.stack([self._cut(file) for file in self.files])  # (n, 3, size, size)

    def _cut(self, file: Path) -> Tensor:
        image = square(open_photo(file), self.regions.get(file.name), str(file))
        return to_tensor(centre_crop(image, self.size))

    @property
    def digest(self) -> str:
        """SHA-256 of the files, the parts that are taken of them and whether they are mirrored, whatever the size."""
        total = hashlib.sha256(f"{self.flip}\n".encode())
        for file in self.files:
            content = hashlib.sha256(file.read_bytes()).hexdigest()
            total.update(f"{content} {list(self.regions.get(file.name, ()))}\n".encode())
        return total.hexdigest()

    def __len__(self) -> int:
        return len(self.files) * (2 if self.flip else 1)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Return ``image`` float32 (3, size, size) in [-1, 1] and ``label`` 0."""
        if not 0 <= index < len(self):
            raise IndexError(index)
        number, mirrored = divmod(index, 2) if self.flip else (index, 0)
        image = self.pixels[number].float() / 127.5 - 1
        return {"image": image.flip(2) if mirrored else image, "label": 0}

    def batch(self, indices: Sequence[int]) -> dict[str, Tensor]:
        """Return ``image`` (b, 3, size, size) and ``label`` int64 (b,)."""
        images = torch.stack([self[i]["image"] for i in indices])
        return {"image": images, "label": torch.zeros(len(images), dtype=torch.int64)}


def photo_files(path: Path | str, fewest: int = FEWEST) -> list[Path]:
    """Return the PNG, JPEG and WebP files of a folder by name.

    Raises ``InputError`` for fewer than ``fewest``, naming what was left out.
    """
    folder = Path(path)
    if not folder.is_dir():
        raise InputError(f"no folder {folder}: give one with photographs of the thing, three to six are best")
    files = sorted(file for file in folder.iterdir() if file.suffix.lower() in SUFFIXES and file.is_file())
    if not files:
        raise InputError(f"no PNG, JPEG or WebP files in {folder}: give a folder that has some{left_out(folder)}")
    if len(files) < fewest:
        raise InputError(
            f"one photograph in {folder} is too few: give {fewest} or more, three to six are best{left_out(folder)}"
        )
    if len(files) > MOST:
        raise InputError(f"{len(files)} photographs in {folder}: a concept is learned from a few, at most {MOST}")
    return files


def open_photo(path: Path) -> Image.Image:
    """Return a photograph as RGB: turned as its EXIF says, over white where transparent, its colours brought to sRGB.

    Raises ``InputError`` for an unreadable file, and for an animation.
    """
    return to_srgb(open_photograph(path, background="white"))


def left_out(path: Path | str) -> str:
    """Return the end of a sentence: the files of a folder that are taken for photographs of other kinds; without any,
    nothing. Hidden files and ``CAPTIONS`` are not.
    """
    names = sorted(
        file.name
        for file in Path(path).iterdir()
        if file.suffix.lower() not in SUFFIXES | CAPTIONS and not file.name.startswith(".") and file.is_file()
    )
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return f"; left out: {', '.join(names[:NAMED])}{more}: save as JPEG" if names else ""


def square(image: Image.Image, region: Sequence[int] | None, name: str) -> Image.Image:
    """Return the smallest square of a picture that has all of ``region`` (x, y, width, height), or the whole picture.

    Of a region longer than the picture is wide or high, the square has what fits, from its middle. ``name``: of the
    picture, for the error when the region is not within it.
    """
    if region is None:
        return image
    if len(region) != 4 or not all(isinstance(n, int) and n >= 0 for n in region):
        raise InputError(f"{name}: region {list(region)} must be x, y, width and height in pixels")
    x, y, width, height = region
    if width < 1 or height < 1 or x + width > image.width or y + height > image.height:
        raise InputError(f"{name}: region {list(region)} is not within its {image.width} x {image.height} pixels")
    side = min(max(width, height), image.width, image.height)
    left = min(max(x + width // 2 - side // 2, 0), image.width - side)
    top = min(max(y + height // 2 - side // 2, 0), image.height - side)
    return image.crop((left, top, left + side, top + side))


def read_templates(source: str) -> tuple[str, ...]:
    """Return the templates named ``source``: those of ``TEMPLATES``, or the lines of a text file, ``{}`` in each.

    Raises ``InputError`` for another name, and a file without lines or of more than 1000.
    """
    if source in TEMPLATES:
        return TEMPLATES[source]
    path = Path(source)
    if not path.is_file():
        raise InputError(f"no templates {source[:80]!r}: give {', '.join(TEMPLATES)} or a text file of them")
    try:
        with path.open(encoding="utf-8") as file:
            lines = [line.strip() for line in file.read(1 << 20).splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"templates {path}: not readable text") from error
    found = tuple(line for line in lines if line)
    if not 1 <= len(found) <= MOST:
        raise InputError(f"templates {path}: {len(found)} lines; give 1 to {MOST}, each with {{}} for the concept")
    return found
