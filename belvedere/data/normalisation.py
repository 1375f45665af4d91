"""Bringing a reconstructed scene of unknown scale into a unit cube around the origin."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from belvedere.data.cameras import Camera
from belvedere.errors import InputError

CENTRAL = 0.95
"""The share of the points, along each axis, that the box is fitted to."""
LEAST_TRACK = 10
"""In how many pictures a point must have been found to count."""
NEAREST, FARTHEST = 0.001, 0.999
"""Quantiles of the depths that give near and far."""


@dataclass(frozen=True)
class Normalisation:
    """A change of the world's coordinates: (p - centre) * scale. ``near`` and ``far`` are depths after it."""

    centre: tuple[float, float, float]
    scale: float
    near: float
    far: float

    def apply(self, camera: Camera) -> Camera:
        """Return the camera in the new coordinates; what it sees does not change."""
        pose = camera.pose.clone()
        pose[:3, 3] = (camera.position - pose.new_tensor(self.centre)) * self.scale
        return replace(camera, pose=pose)


def normalise_scene(points: Tensor, tracks: Tensor, cameras: Sequence[Camera]) -> Normalisation:
    """Return how the scene of ``points`` (n, 3), found in ``tracks`` (n,) pictures each, comes into the unit cube.

    As NViST prepares MVImgNet (arXiv 2312.08568), after Nerfies: points of long tracks, cut along each axis to the
    central 95 %, and the cameras' centres are brought into a box whose longest side is 1 and whose middle the origin.
    Near and far are 0.9 and 1.1 times the 0.1 % and 99.9 % quantiles, over the pictures, of the same quantiles of the
    depths of the points that a picture shows. Raises ``InputError`` for a scene with too few points for that.
    """
    kept = points[tracks >= LEAST_TRACK].double()
    if not len(kept):
        raise InputError(f"a scene without points found in {LEAST_TRACK} pictures: it cannot be brought to scale")
    outside = (1 - CENTRAL) / 2
    low, high = (torch.from_numpy(np.quantile(kept.numpy(), q, axis=0)) for q in (outside, 1 - outside))
    kept = kept[((kept >= low) & (kept <= high)).all(1)]
    corners = torch.cat([kept, torch.stack([camera.position for camera in cameras])])
    low, high = corners.amin(0), corners.amax(0)
    side = float((high - low).max())
    ranges = [found for camera in cameras if (found := _depth_range(camera, kept)) is not None]
    if not ranges or side <= 0:
        raise InputError("a scene whose pictures show none of its points: it cannot be brought to scale")
    near, far = np.quantile([r[0] for r in ranges], NEAREST), np.quantile([r[1] for r in ranges], FARTHEST)
    centre = tuple(((low + high) / 2).tolist())
    return Normalisation(centre, 1 / side, 0.9 * float(near) / side, 1.1 * float(far) / side)


def _depth_range(camera: Camera, points: Tensor) -> tuple[float, float] | None:
    """Return the nearest and the farthest depth of the points that a picture shows; None when it shows none."""
    pixels, depth = camera.project(points)
    size = torch.tensor([camera.size[1], camera.size[0]])  # x, y
    shown = depth[(depth > 0) & (pixels >= 0).all(1) & (pixels < size).all(1)]
    return tuple(np.quantile(shown.numpy(), (NEAREST, FARTHEST)).tolist()) if len(shown) else None
