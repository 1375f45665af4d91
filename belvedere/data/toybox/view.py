"""What a picture is cut into: tiles of 8 x 8 pixels, and a row of rays for every (primitive, tile) that may meet."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from belvedere.data.toybox.bounds import screen_bounds
from belvedere.data.toybox.scene import FOCAL, Array, Scenes
from belvedere.data.toybox.shapes import AXES, CENTER, SHAPE

TILE = 8
PIXELS = TILE * TILE
BLOCK_ROWS = 256
"""Rows handled at once: with 4 samples a pixel, 256 kB a tensor."""
BAND_RAYS = 2**20
"""Rays of a band of a large picture: bounds the memory."""


@dataclass(frozen=True)
class Pairs:
    """Pairs of a primitive and a tile: ``prim`` (p,), ascending, and ``tile`` (p,)."""

    prim: Array
    tile: Array

    def rounds(self) -> list[Array]:
        """Split the pair numbers so that within a round every tile occurs once."""
        order = np.argsort(self.tile, kind="stable")
        tile = self.tile[order]
        first = np.flatnonzero(np.diff(tile, prepend=-1))
        rank = np.arange(len(tile)) - np.repeat(first, np.diff(first, append=len(tile)))
        return [order[rank == r] for r in range(int(rank.max(initial=-1)) + 1)]


class View:
    """A band of tile rows of one picture a scene, seen by cameras ``pose`` (b, 4, 4); the primitives by shape.

    ``order`` (n,) are the primitives' numbers in ``scenes``; ``inverse`` (n, 3, 3) takes world vectors to local.
    """

    def __init__(
        self,
        scenes: Scenes,
        pose: Array,
        size: tuple[int, int],
        samples: int,
        device: torch.device,
        band: tuple[int, int] | None = None,
    ):
        self.scenes, self.pose, self.size, self.samples, self.device = scenes, pose, size, samples, device
        self.focal = FOCAL * min(size)
        self.first, last = band or (0, -(-size[0] // TILE))
        self.down, self.across = last - self.first, -(-size[1] // TILE)
        self.tiles = len(pose) * self.down * self.across
        self.order = np.argsort(scenes.prims[:, SHAPE], kind="stable")
        self.prims, self.owner = scenes.prims[self.order], scenes.owner[self.order]
        self.inverse = np.linalg.inv(self.prims[:, AXES].reshape(-1, 3, 3))
        self.table = self.send(self.prims.T)  # (fields, n)

    def send(self, array: Array) -> Tensor:
        """Return the array as float32 on the device."""
        return torch.from_numpy(np.ascontiguousarray(array, dtype=np.float32)).to(self.device)

    def index(self, array: Array) -> Tensor:
        """Return the array as an int64 index on the device."""
        return torch.from_numpy(np.ascontiguousarray(array, dtype=np.int64)).to(self.device)

    def tile_owner(self) -> Array:
        """Return the scene (tiles,) of each tile."""
        return np.arange(self.tiles) // (self.down * self.across)

    def corner(self, tile: Array) -> tuple[Array, Array]:
        """Return the screen coordinates (focal lengths) of the tiles' upper left corners."""
        x, y = tile % self.across * TILE, (tile // self.across % self.down + self.first) * TILE
        return (x - self.size[1] / 2) / self.focal, (y - self.size[0] / 2) / self.focal

    def offsets(self, samples: int) -> tuple[Tensor, Tensor]:
        """Return the offsets (samples * 64,) of a tile's rays from its corner, in focal lengths.

        The samples of a pixel are a golden-ratio lattice around its centre.
        """
        k = np.arange(samples) + 0.5
        x, y = k / samples, k * 0.6180339887498949 % 1
        y = y - y.mean() + 0.5
        cell = np.arange(PIXELS)
        dx = (cell % TILE + x[:, None]).reshape(-1) / self.focal
        dy = (cell // TILE + y[:, None]).reshape(-1) / self.focal
        return self.send(dx), self.send(dy)

    def pairs(self, prims: Array) -> Pairs:
        """Pair each primitive with the tiles its screen bounds touch."""
        low_x, high_x, low_y, high_y = screen_bounds(prims, self.owner, self.pose)
        x0, wide = self._covered(low_x, high_x, self.size[1], 0, self.across)
        y0, high = self._covered(low_y, high_y, self.size[0], self.first, self.down)
        count = wide * high
        prim = np.repeat(np.arange(len(prims)), count)
        k = np.arange(len(prim)) - np.repeat(np.cumsum(count) - count, count)
        x, y = x0[prim] + k % wide[prim], y0[prim] + k // wide[prim]
        return Pairs(prim, (self.owner[prim] * self.down + y) * self.across + x)

    def _covered(self, low: Array, high: Array, pixels: int, first: int, count: int) -> tuple[Array, Array]:
        """Return the first tile and the number of tiles of the band that [low, high] covers along one axis."""
        ends = np.stack([low, high]) * self.focal + pixels / 2
        start, stop = np.floor(ends / TILE).clip(first - 1, first + count).astype(np.int64) - first
        start = np.maximum(start, 0)
        return start, np.maximum(np.minimum(stop, count - 1) - start + 1, 0)

    def untiled(self, tiles: Tensor) -> Tensor:
        """Put (tiles, c, 64) back together: (b, c, height of the band, w)."""
        grid = tiles.view(-1, self.down, self.across, tiles.shape[1], TILE, TILE).permute(0, 3, 1, 4, 2, 5)
        whole = grid.reshape(-1, tiles.shape[1], self.down * TILE, self.across * TILE)  # (b, c, h, w)
        return whole[:, :, : self.size[0] - self.first * TILE, : self.size[1]].contiguous()


def bands(scenes: Scenes, pose: Array, size: tuple[int, int], samples: int, device: torch.device) -> Iterator[View]:
    """Yield the views of a picture from top to bottom, each of about ``BAND_RAYS`` rays at most."""
    down, across = -(-size[0] // TILE), -(-size[1] // TILE)
    step = max(1, BAND_RAYS // (len(pose) * across * PIXELS * samples))
    for first in range(0, down, step):
        yield View(scenes, pose, size, samples, device, (first, min(first + step, down)))


class Rows:
    """The rays of (primitive, tile) pairs in the primitives' own coordinates: one row a pair."""

    def __init__(self, view: View, pairs: Pairs):
        self.view, self.pairs = view, pairs
        rotation, position = view.pose[view.owner, :3, :3], view.pose[view.owner, :3, 3]
        axes = (view.inverse[:, :, :, None] * rotation[:, None]).sum(2)  # (n, 3, 3): local = axes @ camera
        offset = position - view.prims[:, CENTER]
        origin = (view.inverse * offset[:, None]).sum(2)
        depth = -(rotation[:, :, 2] * offset).sum(1)
        x, y = view.corner(pairs.tile)
        right, down, forward = np.moveaxis(axes[pairs.prim], 2, 0)  # (p, 3) each
        ray = right * x[:, None] + down * y[:, None] + forward
        columns = [ray, right, down, origin[pairs.prim], depth[pairs.prim, None]]
        self.numbers = view.send(np.concatenate(columns, 1).T)[:, :, None]  # (13, p, 1)
        self.shape = view.prims[pairs.prim, SHAPE]

    def rays(self, row: Tensor | slice, dx: Tensor, dy: Tensor) -> tuple[list[Tensor], list[Tensor], Tensor]:
        """Return points q at the depth of the primitive's centre, directions d (a unit of depth) and that depth."""
        numbers = self.numbers[:, row]
        ray, right, down, origin, depth = numbers.split((3, 3, 3, 3, 1))
        d = [(dy * down[k]).add_(ray[k]).add_(dx * right[k]) for k in range(3)]
        q = [(d[k] * depth[0]).add_(origin[k]) for k in range(3)]
        return q, d, depth[0]

    def blocks(self, rows: Array) -> Iterator[tuple[int, Array]]:
        """Split ascending row numbers into blocks of one shape that fit the cache."""
        return blocks(self.shape, rows, BLOCK_ROWS)


def blocks(shape: Array, rows: Array, most: int) -> Iterator[tuple[int, Array]]:
    """Yield (shape, row numbers): at most ``most`` of the ascending ``rows``, all of one shape."""
    for kind in np.unique(shape[rows]):
        same = rows[shape[rows] == kind]
        for start in range(0, len(same), most):
            yield int(kind), same[start : start + most]
