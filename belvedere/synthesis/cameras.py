"""What a network that sees one view of a scene is told about cameras: poses relative to its own, distance, focal."""

import math
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from belvedere.data.cameras import Camera
from belvedere.errors import InputError

__all__ = ["Camera", "conditions", "input_camera", "relative_cameras", "relative_poses"]


def relative_poses(poses: Tensor, input_index: int = 0) -> Tensor:
    """Return the poses of a scene's views (..., n, 4, 4) in the frame of one of them, the input view.

    Both are camera to world. The scene turns so that the input camera looks along +z from (0, 0, -d) without rotation,
    d being its distance from the origin of the scene (NViST, arXiv 2312.08568, as its released code has it):
    M = [R^T | (0, 0, -d) - R^T T] with R and T of the input view, times each pose.
    """
    pose = poses[..., input_index, :, :]
    rotation, position = pose[..., :3, :3].mT, pose[..., :3, 3:]
    motion = torch.eye(4, dtype=poses.dtype, device=poses.device).expand(pose.shape).clone()
    motion[..., :3, :3] = rotation
    motion[..., :3, 3:] = -rotation @ position
    motion[..., 2, 3] -= position.norm(dim=(-2, -1))
    return motion[..., None, :, :] @ poses  # (..., n, 4, 4)


def relative_cameras(cameras: Sequence[Camera], input_index: int = 0) -> list[Camera]:
    """Return the cameras of a scene in the frame of the input view; see ``relative_poses``."""
    poses = relative_poses(torch.stack([camera.pose for camera in cameras]), input_index)
    return [replace(camera, pose=pose) for camera, pose in zip(cameras, poses, strict=True)]


def conditions(cameras: Sequence[Camera]) -> Tensor:
    """Return what the decoder is told of input cameras: (b, 2), float32.

    The distance to the origin of the scene, and the vertical focal length as a share of the picture's height. Neither
    changes in ``relative_cameras``, nor when the picture is resized.
    """
    rows = [[float(camera.position.norm()), camera.focal[1] / camera.size[0]] for camera in cameras]
    return torch.tensor(rows, dtype=torch.float32, device="cpu").view(-1, 2)


def input_camera(size: tuple[int, int], *, distance: float, fov: float) -> Camera:
    """Return the camera of a single photograph of ``size`` (height, width), whose pose nobody measured.

    It looks along +z from (0, 0, -distance); ``fov`` is the vertical field of view in degrees, above 0 and below 180.
    Raises ``InputError`` for other numbers.
    """
    if not 0 < distance < math.inf:
        raise InputError(f"camera distance {distance}: must be above 0, in units of the scene's box")
    pose = torch.eye(4, dtype=torch.float64, device="cpu")
    pose[2, 3] = -distance
    focal = focal_of(fov, size[0])
    return Camera(pose, (focal, focal), (size[1] / 2, size[0] / 2), size)


def focal_of(fov: float, side: float) -> float:
    """Return the focal length in pixels at which ``side`` pixels fill a field of view of ``fov`` degrees."""
    if not 0 < fov < 180:
        raise InputError(f"field of view {fov}: must be above 0 and below 180 degrees")
    return side / 2 / math.tan(math.radians(fov) / 2)
