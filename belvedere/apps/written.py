"""YAML that people write: read within bounds, its keys known."""

import difflib
from collections.abc import Iterable, Mapping
from typing import Any

import yaml

from belvedere.errors import InputError

MAX_BYTES = 256 << 10
"""Of a file."""
MAX_DEPTH = 32
"""Of lists and mappings in one another."""


def read_mapping(source: Any, name: str) -> dict[str, Any]:
    """Return the mapping in a YAML file, a path or a packaged resource; an empty file has none.

    Raises ``InputError``, beginning with ``name``, for one that cannot be read, is too large, or holds anything else.
    """
    try:
        with source.open("rb") as file:
            content = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise InputError(f"{name}: {error.strerror}; check the path") from error
    if len(content) > MAX_BYTES:
        raise InputError(f"{name}: has more than the {MAX_BYTES >> 10} KB a config may have")
    try:
        values = parse_yaml(content.decode())
    except ValueError as error:
        raise InputError(f"{name}: not YAML: {' '.join(str(error).split())[:200]}") from None
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise InputError(f"{name}: must be a mapping of keys")
    return values


def parse_yaml(text: str) -> Any:
    """Return the value of YAML; ``ValueError`` for what is none, and for what few bytes make endless.

    That is deep nesting, whose time grows with its square, and aliases, by which a few lines stand for any number.
    """
    depth = 0
    try:
        for event in yaml.parse(text, Loader=yaml.SafeLoader):
            depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
            if depth > MAX_DEPTH:
                raise ValueError(f"nested deeper than {MAX_DEPTH} levels")
            if isinstance(event, yaml.AliasEvent):
                raise ValueError("it has an alias, *name; write the value itself")
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ValueError(str(error)) from error


def check_keys(values: Mapping[str, Any], known: Iterable[str], where: str = "") -> None:
    """Raise ``InputError`` that names the first unknown key and the nearest known one."""
    known = list(known)
    for key in values:
        if key not in known:
            close = difflib.get_close_matches(str(key)[:80], known, 1, 0.5)
            hint = f"did you mean {close[0]!r}?" if close else f"known are {', '.join(known)}"
            raise InputError(f"unknown config key {f'{where}{key}'[:80]!r}: {hint}")
