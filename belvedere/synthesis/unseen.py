"""Where a view shows what the input photograph gave no evidence of: made up by the network, not seen.

A point of the view was seen when it lies in the input picture and nothing the input shows is in front of it. It is the
test of shadow maps (Williams, SIGGRAPH 1978), with the input camera in the place of the light.
"""

import math

import torch
from torch import Tensor

from belvedere.data.cameras import Camera
from belvedere.errors import InputError
from belvedere.synthesis.render import Rendered

TOLERANCE = 0.05
"""How far behind what the input shows a point still counts as shown: 1.5 texels of NViST's 48 in a box of 1.6."""


def surface_depth(view: Rendered, opaque: float = 0.5) -> Tensor:
    """Return the distance (h, w) of what a view shows, along its rays: infinity where its opacity is below ``opaque``.

    It is the mean of what is seen: the view's depth by its opacity.
    """
    return torch.where(view.opacity >= opaque, view.depth / view.opacity, math.inf)


def unseen(
    view: Rendered, camera: Camera, input_depth: Tensor, input_camera: Camera, tolerance: float = TOLERANCE
) -> Tensor:
    """Return how much of each pixel (h, w) of a view the input gave no evidence of: 0 none, 1 all of it.

    ``view`` is what ``camera`` sees; ``input_depth``, of the input camera's size, ``surface_depth`` of what the input
    camera sees of the same field. What lies outside the input picture is unseen, with an edge of a pixel; so is what is
    behind its surface, from ``tolerance`` on (in the scene's unit of length) to twice that. Each pixel asks the four
    input pixels around (percentage-closer filtering: Reeves et al., SIGGRAPH 1987). The map is multiplied by the
    view's opacity: where nothing is shown, nothing is made up. Raises ``InputError`` for maps of other sizes.
    """
    for name, values, one in (("a view", view.depth, camera), ("the input depth", input_depth, input_camera)):
        if values.shape != one.size:
            raise InputError(f"{name} of {tuple(values.shape)} pixels for a camera of {one.size}: give its own")
    if not 0 < tolerance < math.inf:
        raise InputError(f"tolerance {tolerance} of what is unseen: must be above 0")
    origins, directions = (rays.to(view.depth) for rays in camera.rays())
    distance = view.depth / view.opacity.clamp(min=torch.finfo(view.opacity.dtype).tiny)
    points = (origins + directions * distance.unsqueeze(-1)).cpu()
    seen = _evidence(points.double(), input_depth.detach().cpu().double(), input_camera, tolerance)
    return (1 - seen).to(view.opacity) * view.opacity


def _evidence(points: Tensor, depth: Tensor, camera: Camera, tolerance: float) -> Tensor:
    """Return how well points (h, w, 3) are seen by a camera whose surface has this depth: (h, w) in [0, 1]."""
    height, width = camera.size
    pixels, along = camera.project(points)
    distance = (points - camera.position).norm(dim=-1)
    outside = -2.0
    places = torch.where((along > 0).unsqueeze(-1), pixels - 0.5, outside).nan_to_num(outside)
    x, y = (place.clamp(-2, side) for place, side in zip(places.unbind(-1), (width, height), strict=True))
    left, upper = x.floor(), y.floor()
    seen = torch.zeros_like(distance)
    for column, row in ((left, upper), (left + 1, upper), (left, upper + 1), (left + 1, upper + 1)):
        inside = (column >= 0) & (column < width) & (row >= 0) & (row < height)
        surface = depth[row.clamp(0, height - 1).long(), column.clamp(0, width - 1).long()]
        shown = (2 - (distance - surface) / tolerance).clamp(0, 1)
        seen += inside * shown * (1 - (x - column).abs()) * (1 - (y - row).abs())
    return seen
