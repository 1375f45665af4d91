"""Pictures as one array in a NumPy archive: the form in which the ADM suite takes samples and gives references.

``arr_0`` (n, h, w, 3), uint8, and in references ``mu``, ``sigma`` (features of FID), ``mu_s``, ``sigma_s`` (of sFID).
Read and written picture by picture: such an archive has gigabytes.
"""

import math
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import numpy as np
import torch
from torch import Tensor

from belvedere.errors import InputError
from belvedere.files import atomic_write
from belvedere.limits import MAX_PIXELS

PICTURES = "arr_0"
MAX_PICTURES = 2_000_000
MAX_MEMBERS = 64
_FAULTS = (OSError, ValueError, EOFError, RuntimeError, NotImplementedError, zipfile.BadZipFile, zlib.error)
"""What a damaged or encrypted archive makes its readers raise."""


class PictureBatch:
    """The pictures in an archive. Raises ``InputError`` at once for another form; nothing in it is unpickled."""

    def __init__(self, path: Path):
        self.path = path
        with self._reading(PICTURES) as (stream, shape, dtype):
            fits = len(shape) == 4 and shape[3] == 3 and dtype == np.uint8
            if not fits or not 0 < shape[0] <= MAX_PICTURES or not 0 < shape[1] * shape[2] <= MAX_PIXELS:
                raise InputError(
                    f"{path}: {PICTURES} is {shape} of {dtype}: pictures must be (n, h, w, 3) of uint8, at most "
                    f"{MAX_PICTURES} of at most {MAX_PIXELS} pixels"
                )
            self._start = stream.tell()
        self.count: int = shape[0]
        self.size: tuple[int, int] = (shape[1], shape[2])
        """(height, width) in pixels."""

    def pictures(self, indices: range) -> Iterator[Tensor]:
        """Yield pictures, uint8 (3, h, w); the indices rise."""
        height, width = self.size
        length = height * width * 3
        with self._reading(PICTURES) as (stream, _, _):
            for index in indices:
                stream.seek(self._start + index * length)
                content = bytearray(stream.read(length))
                if len(content) != length:
                    raise InputError(f"{self.path}: ends within picture {index}; get it again")
                yield torch.frombuffer(content, dtype=torch.uint8).view(height, width, 3).permute(2, 0, 1)  # (3, h, w)

    def array(self, name: str, shape: tuple[int, ...]) -> Tensor | None:
        """Return an array of finite floats as float64; None when there is none of this name.

        ``InputError`` for one of another shape, known before it is read.
        """
        with self._open() as archive:
            if f"{name}.npy" not in archive.namelist():
                return None
        with self._reading(name) as (stream, found, dtype):
            if found != shape or dtype not in (np.float32, np.float64):
                raise InputError(f"{self.path}: {name} is {found} of {dtype}, not {shape} of floats; get it again")
            values = np.frombuffer(stream.read(math.prod(shape) * dtype.itemsize), dtype)
        tensor = torch.from_numpy(values.astype(np.float64)).view(shape)
        if not tensor.isfinite().all():
            raise InputError(f"{self.path}: {name} holds NaN or infinity; get it again")
        return tensor

    @contextmanager
    def _open(self) -> Iterator[zipfile.ZipFile]:
        try:
            with zipfile.ZipFile(self.path) as archive:
                yield archive
        except InputError:
            raise
        except _FAULTS as error:
            raise InputError(f"{self.path} is not a whole NumPy archive (.npz): get it again") from error

    @contextmanager
    def _reading(self, name: str) -> Iterator[tuple[IO[bytes], tuple[int, ...], np.dtype]]:
        """Open an array; yield the stream, which stands at its first number, its shape and its kind of numbers."""
        with self._open() as archive:
            members = [info for info in archive.infolist() if info.filename == f"{name}.npy"]
            if len(archive.infolist()) > MAX_MEMBERS or len(members) != 1:
                raise InputError(f"{self.path}: must hold {name}, once, among at most {MAX_MEMBERS} arrays")
            with archive.open(members[0]) as stream:
                shape, dtype = _header(stream)
                if stream.tell() + math.prod(shape) * dtype.itemsize != members[0].file_size:
                    raise InputError(f"{self.path}: {name} is not as long as it says; get it again")
                yield stream, shape, dtype


def _header(stream: IO[bytes]) -> tuple[tuple[int, ...], np.dtype]:
    """Return shape and kind of numbers; ``ValueError`` for what is not plain numbers by rows."""
    version = np.lib.format.read_magic(stream)
    readers = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
    if version not in readers:
        raise ValueError(f"version {version}")
    shape, by_columns, dtype = readers[version](stream)
    if by_columns or dtype.hasobject or any(length < 0 for length in shape):
        raise ValueError("no plain numbers")
    return shape, dtype


class BatchWriter:
    """Takes pictures one after the other into an archive; see ``writing_batch``."""

    def __init__(self, stream: IO[bytes], count: int, size: tuple[int, int]):
        self._stream, self._left, self.size = stream, count, size
        facts = {"descr": "|u1", "fortran_order": False, "shape": (count, *size, 3)}
        np.lib.format.write_array_header_1_0(stream, facts)

    def add(self, pictures: Tensor) -> None:
        """Write the next pictures, uint8 (n, 3, h, w)."""
        if pictures.shape[1:] != (3, *self.size) or len(pictures) > self._left:
            raise ValueError(f"pictures {tuple(pictures.shape)} into {self._left} of {self.size}")
        self._stream.write(pictures.permute(0, 2, 3, 1).contiguous().numpy().tobytes())  # (n, h, w, 3)
        self._left -= len(pictures)

    def finish(self) -> None:
        """Check that every picture has come."""
        if self._left:
            raise ValueError(f"{self._left} pictures are missing")


@contextmanager
def writing_batch(path: Path, count: int, size: tuple[int, int]) -> Iterator[BatchWriter]:
    """Write ``count`` pictures of ``size`` (height, width) as ``arr_0``, uint8 (n, h, w, 3), whole or not at all.

    The same pictures give the same bytes.
    """
    member = zipfile.ZipInfo(f"{PICTURES}.npy")  # dated 1980
    with (
        atomic_write(path) as file,
        zipfile.ZipFile(file, "w") as archive,
        archive.open(member, "w", force_zip64=True) as stream,
    ):
        writer = BatchWriter(stream, count, size)
        yield writer
        writer.finish()
