"""How steeply the camera of a scene looks down, by the ground in it: most of what it sees lies there, little below."""

import torch
from torch import Tensor

from belvedere.data.cameras import Camera
from belvedere.synthesis.field import Field
from belvedere.synthesis.render import render_view
from belvedere.synthesis.unseen import surface_depth

PITCHES = (-5.0, 70.0, 0.5)
"""Degrees that are tried: first, last, step."""
BINS = 400
"""Of heights, from the camera's distance above the origin to that below it."""
THICKNESS = 5
"""Of the ground, in bins: 2.5 % of the camera's distance."""
SHARE = 0.25
"""Of all points that the ground has to hold, less those below it."""
SOLID = 0.9
"""The opacity from which a pixel shows a surface."""


def find_pitch(field: Field, camera: Camera, *, near: float, far: float, samples: int) -> float | None:
    """Return by how many degrees ``camera`` looks down at the ground of a field of one scene; None without a ground.

    The field is in the camera's own axes, as NViST makes it. ``near``, ``far``, ``samples``: see ``render_view``.
    """
    with torch.no_grad():
        view = render_view(field, camera, near=near, far=far, samples=samples)
    depth = surface_depth(view, SOLID).cpu()
    origins, directions = (rays.cpu().float() for rays in camera.rays())
    seen = depth.isfinite()
    return ground_pitch(origins[seen] + directions[seen] * depth[seen].unsqueeze(-1), float(camera.position.norm()))


def ground_pitch(points: Tensor, distance: float) -> float | None:
    """Return by how many degrees a camera looks down at the plane that most of the ``points`` (n, 3) lie on.

    Axes are those of a level camera, x right, y down, z forward, but around the point ``distance`` in front of it. Of
    all layers of every pitch the ground is the one that holds most points less those below it; None where those are
    too few to be one.
    """
    first, last, step = PITCHES
    pitches = torch.arange(first, last + step / 2, step, device=points.device)
    angles = pitches.deg2rad()
    down = points[:, 1, None] * angles.cos() + points[:, 2, None] * angles.sin()  # (n, p)
    bins = ((down / distance + 1) * (BINS / 2)).long().clamp(0, BINS - 1)
    rows = torch.arange(len(pitches), device=points.device) * BINS
    counts = torch.bincount((bins + rows).flatten(), minlength=len(pitches) * BINS).view(len(pitches), BINS)
    layers = counts.unfold(1, THICKNESS, 1).sum(-1)  # (p, BINS - THICKNESS + 1)
    below = counts.sum(1, keepdim=True) - counts.cumsum(1)[:, THICKNESS - 1 :]
    best, pitch = (layers - below).amax(1).max(0)
    return float(pitches[pitch]) if best > SHARE * len(points) else None
