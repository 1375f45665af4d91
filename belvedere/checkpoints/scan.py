"""What a torch file claims to be, told from its zip directory and from the opcodes of its pickles; nothing is run.

This is the first fence: it needs no PyTorch, so most hostile files are refused before anything heavy is loaded. What
passes is read by PyTorch's weights-only reader, which judges for itself.
"""

import pickletools
import re
import zipfile
from collections.abc import Sequence
from io import BytesIO
from itertools import pairwise
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO

from belvedere.checkpoints.tensors import PLAIN_ONLY, one_line, starts_like_pickle
from belvedere.errors import InputError

MAX_ENTRIES = 65_535
"""Of a zip archive."""
MAX_OPCODES = 1_000_000
"""Of a pickle: a state dict has about 30 a tensor."""

_MAX_PICKLE = 16 << 20
_LOCAL = 30
"""Bytes before an entry's own, its name not counted."""
_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
_LEGACY_PICKLES = 5
"""Magic number, version, system, what was saved, keys of the storages."""

_OPCODES = {
    "GLOBAL", "NEWOBJ", "REDUCE", "BUILD", "APPEND", "APPENDS", "SETITEM", "SETITEMS", "MARK", "TUPLE", "TUPLE1",
    "TUPLE2", "TUPLE3", "NONE", "NEWFALSE", "NEWTRUE", "EMPTY_TUPLE", "EMPTY_LIST", "EMPTY_DICT", "EMPTY_SET", "BININT",
    "BININT1", "BININT2", "BINFLOAT", "BINUNICODE", "SHORT_BINSTRING", "BINPERSID", "BINGET", "LONG_BINGET", "BINPUT",
    "LONG_BINPUT", "LONG1", "PROTO", "STOP",
}  # fmt: skip
"""What PyTorch's weights-only reader knows."""
_GLOBALS = re.compile(
    r"collections\.(OrderedDict|Counter)|builtins\.set"
    r"|torch\.(Size|device|(bfloat|float|complex|q?u?int|bool)\w*|(cuda\.)?\w+Storage|storage\.\w+Storage)"
    r"|torch\._utils\._rebuild_\w+|torch\.serialization\._get_layout"
)
"""What the pickle of a file of tensors names. Of what the weights-only reader allows, those are left out that can be
called to take memory at will: torch.Tensor, bytearray."""


def check_archive(path: Path) -> str | None:
    """Raise ``InputError`` unless the zip directory of a torch file is plausible; nothing is inflated.

    Torch stores tensors uncompressed, so entries that are compressed, repeated, encrypted, links, named outside the
    archive, on the same bytes as others, or larger together than the file itself are signs of a bomb. Returns the name
    of the entry with the pickle.
    """
    name = path.name
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
    except (zipfile.BadZipFile, NotImplementedError, ValueError, EOFError, OSError) as error:
        raise InputError(f"{name}: damaged zip archive ({one_line(error)}); get the file again") from error
    if len(entries) > MAX_ENTRIES:
        raise InputError(f"{name}: {len(entries)} zip entries, more than {MAX_ENTRIES}; refused")
    if len({entry.filename for entry in entries}) != len(entries):
        raise InputError(f"{name}: a zip entry appears twice; refused")
    for entry in entries:
        _check_entry(entry, name)
    total = sum(entry.file_size for entry in entries)
    if total > path.stat().st_size:
        raise InputError(f"{name}: its zip entries claim {total} bytes, more than the file has; refused")
    places = sorted((entry.header_offset, entry.header_offset + _LOCAL + entry.compress_size) for entry in entries)
    if any(end > start for (_, end), (start, _) in pairwise(places)):
        raise InputError(f"{name}: zip entries lie on the same bytes; refused")
    pickles = [entry.filename for entry in entries if PurePosixPath(entry.filename).name == "data.pkl"]
    if len(pickles) > 1:
        raise InputError(f"{name}: {len(pickles)} entries data.pkl, torch files have one; refused")
    return pickles[0] if pickles else None


def _check_entry(entry: zipfile.ZipInfo, name: str) -> None:
    shown = one_line(entry.filename)[:80]
    parts = PurePosixPath(entry.filename.replace("\\", "/"))
    if parts.is_absolute() or ".." in parts.parts or ":" in entry.filename:
        raise InputError(f"{name}: zip entry '{shown}' points outside the archive; refused")
    if entry.external_attr >> 28 == 0xA:
        raise InputError(f"{name}: zip entry '{shown}' is a link; refused")
    if entry.compress_type != zipfile.ZIP_STORED or entry.flag_bits & 1:
        raise InputError(f"{name}: zip entry '{shown}' is compressed or encrypted; torch files are not")


def check_torch_file(path: Path, objects: Sequence[str] = ()) -> None:
    """Raise ``InputError`` unless a file is one of ``torch.save`` whose pickles name nothing but tensors.

    ``objects``: qualified names of classes that they may name too. Only opcodes are looked at.
    """
    if zipfile.is_zipfile(path):
        pickle = check_archive(path)
        if pickle is None:
            raise InputError(f"{path.name}: not a torch weights file: a zip archive without data.pkl")
        with zipfile.ZipFile(path) as archive:
            if archive.getinfo(pickle).file_size > _MAX_PICKLE:
                raise InputError(f"{path.name}: its pickle has more than {_MAX_PICKLE >> 20} MB; refused")
            try:
                content = archive.read(pickle)
            except (zipfile.BadZipFile, ValueError, EOFError, OSError) as error:
                raise InputError(f"{path.name}: damaged zip archive ({one_line(error)}); get it again") from error
        _check_pickle(BytesIO(content), path.name, objects)
    elif starts_like_pickle(path):
        with path.open("rb") as file:
            if _check_pickle(file, path.name, objects) != _LEGACY_MAGIC:
                raise InputError(f"{path.name}: not a torch weights file, but a pickle of something else")
            for _ in range(1, _LEGACY_PICKLES):
                _check_pickle(file, path.name, objects)
    else:
        raise InputError(f"{path.name}: not a torch weights file: neither a zip archive nor a pickle")


def _check_pickle(file: BinaryIO, name: str, objects: Sequence[str]) -> Any:
    """Look through one pickle, up to its end; return the last number in it, which for a magic number is all."""
    texts: list[str] = []
    number: Any = None
    try:
        for count, (opcode, argument, _) in enumerate(pickletools.genops(file)):
            if count > MAX_OPCODES:
                raise InputError(f"{name}: its pickle has more than {MAX_OPCODES} steps; refused")
            if opcode.name in ("GLOBAL", "INST"):
                _check_global(str(argument).replace(" ", ".").replace("__builtin__.", "builtins."), name, objects)
            elif opcode.name == "STACK_GLOBAL":
                _check_global(".".join(texts[-2:]), name, ())
            if opcode.name not in _OPCODES:
                raise InputError(
                    f"{name}: its pickle has opcode {opcode.name}, which no torch file has; it was not run"
                )
            if isinstance(argument, str):
                texts = [*texts[-1:], argument]
            elif opcode.name == "LONG1":
                number = argument
    except (ValueError, IndexError, OverflowError, MemoryError, AttributeError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{name}: not a torch weights file, its pickle is damaged ({one_line(error)[:80]})") from error
    return number


def _check_global(found: str, name: str, objects: Sequence[str]) -> None:
    if not _GLOBALS.fullmatch(found) and found not in objects:
        message = f"{name}: holds a Python object ({one_line(found)[:80]}), not only tensors; it was not run"
        raise InputError(f"{message}. {PLAIN_ONLY}: ask its maker for safetensors")
