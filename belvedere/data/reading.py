"""Reading text and numbers out of files from anywhere: every size and every number checked before it is used."""

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from belvedere.errors import InputError

MAX_JSON = 1 << 26
"""Bytes of a JSON file: 64 MiB, about 100,000 views."""
MAX_ITEMS = 4_000_000
"""Values in a JSON file, about: a list of nothing has three bytes in the file and 64 in memory."""


@contextmanager
def naming(source: object) -> Iterator[None]:
    """Put ``source``, the file and the place in it, in front of the message of an ``InputError`` from the block."""
    try:
        yield
    except InputError as error:
        raise InputError(f"{source}: {error}") from error


def read_file(path: Path, limit: int) -> bytes:
    """Return the bytes of a file; raises ``InputError`` when it cannot be read or has more than ``limit``."""
    try:
        with path.open("rb") as stream:
            size = os.fstat(stream.fileno()).st_size or limit  # a read takes the memory it asks for
            content = stream.read(min(size, limit) + 1)
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from error
    if len(content) > limit:
        raise InputError(f"{path} has more than the {limit} bytes allowed: make it smaller")
    return content


def read_json(path: Path, limit: int | None = None, items: int = MAX_ITEMS) -> Any:
    """Return the content of a JSON file of at most ``limit`` bytes (``MAX_JSON``) and about ``items`` values.

    Raises ``InputError`` for one that is missing, too large or no JSON.
    """
    content = read_file(path, MAX_JSON if limit is None else limit)
    if sum(content.count(sign) for sign in (b",", b"[", b"{")) > items:
        raise InputError(f"{path} has more than the {items} values allowed: make it smaller")
    try:
        return json.loads(content)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is no JSON: correct it or get it again") from error


def number(fields: Mapping[str, Any], key: str, default: float | None = None) -> float:
    """Return a finite number of a JSON object; raises ``InputError`` for anything else."""
    value = fields.get(key, default)
    if not _is_number(value):
        raise InputError(f"{key} must be a finite number, not {str(value)[:40]}")
    return float(value)


def vector(value: Any, length: int, name: str) -> Tensor:
    """Return a JSON list of finite numbers as (length,), float64; raises ``InputError`` for anything else."""
    if not isinstance(value, list) or len(value) != length or not all(map(_is_number, value)):
        raise InputError(f"{name} must be a list of {length} finite numbers")
    return torch.tensor([float(x) for x in value], dtype=torch.float64)


def matrix(value: Any, name: str) -> Tensor:
    """Return a JSON list of four rows of four finite numbers as (4, 4), float64; ``InputError`` for anything else."""
    if not isinstance(value, list) or len(value) != 4:
        raise InputError(f"{name} must be a list of 4 rows of 4 finite numbers")
    return torch.stack([vector(row, 4, f"a row of {name}") for row in value])


def _is_number(value: Any) -> bool:
    """Whether a JSON value is a number that float32 holds; NaN and infinity, which Python's JSON reads, are none."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return abs(value) < 1e38  # False for NaN
