"""Pictures in WebDataset tars, read where they lie: an index of the members is made once, nothing is unpacked.

00017.jpg 00017.cls │ 00018.jpg 00018.cls │ ...        members of one name before the first dot are one sample
"""

import json
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path
from typing import BinaryIO, NamedTuple

import torch
from PIL import Image
from torch import Tensor

from belvedere.data.folders import SUFFIXES, EncodedPictures, class_numbers
from belvedere.data.images import open_image
from belvedere.errors import InputError

BLOCK = 512
"""Bytes of a header; members fill whole blocks."""
MAX_NAME = 1 << 16
"""Bytes of a long name's member."""
MAX_LABEL = 1 << 20
"""Bytes of a .cls, .json or .txt member."""
MAX_PICTURE = 1 << 28
"""Bytes of an encoded picture."""
LABELS = (".cls", ".json", ".txt")
KINDS = {int: "a class number", str: "the name of a class", type(None): "no class"}


class Member(NamedTuple):
    """A file in a tar."""

    name: str
    begin: int
    """Where its content begins."""
    size: int
    """Bytes."""


class WebDataset(EncodedPictures):
    """A tar of samples, or a folder of such tars in the order of their names.

    A sample is a picture (jpg, jpeg, png, webp) and, in a member of the same name, its class: ``cls``, a number;
    ``json`` with a number ``label``; or ``txt``, the class's name. Samples have the same kind or none, then the data
    has no classes and every label is 0. Its members follow one another. Classes given by number are called by it.
    Other members are passed over. ``size``, ``flip``, ``unit`` and ``max_skipped`` as in ``ImageFolder``. A file of
    another form, compressed ones among them, and a ``cls`` without a picture raise ``InputError`` at once, an
    unreadable picture when its item is asked for.
    """

    def __init__(self, path: Path | str, size: int, flip: bool = False, unit: int | None = None, max_skipped: int = 0):
        root = Path(path)
        self.files = sorted(root.glob("*.tar")) if root.is_dir() else [root]
        self._pictures: list[tuple[int, Member]] = []
        given: list[int | str | None] = []
        for number, file in enumerate(self.files):
            for picture, label in _samples(file):
                self._pictures.append((number, picture))
                given.append(label)
        if not given:
            raise InputError(f"no pictures in {root}: give a tar of samples, or a folder of *.tar")
        self._check_kinds(given)
        self.classes, labels = _classes(root, given)
        super().__init__(size, flip, unit, max_skipped, labels)

    def _check_kinds(self, given: list[int | str | None]) -> None:
        """Raise ``InputError`` unless all samples have the same kind of class as the first."""
        for picture, label in enumerate(given):
            if type(label) is not type(given[0]):
                has, first_has = KINDS[type(label)], KINDS[type(given[0])]
                raise InputError(
                    f"{self._name(picture)} has {has}, {self._name(0)} {first_has}: give all samples the same"
                )

    def _name(self, picture: int) -> str:
        file, member = self._pictures[picture]
        return f"{self.files[file]}, {member.name[:80]}"

    def image(self, picture: int) -> Image.Image:
        file, member = self._pictures[picture]
        path = self.files[file]
        try:
            with path.open("rb") as stream:
                content = _content(stream, member)
        except OSError as error:
            raise InputError(f"cannot read {path}: {error.strerror}") from error
        return open_image(content, name=self._name(picture))


def _samples(path: Path) -> Iterator[tuple[Member, int | str | None]]:
    """Yield the picture and the label of each sample of a tar; ``InputError`` for a .cls that has no picture."""
    try:
        with path.open("rb") as stream:
            for _, sample in groupby(members(stream, path), lambda member: _split(member.name)[0]):
                picture, label, number = None, None, None
                for member in sample:
                    suffix = _split(member.name)[1]
                    if suffix in SUFFIXES and picture is None:
                        _check_size(path, member, MAX_PICTURE)
                        picture = member
                    elif suffix in LABELS and label is None:
                        _check_size(path, member, MAX_LABEL)
                        label = _label(path, member, suffix, _content(stream, member))
                        number = member if suffix == ".cls" else None
                if picture is not None:
                    yield picture, label
                elif number is not None:
                    raise InputError(
                        f"{path}, {number.name[:80]} has no picture (jpg, jpeg, png, webp) beside it: write the "
                        "members of a sample one after another"
                    )
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}; give a tar or a folder of *.tar") from error


def _split(name: str) -> tuple[str, str]:
    """Return what members of a sample have in common, and the rest of the name in lower case."""
    folder, slash, file = name.rpartition("/")
    stem, dot, suffix = file.partition(".")
    return folder + slash + stem, (dot + suffix).lower()


def _check_size(path: Path, member: Member, most: int) -> None:
    if member.size > most:
        raise InputError(f"{path}, {member.name[:80]}: {member.size} bytes, at most {most} allowed")


def _content(stream: BinaryIO, member: Member) -> bytes:
    stream.seek(member.begin)
    return stream.read(member.size)


def _label(path: Path, member: Member, suffix: str, content: bytes) -> int | str | None:
    """Return the class in a member, its number or name; None for JSON that tells none."""
    name = f"{path}, {member.name[:80]}"
    try:
        text = content.decode().strip()
        if suffix == ".txt":
            return text
        number = json.loads(text)
    except (ValueError, RecursionError):
        raise InputError(f"{name} is not to be understood: write a class number, JSON or text") from None
    if suffix == ".json":
        if not isinstance(number, dict) or "label" not in number:
            return None
        number = number["label"]
    if isinstance(number, bool) or not isinstance(number, int) or not 0 <= number < 1 << 31:
        raise InputError(f"{name}: the class must be a number of 0 or more")
    return number


def _classes(root: Path, given: list[int | str | None]) -> tuple[tuple[str, ...], Tensor]:
    """Return the class names and the labels (n,), int64, of samples that all have the same kind of class."""
    if given[0] is None:
        return (), torch.zeros(len(given), dtype=torch.int64)
    if isinstance(given[0], str):
        names = tuple(sorted({str(label) for label in given}))
        numbers = {name: number for number, name in enumerate(names)}
        return names, torch.tensor([numbers[str(label)] for label in given])
    labels = torch.tensor(given)
    return class_numbers(root, int(labels.max())), labels


def members(stream: BinaryIO, path: Path) -> Iterator[Member]:
    """Yield the regular files of a tar (ustar, GNU or pax) in their order; links and folders are passed over.

    Raises ``InputError`` for a header that is damaged, and for a member that reaches beyond the end of the file.
    """
    end, begin, long_name = stream.seek(0, 2), 0, ""
    while begin + BLOCK <= end:
        stream.seek(begin)
        header = stream.read(BLOCK)
        if not header.strip(b"\0"):
            return
        kind, size = header[156:157], _size(header, path, begin)
        member = Member(long_name or _name(header), begin + BLOCK, size)
        if member.begin + size > end:
            raise InputError(f"{path} ends within {member.name[:80]}: get it again")
        begin = member.begin + -(-size // BLOCK) * BLOCK
        if kind in (b"L", b"x"):
            _check_size(path, member._replace(name="a long name"), MAX_NAME)
            content = _content(stream, member)
            long_name = _text(content.rstrip(b"\0")) if kind == b"L" else _pax_name(content) or long_name
            continue
        long_name = ""
        if kind in (b"0", b"\0", b"7"):
            yield member


def _size(header: bytes, path: Path, begin: int) -> int:
    """Return the size that a header gives, after its checksum has been found right."""
    try:
        blanked = header[:148] + b" " * 8 + header[156:]
        if sum(blanked) != int(header[148:156].strip(b"\0 ") or b"0", 8):
            raise ValueError
        field = header[124:136]
        size = int.from_bytes(field[1:], "big") if field[0] == 0x80 else int(field.strip(b"\0 ") or b"0", 8)
        if size < 0:
            raise ValueError
        return size
    except ValueError:
        raise InputError(f"{path} is no tar at byte {begin}: unpack it if it is compressed") from None


def _name(header: bytes) -> str:
    name, prefix = (_text(field.split(b"\0")[0]) for field in (header[:100], header[345:500]))
    return f"{prefix}/{name}" if prefix and header[257:263] == b"ustar\0" else name


def _text(name: bytes) -> str:
    return name.decode("utf-8", "replace")


def _pax_name(content: bytes) -> str:
    """Return the ``path`` of a pax header, records of "length key=value"; empty without one."""
    while content:
        length = content.split(b" ", 1)[0]
        if not (length.isdigit() and len(length) < 9 and len(length) < int(length) <= len(content)):
            return ""
        record, content = content[len(length) + 1 : int(length) - 1], content[int(length) :]
        if record.startswith(b"path="):
            return _text(record[5:])
    return ""
