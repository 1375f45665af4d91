"""The pictures of a batch into files, tars or parquet, by threads, so that the network never waits for them.

    network ─► encoders (several threads: PNG, and in `files` the file) ─► assembler (one: tar, parquet, in order)

A file is written in the worker's own folder, flushed and renamed to its place, so it is there whole or not at all, and
a killed process leaves nothing that is taken for a picture. A tar or parquet file has the same bytes whoever writes it.
"""

import hashlib
import io
import json
import os
import tarfile
import time
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, Protocol

from belvedere.apps import output, work
from belvedere.apps.batch_manifest import File, Made
from belvedere.apps.batch_manifest import Picture as Wanted
from belvedere.files import atomic_write

PACKS = {"none": "", "tar": ".tar", "parquet": ".parquet"}
"""Ways to keep pictures, and the endings of the files that hold many."""
CALLS_WAITING = 3
"""Network calls whose pictures may wait for the threads, which bounds the memory they take."""
ROW_GROUP = 32 << 20
"""Bytes of pictures in a row group of a parquet file."""


class Finished(NamedTuple):
    """A piece whose pictures are in their places."""

    piece: int
    pictures: list[Made]
    file: File | None


class _Encoded(NamedTuple):
    made: Made
    name: str
    content: bytes
    picture: work.Picture


class Writer:
    """Takes the pictures of pieces, call by call, and gives the pieces back when they are in their places.

    ``out``: the folder; ``staging``: one on the same file system for what is not whole; ``kind``: png, jpeg or webp;
    ``pack``: of ``PACKS``; ``part``: sets the names of files with many pictures apart from another machine's.
    """

    def __init__(self, out: Path, staging: Path, kind: str, pack: str, part: str = "", threads: int | None = None):
        self.out, self.staging, self.kind, self.pack, self.part = out, staging, kind, pack, part
        self.waited = 0.0
        """Seconds for which the network had to wait for the threads."""
        self._encoders = ThreadPoolExecutor(threads or min(8, max(2, (os.cpu_count() or 2) // 2)))
        self._assembler = ThreadPoolExecutor(1)
        self._waiting: deque[Future[Finished | None]] = deque()
        self._made: list[Made] = []
        self._container: _Container | None = None

    def put(
        self, piece: int, wanted: Sequence[Wanted], pictures: Sequence[work.Picture], seconds: float, last: bool
    ) -> None:
        """Hand over the pictures of a call, which took ``seconds``; ``last``: of its piece.

        Waits while ``CALLS_WAITING`` calls are not yet written.
        """
        began = time.perf_counter()
        while sum(not future.done() for future in self._waiting) >= CALLS_WAITING:
            next(future for future in self._waiting if not future.done()).exception()
        self.waited += time.perf_counter() - began
        share = seconds / len(pictures)
        encoded = [self._encoders.submit(self._encode, *pair, share) for pair in zip(wanted, pictures, strict=True)]
        self._waiting.append(self._assembler.submit(self._assemble, piece, encoded, last))

    def finished(self, wait: bool = False) -> list[Finished]:
        """Return the pieces that are written since the last call; with ``wait``, all that were handed over.

        Raises ``InputError`` when the disk does not take them.
        """
        found = []
        while self._waiting and (wait or self._waiting[0].done()):
            with output.writing(self.out):
                done = self._waiting.popleft().result()
            if done:
                found.append(done)
        return found

    def abandon(self) -> None:
        """Drop what is there of a piece whose other pictures will not come."""
        self._assembler.submit(self._drop).result()

    def _drop(self) -> None:
        self._made = []
        if self._container is not None:
            self._container.drop()
            self._container = None

    def close(self) -> None:
        """End the threads; what is not whole is dropped."""
        for pool in (self._encoders, self._assembler):
            pool.shutdown(cancel_futures=True)
        self._drop()

    def _encode(self, wanted: Wanted, picture: work.Picture, seconds: float) -> _Encoded:
        content = output.encode(picture.image, self.kind, picture.record.to_json())
        name = f"{wanted.name}.{output.FORMATS[self.kind]}"
        if self.pack == "none":
            with atomic_write(self.staging / name) as file:
                file.write(content)
            _move(self.staging / name, self.out / name)
        sha256, now = hashlib.sha256(content).hexdigest(), datetime.now(UTC).isoformat(timespec="milliseconds")
        made = Made(wanted.job, wanted.number, sha256, picture.record.pixels, len(content), round(seconds, 4), now)
        return _Encoded(made, name, b"" if self.pack == "none" else content, picture)

    def _assemble(self, piece: int, encoded: Sequence["Future[_Encoded]"], last: bool) -> Finished | None:
        for future in encoded:
            one = future.result()
            self._made.append(one.made)
            if self.pack != "none":
                if self._container is None:
                    self._container = _CONTAINERS[self.pack](self.staging / self.file_name(piece))
                self._container.add(one)
        if not last:
            return None
        file = None
        if self._container is not None:
            file = self._container.finish(self.out)
            self._container = None
        made, self._made = self._made, []
        return Finished(piece, made, file)

    def file_name(self, piece: int) -> str:
        """Return the name of the file that holds a piece."""
        return pack_name(piece, self.pack, self.part)


def _move(path: Path, target: Path) -> None:
    with output.writing(target):
        path.replace(target)


def pack_name(piece: int, pack: str, part: str = "") -> str:
    """Return the name of a tar or parquet file: ``pictures-00012.tar``."""
    return f"pictures{part}-{piece:05d}{PACKS[pack]}"


class _Container(Protocol):
    """A file of many pictures while it is being written, in a place where nobody looks."""

    def add(self, one: _Encoded) -> None: ...
    def finish(self, out: Path) -> File: ...
    def drop(self) -> None: ...


class _Staged:
    """A file that is moved to its folder when it is whole and flushed."""

    def __init__(self, path: Path):
        self.path = path
        self.stream: BinaryIO = path.open("wb")

    def settle(self, out: Path) -> File:
        """Flush the file, move it to ``out`` and return what it is."""
        self.stream.flush()
        os.fsync(self.stream.fileno())
        self.stream.close()
        with self.path.open("rb") as file:
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
        size = self.path.stat().st_size
        _move(self.path, out / self.path.name)
        return File(self.path.name, size, sha256)

    def drop(self) -> None:
        """Remove the file; a full disk does not take what is not yet flushed of it, and need not."""
        with suppress(OSError):
            self.stream.close()
        self.path.unlink(missing_ok=True)


class _Tar(_Staged):
    """A WebDataset tar: each picture ``NAME.png`` beside its record ``NAME.json``, without time or owner."""

    def __init__(self, path: Path):
        super().__init__(path)
        self._tar = tarfile.open(fileobj=self.stream, mode="w", format=tarfile.USTAR_FORMAT)  # noqa: SIM115

    def add(self, one: _Encoded) -> None:
        stem = one.name.rpartition(".")[0]
        for name, content in ((one.name, one.content), (f"{stem}.json", one.picture.record.to_json().encode())):
            entry = tarfile.TarInfo(name)
            entry.size, entry.mode = len(content), 0o644
            self._tar.addfile(entry, io.BytesIO(content))

    def finish(self, out: Path) -> File:
        self._tar.close()
        return self.settle(out)


class _Parquet(_Staged):
    """Rows as Hugging Face datasets write them: ``image`` (bytes, path), ``label``, ``kind``, record and size."""

    def __init__(self, path: Path):
        import pyarrow as pa
        import pyarrow.parquet as pq

        super().__init__(path)
        image = pa.struct({"bytes": pa.binary(), "path": pa.string()})
        columns = {"image": image, "label": pa.int64(), "kind": pa.string(), "record": pa.string()}
        self._schema = pa.schema({**columns, "width": pa.int32(), "height": pa.int32()}, {"huggingface": _FEATURES})
        # Pictures are compressed already, and no two are the same.
        self._file = pq.ParquetWriter(self.stream, self._schema, compression="none", use_dictionary=["kind"])
        self._rows: list[dict[str, Any]] = []
        self._bytes = 0

    def add(self, one: _Encoded) -> None:
        image, about = one.picture
        self._rows.append(
            {
                "image": {"bytes": one.content, "path": one.name},
                "label": about.label,
                "kind": about.kind,
                "record": about.to_json(),
                "width": image.width,
                "height": image.height,
            }
        )
        self._bytes += len(one.content)
        if self._bytes >= ROW_GROUP:
            self._flush()

    def _flush(self) -> None:
        import pyarrow as pa

        if self._rows:
            self._file.write_table(pa.Table.from_pylist(self._rows, schema=self._schema))
        self._rows, self._bytes = [], 0

    def finish(self, out: Path) -> File:
        self._flush()
        self._file.close()
        return self.settle(out)

    def drop(self) -> None:
        """Remove the file; while its stream is open, as Arrow ends it with a footer in any case."""
        with suppress(Exception):
            self._file.close()
        super().drop()


def _value(kind: str) -> dict[str, str]:
    return {"dtype": kind, "_type": "Value"}


_FEATURES = json.dumps(
    {
        "info": {
            "features": {
                "image": {"_type": "Image"},
                "label": _value("int64"),
                "kind": _value("string"),
                "record": _value("string"),
                "width": _value("int32"),
                "height": _value("int32"),
            }
        }
    }
)
_CONTAINERS: dict[str, type[_Tar] | type[_Parquet]] = {"tar": _Tar, "parquet": _Parquet}
