"""Where a field is not empty: its density at the centres of texels says all about the density between them.

A plane is bilinear between the centres of its texels, a line linear, and all have the same centres along each axis. So
their products, and sums of them over channels and planes, are trilinear between the centres: the density before its
ReLU is the interpolation of its values at the centres, here called nodes, with one more node at either end for what is
outside. Nothing is lost but rounding; in particular, density is 0 between nodes of which none is positive.
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from belvedere.errors import InputError
from belvedere.synthesis.field import Field

MAX_NODES = 2**24
"""Above it (254 texels an axis) density comes from planes and lines themselves."""
PRODUCTS = ("bcyx,bcz->bzyx", "bcxz,bcy->bzyx", "bczy,bcx->bzyx")
"""Each plane times its line, summed over channels."""


def node_count(field: Field) -> int:
    """Return how many nodes a scene of the field has."""
    return (field.resolution + 2) ** 3


def density_nodes(field: Field) -> Tensor:
    """Return the density before the ReLU at all nodes: (b, r + 2, r + 2, r + 2), z by y by x, float32; differentiable.

    Along each axis node j lies at half_side ((2 j - 1) / r - 1).
    """
    count, decoder = field.decoder.sizes["density"], field.decoder
    with torch.autocast(field.device.type, enabled=False):
        if field.lines is not None:
            lines = _with_ring(field.lines[:, :, :count], 1, field.padding)
        else:  # lines that are constant: what each channel of the planes counts
            weight = decoder.density_out.weight.view(1, 3, count, 1)
            lines = weight.expand(field.scenes, -1, -1, field.resolution + 2)  # (b, 3, c, r + 2)
        if field.planes is None:
            return torch.einsum("bcz,bcy,bcx->bzyx", *lines.unbind(1))
        planes = _with_ring(field.planes[:, :, :count], 2, field.padding)
        triples = zip(PRODUCTS, planes.unbind(1), lines.unbind(1), strict=True)
        nodes = torch.stack([torch.einsum(*triple) for triple in triples]).sum(0)
        return nodes if decoder.form != "triplane" else nodes + decoder.density_out.bias


def _with_ring(grid: Tensor, axes: int, padding: str) -> Tensor:
    """Return a grid (b, 3, c, ...) with one more node at either end of its last axes."""
    mode = "constant" if padding == "zeros" else "replicate"
    return F.pad(grid.flatten(0, 1).float(), (1, 1) * axes, mode=mode).unflatten(0, (-1, 3))


def interpolate(nodes: Tensor, points: Tensor, field: Field) -> Tensor:
    """Return the density (b, n), with its ReLU, at ``points`` (b, n, 3), of ``nodes`` as ``density_nodes`` gives them.

    Differentiable in the nodes. Without gradients, b rows of points may share the nodes of one scene.
    """
    places = points.detach().to(nodes) / (field.half_side * (1 + 1 / field.resolution))  # the outer nodes at -1 and 1
    volumes = nodes.unsqueeze(1).expand(len(points), -1, -1, -1, -1)  # (b, 1, z, y, x)
    grid = places[:, :, None, None]  # (b, n, 1, 1, 3)
    return F.relu(F.grid_sample(volumes, grid, padding_mode="border", align_corners=True).flatten(1))


@dataclass(frozen=True, eq=False)
class Occupancy:
    """The density of one scene, made to be asked often, and the box outside which it is 0. No gradients."""

    field: Field
    nodes: Tensor | None
    """(1, r + 2, r + 2, r + 2), see ``density_nodes``; None above ``MAX_NODES``."""
    lower: Tensor
    """The box's corner (3,), x y z; -inf where there is no end to the density; above ``upper`` where there is none."""
    upper: Tensor
    """The opposite corner (3,)."""

    @classmethod
    @torch.no_grad()
    def of(cls, field: Field) -> "Occupancy":
        """Return that of a field of one scene; raises ``InputError`` for more. It does not follow later changes."""
        if field.scenes != 1:
            raise InputError(f"a field of {field.scenes} scenes: choose one of them with field.scene(i)")
        if node_count(field) <= MAX_NODES:
            nodes = density_nodes(field)
            return cls(field, nodes, *_bounds(nodes[0] > 0, field))
        ends = field.padding == "zeros" and field.decoder.form != "triplane"
        side = field.half_side * (1 + 1 / field.resolution) if ends else math.inf
        upper = torch.full((3,), side, device=field.device)
        return cls(field, None, -upper, upper)

    @torch.no_grad()
    def density(self, points: Tensor) -> Tensor:
        """Return the density (n, s) at ``points`` (n, s, 3)."""
        if self.nodes is None:
            return self.field.density(points.view(1, -1, 3)).view(points.shape[:2])
        return interpolate(self.nodes, points, self.field)  # each ray a row of a batch: rows run on all cores

    def crossing(self, origins: Tensor, directions: Tensor) -> tuple[Tensor, Tensor]:
        """Return the distances (n,) at which rays, both (n, 3), enter the box and leave it; enter > leave: they miss.

        Kay and Kajiya, "Ray tracing complex scenes", 1986. Distances are NaN for a ray inside one of the faces.
        """
        directions = directions + 0.0  # -0 becomes 0
        forward = directions >= 0
        enter = (torch.where(forward, self.lower, self.upper) - origins) / directions
        leave = (torch.where(forward, self.upper, self.lower) - origins) / directions
        return enter.amax(-1), leave.amin(-1)


def _bounds(positive: Tensor, field: Field) -> tuple[Tensor, Tensor]:
    """Return the corners (3,), x y z, of the box around the cells that touch a positive node (z, y, x)."""
    r, corners = field.resolution, []
    for others in ((0, 1), (0, 2), (1, 2)):  # than x, y and z
        nodes = positive.any(others[1]).any(others[0]).nonzero().flatten().tolist() or [math.inf, -math.inf]
        before, after = (field.half_side * ((2 * j - 1) / r - 1) for j in (nodes[0] - 1, nodes[-1] + 1))
        corners.append((-math.inf if nodes[0] == 0 else before, math.inf if nodes[-1] == r + 1 else after))
    lower, upper = zip(*corners, strict=True)
    return torch.tensor(lower, device=field.device), torch.tensor(upper, device=field.device)
