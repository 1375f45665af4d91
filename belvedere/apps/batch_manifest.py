"""What is to be made, by whom, and what has been: the manifest of a batch, one SQLite file.

SQLite and not a growing JSONL file, because many processes claim work at once and each may be killed at any moment: a
claim is one transaction, a torn write is rolled back by whoever opens the file next, and a million rows need not be
read to find the next. It is in write-ahead mode: a killed process loses nothing that was committed; a machine that
loses its power may lose the last moments, which are made again, to the same bytes. Anybody can read it:

    sqlite3 DIR/manifest.sqlite "SELECT name, state, sha256, seconds FROM manifest"

A piece (``batch_plan.Piece``) is open, taken by a process, done or failed, and its pictures with it. ``done`` is
written after the files are in place, so a kill in between costs the work of a piece and writes the same files again.
"""

import json
import re
import sqlite3
import time
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

from belvedere.apps.batch_jobs import Fault, Line, picture_name
from belvedere.apps.batch_plan import Plan
from belvedere.apps.requests import GenerateRequest
from belvedere.errors import InputError

APPLICATION = 0x42564442
FORMAT = 1
WAIT = 120.0
"""Seconds that a transaction waits for those of other processes."""
LOOK = 0.01
"""Seconds between two looks at whether a new file is free."""

_MARKS = (f"PRAGMA application_id = {APPLICATION}", f"PRAGMA user_version = {FORMAT}")
_SCHEMA = """
CREATE TABLE settings(key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE jobs(id INTEGER PRIMARY KEY, line INTEGER NOT NULL, name TEXT NOT NULL UNIQUE, count INTEGER NOT NULL,
    request TEXT NOT NULL, weights TEXT NOT NULL);
CREATE TABLE faults(line INTEGER PRIMARY KEY, reason TEXT NOT NULL);
CREATE TABLE pieces(id INTEGER PRIMARY KEY, model TEXT NOT NULL, pictures INTEGER NOT NULL,
    state TEXT NOT NULL DEFAULT 'open', owner TEXT, reason TEXT, file TEXT, bytes INTEGER, sha256 TEXT);
CREATE INDEX pieces_by_state ON pieces(state, model, id, pictures);
CREATE TABLE pictures(job INTEGER NOT NULL, number INTEGER NOT NULL, piece INTEGER NOT NULL, call INTEGER NOT NULL,
    sha256 TEXT, pixels TEXT, bytes INTEGER, seconds REAL, made TEXT, PRIMARY KEY(job, number)) WITHOUT ROWID;
CREATE INDEX pictures_by_piece ON pictures(piece, call);
CREATE VIEW manifest AS
    SELECT CASE count WHEN 1 THEN name ELSE printf('%s-%05d', name, number) END AS name, line, number, pieces.state,
        pieces.file, pictures.sha256, pixels, pictures.bytes, seconds, made, reason
    FROM pictures JOIN jobs ON jobs.id = job JOIN pieces ON pieces.id = piece;
"""


def _none_of(models: Collection[str]) -> str:
    return f"model NOT IN ({', '.join('?' * len(models))})"


class Picture(NamedTuple):
    """A picture of a claimed piece: what is asked for, and what it is called."""

    job: int
    number: int
    name: str
    request: GenerateRequest
    weights: str


class Claim(NamedTuple):
    """A piece that this process has taken: its calls."""

    piece: int
    calls: list[list[Picture]]
    failed_before: bool
    """Whether one of its calls has failed, in this run or another."""


class Made(NamedTuple):
    """A picture that is in its place: digests of the file and of the pixels, and when it was made, UTC."""

    job: int
    number: int
    sha256: str
    pixels: str
    bytes: int
    seconds: float
    made: str


class File(NamedTuple):
    """A file that holds many pictures."""

    name: str
    bytes: int
    sha256: str


class Kept(NamedTuple):
    """What should be on disk: a file's name without its ending, or with it for one of many pictures."""

    piece: int
    name: str
    bytes: int
    sha256: str


class Known(NamedTuple):
    """A job: its request as JSON, weights, how many pictures are to be made, and how many of them have been."""

    request: str
    weights: str
    pictures: int
    done: int


class Counts(NamedTuple):
    """Pictures by state; ``left``: open or in somebody's hands."""

    total: int
    done: int
    failed: int
    left: int


class Manifest:
    """The manifest in ``path``, which is made if need be.

    Whatever the disk or the file says against it is an ``InputError``.
    """

    def __init__(self, path: Path):
        self.path = path
        with self._told():
            self._sql = sqlite3.connect(path, timeout=WAIT, isolation_level=None)
        try:
            self._write_ahead()
            self._found()
        except BaseException:
            self._sql.close()
            raise

    def _write_ahead(self) -> None:
        """Set write-ahead mode, which SQLite refuses at once, with no wait, while another process opens a new file."""
        end = time.monotonic() + WAIT
        with self._told():
            while True:
                try:
                    self._sql.execute("PRAGMA journal_mode = wal")
                    break
                except sqlite3.OperationalError as error:
                    if not error.sqlite_errorname.startswith("SQLITE_BUSY") or time.monotonic() > end:
                        raise
                time.sleep(LOOK)
            self._sql.execute("PRAGMA synchronous = normal")

    def _found(self) -> None:
        with self._transaction():
            if not self._one("SELECT count(*) FROM sqlite_master"):
                for statement in (*_MARKS, *filter(str.strip, _SCHEMA.split(";"))):
                    self._sql.execute(statement)
            marks = self._one("PRAGMA application_id"), self._one("PRAGMA user_version")
        if marks != (APPLICATION, FORMAT):
            raise InputError(f"{self.path} is no manifest of this version; move it away or choose another --out")

    def close(self) -> None:
        """Close the file; what is left in its log is folded in."""
        with self._told():
            self._sql.close()

    @contextmanager
    def _told(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            mend = "make room" if "full" in str(error) else "see to the disk, or move the file away"
            raise InputError(f"{self.path}: {error}; {mend} and give the same command again") from error

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        with self._told():
            self._sql.execute("BEGIN IMMEDIATE")
            try:
                yield
            except BaseException:
                self._sql.execute("ROLLBACK")
                raise
            self._sql.execute("COMMIT")

    def _one(self, query: str, *values: object) -> Any:
        row = self._sql.execute(query, values).fetchone()
        return row and row[0]

    def settings(self) -> dict[str, Any]:
        """Return what the batch was begun with; nothing when it has not been."""
        with self._told():
            return {key: json.loads(value) for key, value in self._sql.execute("SELECT key, value FROM settings")}

    def _plain(self, name: str) -> str:
        """Return a name that is one of a file in the folder; a manifest that somebody has changed may hold others."""
        if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_-]*(\.tar|\.parquet)?", name):
            raise InputError(f"{self.path}: holds the name {name[:80]!r}, which is none; move the file away")
        return name

    def jobs(self) -> dict[str, Known]:
        """Return the jobs by name."""
        query = (
            "SELECT name, request, weights, count(number), count(sha256) "
            "FROM jobs LEFT JOIN pictures ON job = jobs.id GROUP BY jobs.id"
        )
        with self._told():
            return {name: Known(*row) for name, *row in self._sql.execute(query)}

    def numbers(self, name: str) -> set[int]:
        """Return the numbers of the pictures of a job, those that are made and those that are to be."""
        query = "SELECT number FROM pictures JOIN jobs ON jobs.id = job WHERE name = ?"
        with self._told():
            return {number for (number,) in self._sql.execute(query, (name,))}

    def lists(self, line: Line, index: int) -> bool:
        """Return whether the file of this picture is one that the batch has made, or was to make."""
        query = (
            "SELECT 1 FROM jobs JOIN pictures ON job = jobs.id WHERE name = ? AND number = ? AND (count = 1) = (? = 1)"
        )
        with self._told():
            return self._one(query, line.name, index, line.request.count) is not None

    def faults(self) -> list[Fault]:
        """Return the lines that could not be done, in order."""
        with self._told():
            return [Fault(*row) for row in self._sql.execute("SELECT line, reason FROM faults ORDER BY line")]

    def next_piece(self) -> int:
        """Return the number of the next piece that is added."""
        with self._told():
            last = self._one("SELECT max(id) FROM pieces")
        return 0 if last is None else last + 1

    def store(
        self,
        plan: Plan,
        settings: dict[str, Any],
        dropped: Iterable[str] = (),
        lines: Mapping[str, int] | None = None,
    ) -> None:
        """Add a plan to what is there, in one transaction; before that, drop what is not done of the jobs ``dropped``.

        A job of the plan that is there already gets more pictures, and keeps its weights. ``lines``: where jobs stand
        now; 0: nowhere.
        """
        with self._transaction():
            piece = self.next_piece()
            for name in dropped:
                self._drop(name)
            moved = [(line, name) for name, line in (lines or {}).items()]
            self._sql.executemany("UPDATE jobs SET line = ? WHERE name = ?", moved)
            self._sql.execute("DELETE FROM faults")
            self._sql.executemany("INSERT INTO faults VALUES(?, ?)", plan.faults)
            self._insert(plan, piece)
            rows = [(key, json.dumps(value)) for key, value in settings.items()]
            self._sql.executemany("INSERT OR REPLACE INTO settings VALUES(?, ?)", rows)

    def _drop(self, name: str) -> None:
        job = self._one("SELECT id FROM jobs WHERE name = ?", name)
        query = "SELECT piece, count(*) FROM pictures WHERE job = ? AND sha256 IS NULL GROUP BY piece"
        for piece, count in self._sql.execute(query, (job,)).fetchall():
            self._sql.execute("UPDATE pieces SET pictures = pictures - ? WHERE id = ?", (count, piece))
        self._sql.execute("DELETE FROM pictures WHERE job = ? AND sha256 IS NULL", (job,))
        self._sql.execute("DELETE FROM pieces WHERE pictures = 0")
        if not self._one("SELECT count(*) FROM pictures WHERE job = ?", job):
            self._sql.execute("DELETE FROM jobs WHERE id = ?", (job,))

    def _insert(self, plan: Plan, piece: int) -> None:
        known = dict(self._sql.execute("SELECT name, id FROM jobs").fetchall())
        first = max(known.values(), default=0) + 1
        ids = [known.get(job.line.name, first + i) for i, job in enumerate(plan.jobs)]
        jobs = (
            (number, line.number, line.name, line.request.count, line.request.to_json(), weights)
            for number, (line, weights, *_) in zip(ids, plan.jobs, strict=True)
            if line.name not in known
        )
        self._sql.executemany(
            "INSERT INTO jobs(id, line, name, count, request, weights) VALUES(?, ?, ?, ?, ?, ?)", jobs
        )
        pieces = ((piece + i, part.model, sum(map(len, part.calls))) for i, part in enumerate(plan.pieces))
        self._sql.executemany("INSERT INTO pieces(id, model, pictures) VALUES(?, ?, ?)", pieces)
        pictures = (
            (ids[job], number, piece + i, call)
            for i, part in enumerate(plan.pieces)
            for call, places in enumerate(part.calls)
            for job, number in places
        )
        self._sql.executemany("INSERT INTO pictures(job, number, piece, call) VALUES(?, ?, ?, ?)", pictures)

    def claim(self, owner: str, model: str = "", without: Collection[str] = ()) -> Claim | None:
        """Take an open piece of any model but those ``without``; None when none is open.

        What has not failed before goes first, and of that what is of ``model``.
        """
        with self._transaction():
            piece = self._next(model, without)
            if piece is None:
                return None
            failed = self._one("SELECT reason FROM pieces WHERE id = ?", piece) is not None
            self._sql.execute("UPDATE pieces SET state = 'taken', owner = ? WHERE id = ?", (owner, piece))
            rows = self._sql.execute(
                "SELECT call, job, number, name, count, request, weights FROM pictures JOIN jobs ON jobs.id = job "
                "WHERE piece = ? ORDER BY call, job, number",
                (piece,),
            ).fetchall()
        requests = {row[1]: GenerateRequest.from_json(row[5]) for row in rows}
        calls: dict[int, list[Picture]] = {}
        for call, job, number, name, count, _, weights in rows:
            picture = Picture(job, number, self._plain(picture_name(name, count, number)), requests[job], weights)
            calls.setdefault(call, []).append(picture)
        return Claim(piece, list(calls.values()), failed)

    def _next(self, model: str, without: Collection[str]) -> Any:
        for tried, whose in product(("reason IS NULL", "reason IS NOT NULL"), ("model = ?", "model != ?")):
            query = f"SELECT id FROM pieces WHERE state = 'open' AND {tried} AND {whose} AND {_none_of(without)}"
            piece = self._one(f"{query} ORDER BY model, id LIMIT 1", model, *without)
            if piece is not None:
                return piece
        return None

    def busy(self, without: Collection[str] = ()) -> bool:
        """Return whether a piece is in somebody's hands, or open and of any model but those ``without``."""
        query = f"SELECT 1 FROM pieces WHERE state = 'taken' OR state = 'open' AND {_none_of(without)} LIMIT 1"
        with self._told():
            return self._one(query, *without) is not None

    def finish(self, piece: int, pictures: Sequence[Made], file: File | None) -> None:
        """Mark a piece as done: its pictures are in their places."""
        with self._transaction():
            self._sql.executemany(
                "UPDATE pictures SET sha256 = ?, pixels = ?, bytes = ?, seconds = ?, made = ? "
                "WHERE job = ? AND number = ?",
                [(*made[2:], *made[:2]) for made in pictures],
            )
            self._sql.execute(
                "UPDATE pieces SET state = 'done', owner = NULL, reason = NULL, file = ?, bytes = ?, sha256 = ? "
                "WHERE id = ?",
                (*(file or (None, None, None)), piece),
            )

    def fail(self, piece: int, reason: str) -> None:
        """Mark a piece as failed; the next run tries it again."""
        with self._transaction():
            query = "UPDATE pieces SET state = 'failed', owner = NULL, reason = ? WHERE id = ?"
            self._sql.execute(query, (reason, piece))

    def reopen(self, pieces: Iterable[int]) -> None:
        """Let pieces be made again, whatever has been, without the pictures of jobs that the job file no longer has."""
        gone = "SELECT DISTINCT name FROM pictures JOIN jobs ON jobs.id = job WHERE piece = ? AND line = 0"
        with self._transaction():
            for piece in pieces:
                self._sql.execute("UPDATE pieces SET state = 'open', owner = NULL WHERE id = ?", (piece,))
                self._sql.execute("UPDATE pictures SET sha256 = NULL WHERE piece = ?", (piece,))
                for (name,) in self._sql.execute(gone, (piece,)).fetchall():
                    self._drop(name)

    def retry(self) -> None:
        """Let failed pieces be made again."""
        with self._transaction():
            self._sql.execute("UPDATE pieces SET state = 'open', owner = NULL WHERE state = 'failed'")

    def release(self, living: Iterable[str]) -> int:
        """Open again what processes have taken that are not among the ``living``; return how many pieces."""
        with self._transaction():
            held = self._sql.execute("SELECT DISTINCT owner FROM pieces WHERE state = 'taken'").fetchall()
            dead = {owner for (owner,) in held} - set(living)
            for owner in dead:
                query = "UPDATE pieces SET state = 'open', owner = NULL WHERE state = 'taken' AND owner = ?"
                self._sql.execute(query, (owner,))
            return len(dead)

    def counts(self) -> Counts:
        """Return how many pictures there are, by state."""
        with self._told():
            found = dict(self._sql.execute("SELECT state, sum(pictures) FROM pieces GROUP BY state").fetchall())
        done, failed = found.get("done", 0), found.get("failed", 0)
        total = sum(found.values())
        return Counts(total, done, failed, total - done - failed)

    def failures(self, most: int = 20) -> list[tuple[int, int, str]]:
        """Return failed pieces: number, pictures, reason; no more than ``most``."""
        with self._told():
            query = "SELECT id, pictures, reason FROM pieces WHERE state = 'failed' ORDER BY id LIMIT ?"
            return self._sql.execute(query, (most,)).fetchall()

    def kept(self) -> Iterator[Kept]:
        """Yield what should be on disk: pictures, or the files that hold many."""
        with self._told():
            for piece, file, *rest in self._sql.execute("SELECT id, file, bytes, sha256 FROM pieces WHERE file > ''"):
                yield Kept(piece, self._plain(file), *rest)
            query = (
                "SELECT piece, name, count, number, pictures.bytes, pictures.sha256 FROM pictures "
                "JOIN jobs ON jobs.id = job JOIN pieces ON pieces.id = piece WHERE state = 'done' AND file IS NULL"
            )
            for piece, name, count, number, size, sha256 in self._sql.execute(query):
                yield Kept(piece, self._plain(picture_name(name, count, number)), size, sha256)
