"""Paths for a camera that leaves the input view: orbit, spiral, keyframes, and paths written in a file.

All are lists of cameras in the frame of the input view (``belvedere.synthesis.cameras.relative_poses``): the scene
around the origin, x to the right, y down, the input camera at (0, 0, -d) looking along +z.
"""

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from belvedere.data.cameras import Camera
from belvedere.data.reading import matrix, naming, number, read_json, vector
from belvedere.data.rotations import slerp
from belvedere.errors import InputError
from belvedere.synthesis.cameras import focal_of

MAX_FRAMES = 10_000
"""Of a path: more than five minutes of film."""
UP = (0.0, -1.0, 0.0)
_MAX_BYTES = 8 << 20
"""Of a file of cameras."""


def orbit(
    camera: Camera,
    frames: int,
    *,
    start: float = 0.0,
    stop: float = 360.0,
    elevation: float = 0.0,
    pitch: float = 0.0,
) -> list[Camera]:
    """Return ``frames`` cameras on a circle: ``camera`` carried around the vertical axis through the origin.

    Angles in degrees: from ``start`` to ``stop``, both included unless they are whole turns apart, positive to the
    right; ``elevation`` above ``camera``, positive upwards. ``pitch``: how far ``camera`` looks down, so that the axis
    is the scene's vertical and not the picture's; with ``elevation`` from -90 to 90. At angle 0 and elevation 0 it is
    ``camera`` itself, the input view. Raises ``InputError`` for other angles, or a number of frames not from 1 to
    ``MAX_FRAMES``.
    """
    _check_frames(frames)
    if not all(math.isfinite(angle) and abs(angle) <= 36_000 for angle in (start, stop)):
        raise InputError(f"orbit from {start} to {stop}: angles are degrees, 36000 at most")
    if not (-90 <= pitch <= 90 and -90 <= pitch + elevation <= 90):
        above = f" above a camera that looks down by {pitch:.3g}" if pitch else ""
        raise InputError(f"orbit elevation {elevation}{above}: must be from -90 to 90 degrees in all")
    closed = start != stop and math.remainder(stop - start, 360) == 0
    upright, raised = _turn(0, pitch), _turn(0, -pitch - elevation)  # y is down
    poses = [upright @ _turn(1, -angle) @ raised @ camera.pose for angle in _steps(start, stop, frames, closed)]
    return [replace(camera, pose=pose) for pose in poses]


def spiral(camera: Camera, frames: int, *, turns: float = 2.0, radius: float = 0.2) -> list[Camera]:
    """Return ``frames`` cameras that wind out of the input view and back, all looking at the origin.

    They keep to the plane through ``camera``; ``radius``, the farthest from it, is a share of the distance d to the
    origin, above 0 and at most 10; ``turns`` from -100 to 100. The first is the input view, the last one step before
    it, so that the film repeats without a halt. Raises ``InputError`` for other numbers.
    """
    _check_frames(frames)
    if not (0 < radius <= 10 and abs(turns) <= 100):
        raise InputError(
            f"spiral of {turns} turns, radius {radius}: at most 100 turns, a radius above 0 and at most 10"
        )
    poses = []
    for t in _steps(0.0, 1.0, frames, closed=True):
        out = radius * float(camera.position.norm()) * math.sin(math.pi * t)
        angle = 2 * math.pi * turns * t
        aside = camera.position.new_tensor([out * math.cos(angle), out * math.sin(angle), 0.0])
        poses.append(look_at(camera.position + aside, camera.position.new_zeros(3)))
    return [replace(camera, pose=pose) for pose in poses]


def look_at(position: Tensor, target: Tensor, up: Sequence[float] = UP) -> Tensor:
    """Return the pose (4, 4), float64, of a camera at ``position`` (3,) that looks at ``target`` (3,).

    ``up`` is the direction that is upwards in its picture. Raises ``InputError`` when the direction of view is none, or
    along ``up``.
    """
    position, target = position.double(), target.double()
    forward = target - position
    right = torch.linalg.cross(forward, position.new_tensor(up))
    if not float(right.norm()) > 1e-9 * float(forward.norm()):
        raise InputError("a camera must look away from itself, and neither straight up nor down: move it or its target")
    forward, right = forward / forward.norm(), right / right.norm()
    pose = torch.eye(4, dtype=torch.float64, device="cpu")
    pose[:3] = torch.stack([right, torch.linalg.cross(forward, right), forward, position], 1)
    return pose


def interpolate(keyframes: Sequence[Camera], frames: int, *, smooth: bool = True) -> list[Camera]:
    """Return ``frames`` cameras from the first of ``keyframes`` to the last, as long between any two neighbours.

    Rotations by slerp, focal lengths and principal points linearly, positions on a Catmull-Rom spline (1974) through
    those of the keyframes, or with ``smooth`` False along straight lines. Raises ``InputError`` for fewer than two
    keyframes, or ones whose pictures or distortions differ.
    """
    _check_frames(frames)
    if len(keyframes) < 2:
        raise InputError(f"a path of {len(keyframes)} keyframes: give two or more")
    if len({(camera.size, camera.distortion) for camera in keyframes}) > 1:
        raise InputError("keyframes of several picture sizes or distortions: give them all the same")
    points, curve = torch.stack([camera.position for camera in keyframes]), _catmull_rom if smooth else _linear
    cameras = []
    for time in _steps(0.0, len(keyframes) - 1.0, frames):
        index = min(int(time), len(keyframes) - 2)
        position = curve(points, index, time - index)
        cameras.append(_between(keyframes[index], keyframes[index + 1], time - index, position))
    return cameras


def read_path(path: Path, camera: Camera) -> list[Camera]:
    """Return the cameras in a JSON file, a list of objects; picture and lens are those of ``camera``, the input view's.

    Each has ``position`` and ``look_at``, lists of three numbers, or ``pose``, the 4 x 4 rows of camera to world; and
    may have ``fov``, the vertical field of view in degrees. Raises ``InputError`` naming the place of anything else.
    """
    content = read_json(path, limit=_MAX_BYTES, items=40 * MAX_FRAMES)
    if not isinstance(content, list) or not 1 <= len(content) <= MAX_FRAMES:
        raise InputError(f"{path} is no path: it must be a list of 1 to {MAX_FRAMES} cameras")
    cameras = []
    for count, fields in enumerate(content):
        with naming(f"{path}, camera {count}"):
            cameras.append(_read(fields, camera))
    return cameras


def _read(fields: Any, camera: Camera) -> Camera:
    known = ({"pose"}, {"position", "look_at"})
    if not isinstance(fields, dict) or fields.keys() - {"fov"} not in known:
        raise InputError("must be an object with 'pose', or 'position' and 'look_at', and may have 'fov'")
    if "pose" in fields:
        pose = matrix(fields["pose"], "pose")
    else:
        pose = look_at(vector(fields["position"], 3, "position"), vector(fields["look_at"], 3, "look_at"))
    focal = camera.focal
    if "fov" in fields:
        vertical = focal_of(number(fields, "fov"), camera.size[0])
        focal = (focal[0] / focal[1] * vertical, vertical)
    return replace(camera, pose=pose, focal=focal)


def _check_frames(frames: int) -> None:
    if not 1 <= frames <= MAX_FRAMES:
        raise InputError(f"a path of {frames} frames: give 1 to {MAX_FRAMES}")


def _steps(start: float, stop: float, frames: int, closed: bool = False) -> list[float]:
    """Return ``frames`` numbers from ``start`` to ``stop`` at equal distances; without ``stop`` when ``closed``."""
    last = frames if closed else max(1, frames - 1)
    return [start + (stop - start) * step / last for step in range(frames)]


def _turn(axis: int, degrees: float) -> Tensor:
    """Return the motion (4, 4) that turns about the x axis (0) or the y axis (1)."""
    cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    motion = torch.eye(4, dtype=torch.float64, device="cpu")
    first, second = ((1, 2), (2, 0))[axis]
    motion[first, first], motion[first, second], motion[second, first], motion[second, second] = cos, -sin, sin, cos
    return motion


def _between(a: Camera, b: Camera, t: float, position: Tensor) -> Camera:
    """Return the camera a share ``t`` of the way from one to another, at ``position``."""
    pose = a.pose.clone()
    pose[:3, :3], pose[:3, 3] = slerp(a.pose[:3, :3], b.pose[:3, :3], t), position
    focal = (_mix(a.focal[0], b.focal[0], t), _mix(a.focal[1], b.focal[1], t))
    principal = (_mix(a.principal[0], b.principal[0], t), _mix(a.principal[1], b.principal[1], t))
    return replace(a, pose=pose, focal=focal, principal=principal)


def _mix(a: float, b: float, t: float) -> float:
    return (1 - t) * a + t * b


def _linear(points: Tensor, index: int, t: float) -> Tensor:
    return (1 - t) * points[index] + t * points[index + 1]


def _catmull_rom(points: Tensor, index: int, t: float) -> Tensor:
    """Return a point of the uniform spline through ``points`` (n, 3), whose ends are continued in a straight line."""
    b, c = points[index], points[index + 1]
    a = points[index - 1] if index > 0 else 2 * b - c
    d = points[index + 2] if index + 2 < len(points) else 2 * c - b
    return b + 0.5 * t * (c - a + t * (2 * a - 5 * b + 4 * c - d + t * (3 * (b - c) + d - a)))
