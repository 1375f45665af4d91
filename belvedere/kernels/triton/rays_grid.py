"""A factored volume in registers: features of points read from its texels, and their gradients added to those.

Tables hold planes and lines with a ring of what is outside around them, channels last: the channels of a texel lie side
by side.
"""

import torch.nn.functional as F
import triton.language as tl
from torch import Tensor

from belvedere.kernels.triton.launch import helper

DENSE = 8
"""Features of density that are read at a time."""


@helper
def cell_of(place, r):
    """Return the cell, 0 to r, between centres of texels with a ring around them, and where in it ``place`` lies."""
    place = tl.minimum(tl.maximum(place, 0.0), r + 1.0)
    cell = tl.minimum(tl.maximum(place.to(tl.int32), 0), r)  # twice, for what is not a number
    return cell, place - cell


@helper
def place_of(origins_ptr, directions_ptr, ray, there, axis, middle, scale, r):
    """Return where along an axis rays are in their samples' middle, 0 at the ring's first centre of a texel."""
    origin = tl.load(origins_ptr + ray * 3 + axis, there, 0.0)
    direction = tl.load(directions_ptr + ray * 3 + axis, there, 0.0)
    return (origin + direction * middle) * scale + (r + 1) / 2


@helper
def inside(x, y, z, r):
    """Return whether places lie within the ring."""
    least, most = tl.minimum(tl.minimum(x, y), z), tl.maximum(tl.maximum(x, y), z)
    return (least > 0) & (most < r + 1)


@helper
def _pick(axis, x, y, z):
    """Return (rays, columns): for each column that of three numbers of a ray which its axis (1, columns) says."""
    return tl.where(axis == 0, x[:, None], tl.where(axis == 1, y[:, None], z[:, None]))


@helper
def _between(ptr, at, share, there, C: tl.constexpr):
    """Return the interpolation between the texels ``at`` and behind it of ``C`` channels each."""
    low = tl.load(ptr + at, there, 0.0)
    return low + (tl.load(ptr + at + C, there, 0.0) - low) * share


@helper
def _of_planes(planes_ptr, axis, x, y, z, u, v, w, channel, there, side, C: tl.constexpr):
    """Return interpolated channels of planes, the upper left texel of each, and the shares to the right and down."""
    at = (axis * side * side + _pick(axis, y * side + x, x * side + z, z * side + y)) * C + channel
    right, down = _pick(axis, u, w, v), _pick(axis, v, u, w)
    upper = _between(planes_ptr, at, right, there, C)
    return upper + (_between(planes_ptr, at + side * C, right, there, C) - upper) * down, at, right, down


@helper
def _of_lines(lines_ptr, axis, x, y, z, u, v, w, channel, there, side, C: tl.constexpr):
    """Return interpolated channels of lines, the first texel of each, and the share of the next."""
    at = (axis * side + _pick(axis, z, y, x)) * C + channel
    share = _pick(axis, w, v, u)
    return _between(lines_ptr, at, share, there, C), at, share


@helper
def features(
    planes_ptr, lines_ptr, x, y, z, u, v, w, going, side, first,
    FROM: tl.constexpr, COUNT: tl.constexpr, C: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """Return ``WIDTH`` features of points in cells x, y, z, from the number ``first`` on, 0 where there are no more.

    They are those of ``COUNT`` channels of ``C``, from channel ``FROM`` on, axis by axis; or products over the axes.
    """
    number = first + tl.arange(0, WIDTH)[None, :]
    if planes_ptr is None:
        channel = FROM + number
        there = going[:, None] & (number < COUNT)
        feature = _between(lines_ptr, z[:, None] * C + channel, w[:, None], there, C)
        feature *= _between(lines_ptr, (y[:, None] + side) * C + channel, v[:, None], there, C)
        feature *= _between(lines_ptr, (x[:, None] + 2 * side) * C + channel, u[:, None], there, C)
    else:
        axis, channel = number // COUNT, FROM + number % COUNT
        there = going[:, None] & (axis < 3)
        feature, _, _, _ = _of_planes(planes_ptr, axis, x, y, z, u, v, w, channel, there, side, C)
        if lines_ptr is not None:
            line, _, _ = _of_lines(lines_ptr, axis, x, y, z, u, v, w, channel, there, side, C)
            feature *= line
    return feature


@helper
def density_of(
    planes_ptr, lines_ptr, density_ptr, density_bias_ptr, x, y, z, u, v, w, going, side,
    DENSITY: tl.constexpr, C: tl.constexpr, DENSE: tl.constexpr,
):  # fmt: skip
    """Return the density (rays,) of points in cells x, y, z, 0 where not ``going``; ``DENSE`` features at a time."""
    WIDTH: tl.constexpr = DENSITY if planes_ptr is None else 3 * DENSITY
    density = going.to(tl.float32) * 0.0
    if density_bias_ptr is not None:
        density += tl.load(density_bias_ptr)
    for first in range(0, WIDTH, DENSE):
        part = features(planes_ptr, lines_ptr, x, y, z, u, v, w, going, side, first, 0, DENSITY, C, DENSE)
        if density_ptr is not None:
            number = first + tl.arange(0, DENSE)
            part *= tl.load(density_ptr + number, number < WIDTH, 0.0)[None, :]
        density += tl.sum(part, 1)
    return tl.where(going, tl.maximum(density, 0.0), 0.0)


@helper
def _add(ptr, at, share, grad, there, C: tl.constexpr):
    """Add the gradient of an interpolation to that of its two texels."""
    tl.atomic_add(ptr + at, grad * (1.0 - share), there, sem="relaxed")
    tl.atomic_add(ptr + at + C, grad * share, there, sem="relaxed")


@helper
def pull_features(
    planes_ptr, lines_ptr, dplanes_ptr, dlines_ptr, x, y, z, u, v, w, going, side, first, grad,
    FROM: tl.constexpr, COUNT: tl.constexpr, C: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """Add the gradient (rays, WIDTH) of what ``features`` returns to that of the tables, by atomic additions."""
    number = first + tl.arange(0, WIDTH)[None, :]
    if planes_ptr is None:
        channel = FROM + number
        there = going[:, None] & (number < COUNT)
        at_z, at_y, at_x = (
            z[:, None] * C + channel, (y[:, None] + side) * C + channel, (x[:, None] + 2 * side) * C + channel
        )  # fmt: skip
        of_z = _between(lines_ptr, at_z, w[:, None], there, C)
        of_y = _between(lines_ptr, at_y, v[:, None], there, C)
        of_x = _between(lines_ptr, at_x, u[:, None], there, C)
        _add(dlines_ptr, at_z, w[:, None], grad * of_y * of_x, there, C)
        _add(dlines_ptr, at_y, v[:, None], grad * of_z * of_x, there, C)
        _add(dlines_ptr, at_x, u[:, None], grad * of_z * of_y, there, C)
    else:
        axis, channel = number // COUNT, FROM + number % COUNT
        there = going[:, None] & (axis < 3)
        plane, at, right, down = _of_planes(planes_ptr, axis, x, y, z, u, v, w, channel, there, side, C)
        if lines_ptr is not None:
            line, along, share = _of_lines(lines_ptr, axis, x, y, z, u, v, w, channel, there, side, C)
            _add(dlines_ptr, along, share, grad * plane, there, C)
            grad *= line
        _add(dplanes_ptr, at, right, grad * (1.0 - down), there, C)
        _add(dplanes_ptr, at + side * C, right, grad * down, there, C)


def tables(planes: Tensor | None, lines: Tensor | None, padding: str) -> tuple[Tensor | None, Tensor | None]:
    """Return planes (b 3, r + 2, r + 2, c) and lines (b 3, r + 2, c) as tables."""
    mode = "constant" if padding == "zeros" else "replicate"
    if planes is not None:
        planes = F.pad(planes.flatten(0, 1), (1, 1, 1, 1), mode).permute(0, 2, 3, 1).contiguous()
    if lines is not None:
        lines = F.pad(lines.flatten(0, 1), (1, 1), mode).transpose(1, 2).contiguous()
    return planes, lines


def pull_table(dtable: Tensor, padding: str) -> Tensor:
    """Return the gradient of planes (b, 3, c, r, r) or lines (b, 3, c, r) for that of their table."""
    for axis in range(1, dtable.ndim - 1):
        first, rest, last = dtable.tensor_split((1, -1), axis)
        if padding == "border":
            rest = rest.clone()
            rest.narrow(axis, 0, 1).add_(first)
            rest.narrow(axis, -1, 1).add_(last)
        dtable = rest
    return dtable.movedim(-1, 1).unflatten(0, (-1, 3)).contiguous()
