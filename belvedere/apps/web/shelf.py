"""Where results stay: a folder each, under a name that nobody can guess, within bounds, across restarts.

    FOLDER/ID/facts.json   room, when, and what the room tells of the result
    FOLDER/ID/NAME         its files

A folder is filled under another name and renamed, so one that is there is whole. Several servers may share FOLDER: each
looks at it again when it has changed.
"""

import json
import re
import secrets
import shutil
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from belvedere.apps.output import writing
from belvedere.errors import InputError
from belvedere.files import atomic_write

FACTS = "facts.json"
ALPHABET = "abcdefghijkmnpqrstuvwxyz23456789"
ID = re.compile(f"[{ALPHABET}]{{20}}")
"""What ids look like."""
_NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,60}(\.[a-z0-9]{1,12}){1,2}")
LASTING = "concept"
"""A result whose facts have this ``kind`` goes after all others: it took long to make, and others are made with it."""
_GONE = "there is no such result any more"
STALE = 600.0
"""Seconds after which what is still being filled was left by a server that ended."""
SETTLED = 2.0
"""Seconds for which a folder's time may not tell of a second change: file systems count in steps of up to two."""


def fresh_id() -> str:
    """Return an id that nobody can guess."""
    return "".join(secrets.choice(ALPHABET) for _ in range(20))


@dataclass(frozen=True)
class Entry:
    """One result: ``when`` it was put there in seconds since 1970, what its room tells of it, names of its files."""

    id: str
    room: str
    when: float
    facts: Mapping[str, Any]
    names: tuple[str, ...]
    bytes: int


class Shelf:
    """The results in ``folder``, at most ``results`` of them and ``result_bytes`` in all: the oldest go, concepts last.

    Any thread may call it, and several shelves may share a folder. Raises ``InputError`` when the folder cannot be
    written.
    """

    def __init__(self, folder: Path, results: int = 500, result_bytes: int = 2 << 30):
        self.folder, self.results, self.result_bytes = folder, results, result_bytes
        self._lock = threading.RLock()
        with writing(folder):
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            for left in folder.glob(".*.new"):
                if age(left) > STALE:
                    shutil.rmtree(left, ignore_errors=True)
        self._entries: dict[str, Entry] = {}
        self._seen = 0
        """When the folder had last changed as of the last look, in ns; 0 when it has to be looked at again anyway."""
        self._look()

    def put(self, room: str, files: Mapping[str, bytes], facts: Mapping[str, Any]) -> str:
        """Keep a result's files, whole or not at all, and return its id.

        ``files`` by name: small letters, digits, ``_`` and ``-``, then an ending. ``facts``: plain JSON. A result that
        alone exceeds the bounds raises ``InputError``.
        """
        if bad := [name for name in files if not _NAME.fullmatch(name) or name == FACTS]:
            raise ValueError(f"not a name for a file of the shelf: {bad[0]!r}")
        size = sum(map(len, files.values()))
        if size > self.result_bytes:
            raise InputError(f"the result has {size >> 20} MB, which the studio does not keep: ask for less")
        key, told = fresh_id(), {"room": room, "when": time.time()}
        fresh, text = self.folder / f".{key}.new", json.dumps({**told, "facts": dict(facts)}).encode()
        with self._lock, writing(self.folder):
            try:
                fresh.mkdir(mode=0o700)
                for name, data in {**files, FACTS: text}.items():
                    with atomic_write(fresh / name) as file:
                        file.write(data)
                fresh.rename(self.folder / key)
            except BaseException:
                shutil.rmtree(fresh, ignore_errors=True)
                raise
            self._look()
            self._trim(key)
        return key

    def newest(self, room: str | None, count: int) -> list[Entry]:
        """Return up to ``count`` results of a room, None = of all, the newest first."""
        with self._lock:
            self._look()
            found = [entry for entry in reversed(self._entries.values()) if room in (None, entry.room)]
        return found[:count]

    def entry(self, id: str) -> Entry:
        """Return a result; ``InputError`` when there is none of this id."""
        with self._lock:
            self._look()
            if not isinstance(id, str) or id not in self._entries:
                raise InputError(_GONE)
            return self._entries[id]

    def file(self, id: str, name: str) -> Path:
        """Return the path of a result's file; ``InputError`` for anything that is not one, or leads out of here."""
        if name not in self.entry(id).names:
            raise InputError(_GONE)
        path = (self.folder / id / name).resolve()
        if not path.is_relative_to(self.folder.resolve()) or not path.is_file():
            raise InputError(_GONE)
        return path

    @property
    def used(self) -> tuple[int, int]:
        """How many results there are, and their bytes."""
        with self._lock:
            self._look()
            return len(self._entries), self._bytes()

    def empty(self) -> None:
        """Remove every result."""
        with self._lock:
            self._look()
            for key in list(self._entries):
                self._remove(key)

    def _look(self) -> None:
        """Take in what was put into the folder, and what was removed, since the last look."""
        changed = self.folder.stat().st_mtime_ns if self.folder.is_dir() else 0
        if changed and changed == self._seen:
            return
        there = {path.name for path in self.folder.glob("*") if ID.fullmatch(path.name)}
        fresh = [entry for key in there - self._entries.keys() if (entry := _read(self.folder / key))]
        kept = [entry for key, entry in self._entries.items() if key in there]
        self._entries = {entry.id: entry for entry in sorted([*kept, *fresh], key=lambda entry: entry.when)}
        self._seen = changed if time.time_ns() - changed > SETTLED * 1e9 else 0

    def _bytes(self) -> int:
        return sum(entry.bytes for entry in self._entries.values())

    def _trim(self, new: str) -> None:
        while len(self._entries) > self.results or self._bytes() > self.result_bytes:
            old = [key for key in self._entries if key != new]
            if not old:
                return
            self._remove(next((key for key in old if self._entries[key].facts.get("kind") != LASTING), old[0]))

    def _remove(self, key: str) -> None:
        del self._entries[key]
        shutil.rmtree(self.folder / key, ignore_errors=True)


def age(path: Path) -> float:
    """Return the seconds since a file or folder last changed; 0 when it is gone."""
    try:
        return time.time() - path.stat().st_mtime
    except OSError:
        return 0.0


def _read(path: Path) -> Entry | None:
    """Return the result in a folder; None where there is none that we wrote."""
    try:
        told = json.loads((path / FACTS).read_text())
        files = [file for file in path.iterdir() if _NAME.fullmatch(file.name) and file.name != FACTS]
        size = sum(file.stat().st_size for file in files)
        names = tuple(sorted(file.name for file in files))
        return Entry(path.name, str(told["room"]), float(told["when"]), dict(told["facts"]), names, size)
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None
