"""Toys that stand in a garden. World axes: x right, y up, z towards the viewer at azimuth 0; the ground is y = 0."""

from belvedere.data.toybox.palette import (
    BROWN,
    COLORS,
    CREAM,
    DOOR,
    SIDES,
    STONE,
    WHITE,
    WINDOW,
    YELLOW,
    Dice,
    Parts,
    scaled,
)
from belvedere.data.toybox.shapes import ALONG_Z, Vector, ball, box, cone, rod, turn, wedge

SPOTS = ((0, 0.3), (62, 0.62), (-62, 0.62), (122, 0.3), (-122, 0.3), (180, 0.6), (70, 0.16), (-58, 0.2))
"""Where a mushroom has its spots: degrees around, share of the way up."""
FRUIT = ((-0.3, 0.55, 0.55), (0.3, 0.75, 0.5), (0.1, 0.25, 0.98), (0.62, 0.3, 0.48), (-0.6, 0.3, 0.5))
"""Where a tree bears fruit, from the foot of its crown."""


def house(dice: Dice, paint: Vector) -> Parts:
    """Return a house with a gabled or hipped roof, door and windows towards +z."""
    wide, deep, tall = dice.between(0.72, 0.9), dice.between(0.6, 0.72), dice.between(0.42, 0.5)
    rise = dice.between(0.32, 0.4)
    ridge = 1.0 if dice.chance(0.5) else 0.5
    front, sill = deep + 0.01, tall * 1.15
    parts = [
        box((0, tall, 0), (wide, tall, deep), CREAM),
        wedge((0, 2 * tall + rise, 0), (wide + 0.14, rise, deep + 0.14), paint, (ridge, 0)),
        box((wide * 0.5, 2 * tall + rise * 1.3, -deep * 0.25), (0.12, 0.42, 0.12), (0.55, 0.25, 0.2)),
        box((0, 0.3, front), (0.17, 0.3, 0.04), BROWN),
        ball((0.1, 0.3, front + 0.04), 0.035, YELLOW),
    ]
    for side in SIDES:
        at = side * wide * 0.6
        parts.append(box((at, sill, front), (0.17, 0.17, 0.02), WHITE))
        parts.append(box((at, sill, front + 0.01), (0.12, 0.12, 0.025), WINDOW, gloss=0.5))
    parts.append(box((wide, sill, 0), (0.02, 0.17, 0.2), WHITE))
    parts.append(box((wide + 0.01, sill, 0), (0.025, 0.12, 0.15), WINDOW, gloss=0.5))
    return parts


def tree(dice: Dice, paint: Vector) -> Parts:
    """Return a fir of three cones or a broad-leaved tree of five balls, some with fruit."""
    trunk = dice.between(0.11, 0.15)
    if dice.chance(0.4):
        low, r = dice.between(0.4, 0.5), dice.between(0.62, 0.72)
        parts = [cone((0, low * 0.6, 0), trunk * 1.2, trunk, low * 0.6, BROWN)]
        for k, (up, size) in enumerate(((0, 1.0), (0.42, 0.8), (0.82, 0.58))):
            green = scaled(paint, 0.85 + 0.15 * k)
            parts.append(cone((0, low + 0.36 + up, 0), r * size, 0.04, 0.38, green, gloss=0))
        return parts
    low, r = dice.between(0.75, 0.9), dice.between(0.55, 0.65)
    parts = [cone((0, low * 0.55, 0), trunk * 1.4, trunk, low * 0.55, BROWN)]
    crown = [
        ((0, low + 0.62, 0), r),
        ((-0.4, low + 0.3, 0.1), r * 0.72),
        ((0.42, low + 0.32, 0.05), r * 0.7),
        ((0.05, low + 0.28, 0.38), r * 0.66),
        ((0, low + 0.3, -0.36), r * 0.7),
    ]
    for k, (at, size) in enumerate(crown):
        parts.append(ball(at, size, scaled(paint, 1 - 0.07 * (k % 3)), gloss=0))
    if dice.chance(0.3):
        for x, up, z in FRUIT:
            parts.append(ball((x, low + up, z), 0.09, COLORS["red"]))
    return parts


def mushroom(dice: Dice, paint: Vector) -> Parts:
    """Return a spotted mushroom."""
    r, tall, dome = dice.between(0.8, 0.95), dice.between(0.38, 0.5), dice.between(0.6, 0.78)
    y = 2 * tall - 0.05
    parts = [
        cone((0, tall, 0), dice.between(0.34, 0.42), 0.26, tall, CREAM, gloss=0),
        ball((0, 0.06, 0), (0.42, 0.2, 0.42), CREAM, gloss=0),
        cone((0, y - 0.04, 0), r * 0.7, r * 0.96, 0.06, (0.90, 0.82, 0.68), gloss=0),
        ball((0, y, 0), (r, dome, r), paint, cut=0.0, gloss=0.3),
    ]
    for degrees, up in SPOTS:
        around, out = turn("y", degrees), (1 - up * up) ** 0.5 * r * 0.95
        at = (around[0][2] * out, y + up * dome * 0.95, around[2][2] * out)
        parts.append(ball(at, 0.16, WHITE, gloss=0))
    parts.append(ball((0, y + dome * 0.94, 0), (0.2, 0.1, 0.2), WHITE, gloss=0))
    return parts


def castle(dice: Dice, paint: Vector) -> Parts:
    """Return a walled castle with four towers, a keep and a gate towards +z."""
    w, tall = dice.between(0.68, 0.78), dice.between(0.36, 0.44)
    up = dice.between(0.56, 0.66)
    keep = dice.between(0.62, 0.75)
    parts = [
        box((0, tall, 0), (w, tall, w), STONE),
        box((0, 0.24, w), (0.2, 0.24, 0.03), DOOR),
        rod((0, 0.48, w), 0.2, 0.03, DOOR, rotation=ALONG_Z),
        rod((0, 2 * tall + keep * 0.5, -0.1), 0.3, keep * 0.5, scaled(STONE, 0.92)),
        cone((0, 2 * tall + keep + 0.28, -0.1), 0.38, 0, 0.28, paint),
    ]
    for x in SIDES:
        for z in SIDES:
            parts.append(rod((x * w, up, z * w), 0.24, up, scaled(STONE, 1.08)))
            parts.append(cone((x * w, 2 * up + 0.26, z * w), 0.32, 0, 0.26, paint))
    for k in range(-1, 2):
        parts.append(box((k * 0.28, 2 * tall + 0.07, w - 0.06), (0.08, 0.08, 0.06), STONE))
    return parts
