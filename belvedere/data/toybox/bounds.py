"""Where primitives fall on the screen: exact bounds of ellipsoids, cones and blocks in perspective."""

import numpy as np

from belvedere.data.toybox.shapes import BALL, BLOCK, CONE, RING

Array = np.ndarray
NEAR = 0.05
"""World units: anything nearer than this may cover the whole screen."""


def screen_bounds(prims: Array, owner: Array, pose: Array) -> tuple[Array, Array, Array, Array]:
    """Return (low_x, high_x, low_y, high_y), each (n,): where primitive i falls for camera ``pose[owner[i]]``.

    In units of the focal length from the optical axis. A primitive that reaches behind the camera gets
    infinite bounds.
    """
    rotation, position = pose[owner, :3, :3], pose[owner, :3, 3]
    center = _turned(rotation, prims[:, 1:4] - position)
    axes = np.stack([_turned(rotation, prims[:, 4 + k : 13 : 3]) for k in range(3)], 2)  # (n, 3, 3)
    shape, form = prims[:, 0], prims[:, 13:15]
    bounds = np.empty((4, len(prims)))
    for kinds, bound in (((BALL,), _of_balls), ((CONE, RING), _of_cones), ((BLOCK,), _of_blocks)):
        rows = np.flatnonzero(np.isin(shape, kinds))
        if len(rows):
            bounds[:, rows] = bound(center[rows], axes[rows], form[rows], shape[rows])
    return bounds[0], bounds[1], bounds[2], bounds[3]


def flattened(prims: Array, sun: Array) -> Array:
    """Return the primitives pressed onto the ground y = 0 along ``sun`` (n, 3): the outlines of their shadows."""
    slope = sun / sun[:, 1:2]
    flat = prims.copy()
    flat[:, 1:4] -= slope * prims[:, 2:3]
    for k in range(3):
        flat[:, 4 + k : 13 : 3] -= slope * prims[:, 7 + k : 8 + k]
    return flat


def _turned(rotation: Array, vectors: Array) -> Array:
    """Return ``rotation^T @ vectors`` row by row, summed in a fixed order."""
    return (rotation * vectors[:, :, None]).sum(1)


def _ellipsoid(center: Array, spread: Array) -> Array:
    """Bounds (4, n) of ellipsoids center + A u, |u| <= 1, with ``spread`` = A A^T: where a plane through the
    camera touches them, a quadratic in the screen coordinate."""
    z2 = spread[:, 2, 2] - center[:, 2] ** 2
    bounds = []
    for k in (0, 1):
        half = spread[:, k, 2] - center[:, k] * center[:, 2]
        root = np.sqrt(np.maximum(half * half - z2 * (spread[:, k, k] - center[:, k] ** 2), 0))
        bounds += [(half + root) / z2, (half - root) / z2]
    behind = center[:, 2] - np.sqrt(spread[:, 2, 2]) < NEAR
    return _open(np.stack(bounds), behind)


def _open(bounds: Array, behind: Array) -> Array:
    """Open the bounds of what reaches behind the camera."""
    infinite = np.array([-np.inf, np.inf, -np.inf, np.inf])[:, None]
    return np.where(behind, infinite, bounds)


def _union(a: Array, b: Array) -> Array:
    return np.stack([np.minimum(a[0], b[0]), np.maximum(a[1], b[1]), np.minimum(a[2], b[2]), np.maximum(a[3], b[3])])


def _of_balls(center: Array, axes: Array, form: Array, shape: Array) -> Array:
    return _ellipsoid(center, (axes[:, :, None] * axes[:, None]).sum(3))


def _of_cones(center: Array, axes: Array, form: Array, shape: Array) -> Array:
    """Bounds of the two end discs; a ring is bounded as the cylinder around it."""
    around = shape == RING
    bottom, top = np.where(around[:, None], 1 + form[:, :1], form).T
    half = axes[:, :, 1] * np.where(around, form[:, 0], 1.0)[:, None]
    disc = (axes[:, :, None, ::2] * axes[:, None, :, ::2]).sum(3)
    low = _ellipsoid(center - half, disc * (bottom**2)[:, None, None])
    return _union(low, _ellipsoid(center + half, disc * (top**2)[:, None, None]))


def _of_blocks(center: Array, axes: Array, form: Array, shape: Array) -> Array:
    """Bounds of the eight corners."""
    x, y, z = axes[:, :, 0], axes[:, :, 1], axes[:, :, 2]
    corners = []
    for level, wide, deep in ((-1, np.ones(len(form)), np.ones(len(form))), (1, form[:, 0], form[:, 1])):
        for sx in (-1, 1):
            for sz in (-1, 1):
                corners.append(center + level * y + sx * wide[:, None] * x + sz * deep[:, None] * z)
    points = np.stack(corners)  # (8, n, 3)
    depth = np.maximum(points[:, :, 2], NEAR)
    u, v = points[:, :, 0] / depth, points[:, :, 1] / depth
    return _open(np.stack([u.min(0), u.max(0), v.min(0), v.max(0)]), np.min(points[:, :, 2], axis=0) < NEAR)
