"""Ground, its shadow and the sky: they vary slowly, so they are computed once a pixel, at its centre."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from belvedere.data.toybox.bounds import flattened
from belvedere.data.toybox.intersect import span
from belvedere.data.toybox.light import soft_steps, wave
from belvedere.data.toybox.shapes import CENTER, CHECKS, FORM, SHAPE, STRIPES
from belvedere.data.toybox.view import BLOCK_ROWS, PIXELS, View, blocks

FADE, END = 2.0, 5.2
"""World units from the target: where the ground begins to fade into the sky, and where it has."""
DARKNESS, THICKNESS = 0.42, 0.22
"""The share of light a full shadow takes, and how thick the toy must be to cast it, in world units."""
FARTHEST = 100.0


@dataclass(frozen=True)
class Ground:
    """Where pixel centres see the plane y = 0, all (tiles, 64): world ``x`` and ``z``, the ``depth``, the distance
    ``out`` from below the target (beyond ``END`` it is sky), and the ``slope`` of the ray (up is positive)."""

    x: Tensor
    z: Tensor
    depth: Tensor
    out: Tensor
    slope: Tensor


def ground_hits(view: View) -> Ground:
    """Return where the rays through the pixels' centres meet the ground."""
    tile, owner = np.arange(view.tiles), view.tile_owner()
    x, y = view.corner(tile)
    right, down, forward = np.moveaxis(view.pose[owner, :3, :3], 2, 0)
    ray = right * x[:, None] + down * y[:, None] + forward
    columns = [ray, right, down, view.pose[owner, :3, 3], view.scenes.target[owner]]
    ray_, right_, down_, eye, target = view.send(np.concatenate(columns, 1).T)[:, :, None].split(3)
    dx, dy = view.offsets(1)
    d = [(dy * down_[k]).add_(ray_[k]).add_(dx * right_[k]) for k in range(3)]
    depth = (eye[1] / d[1].clamp(max=-1e-3)).neg_().clamp_(max=FARTHEST)
    gx, gz = (d[0] * depth).add_(eye[0]), (d[2] * depth).add_(eye[2])
    out = (gx - target[0]).square_().add_((gz - target[2]).square_()).sqrt_()
    return Ground(gx, gz, depth, out, d[1])


def background(view: View) -> Tensor:
    """Return the colours (tiles, 3, 64) of ground, shadow and sky."""
    scenes, owner = view.scenes, view.tile_owner()
    columns = [scenes.floor[owner].reshape(-1, 6), scenes.sky[owner].reshape(-1, 6)]
    floor, second, horizon, zenith = view.send(np.concatenate(columns, 1).T)[:, :, None].split(3)
    ground = ground_hits(view)
    fade = (ground.out - FADE).mul_(1 / (END - FADE)).clamp_(0, 1)
    fade = fade.square().mul_(3 - 2 * fade)
    rise = (ground.slope * 2.2).add_(0.35).clamp_(0, 1)
    mixed = torch.zeros_like(ground.x)
    for kind in (STRIPES, CHECKS):
        at = view.index(np.flatnonzero(scenes.pattern[owner] == kind))
        mixed[at] = _floor_pattern(kind, ground.x[at], ground.z[at])
    light = 1 - DARKNESS * shadows(view, ground)
    color = torch.empty(view.tiles, 3, PIXELS, device=view.device)
    for k in range(3):
        near = (mixed * (second[k] - floor[k])).add_(floor[k]).mul_(light)
        sky = (rise * (zenith[k] - horizon[k])).add_(horizon[k])
        torch.lerp(near, sky, fade, out=color[:, k])
    return color


def _floor_pattern(kind: int, x: Tensor, z: Tensor) -> Tensor:
    """Return the share of the floor's second colour: gentle waves along z, or checks with soft edges."""
    if kind == STRIPES:
        return soft_steps(wave(z * 3), 1)
    across, along = wave(x * 1.6).mul_(6).clamp_(-1, 1), wave(z * 1.6).mul_(6).clamp_(-1, 1)
    return soft_steps(across * along, 1)


def shadows(view: View, ground: Ground) -> Tensor:
    """Return how much of a full shadow lies on each ground point, in [0, 1].

    It grows with the way a sun ray makes through the toy, up to ``THICKNESS``: outlines are soft.
    """
    sun = view.scenes.sun[view.owner]
    pairs = view.pairs(flattened(view.prims, sun))
    home = -(view.inverse * view.prims[:, None, CENTER]).sum(2)
    toward = (view.inverse * sun[:, None]).sum(2)
    columns = np.concatenate([view.inverse[:, :, 0], view.inverse[:, :, 2], home, toward], 1)
    numbers = view.send(columns[pairs.prim].T)[:, :, None]  # (12, p, 1)
    shape = view.prims[pairs.prim, SHAPE]
    total = torch.zeros_like(ground.x)
    for kind, block in blocks(shape, np.arange(len(shape)), 4 * BLOCK_ROWS):
        tile, row = view.index(pairs.tile[block]), view.index(block)
        x, z = ground.x[tile], ground.z[tile]
        along_x, along_z, start, way = numbers[:, row].split(3)
        q = [(x * along_x[k]).add_(start[k]).add_(z * along_z[k]) for k in range(3)]
        d = [way[k].expand_as(x) for k in range(3)]
        near, far = span(kind, q, d, view.table[FORM, view.index(pairs.prim[block])][:, :, None])
        total.index_add_(0, tile, (far - near.clamp(min=0)).clamp_(0, 1))
    return total.mul_(1 / THICKNESS).clamp_(max=1)
