"""How a surface looks: ambient light, sky and sun by Lambert's law, a highlight, and textures."""

import numpy as np
import torch
from torch import Tensor

from belvedere.data.toybox.scene import Array
from belvedere.data.toybox.shapes import CHECKS, STRIPES
from belvedere.data.toybox.view import View

AMBIENT, SKY, SUN = 0.46, 0.16, 0.62
SHARPNESS = 4
"""The highlight is the cosine to the half vector, squared this many times: its 16th power."""


def lighting(view: View) -> Tensor:
    """Return (15, n): for each primitive the sun, the half vector and the up vector in local coordinates, and the
    quadratic form that gives the squared length of a local normal in the world."""
    sun = view.scenes.sun[view.owner]
    half = sun - view.pose[view.owner, :3, 2]
    half = half / np.sqrt((half * half).sum(1, keepdims=True))
    local = [_into(view.inverse, sun), _into(view.inverse, half), view.inverse[:, :, 1]]
    gram = (view.inverse[:, :, None] * view.inverse[:, None]).sum(3)
    squares = [gram[:, 0, 0], gram[:, 1, 1], gram[:, 2, 2]]
    products = [2 * gram[:, 0, 1], 2 * gram[:, 0, 2], 2 * gram[:, 1, 2]]
    return view.send(np.concatenate([np.concatenate(local, 1).T, np.stack(squares + products)]))


def _into(inverse: Array, vectors: Array) -> Array:
    return (inverse * vectors[:, None]).sum(2)


def lit(n: list[Tensor], numbers: Tensor, gloss: Tensor, glow: Tensor) -> tuple[Tensor, Tensor]:
    """Return the light that falls on, and the highlight that leaves, points with local normals ``n``.

    ``numbers`` (15, rows, 1) are ``lighting`` of the rows' primitives.
    """
    sun, half, up, form = numbers.split((3, 3, 3, 6))
    size = (n[0] * n[0]).mul_(form[0])
    for k, (i, j) in enumerate(((1, 1), (2, 2), (0, 1), (0, 2), (1, 2)), start=1):
        size.add_((n[i] * n[j]).mul_(form[k]))
    size.clamp_(min=1e-20).rsqrt_()
    light = _along(n, sun).mul_(size).clamp_(min=0).mul_(SUN)
    light.add_(_along(n, up).mul_(size).mul_(SKY)).add_(AMBIENT)
    light = torch.lerp(light, torch.ones_like(light), glow)
    gleam = _along(n, half).mul_(size).clamp_(0, 1)
    for _ in range(SHARPNESS):
        gleam.mul_(gleam)
    return light, gleam.mul_(gloss)


def _along(n: list[Tensor], v: Tensor) -> Tensor:
    return (n[0] * v[0]).add_(n[1] * v[1]).add_(n[2] * v[2])


def pattern(texture: int, p: list[Tensor], repeats: Tensor) -> Tensor:
    """Return how much of the second colour shows at local points ``p``, in [0, 1]."""
    if texture == STRIPES:
        return soft_steps(wave(p[1] * repeats), 8)
    if texture == CHECKS:
        return soft_steps(wave(p[0] * repeats).mul_(wave(p[2] * repeats)), 8)
    bent = (p[0] * 2.1).sin_().mul_(0.3).add_((p[0] * 5.3 + 1).sin_().mul_(0.12))
    return soft_steps(wave(bent.add_(p[2] * repeats)), 1)  # wood: wavy grain


def wave(x: Tensor) -> Tensor:
    """Return a triangle wave of period 2 in [-1, 1]."""
    return (x * 0.5).sub_((x * 0.5).floor_()).sub_(0.5).abs_().mul_(4).sub_(1)


def soft_steps(x: Tensor, slope: float) -> Tensor:
    """Return [-1, 1] mapped to [0, 1], steep around 0 (in place)."""
    return x.mul_(slope).clamp_(-1, 1).mul_(0.5).add_(0.5)
