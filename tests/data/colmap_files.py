"""Writes small COLMAP models, text and binary, for tests that read them."""

import struct
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from belvedere.data.cameras import Camera, invert
from belvedere.data.rotations import quaternion_from_matrix

NUMBERS = {
    "SIMPLE_PINHOLE": 0,
    "PINHOLE": 1,
    "SIMPLE_RADIAL": 2,
    "RADIAL": 3,
    "OPENCV": 4,
    "OPENCV_FISHEYE": 5,
    "FOV": 7,
}


class Lens(NamedTuple):
    """A line of cameras.txt."""

    model: str
    width: int
    height: int
    params: Sequence[float]


class View(NamedTuple):
    """A line of images.txt."""

    name: str
    lens: int
    pose: Tensor
    """Camera to world (4, 4)."""
    seen: int = 2
    """How many observations follow."""


def motion(pose: Tensor) -> list[float]:
    """Return quaternion and translation, world to camera."""
    inverse = invert(pose)
    return [*quaternion_from_matrix(inverse[:3, :3]).tolist(), *inverse[:3, 3].tolist()]


def write_model(
    folder: Path, lenses: Mapping[int, Lens], views: Sequence[View], points: Tensor, tracks: Sequence[int], form: str
) -> None:
    """Write cameras, images and points3D to ``folder``; ``form`` is "bin" or "txt"."""
    folder.mkdir(parents=True, exist_ok=True)
    write = {"bin": _binary, "txt": _text}[form]
    for name, content in write(lenses, views, points, tracks).items():
        (folder / f"{name}.{form}").write_bytes(content)


def write_pinholes(folder: Path, cameras: Mapping[str, Camera], points: Tensor, tracks: int, form: str = "bin") -> None:
    """Write a model of cameras without distortion, each with a lens of its own."""
    lenses = {
        number: Lens("PINHOLE", camera.size[1], camera.size[0], [*camera.focal, *camera.principal])
        for number, camera in enumerate(cameras.values(), 1)
    }
    views = [View(name, number, camera.pose) for number, (name, camera) in enumerate(cameras.items(), 1)]
    write_model(folder, lenses, views, points, [tracks] * len(points), form)


def _binary(
    lenses: Mapping[int, Lens], views: Sequence[View], points: Tensor, tracks: Sequence[int]
) -> dict[str, bytes]:
    cameras = struct.pack("<Q", len(lenses))
    for number, lens in lenses.items():
        cameras += struct.pack("<IiQQ", number, NUMBERS[lens.model], lens.width, lens.height)
        cameras += struct.pack(f"<{len(lens.params)}d", *lens.params)
    images = struct.pack("<Q", len(views))
    for number, view in enumerate(views, 1):
        images += struct.pack("<I7dI", number, *motion(view.pose), view.lens) + view.name.encode() + b"\0"
        images += struct.pack("<Q", view.seen) + struct.pack("<ddq", 1.5, 2.5, -1) * view.seen
    cloud = struct.pack("<Q", len(points))
    for number, (point, track) in enumerate(zip(points.tolist(), tracks, strict=True), 1):
        cloud += struct.pack("<Q3d3Bd", number, *point, 10, 20, 30, 0.5)
        cloud += struct.pack("<Q", track) + struct.pack("<ii", 1, 0) * track
    return {"cameras": cameras, "images": images, "points3D": cloud}


def _text(lenses: Mapping[int, Lens], views: Sequence[View], points: Tensor, tracks: Sequence[int]) -> dict[str, bytes]:
    cameras = [f"# Camera list\n# Number of cameras: {len(lenses)}"]
    cameras += [f"{n} {lens.model} {lens.width} {lens.height} {_words(lens.params)}" for n, lens in lenses.items()]
    images = [f"# Image list\n# Number of images: {len(views)}, mean observations per image: 2"]
    for number, view in enumerate(views, 1):
        images += [f"{number} {_words(motion(view.pose))} {view.lens} {view.name}", "1.5 2.5 -1 " * view.seen]
    cloud = [f"# 3D point list\n# Number of points: {len(points)}, mean track length: 3"]
    for number, (point, track) in enumerate(zip(points.tolist(), tracks, strict=True), 1):
        cloud.append(f"{number} {_words(point)} 10 20 30 0.5 {'1 0 ' * track}".rstrip())
    files = {"cameras": cameras, "images": images, "points3D": cloud}
    return {name: "\n".join([*lines, ""]).encode() for name, lines in files.items()}


def _words(values: Sequence[float]) -> str:
    return " ".join(map(repr, values))


def turned(x: float, y: float, z: float, position: Sequence[float]) -> Tensor:
    """Return a pose turned by the exponential of (x, y, z), radians, at ``position``."""
    pose = torch.eye(4, dtype=torch.float64)
    pose[:3, :3] = torch.linalg.matrix_exp(torch.tensor([[0, -z, y], [z, 0, -x], [-y, x, 0]], dtype=torch.float64))
    pose[:3, 3] = torch.tensor(position)
    return pose
