"""Ray casting: the rows of one shape are intersected together, each ray keeps its nearest hit, and the rows that
won a ray are shaded.

A row's numbers are scalars of long contiguous operations, and every ray's arithmetic is its own, so a picture has
the same bits whatever is drawn beside it.
"""

import numpy as np
import torch
from torch import Tensor

from belvedere.data.toybox.ground import END, background, ground_hits
from belvedere.data.toybox.intersect import normal, span
from belvedere.data.toybox.light import lighting, lit, pattern
from belvedere.data.toybox.scene import FOCAL, Array, Scenes
from belvedere.data.toybox.shapes import COLOR, FORM, GLOSS, GLOW, PLAIN, REPEATS, SECOND, TEXTURE
from belvedere.data.toybox.view import PIXELS, Rows, View, bands

FAR = 1e4
"""Depth of a ray that meets no toy."""


def intrinsics(size: tuple[int, int]) -> Array:
    """Return the pinhole matrix (3, 3) in pixels for (height, width); pixel centres lie at half-integers."""
    focal = FOCAL * min(size)
    return np.array([[focal, 0, size[1] / 2], [0, focal, size[0] / 2], [0, 0, 1.0]])


def image(scenes: Scenes, pose: Array, size: tuple[int, int], samples: int, device: torch.device) -> Tensor:
    """Return the pictures (b, 3, h, w) in [-1, 1], float32, of the scenes seen by cameras ``pose`` (b, 4, 4)."""
    return torch.cat([_picture(view) for view in bands(scenes, pose, size, samples, device)], 2)


def geometry(scenes: Scenes, pose: Array, size: tuple[int, int], device: torch.device) -> tuple[Tensor, Tensor]:
    """Return regions int64 and depth float32, both (b, h, w), at the centres of the pixels.

    Regions: 0 sky, 1 ground, 2 + i the scene's primitive i. Depth: along the optical axis, inf in the sky.
    """
    parts = [_shape(view) for view in bands(scenes, pose, size, 1, device)]
    return torch.cat([regions for regions, _ in parts], 1), torch.cat([depth for _, depth in parts], 1)


def _picture(view: View) -> Tensor:
    rows = Rows(view, view.pairs(view.prims))
    rays = view.offsets(view.samples)
    color, count = shade(rows, *cast(rows, *rays), *rays)
    free = (view.samples - count).clamp_(min=0)[:, None]
    total = background(view).mul_(free).add_(color).div_(free + count[:, None])
    return view.untiled(total.clamp_(0, 1)).mul_(2).sub_(1)


def _shape(view: View) -> tuple[Tensor, Tensor]:
    pairs = view.pairs(view.prims)
    depth, nearest = cast(Rows(view, pairs), *view.offsets(1))
    ground = ground_hits(view)
    seen = torch.where(ground.out < END, ground.depth, torch.inf)
    regions = torch.isfinite(seen).long()
    number = view.index(view.order - np.searchsorted(view.scenes.owner, view.owner) + 2)
    for round_ in pairs.rounds():
        tile, row = view.index(pairs.tile[round_]), view.index(round_)
        hit = (depth[row] == nearest[tile]) & (depth[row] < FAR)
        part = number[view.index(pairs.prim[round_])][:, None]
        regions[tile] = torch.where(hit, part, regions[tile])
    seen = torch.where(nearest < FAR, nearest, seen)
    return view.untiled(regions[:, None])[:, 0], view.untiled(seen[:, None])[:, 0]


def cast(rows: Rows, dx: Tensor, dy: Tensor) -> tuple[Tensor, Tensor]:
    """Return each row's entry depth (p, rays) and each tile's nearest (tiles, rays), ``FAR`` without a hit."""
    view, pairs = rows.view, rows.pairs
    depth = torch.empty(len(pairs.prim), len(dx), device=view.device)
    for shape, block in rows.blocks(np.arange(len(pairs.prim))):
        part = slice(int(block[0]), int(block[-1]) + 1)
        q, d, middle = rows.rays(part, dx, dy)
        near, _ = span(shape, q, d, view.table[FORM, view.index(pairs.prim[block])][:, :, None])
        torch.add(near, middle, out=depth[part])
    nearest = torch.full((view.tiles, len(dx)), FAR, device=view.device)
    for round_ in pairs.rounds():
        tile, row = view.index(pairs.tile[round_]), view.index(round_)
        nearest.index_copy_(0, tile, torch.minimum(nearest[tile], depth[row]))
    return depth, nearest


def shade(rows: Rows, depth: Tensor, nearest: Tensor, dx: Tensor, dy: Tensor) -> tuple[Tensor, Tensor]:
    """Return the summed colours (tiles, 3, 64) and the number (tiles, 64) of a pixel's samples that hit the toy."""
    view, pairs = rows.view, rows.pairs
    color = torch.zeros(view.tiles, 3, PIXELS, device=view.device)
    count = torch.zeros(view.tiles, PIXELS, device=view.device)
    tile, light = view.index(pairs.tile), lighting(view)
    won = (depth - nearest[tile]).mul_(-1e7).clamp_(min=-1).add_(1)  # 1 where the row is nearest, else 0
    hits = _summed(won, view.samples)
    for shape, block in rows.blocks(np.flatnonzero((hits.sum(1) > 0).cpu().numpy())):
        row, prim = view.index(block), view.index(pairs.prim[block])
        look = view.table[:, prim][:, :, None]
        q, d, middle = rows.rays(row, dx, dy)
        t = (depth[row] - middle).clamp_(max=FAR)
        p = [q[k].addcmul_(d[k], t).clamp_(-2, 2) for k in range(3)]  # misses, too, stay finite
        falls, gleam = lit(normal(shape, p, look[FORM]), light[:, prim][:, :, None], look[GLOSS], look[GLOW])
        falls.mul_(won[row])
        total = _summed(falls, view.samples)[:, None] * look[COLOR].permute(1, 0, 2)  # (rows, 3, 64)
        total += _summed(gleam.mul_(won[row]), view.samples)[:, None]
        _add_textures(total, view, pairs.prim[block], p, falls, look)
        color.index_add_(0, tile[row], total)
        count.index_add_(0, tile[row], hits[row])
    return color, count


def _add_textures(total: Tensor, view: View, prim: Array, p: list[Tensor], light: Tensor, look: Tensor) -> None:
    """Change ``total`` (rows, 3, 64) towards the second colour where the rows' textures show it."""
    texture = view.prims[prim, TEXTURE]
    for kind in np.unique(texture[texture != PLAIN]):
        at = view.index(np.flatnonzero(texture == kind))
        share = pattern(int(kind), [x[at] for x in p], look[REPEATS, at]).mul_(light[at])
        change = (look[SECOND, at] - look[COLOR, at]).permute(1, 0, 2)  # (rows, 3, 1)
        total.index_add_(0, at, _summed(share, view.samples)[:, None] * change)


def _summed(x: Tensor, samples: int) -> Tensor:
    """Sum the samples of a pixel: (rows, samples * 64) -> (rows, 64)."""
    first, *rest = x.view(len(x), samples, PIXELS).unbind(1)
    total = first.clone()
    for part in rest:
        total += part
    return total
