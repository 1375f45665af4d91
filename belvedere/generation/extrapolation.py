"""Rotary position beyond the trained grid, without training: interpolation, NTK and YaRN, per axis or joint.

FiTv2 (arXiv 2410.13925) takes these from language models (PI, arXiv 2306.15595; YaRN, arXiv 2309.00071) and gives each
axis a scale of its own: "vision-ntk", "vision-yarn". FiT (arXiv 2402.12376), section 3.4, has the formulas.
"""

import math
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from belvedere.errors import InputError

Size = tuple[int, int]
"""(height, width) in patches."""


class Axis(NamedTuple):
    """What the frequencies of one axis depend on."""

    dim: int
    """Channels of a head that turn with this axis: half of them."""
    theta: float
    trained: int
    """Side of the square grid the network was trained on."""
    scale: float
    """How much longer this axis is now, at least 1."""


def _plain(axis: Axis) -> Tensor:
    return axis.theta ** (-torch.arange(0, axis.dim, 2, dtype=torch.float64, device="cpu") / axis.dim)


def _interpolated(axis: Axis) -> Tensor:
    return _plain(axis) / axis.scale


def _ntk(axis: Axis) -> Tensor:
    return _plain(axis._replace(theta=axis.theta * axis.scale ** (axis.dim / max(axis.dim - 2, 1))))


def _keep(axis: Axis, fast: float, slow: float) -> Tensor:
    """Return the share (dim/2,) of each frequency that stays: 1 above ``fast`` turns over the grid, 0 below ``slow``.

    YaRN's ramp, arXiv 2309.00071, section 3.2.
    """

    def pair(turns: float) -> float:
        return axis.dim * math.log(axis.trained / (2 * math.pi * turns)) / (2 * math.log(axis.theta))

    low, high = max(math.floor(pair(fast)), 0), min(math.ceil(pair(slow)), axis.dim - 1)
    width = high - low if high != low else 0.001
    ramp = (torch.arange(axis.dim // 2, dtype=torch.float64, device="cpu") - low) / width
    return 1 - ramp.clamp(0, 1)


def _yarn(axis: Axis) -> Tensor:
    return torch.lerp(_interpolated(axis), _plain(axis), _keep(axis, 32, 1))


def _by_parts(axis: Axis) -> Tensor:
    slow = torch.lerp(_interpolated(axis), _ntk(axis), _keep(axis, 1.25, 0.75))
    return torch.lerp(slow, _plain(axis), _keep(axis, 16, 2))


def _one(size: Size, trained: int) -> float:
    return 1.0


def _by_side(size: Size, trained: int) -> float:
    longest = 2 * max(size)
    return math.sqrt(math.log(longest) / math.log(trained)) if longest > trained else 1.0


def _by_area(size: Size, trained: int) -> float:
    area = 2 * size[0] * size[1]
    return math.sqrt(math.log(area) / math.log(trained**2)) if area > trained**2 else 1.0


def _yarn_magnitude(size: Size, trained: int) -> float:
    return 0.1 * math.log(max(max(size) / trained, 1.0)) + 1


MODES: dict[str, tuple[Callable[[Axis], Tensor], Callable[[Size, int], float]]] = {
    "none": (_plain, _one),
    "pi": (_interpolated, _one),
    "ntk": (_ntk, _one),
    "ntk-pro1": (_ntk, _by_side),
    "ntk-pro2": (_ntk, _by_area),
    "ntk-by-parts": (_by_parts, _one),
    "yarn": (_yarn, _yarn_magnitude),
}
"""Frequencies of an axis and factor of cos and sin by name. The doubled length of pro1 and pro2 is as published: their
factor is not 1 at the trained size."""

EXTRAPOLATIONS = (*MODES, *(f"vision-{name}" for name in MODES if name != "none"))
"""Every name; with "vision-" each axis has a scale of its own, without it both have that of the longer side."""


def check_extrapolation(name: str) -> str:
    """Return ``name``; raise ``InputError`` unless it is one of ``EXTRAPOLATIONS``."""
    if name not in EXTRAPOLATIONS:
        raise InputError(f"unknown extrapolation {name!r}: choose from {', '.join(EXTRAPOLATIONS)}")
    return name


def frequencies(size: Size, head_dim: int, theta: float, trained: int, name: str) -> tuple[Tensor, Tensor, float]:
    """Return the angle a step down and a step right turn each pair of channels, (head_dim/4,) float32 each, and the
    factor of cos and sin, for a grid of ``size`` by a network trained on ``trained`` x ``trained`` patches."""
    mode, coupled = name.removeprefix("vision-"), not check_extrapolation(name).startswith("vision-")
    lengths = (max(size),) * 2 if coupled else size
    angle, magnitude = MODES[mode]
    down, right = (angle(Axis(head_dim // 2, theta, trained, max(n / trained, 1.0))).float() for n in lengths)
    return down, right, magnitude(size, trained)


def rotations(positions: Tensor, down: Tensor, right: Tensor, magnitude: float) -> tuple[Tensor, Tensor]:
    """Return cos and sin (n, 1, head_dim/2), float32, of tokens at ``positions`` (n, 2), rows and columns."""
    angle = torch.cat((positions[:, :1] * down, positions[:, 1:] * right), -1)[:, None]  # (n, 1, d/2)
    return angle.cos() * magnitude, angle.sin() * magnitude


@lru_cache(maxsize=256)
def grid_rotations(size: Size, head_dim: int, theta: float, trained: int, name: str) -> tuple[Tensor, Tensor]:
    """Return ``rotations`` of a whole grid, row by row: one table a size, made once."""
    positions = torch.cartesian_prod(*(torch.arange(n, dtype=torch.float32, device="cpu") for n in size)).view(-1, 2)
    return rotations(positions, *frequencies(size, head_dim, theta, trained, name))


def each(names: str | Sequence[str], count: int) -> list[str]:
    """Return one checked name for each of ``count`` images from one for all or a sequence of that length."""
    listed = [names] * count if isinstance(names, str) else list(names)
    if len(listed) != count:
        raise InputError(f"{len(listed)} extrapolations for {count} images: give one for all, or one each")
    return [check_extrapolation(name) for name in listed]
