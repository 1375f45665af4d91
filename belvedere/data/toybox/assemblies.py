"""Things that are no toy: its primitives put together at random, so that a network learns shapes it has no name for.

World axes: x right, y up, z towards the viewer at azimuth 0; the ground is y = 0.
"""

from typing import Any

from belvedere.data.toybox.palette import (
    BLACK,
    BROWN,
    COLORS,
    CREAM,
    GLASS,
    STEEL,
    STONE,
    WHITE,
    Dice,
    Parts,
    scaled,
)
from belvedere.data.toybox.shapes import (
    ALONG_X,
    ALONG_Z,
    CENTER,
    STRIPES,
    Primitive,
    Vector,
    ball,
    box,
    cone,
    rod,
    wedge,
)

MATERIALS: tuple[Vector, ...] = (BLACK, BROWN, CREAM, GLASS, STEEL, STONE, WHITE, *COLORS.values())


def stack(dice: Dice, paint: Vector) -> Parts:
    """Return two to four things on top of one another, each narrower or wider, with trimmings."""
    parts: Parts = []
    foot, wide = 0.0, dice.between(0.4, 0.9)
    for _ in range(2 + int(dice.between(0, 3))):
        half = (wide, dice.between(0.15, 0.5), wide * dice.between(0.6, 1.0))
        parts.append(_piece(dice, (0, foot + half[1], 0), half, _color(dice, paint)))
        parts += _trimmings(dice, (0, foot + half[1], 0), half, paint)
        foot += 2 * half[1]
        wide *= dice.between(0.5, 1.15)
    return parts


def row(dice: Dice, paint: Vector) -> Parts:
    """Return two to four things side by side, on a board or on the ground."""
    deep, thick = dice.between(0.3, 0.6), dice.between(0.05, 0.25)
    board = dice.chance(0.6)
    parts = [box((0, thick, 0), (1.0, thick, deep), _color(dice, paint))] if board else []
    count = 2 + int(dice.between(0, 3))
    for k in range(count):
        half = (dice.between(0.5, 1.0) / count, dice.between(0.12, 0.5), deep * dice.between(0.6, 1.0))
        at = ((2 * k + 1) / count - 1, 2 * thick * board + half[1], 0.0)
        parts.append(_piece(dice, at, half, _color(dice, paint)))
        parts += _trimmings(dice, at, half, paint)
    return parts


def cluster(dice: Dice, paint: Vector) -> Parts:
    """Return one thing in the middle and up to three others at its sides, each of them twice, opposite each other."""
    half = (dice.between(0.35, 0.8), dice.between(0.25, 0.8), dice.between(0.35, 0.8))
    parts = [_piece(dice, (0, half[1], 0), half, _color(dice, paint))]
    parts += _trimmings(dice, (0, half[1], 0), half, paint)
    for _ in range(1 + int(dice.between(0, 3))):
        size = (dice.between(0.08, 0.4), dice.between(0.08, 0.6), dice.between(0.08, 0.4))
        aside = dice.chance(0.5)  # else in front and behind
        along = dice.between(-1, 1) * half[2 if aside else 0]
        x, z = (half[0], along) if aside else (along, half[2])
        up, color = max(size[1], dice.between(0, 2) * half[1]), _color(dice, paint)
        one = _piece(dice, (x, up, z), size, color)
        opposite = (-x, up, z) if aside else (x, up, -z)
        parts += [one, (*one[: CENTER.start], *opposite, *one[CENTER.stop :])]
    return parts


def _color(dice: Dice, paint: Vector) -> Vector:
    """Return the paint, perhaps darker, or any other material."""
    if dice.chance(0.5):
        return scaled(paint, dice.between(0.7, 1.0))
    return MATERIALS[int(dice.between(0, len(MATERIALS)))]


def _piece(dice: Dice, at: Vector, half: Vector, color: Vector) -> Primitive:
    """Return a block, a prism, a cylinder any way round, a cone or an ellipsoid of half-sizes ``half``."""
    shape = int(dice.between(0, 7))
    look: dict[str, Any] = {"gloss": dice.between(0, 0.5)}
    if dice.chance(0.15):
        look |= {"texture": STRIPES, "second": _color(dice, color), "repeats": dice.between(2, 4)}
    if shape == 0:
        return ball(at, half, color, **look)
    if shape == 1:
        return wedge(at, half, color, (dice.between(0, 1), dice.between(0, 1)), **look)
    if shape == 2:
        size = (half[0], half[1], half[2] / half[0])
        return cone(at, size[0], dice.between(0, 1) * size[0], size[1], color, flat=size[2], **look)
    if shape == 3:
        return rod(at, half[0], half[1], color, **look)
    if shape == 4:
        return rod(at, half[1], half[0], color, rotation=ALONG_X, **look)
    if shape == 5:
        return rod(at, half[1], half[2], color, rotation=ALONG_Z, **look)
    return box(at, half, color, **look)


def _trimmings(dice: Dice, at: Vector, half: Vector, paint: Vector) -> Parts:
    """Return up to four small things on the faces of a larger one."""
    parts: Parts = []
    for axis, side in ((2, 1), (2, -1), (0, 1), (0, -1)):
        if not dice.chance(0.4):
            continue
        place, size = list(at), [dice.between(0.05, 0.2) for _ in range(3)]
        place[axis] += side * half[axis]
        place[1] += dice.between(-0.4, 0.4) * half[1]
        size[axis] = 0.04
        color, where = _color(dice, paint), (place[0], place[1], place[2])
        if dice.chance(0.5):
            parts.append(box(where, (size[0], size[1], size[2]), color))
        else:
            parts.append(ball(where, (size[0], size[1], size[2]), color))
    return parts
