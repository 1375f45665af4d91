"""Pinhole cameras with lens distortion: where the rays of a picture run, and where points land in it."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor

from belvedere.errors import InputError
from belvedere.limits import MAX_PIXELS

ORTHONORMAL = 1e-3
"""How far the product of a rotation and its transpose may be from the identity: files round."""
LARGEST = 1e9
"""Of a position, a focal length or a principal point: what float32 still tells from nonsense."""
MAX_VIEWS = 100_000
"""Cameras in one file."""


@dataclass(frozen=True, eq=False)
class Camera:
    """One view of a scene. Camera axes as in OpenCV: x right, y down, z forward.

    Raises ``InputError`` for numbers that are no camera: not finite, no rotation, no positive focal length, a picture
    of no pixels or of more than ``MAX_PIXELS``.
    """

    pose: Tensor
    """Camera to world, (4, 4), float64, on the CPU; its last column is the position."""
    focal: tuple[float, float]
    """Focal lengths (x, y) in pixels."""
    principal: tuple[float, float]
    """Where the optical axis meets the picture, (x, y) in pixels; pixel centres lie at half-integers."""
    size: tuple[int, int]
    """(height, width) of the picture."""
    distortion: tuple[float, ...] = ()
    """OpenCV's k1, k2, p1, p2[, k3]; empty without distortion."""

    def __post_init__(self) -> None:
        _check_pose(self.pose)
        for name in ("focal", "principal", "distortion"):
            object.__setattr__(self, name, _finite(name, getattr(self, name)))
        if len(self.focal) != 2 or len(self.principal) != 2 or len(self.distortion) not in (0, 4, 5):
            raise InputError("a camera has 2 focal lengths, 2 numbers of a principal point, 0, 4 or 5 of a distortion")
        if min(self.focal) <= 0:
            raise InputError(f"camera focal {self.focal}: focal lengths must be positive, in pixels")
        object.__setattr__(self, "size", _checked_size(self.size))

    @property
    def position(self) -> Tensor:
        """The centre of projection in the world (3,), float64."""
        return self.pose[:3, 3]

    def rays(self, pixels: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return origins and directions of the rays through the centres of pixels, in the world, float32.

        (h, w, 3) each; with ``pixels``, int64 (n,), row-major numbers of pixels, (n, 3) each. On the CPU. Directions
        are of unit length: normalised in the camera's axes, then rotated. Raises ``InputError`` where the distortion
        cannot be undone, ``IndexError`` for a pixel outside the picture.
        """
        height, width = self.size
        if pixels is None:
            index = torch.arange(height * width, device="cpu").view(height, width)  # (h, w)
        elif pixels.numel() and not 0 <= int(pixels.min()) <= int(pixels.max()) < height * width:
            raise IndexError(f"pixels must be numbers from 0 to {height * width - 1}")
        else:
            index = pixels.cpu()
        x = (index % width + 0.5).double().sub(self.principal[0]).div(self.focal[0])
        y = (index // width + 0.5).double().sub(self.principal[1]).div(self.focal[1])
        if any(self.distortion):
            x, y = undistort(x, y, self.distortion)
        directions = F.normalize(torch.stack([x, y, torch.ones_like(x)], -1), dim=-1) @ self.pose[:3, :3].T
        return self.position.float().expand(directions.shape), directions.float()

    def project(self, points: Tensor) -> tuple[Tensor, Tensor]:
        """Return where points of the world (..., 3) land: pixels (..., 2) as (x, y), and depths (...) along the axis.

        float64. The pixels of points that are not in front of the camera, of depth 0 or less, mean nothing.
        """
        local = (points.to(self.pose) - self.position) @ self.pose[:3, :3]
        x, y, depth = local.unbind(-1)
        x, y = x / depth, y / depth
        if any(self.distortion):
            x, y = distort(x, y, self.distortion)
        pixels = [x * self.focal[0] + self.principal[0], y * self.focal[1] + self.principal[1]]
        return torch.stack(pixels, -1), depth

    def scaled(self, size: tuple[int, int]) -> "Camera":
        """Return the camera of the picture resized to ``size`` (height, width)."""
        size = _checked_size(size)
        down, across = size[0] / self.size[0], size[1] / self.size[1]
        focal = (self.focal[0] * across, self.focal[1] * down)
        principal = (self.principal[0] * across, self.principal[1] * down)
        return replace(self, focal=focal, principal=principal, size=size)

    def cropped(self, box: tuple[int, int, int, int]) -> "Camera":
        """Return the camera of a part of the picture: ``box`` is (left, upper, right, lower) in pixels, as in Pillow.

        Raises ``InputError`` for a box that is empty or not inside the picture.
        """
        left, upper, right, lower = box
        if not (0 <= left < right <= self.size[1] and 0 <= upper < lower <= self.size[0]):
            raise InputError(f"box {box}: must lie inside a picture of {self.size[1]} x {self.size[0]} pixels")
        principal = (self.principal[0] - left, self.principal[1] - upper)
        return replace(self, principal=principal, size=(lower - upper, right - left))


def flip_axes(pose: Tensor) -> Tensor:
    """Return camera-to-world poses (..., 4, 4) in OpenCV axes (y down, z forward) for OpenGL's (y up, z backward).

    Blender and NeRF have OpenGL's. The world stays as it is; applied twice, nothing changes.
    """
    return pose * pose.new_tensor([1, -1, -1, 1])  # columns are the camera's axes


def invert(pose: Tensor) -> Tensor:
    """Return the inverse of rigid motions (..., 4, 4): camera to world for world to camera, and back."""
    rotation = pose[..., :3, :3].mT
    inverse = torch.eye(4, dtype=pose.dtype, device=pose.device).expand(pose.shape).clone()
    inverse[..., :3, :3] = rotation
    inverse[..., :3, 3:] = -rotation @ pose[..., :3, 3:]
    return inverse


def distort(x: Tensor, y: Tensor, distortion: Sequence[float]) -> tuple[Tensor, Tensor]:
    """Return where a lens puts points of the plane at depth 1: OpenCV's radial and tangential model (Brown 1971)."""
    radial, dx, dy = _lens(x, y, distortion)
    return x * radial + dx, y * radial + dy


def undistort(x: Tensor, y: Tensor, distortion: Sequence[float]) -> tuple[Tensor, Tensor]:
    """Return the points that ``distort`` brings to (x, y), by fixed-point iteration.

    Raises ``InputError`` where there are none to within 1e-6: beyond the radius at which the model folds over.
    """
    undone_x, undone_y = x, y
    for _ in range(100):
        radial, dx, dy = _lens(undone_x, undone_y, distortion)
        before = undone_x, undone_y
        undone_x, undone_y = (x - dx) / radial, (y - dy) / radial
        if max(_largest(undone_x - before[0]), _largest(undone_y - before[1])) < 1e-12:
            break
    again_x, again_y = distort(undone_x, undone_y, distortion)
    if not max(_largest(again_x - x), _largest(again_y - y)) < 1e-6:  # NaN too
        raise InputError(f"camera distortion {tuple(distortion)} folds the picture over: undistort the pictures first")
    return undone_x, undone_y


def _largest(x: Tensor) -> float:
    return float(x.abs().max()) if x.numel() else 0.0


def _lens(x: Tensor, y: Tensor, distortion: Sequence[float]) -> tuple[Tensor, Tensor, Tensor]:
    """Return the radial factor and the tangential shifts at points of the plane at depth 1."""
    k1, k2, p1, p2, k3 = (*distortion, 0.0)[:5]
    square = x * x + y * y
    radial = 1 + square * (k1 + square * (k2 + square * k3))
    dx = 2 * p1 * x * y + p2 * (square + 2 * x * x)
    dy = p1 * (square + 2 * y * y) + 2 * p2 * x * y
    return radial, dx, dy


def _check_pose(pose: Tensor) -> None:
    if not isinstance(pose, Tensor) or pose.shape != (4, 4) or (pose.dtype, pose.device.type) != (torch.float64, "cpu"):
        raise InputError("a camera's pose must be a tensor (4, 4) of float64 on the CPU")
    x, y, z, last = pose.tolist()  # plain numbers: a model has many cameras, and small tensors are slow
    if not all(abs(value) <= LARGEST for value in (*x, *y, *z)):  # NaN too
        raise InputError(f"a camera's pose must have finite numbers, none beyond {LARGEST:g}")
    x, y, z = x[:3], y[:3], z[:3]
    products = [sum(a * b for a, b in zip(u, v, strict=True)) for u, v in combinations((x, y, z), 2)]
    squares = [sum(a * a for a in u) - 1 for u in (x, y, z)]
    volume = sum(x[i] * (y[i - 2] * z[i - 1] - y[i - 1] * z[i - 2]) for i in range(3))
    if max(map(abs, products + squares)) > ORTHONORMAL or volume < 0:
        raise InputError("a camera's pose must have a rotation in its first 3 x 3 numbers: no scale, shear or mirror")
    if last != [0, 0, 0, 1]:
        raise InputError("a camera's pose must end with the row 0, 0, 0, 1")


def _finite(name: str, values: Sequence[float]) -> tuple[float, ...]:
    numbers = tuple(float(value) for value in values)
    if not all(math.isfinite(number) and abs(number) <= LARGEST for number in numbers):
        raise InputError(f"camera {name} {numbers}: numbers must be finite and none beyond {LARGEST:g}")
    return numbers


def _checked_size(size: tuple[int, int]) -> tuple[int, int]:
    """Return (height, width) as it is; raises ``InputError`` for no pixels, or more than ``MAX_PIXELS``."""
    if len(size) != 2 or not all(isinstance(side, int) and side >= 1 for side in size):
        raise InputError(f"size {size!r}: give whole (height, width) of at least 1 pixel")
    if size[0] * size[1] > MAX_PIXELS:
        raise InputError(f"a view of {size[1]} x {size[0]} pixels: at most {MAX_PIXELS} allowed")
    return cast(tuple[int, int], tuple(size))
