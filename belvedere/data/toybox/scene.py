"""Scenes as arrays: everything a batch of pictures shows, each row a function of (seed, index) alone."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

from belvedere.data.toybox.bounds import screen_bounds
from belvedere.data.toybox.kinds import ALL
from belvedere.data.toybox.palette import COLORS, Dice
from belvedere.data.toybox.shapes import CHECKS, FIELDS, PLAIN, STRIPES, Vector
from belvedere.seeds import derive

FOCAL = 2.0
"""Focal length in units of the shorter side of the picture: 28 degrees across it."""

FLOORS: dict[str, Vector] = {
    "cream": (0.93, 0.88, 0.77),
    "grey": (0.78, 0.79, 0.81),
    "sand": (0.86, 0.77, 0.60),
    "mint": (0.72, 0.86, 0.76),
    "lilac": (0.81, 0.77, 0.88),
    "peach": (0.95, 0.80, 0.71),
}
GRASS: Vector = (0.56, 0.76, 0.42)
WATER: Vector = (0.36, 0.63, 0.85)
SKIES: tuple[tuple[Vector, Vector], ...] = (
    ((0.90, 0.95, 0.99), (0.58, 0.77, 0.95)),
    ((0.97, 0.96, 0.93), (0.74, 0.84, 0.92)),
    ((0.99, 0.93, 0.87), (0.78, 0.80, 0.93)),
)

SEA_SKY: tuple[Vector, Vector] = ((0.68, 0.84, 0.96), (0.46, 0.70, 0.94))
"""Bluer than the others, behind white sails."""

Array = np.ndarray


class Ground(NamedTuple):
    """A floor: its two colours, and the texture that they make."""

    color: Vector
    second: Vector
    pattern: int


GROUNDS: dict[str, Ground] = {
    "grass": Ground(GRASS, GRASS, PLAIN),
    "water": Ground(WATER, (0.42, 0.68, 0.88), STRIPES),
    **{name: Ground(color, color, PLAIN) for name, color in FLOORS.items()},
    "checkered": Ground((0.94, 0.93, 0.90), (0.56, 0.58, 0.62), CHECKS),
}
"""Every ground that a scene can be given by name."""


@dataclass(frozen=True)
class Look:
    """What a scene is told instead of choosing it: the colour of its toy (of ``COLORS``), its ground (``GROUNDS``)."""

    color: str
    ground: str


@dataclass(frozen=True)
class Scenes:
    """A batch of b scenes with n primitives in all; float64 arrays, lengths in world units.

    ``prims`` (n, FIELDS) rows as ``shapes.primitive`` writes them, ``owner`` (n,) the scene of each,
    ``floor`` (b, 2, 3) two colours, ``pattern`` (b,) its texture, ``sky`` (b, 2, 3) colours at and above the
    horizon, ``sun`` (b, 3) unit vector towards it; ``target`` (b, 3), ``distance``, ``azimuth``, ``elevation``
    (b,) radians: the default camera. ``captions`` holds one sentence a scene.
    """

    prims: Array
    owner: Array
    floor: Array
    pattern: Array
    sky: Array
    sun: Array
    target: Array
    distance: Array
    azimuth: Array
    elevation: Array
    captions: tuple[str, ...]


def direction(azimuth: float, elevation: float) -> Vector:
    """Return the unit vector at that azimuth (from +z towards +x) and elevation, in radians."""
    c = math.cos(elevation)
    return (c * math.sin(azimuth), math.sin(elevation), c * math.cos(azimuth))


def _floor(dice: Dice, kind: str) -> tuple[Vector, Vector, int, str]:
    """Return two colours, the texture and the words for the floor."""
    if kind == "boat":
        return *GROUNDS["water"], "blue water"
    if kind in ("tree", "mushroom", "house", "castle") and dice.chance(0.6):
        return *GROUNDS["grass"], "green grass"
    name = dice.pick(*FLOORS)
    color = FLOORS[name]
    if dice.chance(0.3):
        return color, (color[0] * 0.86, color[1] * 0.86, color[2] * 0.86), CHECKS, "a checkered floor"
    return color, color, PLAIN, f"a {name} floor"


def _article(word: str) -> str:
    return "an" if word[0] in "aeiou" else "a"


def _draw(seed: int, index: int, kind: str, look: Look | None) -> tuple[list, tuple, str]:
    """Return the primitives, the row of numbers and the caption of one scene; its shapes do not depend on ``look``."""
    dice = Dice(derive(seed, "toybox", index))
    toy = ALL[kind]
    name = dice.pick(*toy.colors)
    azimuth = math.radians(toy.azimuth + dice.between(-toy.spread, toy.spread))
    elevation = math.radians(dice.between(*toy.elevation))
    sun = direction(azimuth + math.radians(dice.between(-60, -25)), math.radians(dice.between(45, 60)))
    floor, second, pattern, words = _floor(dice, kind)
    sky = SEA_SKY if kind == "boat" else SKIES[int(dice.between(0, len(SKIES)))]
    if look is not None:
        name, words = look.color, look.ground
        floor, second, pattern = GROUNDS[look.ground]
    fill = dice.between(0.76, 0.86)
    parts = toy.make(dice, COLORS[name])
    row = (*floor, *second, pattern, *sky[0], *sky[1], *sun, azimuth, elevation, fill)
    return parts, row, f"{_article(name)} {name} {kind} on {words}"


def build(seed: int, indices: Sequence[int], kinds: Sequence[str], looks: Sequence[Look] | None = None) -> Scenes:
    """Return the scenes ``indices`` of world ``seed``; scene i shows ``kinds[i % len(kinds)]``.

    ``looks``, one a scene, take the place of the colours and grounds that the scenes would choose.
    """
    given: Sequence[Look | None] = looks or [None] * len(indices)
    drawn = [_draw(seed, i, kinds[i % len(kinds)], look) for i, look in zip(indices, given, strict=True)]
    rows = np.array([row for _, row, _ in drawn], dtype=np.float64).reshape(-1, 19)
    counts = [len(parts) for parts, _, _ in drawn]
    prims = np.array([part for parts, _, _ in drawn for part in parts], dtype=np.float64)
    scenes = Scenes(
        prims=prims.reshape(-1, FIELDS),
        owner=np.repeat(np.arange(len(drawn)), counts),
        floor=rows[:, :6].reshape(-1, 2, 3),
        pattern=rows[:, 6],
        sky=rows[:, 7:13].reshape(-1, 2, 3),
        sun=rows[:, 13:16],
        target=np.zeros((len(drawn), 3)),
        distance=np.full(len(drawn), 6.0),
        azimuth=rows[:, 16],
        elevation=rows[:, 17],
        captions=tuple(caption for _, _, caption in drawn),
    )
    return _frame(scenes, rows[:, 18])


def cameras(scenes: Scenes, turn: float | Array = 0.0, rise: float | Array = 0.0) -> Array:
    """Return camera-to-world matrices (b, 4, 4), OpenCV axes (x right, y down, z forward).

    ``turn`` and ``rise`` (radians) are added to the default azimuth and elevation; the camera keeps looking
    at the target from the same distance.
    """
    azimuth, elevation = scenes.azimuth + turn, scenes.elevation + rise
    sa, ca = np.array([[math.sin(a), math.cos(a)] for a in azimuth]).reshape(-1, 2).T
    se, ce = np.array([[math.sin(e), math.cos(e)] for e in elevation]).reshape(-1, 2).T
    zero = np.zeros_like(sa)
    pose = np.zeros((len(sa), 4, 4))
    pose[:, :3, 0] = np.stack([ca, zero, -sa], 1)
    pose[:, :3, 1] = np.stack([se * sa, -ce, se * ca], 1)
    pose[:, :3, 2] = np.stack([-ce * sa, -se, -ce * ca], 1)
    pose[:, :3, 3] = scenes.target - pose[:, :3, 2] * scenes.distance[:, None]
    pose[:, 3, 3] = 1.0
    return pose


def _frame(scenes: Scenes, fill: Array) -> Scenes:
    """Aim the cameras and set their distance so that the toy takes ``fill`` of the shorter side."""
    starts = np.flatnonzero(np.diff(scenes.owner, prepend=-1))
    for _ in range(3):
        pose = cameras(scenes)
        low_x, high_x, low_y, high_y = screen_bounds(scenes.prims, scenes.owner, pose)
        left, right = np.minimum.reduceat(low_x, starts), np.maximum.reduceat(high_x, starts)
        top, bottom = np.minimum.reduceat(low_y, starts), np.maximum.reduceat(high_y, starts)
        shift = pose[:, :3, 0] * (left + right)[:, None] + pose[:, :3, 1] * (top + bottom)[:, None]
        extent = np.maximum(right - left, bottom - top)
        target = scenes.target + 0.5 * shift * scenes.distance[:, None]
        scenes = replace(scenes, target=target, distance=scenes.distance * extent * FOCAL / fill)
    return scenes
