"""What files a model folder has, and the size and SHA-256 of each: ``manifest.json``, written after all others.

{"version": 1, "files": {"card.json": {"bytes": 2370, "sha256": "..."}, ...}}
"""

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

from belvedere.checkpoints.components import read_json
from belvedere.errors import InputError
from belvedere.files import atomic_write

NAME = "manifest.json"
VERSION = 1
SMALL = 16 << 20
"""Bytes up to which a file is read even when only a fast check is asked for."""


class Entry(NamedTuple):
    """What a manifest says of a file."""

    bytes: int
    sha256: str

    @classmethod
    def of(cls, path: Path) -> "Entry":
        """Return the entry of a file as it is; raises ``InputError`` for what is no plain file, such as a pipe."""
        if not path.is_file():
            raise InputError(f"{path} is missing, or no plain file; get the model again")
        with path.open("rb") as file:
            return cls(path.stat().st_size, hashlib.file_digest(file, "sha256").hexdigest())


def files(folder: Path) -> dict[str, Path]:
    """Return the files of a model folder by their names, hidden ones and the manifest left out, in sorted order."""
    found = {path.relative_to(folder): path for path in folder.rglob("*") if not path.is_dir()}
    names = sorted(name for name in found if not any(part.startswith(".") for part in name.parts))
    return {name.as_posix(): found[name] for name in names if name.as_posix() != NAME}


def strangers(folder: Path) -> list[str]:
    """Return the files in a folder, hidden ones and links too, that its manifest does not list.

    Raises ``InputError`` when there is no readable manifest.
    """
    known = read(folder).keys() | {NAME}
    found = (path for path in folder.rglob("*") if path.is_symlink() or not path.is_dir())
    return sorted({path.relative_to(folder).as_posix() for path in found} - known)


def write(folder: Path) -> None:
    """Write the manifest of a folder as it is now."""
    _write(folder, {name: Entry.of(path) for name, path in files(folder).items()})


def update(folder: Path, names: Iterable[str]) -> None:
    """Write anew what the manifest says of some files; a folder without a manifest gets one of all its files."""
    if not (folder / NAME).is_file():
        return write(folder)
    _write(folder, read(folder) | {name: Entry.of(folder / name) for name in names})


def _write(folder: Path, entries: dict[str, Entry]) -> None:
    with atomic_write(folder / NAME) as file:
        file.write(_text(entries).encode())


def _text(entries: dict[str, Entry]) -> str:
    listed = {name: entries[name]._asdict() for name in sorted(entries)}
    return json.dumps({"version": VERSION, "files": listed}, indent=1) + "\n"


def read(folder: Path) -> dict[str, Entry]:
    """Return the manifest of a folder; ``InputError`` when it is missing, damaged or not as ``write`` writes it."""
    content = read_json(folder / NAME)
    listed = content.get("files")
    if content.get("version") != VERSION or not isinstance(listed, dict) or not all(map(_is_entry, listed.values())):
        raise InputError(f"{folder / NAME} is no manifest of version {VERSION}; get the model again")
    entries = {name: Entry(**value) for name, value in listed.items()}
    if (folder / NAME).read_bytes() != _text(entries).encode():
        raise InputError(f"{folder / NAME} is not as it was written; get the model again")
    return entries


def _is_entry(value: Any) -> bool:
    return (
        isinstance(value, dict)
        and value.keys() == {"bytes", "sha256"}
        and type(value["bytes"]) is int
        and isinstance(value["sha256"], str)
    )


def differences(folder: Path, *, full: bool = True) -> list[str]:
    """Return what in a folder is not as its manifest says, a line a file; nothing where all is.

    ``full``: every byte is read; else, of files of more than ``SMALL`` bytes, only the size. Raises ``InputError`` when
    there is no readable manifest.
    """
    promised, found = read(folder), files(folder)
    lines = [f"{name} is missing" for name in promised.keys() - found.keys()]
    lines += [f"{name} is not in {NAME}" for name in found.keys() - promised.keys()]
    for name in promised.keys() & found.keys():
        path = found[name]
        if not path.is_file():
            lines.append(f"{name} is no plain file")
        elif path.stat().st_size != promised[name].bytes:
            lines.append(f"{name} has {path.stat().st_size} bytes, not {promised[name].bytes}")
        elif (full or path.stat().st_size <= SMALL) and Entry.of(path) != promised[name]:
            lines.append(f"{name} has other bytes than it had")
    return sorted(lines)
