"""Sparse models of COLMAP, text and binary: the cameras of pictures and the points they were reconstructed with.

The formats are those of https://colmap.github.io/format.html. COLMAP stores world to camera, in OpenCV's axes, pixel
centres at half-integers; what is returned is camera to world.
"""

import io
import re
import struct
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor

from belvedere.data.cameras import MAX_VIEWS, Camera, invert
from belvedere.data.reading import naming, read_file
from belvedere.data.rotations import matrix_from_quaternion
from belvedere.errors import InputError

MAX_BYTES = 1 << 30
"""Of one file of a model."""
MAX_NAME = 1024
"""Bytes of a picture's name."""
MAX_ROW = 1 << 22
"""Letters of a line that is read."""

MODELS = {"SIMPLE_PINHOLE": 3, "PINHOLE": 4, "SIMPLE_RADIAL": 4, "RADIAL": 5, "OPENCV": 8}
"""The camera models that are read, in the order of their numbers in binary files, and how many parameters each has."""
OTHERS = (
    "OPENCV_FISHEYE", "FULL_OPENCV", "FOV", "SIMPLE_RADIAL_FISHEYE", "RADIAL_FISHEYE", "THIN_PRISM_FISHEYE",
    "RAD_TAN_THIN_PRISM_FISHEYE",
)  # fmt: skip
"""The models that follow; they are refused by their names."""

Row = TypeVar("Row")


class Points(NamedTuple):
    """The points of a model."""

    positions: Tensor
    """(n, 3), float64, world."""
    tracks: Tensor
    """(n,), int64: in how many pictures each was found."""


def read_cameras(folder: Path) -> dict[str, Camera]:
    """Return the camera of each picture of the model in ``folder``, by the picture's name, in the order of the file.

    Files ``cameras`` and ``images``, ``.bin`` or ``.txt``. Raises ``InputError`` for missing or damaged files, other
    camera models, a name that occurs twice, or a model of no pictures.
    """
    path = _find(folder, "cameras")
    with naming(path):
        lenses = dict(_limited(_binary_cameras(path) if path.suffix == ".bin" else _text_cameras(path)))
    path = _find(folder, "images")
    with naming(path):
        images = list(_limited(_binary_images(path) if path.suffix == ".bin" else _text_images(path)))
        if not images:
            raise InputError("a model without pictures: give one that has some")
        poses = _poses([motion for _, _, motion in images])
        cameras: dict[str, Camera] = {}
        for (name, lens, _), pose in zip(images, poses, strict=True):
            with naming(repr(name)):
                if name in cameras:
                    raise InputError("a second picture of this name: each has one camera")
                if lens not in lenses:
                    raise InputError(f"taken with camera {lens}, which the model lacks: export it again")
                cameras[name] = replace(lenses[lens], pose=pose)
    return cameras


def read_points(folder: Path) -> Points:
    """Return the points of the model in ``folder``, from ``points3D.bin`` or ``points3D.txt``.

    Raises ``InputError`` for a missing or damaged file, or points that are not finite.
    """
    path = _find(folder, "points3D")
    with naming(path):
        rows = _binary_points(path) if path.suffix == ".bin" else _text_points(path)
        table = torch.from_numpy(np.fromiter(rows, np.dtype((np.float64, 4))))  # (n, x y z and length)
        if not bool(table.isfinite().all()):
            raise InputError("points that are not finite: export the model again")
    return Points(table[:, :3].contiguous(), table[:, 3].long())


def _find(folder: Path, name: str) -> Path:
    for path in (folder / f"{name}.bin", folder / f"{name}.txt"):
        if path.is_file():
            return path
    raise InputError(f"no {name}.bin or {name}.txt in {folder}: give the folder of a COLMAP model, such as sparse/0")


def _limited(rows: Iterator[Row]) -> Iterator[Row]:
    """Yield the rows; raises ``InputError`` beyond ``MAX_VIEWS``."""
    for count, row in enumerate(rows):
        if count >= MAX_VIEWS:
            raise InputError(f"more than the {MAX_VIEWS} views allowed: split the model")
        yield row


def _lens(model: str, width: int, height: int, values: Sequence[float]) -> Camera:
    """Return a camera at the origin with COLMAP's parameters."""
    if len(values) != MODELS[model]:
        raise InputError(f"a camera of model {model} with {len(values)} parameters: it has {MODELS[model]}")
    shared = model in ("SIMPLE_PINHOLE", "SIMPLE_RADIAL", "RADIAL")  # one focal length for both axes
    focal = (values[0], values[0]) if shared else (values[0], values[1])
    cx, cy, *distortion = values[1:] if shared else values[2:]
    radial = [*distortion, 0.0, 0.0, 0.0, 0.0][:4] if any(distortion) else []
    return Camera(torch.eye(4, dtype=torch.float64), focal, (cx, cy), (height, width), tuple(radial))


def _check_model(model: str) -> None:
    if model not in MODELS:
        raise InputError(f"camera model {model[:40]} is not read: undistort the pictures to PINHOLE with COLMAP")


def _poses(motions: Sequence[Sequence[float]]) -> Tensor:
    """Return camera to world (n, 4, 4) of quaternions, w first, and translations, world to camera: 7 numbers each.

    What is not finite, and a quaternion of no length, stays NaN, which ``Camera`` refuses.
    """
    values = torch.tensor(motions, dtype=torch.float64)
    world_to_camera = torch.eye(4, dtype=torch.float64).repeat(len(values), 1, 1)
    world_to_camera[:, :3, :3] = matrix_from_quaternion(values[:, :4])
    world_to_camera[:, :3, 3] = values[:, 4:]
    return invert(world_to_camera)


class _Bytes:
    """The bytes of a binary file, taken from the front; raises ``InputError`` where there are too few."""

    def __init__(self, path: Path):
        self.content, self.at = read_file(path, MAX_BYTES), 0

    def take(self, form: str) -> tuple[Any, ...]:
        """Return the values of a ``struct`` form, little-endian."""
        start = self.at
        self.skip(struct.calcsize("<" + form))
        return struct.unpack_from("<" + form, self.content, start)

    def skip(self, count: int) -> None:
        """Pass over ``count`` bytes."""
        if count > len(self.content) - self.at:
            raise InputError("the file ends too early or is damaged: export the model again")
        self.at += count

    def count(self, least: int) -> int:
        """Return a number of things to come, each of at least ``least`` bytes, all of which the file can hold."""
        (count,) = self.take("Q")
        if count * least > len(self.content) - self.at:
            raise InputError(f"it counts {count} entries, more than its size holds: export the model again")
        return count

    def name(self) -> str:
        """Return a text that ends with a zero byte."""
        end = self.content.find(b"\0", self.at, self.at + MAX_NAME + 1)
        if end < 0:
            raise InputError(f"a name without an end or of more than {MAX_NAME} bytes: export the model again")
        name = self.content[self.at : end]
        self.at = end + 1
        return _decoded(name)

    def finish(self) -> None:
        """Raise ``InputError`` unless all has been taken."""
        if self.at != len(self.content):
            raise InputError("the file goes on after its last entry or is damaged: export the model again")


def _binary_cameras(path: Path) -> Iterator[tuple[int, Camera]]:
    """Yield number and camera: id, model, width, height, parameters."""
    data = _Bytes(path)
    known = [*MODELS, *OTHERS]
    for _ in range(data.count(24 + 8 * 3)):
        number, index, width, height = data.take("IiQQ")
        model = known[index] if 0 <= index < len(known) else f"number {index}"
        _check_model(model)
        yield number, _lens(model, width, height, data.take(f"{MODELS[model]}d"))
    data.finish()


def _binary_images(path: Path) -> Iterator[tuple[str, int, Sequence[float]]]:
    """Yield name, camera number and motion: id, quaternion, translation, camera, name, observations."""
    data = _Bytes(path)
    for _ in range(data.count(64 + 1 + 8)):
        _, *motion, lens = data.take("I7dI")
        name = data.name()
        data.skip(data.count(24) * 24)
        yield name, lens, motion
    data.finish()


def _binary_points(path: Path) -> Iterator[tuple[float, float, float, int]]:
    """Yield x, y, z and the length of the track: id, position, colour, error, track."""
    data = _Bytes(path)
    for _ in range(data.count(43 + 8)):
        _, x, y, z = data.take("Q3d")
        data.skip(3 + 8)
        track = data.count(8)
        data.skip(track * 8)
        yield x, y, z, track
    data.finish()


def _rows(path: Path, things: str, below: int = 0) -> Iterator[str]:
    """Yield the lines of a text file that hold ``things``, passing over comments and ``below`` lines under each.

    Where a comment gives their number, as COLMAP writes it, that number is checked.
    """
    number, stated = re.compile(rf"# Number of {things}: (\d{{1,18}})\b"), None
    count = passed_over = 0
    for row in io.BytesIO(read_file(path, MAX_BYTES)):
        line = _decoded(row.removesuffix(b"\n"))
        if line.startswith("#"):
            stated = stated or number.match(line)
        elif passed_over:
            passed_over -= 1
        elif line.strip():
            if len(line) > MAX_ROW:
                raise InputError(f"a line of more than {MAX_ROW} letters: export the model again")
            count, passed_over = count + 1, below
            yield line
    if stated and int(stated[1]) != count:
        raise InputError(f"its head says {stated[1]} {things}, {count} follow: export the model again")


def _text_cameras(path: Path) -> Iterator[tuple[int, Camera]]:
    """Yield number and camera: CAMERA_ID MODEL WIDTH HEIGHT PARAMETERS."""
    for line in _rows(path, "cameras"):
        number, model, width, height, *values = _fields(line, 5)
        _check_model(model)
        yield _whole(number), _lens(model, _whole(width), _whole(height), [_float(value) for value in values])


def _text_images(path: Path) -> Iterator[tuple[str, int, Sequence[float]]]:
    """Yield name, camera number and motion: IMAGE_ID QW QX QY QZ TX TY TZ CAMERA_ID NAME; observations below."""
    for line in _rows(path, "images", below=1):
        _, *motion, lens, name = _fields(line, 10, most=10)
        yield name.strip(), _whole(lens), [_float(value) for value in motion]


def _text_points(path: Path) -> Iterator[tuple[float, float, float, int]]:
    """Yield x, y, z and the length of the track: POINT3D_ID X Y Z R G B ERROR (IMAGE_ID POINT2D_IDX)*."""
    for line in _rows(path, "points"):
        _, x, y, z, *rest = _fields(line, 8)
        yield _float(x), _float(y), _float(z), (len(rest) - 4) // 2


def _fields(line: str, least: int, most: int = 0) -> list[str]:
    """Return the words of a line, at least ``least``; the last of ``most`` words is all the rest."""
    words = line.split(maxsplit=most - 1)
    if len(words) < least:
        raise InputError(f"a line of {len(words)} words, {line[:40]!r}, has too few: export the model again")
    return words


def _decoded(content: bytes) -> str:
    try:
        return content.decode()
    except UnicodeDecodeError as error:
        raise InputError("it has text that is not UTF-8: export the model again") from error


def _whole(word: str) -> int:
    if not re.fullmatch(r"\d{1,18}", word):
        raise InputError(f"{word[:40]!r} is no whole number: export the model again")
    return int(word)


def _float(word: str) -> float:
    try:
        return float(word)
    except ValueError as error:
        raise InputError(f"{word[:40]!r} is no number: export the model again") from error
