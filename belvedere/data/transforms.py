"""Cameras from ``transforms.json``: the format of NeRF's Blender scenes, instant-ngp and Nerfstudio."""

import math
from collections import ChainMap
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from belvedere.data.cameras import MAX_VIEWS, Camera, flip_axes
from belvedere.data.reading import matrix, naming, number, read_json
from belvedere.errors import InputError

MODELS = ("SIMPLE_PINHOLE", "PINHOLE", "SIMPLE_RADIAL", "RADIAL", "OPENCV")


def read_transforms(path: Path, size_of: Callable[[str], tuple[int, int]]) -> dict[str, Camera]:
    """Return the camera of each picture that a file names, by its ``file_path``.

    Intrinsics are those of the file, or of the frame where it has its own: ``w``, ``h``; ``fl_x``, ``fl_y`` or
    ``camera_angle_x``, ``camera_angle_y``; ``cx``, ``cy`` (default: the centre); ``k1``, ``k2``, ``p1``, ``p2``,
    ``k3``. A file without ``w`` and ``h`` has pictures of one size: ``size_of`` gives the (height, width) of the
    first. ``transform_matrix`` is camera to world in OpenGL's axes. Raises ``InputError`` for anything else.
    """
    content = read_json(path)
    frames = content.get("frames") if isinstance(content, dict) else None
    if not isinstance(frames, list) or not frames or not all(isinstance(frame, dict) for frame in frames):
        raise InputError(f"{path} lists no views: it needs 'frames', a list of objects")
    if len(frames) > MAX_VIEWS:
        raise InputError(f"{path} lists {len(frames)} views: at most {MAX_VIEWS} allowed")
    cameras: dict[str, Camera] = {}
    size: tuple[int, int] | None = None
    for count, frame in enumerate(frames):
        name, fields = frame.get("file_path"), ChainMap({}, frame, content)
        with naming(f"{path}, frame {count}"):
            if not isinstance(name, str) or name in cameras:
                raise InputError("file_path must name a picture, and no other frame the same")
            if "w" not in fields or "h" not in fields:
                size = size or size_of(name)
                fields |= {"h": size[0], "w": size[1]}
            cameras[name] = _camera(fields)
    return cameras


def _camera(fields: Mapping[str, Any]) -> Camera:
    model = "a fisheye" if fields.get("is_fisheye") else fields.get("camera_model", "OPENCV")
    if model not in MODELS:
        raise InputError(f"camera_model {str(model)[:40]} is not read: undistort the pictures to PINHOLE")
    height, width = _pixels(fields, "h"), _pixels(fields, "w")
    focal_x, focal_y = _focal(fields, "x", width), _focal(fields, "y", height)
    if focal_x is None:
        raise InputError("no focal length: give fl_x in pixels or camera_angle_x in radians")
    focal = (focal_x, focal_x if focal_y is None else focal_y)
    principal = (number(fields, "cx", width / 2), number(fields, "cy", height / 2))
    k1, k2, p1, p2, k3, k4 = (number(fields, key, 0.0) for key in ("k1", "k2", "p1", "p2", "k3", "k4"))
    if k4:
        raise InputError("distortion k4 is not read: undistort the pictures")
    pose = flip_axes(matrix(fields.get("transform_matrix"), "transform_matrix"))
    distortion = (k1, k2, p1, p2, k3) if any((k1, k2, p1, p2, k3)) else ()
    return Camera(pose, focal, principal, (height, width), distortion)


def _focal(fields: Mapping[str, Any], axis: str, side: int) -> float | None:
    """Return the focal length along an axis in pixels; None where the file has none."""
    if f"fl_{axis}" in fields:
        return number(fields, f"fl_{axis}")
    if f"camera_angle_{axis}" not in fields:
        return None
    angle = number(fields, f"camera_angle_{axis}")
    if not 0 < angle < math.pi:
        raise InputError(f"camera_angle_{axis} must be above 0 and below pi, in radians, not {angle}")
    return side / 2 / math.tan(angle / 2)


def _pixels(fields: Mapping[str, Any], key: str) -> int:
    """Return a number of pixels; scripts write 1080.0 for 1080."""
    value = number(fields, key)
    if value != int(value):
        raise InputError(f"{key} must be a whole number of pixels, not {value}")
    return int(value)
