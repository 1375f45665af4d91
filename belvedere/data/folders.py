"""Pictures on disk as datasets: a folder of image files, or a parquet file of encoded images."""

import json
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from belvedere.data.images import centre_crop, fit, open_image, to_tensor
from belvedere.data.ragged import pack_images
from belvedere.errors import InputError

SUFFIXES = {".png", ".jpg", ".jpeg", ".webp"}
MAX_CLASSES = 1 << 20


class EncodedPictures:
    """A ``belvedere.data.Dataset`` over encoded pictures, which are decoded when asked for.

    Up to ``max_skipped`` of them may be undecodable: each process that meets one names it on stderr and from then on
    takes the next that can be decoded, so that item ``i`` stays the same whoever asks and whenever.
    """

    classes: tuple[str, ...]
    files: list[Path]
    """What the pictures are read from."""

    def __init__(self, size: int, flip: bool, unit: int | None, max_skipped: int, labels: Tensor):
        if size < 1:
            raise InputError(f"pictures need a size of at least 1 pixel, not {size}")
        if unit is not None and not 1 <= unit <= size:
            raise InputError(f"pictures of any aspect need a unit of 1 to {size} pixels, not {unit}")
        if max_skipped < 0:
            raise InputError(f"max_skipped {max_skipped}: must be at least 0")
        self.size, self.flip, self.unit, self.labels = size, flip, unit, labels
        self.max_skipped, self._skipped = max_skipped, set[int]()

    def image(self, picture: int) -> Image.Image:
        """Return picture number ``picture`` (one a label) as it is."""
        raise NotImplementedError

    def cut(self, image: Image.Image) -> Tensor:
        """Return a picture cut to size: uint8 (3, h, w)."""
        return to_tensor(centre_crop(image, self.size) if self.unit is None else fit(image, self.size, self.unit))

    def pixels(self, picture: int) -> Tensor:
        """Return picture number ``picture``, cut to size, not mirrored: uint8 (3, h, w)."""
        return self.cut(self.image(picture))

    def __len__(self) -> int:
        return len(self.labels) * (2 if self.flip else 1)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Return ``image`` float32 (3, h, w) in [-1, 1] and ``label``; with ``flip`` odd items are mirrored."""
        if not 0 <= index < len(self):
            raise IndexError(index)
        picture, mirrored = divmod(index, 2) if self.flip else (index, 0)
        picture, pixels = self._decodable(picture)
        image = pixels.float() / 127.5 - 1
        return {"image": image.flip(2) if mirrored else image, "label": int(self.labels[picture])}

    def _decodable(self, picture: int) -> tuple[int, Tensor]:
        """Return the first picture from number ``picture`` on that can be decoded: its number and pixels."""
        while len(self._skipped) < len(self.labels):
            try:
                if picture not in self._skipped:
                    return picture, self.pixels(picture)
            except InputError as error:
                self._skip(picture, error)
            picture = (picture + 1) % len(self.labels)
        raise InputError(f"none of the {len(self.labels)} pictures can be decoded: give others")

    def _skip(self, picture: int, error: InputError) -> None:
        """Note that a picture cannot be decoded; raise if too many cannot, or if it is the disk that fails."""
        if self.max_skipped == 0 or (isinstance(error.__cause__, OSError) and error.__cause__.errno):
            raise error
        if len(self._skipped) == self.max_skipped:
            raise InputError(f"{error}; more than {self.max_skipped} cannot be decoded (data.max_skipped)") from error
        self._skipped.add(picture)
        print(f"skipped: {error}", file=sys.stderr, flush=True)

    def batch(self, indices: Sequence[int]) -> dict[str, Tensor]:
        """Return ``image`` float32 (b, 3, size, size) in [-1, 1] and ``label`` int64 (b,).

        With ``unit``, ``image`` is flat (``belvedere.data.ragged``) and ``size`` int64 (b, 2) has the (h, w) of each.
        """
        items = [self[i] for i in indices]
        images = [item["image"] for item in items]
        labels = torch.tensor([item["label"] for item in items], dtype=torch.int64)
        if self.unit is None:
            return {"image": torch.stack(images), "label": labels}
        flat, size = pack_images(images)
        return {"image": flat, "size": size, "label": labels}


class ImageFolder(EncodedPictures):
    """PNG, JPEG and WebP files below ``path``: one class per subfolder, in the order of their names.

    Subfolders without such files are passed over; where there are no others the data has no classes and every label is
    0. Pictures are cropped to ``size`` x ``size`` (``centre_crop``), or, with ``unit``, keep their aspect
    (``fit_size``; batches are ragged); ``flip`` doubles the length, item 2 i + 1 being the mirror image of item 2 i. A
    missing or empty folder, or one with pictures both in it and in subfolders, raises ``InputError`` at once, an
    unreadable file when its item is asked for, or is one of ``max_skipped``.
    """

    def __init__(self, path: Path | str, size: int, flip: bool = False, unit: int | None = None, max_skipped: int = 0):
        root = Path(path)
        if not root.is_dir():
            raise InputError(f"no folder {root}: give a folder of PNG, JPEG or WebP files")
        folders = sorted(p for p in root.iterdir() if p.is_dir() and not p.name.startswith("."))
        classes = {folder.name: files for folder in folders if (files := _image_files(folder.rglob("*")))}
        beside = _image_files(root.iterdir())
        if classes and beside:
            inside = sum(len(files) for files in classes.values())
            raise InputError(
                f"{root} has {len(beside)} pictures, and {inside} in subfolders ({', '.join([*classes][:3])}): put all "
                "into one subfolder a class, or none"
            )
        self.classes = tuple(classes)
        self.files = beside + [file for files in classes.values() for file in files]
        if not self.files:
            raise InputError(f"no PNG, JPEG or WebP files in {root}: give a folder that has some")
        labels = [label for label, files in enumerate(classes.values()) for _ in files] or [0] * len(beside)
        super().__init__(size, flip, unit, max_skipped, torch.tensor(labels))

    def image(self, picture: int) -> Image.Image:
        return open_image(self.files[picture])


def _image_files(found: Iterable[Path]) -> list[Path]:
    return sorted(p for p in found if p.suffix.lower() in SUFFIXES and p.is_file())


class Parquet(EncodedPictures):
    """A parquet file, or a folder of its shards in the order of their names, as written by Hugging Face datasets.

    Column ``image`` is a struct with the encoded picture in ``bytes``; column ``label``, if there is one, an
    integer. Class names come from the file's metadata, ``classes`` (comma-separated) or Hugging Face's own; without
    them classes are called by their numbers, and without labels there are none and every label is 0. ``size``,
    ``flip``, ``unit`` and ``max_skipped`` as in ``ImageFolder``. The encoded pictures are held in memory. A file of
    another form raises ``InputError`` at once, an unreadable picture when its item is asked for.
    """

    def __init__(self, path: Path | str, size: int, flip: bool = False, unit: int | None = None, max_skipped: int = 0):
        self.path = Path(path)
        self.files = sorted(self.path.glob("*.parquet")) if self.path.is_dir() else [self.path]
        table = _read(self.path, self.files)
        self._images = table.column("image")
        self.classes, labels = _classes(self.path, table)
        super().__init__(size, flip, unit, max_skipped, labels)

    def image(self, picture: int) -> Image.Image:
        name = f"{self.path}, row {picture}"
        encoded = self._images[picture].as_py()
        if encoded is None or encoded["bytes"] is None:
            raise InputError(f"{name} has no image: fill it or remove the row")
        return open_image(encoded["bytes"], name=name)


def _read(path: Path, files: Sequence[Path]) -> Any:
    """Return the arrow table of ``image`` and, where there is one, ``label``; ``path`` is what was asked for."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        schema = pq.read_schema(files[0])
        columns = [name for name in ("image", "label") if name in schema.names]
        table = pa.concat_tables([pq.read_table(file, columns=columns) for file in files])
    except (IndexError, OSError, pa.ArrowException) as error:
        raise InputError(f"cannot read parquet data from {path}: give a parquet file or a folder of them") from error
    image = table.schema.field("image").type if "image" in columns else None
    if not (image and holds_encoded(image) and len(table)):
        raise InputError(f"{path} holds no pictures: it needs rows with a struct 'image' that has binary 'bytes'")
    if "label" in columns and not pa.types.is_integer(table.schema.field("label").type):
        raise InputError(f"column 'label' of {path} is not of integers: write class numbers")
    return table


def holds_encoded(kind: Any) -> bool:
    """Return whether an arrow type is that of encoded pictures, a struct with binary ``bytes``."""
    from pyarrow import types

    if not types.is_struct(kind) or kind.get_field_index("bytes") < 0:
        return False
    return types.is_binary(kind.field("bytes").type) or types.is_large_binary(kind.field("bytes").type)


def class_numbers(source: Path, largest: int) -> tuple[str, ...]:
    """Return the numbers from 0 to ``largest`` as names of classes; raises ``InputError`` for too many."""
    if largest >= MAX_CLASSES:
        raise InputError(f"{source}: class number {largest}: at most {MAX_CLASSES - 1} allowed")
    return tuple(str(number) for number in range(largest + 1))


def _classes(path: Path, table: Any) -> tuple[tuple[str, ...], Tensor]:
    """Return the class names and the labels (n,), int64."""
    if "label" not in table.column_names:
        return (), torch.zeros(len(table), dtype=torch.int64)
    numbers = table.column("label").to_pylist()
    if any(n is None or n < 0 for n in numbers):
        raise InputError(f"{path} has rows without a label of 0 or more: fill or remove them")
    names = _names(table.schema.metadata or {}) or class_numbers(path, max(numbers))
    if max(numbers) >= len(names):
        raise InputError(f"{path} has label {max(numbers)} but names only {len(names)} classes: name them all")
    return names, torch.tensor(numbers)


def _names(metadata: dict[bytes, bytes]) -> tuple[str, ...]:
    try:
        if b"classes" in metadata:
            return tuple(metadata[b"classes"].decode().split(","))
        names = json.loads(metadata[b"huggingface"])["info"]["features"]["label"]["names"]
    except (KeyError, TypeError, ValueError, RecursionError):
        return ()
    return tuple(names) if isinstance(names, list) and all(isinstance(name, str) for name in names) else ()
