"""Toys that travel. World axes: x right, y up, z towards the viewer at azimuth 0; the ground is y = 0."""

from belvedere.data.toybox.palette import (
    BLACK,
    BROWN,
    COLORS,
    CREAM,
    GLASS,
    SIDES,
    SKY_GLASS,
    STEEL,
    WHITE,
    YELLOW,
    Dice,
    Parts,
    scaled,
)
from belvedere.data.toybox.shapes import ALONG_X, ALONG_Z, STRIPES, Vector, ball, box, cone, ring, rod, turn, wedge


def car(dice: Dice, paint: Vector) -> Parts:
    """Return a saloon: body, glass cabin, roof, four wheels with hubs, bumper, lights."""
    length, wheel, cab = dice.between(0.95, 1.1), dice.between(0.25, 0.3), dice.between(0.26, 0.32)
    y = wheel + 0.2
    shift = dice.between(-0.2, -0.05)
    parts = [
        box((0, y, 0), (length, 0.22, 0.5), paint, gloss=0.4),
        wedge((shift, y + 0.22 + cab, 0), (length * 0.62, cab, 0.46), GLASS, (0.62, 0.82), gloss=0.5),
        wedge((shift, y + 0.24 + 2 * cab, 0), (length * 0.41, 0.05, 0.4), paint, (0.9, 0.9), gloss=0.4),
        box((shift, y + 0.22 + cab, 0), (0.06, cab * 0.97, 0.435), paint),
        box((length, y - 0.1, 0), (0.05, 0.07, 0.48), STEEL),
    ]
    for side in SIDES:
        parts.append(ball((length, y + 0.08, side * 0.34), (0.05, 0.1, 0.1), YELLOW, glow=0.4))
        for end in SIDES:
            at = end * length * 0.6
            parts.append(rod((at, wheel, side * 0.48), wheel, 0.1, BLACK, rotation=ALONG_Z))
            parts.append(rod((at, wheel, side * 0.53), wheel * 0.5, 0.07, WHITE, rotation=ALONG_Z))
    return parts


def boat(dice: Dice, paint: Vector) -> Parts:
    """Return a sailing boat: flared hull, deck, mast, a main sail (plain or striped) and a jib."""
    length, width, tall = dice.between(0.9, 1.0), dice.between(0.42, 0.5), dice.between(0.66, 0.78)
    foot = 0.66
    sail = {"texture": STRIPES, "second": paint, "repeats": 2.5} if dice.chance(0.4) else {}
    return [
        cone((0, 0.26, 0), length * 0.7, length, 0.26, paint, flat=width, gloss=0.3),
        cone((0, 0.5, 0), length * 1.02, length * 1.05, 0.06, WHITE, flat=width),
        cone((0, 0.54, 0), length * 0.92, length * 0.92, 0.03, (0.72, 0.50, 0.28), flat=width),
        rod((0, foot + tall * 0.9, 0), 0.06, tall + 0.12, BROWN),
        wedge((0.45, foot + tall, 0), (0.4, tall * 0.9, 0.035), WHITE, (0, 1), lean=-1, glow=0.5, **sail),
        wedge((-0.36, foot + tall * 0.85, 0), (0.3, tall * 0.75, 0.035), CREAM, (0, 1), lean=1, glow=0.5),
        wedge((-0.13, foot + tall * 1.9 + 0.03, 0), (0.14, 0.1, 0.035), paint, (0.6, 1)),
    ]


def plane(dice: Dice, paint: Vector) -> Parts:
    """Return a plane on three wheels, nose towards +x."""
    length, span, y = dice.between(0.95, 1.1), dice.between(0.95, 1.1), 0.55
    swept = dice.between(0.1, 0.5)
    parts = [
        ball((0, y, 0), (length, 0.28, 0.28), WHITE, gloss=0.4),
        ball((length * 0.72, y, 0), (0.32, 0.22, 0.22), paint, gloss=0.3),
        ball((length * 0.36, y + 0.16, 0), (0.3, 0.19, 0.18), GLASS, gloss=0.6),
        wedge((-length * 0.84, y + 0.32, 0), (0.27, 0.3, 0.06), paint, (0.6, 1), lean=-0.7),
    ]
    for side in SIDES:
        out = turn("x", side * 86)
        root, stern = (0.08 - swept * 0.2, y, side * span * 0.54), (-length * 0.84, y + 0.06, side * 0.3)
        wing = wedge(root, (0.36, span * 0.5, 0.06), paint, (0.6, 0.7), rotation=out, lean=-swept)
        tail = wedge(stern, (0.2, 0.3, 0.05), paint, (0.6, 1), rotation=out, lean=-0.6)
        engine = rod((0.16, y - 0.12, side * span * 0.45), 0.1, 0.2, STEEL, rotation=ALONG_X)
        wheel = rod((-0.1, 0.1, side * 0.26), 0.1, 0.05, BLACK, rotation=ALONG_Z)
        leg = rod((-0.1, 0.25, side * 0.24), 0.04, 0.15, STEEL)
        parts += [wing, tail, engine, wheel, leg]
    parts.append(rod((length * 0.6, 0.1, 0), 0.09, 0.05, BLACK, rotation=ALONG_Z))
    parts.append(rod((length * 0.6, 0.25, 0), 0.035, 0.15, STEEL))
    return parts


def rocket(dice: Dice, paint: Vector) -> Parts:
    """Return a rocket standing on four fins, its window towards +z."""
    r, half = dice.between(0.4, 0.48), dice.between(0.54, 0.64)
    y = 0.35 + half
    parts = [
        cone((0, 0.2, 0), 0.3, 0.2, 0.16, STEEL),
        cone((0, y - half * 0.5, 0), r * 0.8, r, half * 0.5, WHITE, gloss=0.3),
        rod((0, y + half * 0.5, 0), r, half * 0.5, WHITE, gloss=0.3),
        rod((0, y + half * 0.93, 0), r * 1.04, 0.06, paint),
        cone((0, y + half + 0.36, 0), r, 0, 0.36, paint, gloss=0.3),
        ring((0, y + half * 0.4, r * 0.97), 0.19, 0.055, paint, rotation=ALONG_Z),
        ball((0, y + half * 0.4, r * 0.92), (0.18, 0.18, 0.1), (0.25, 0.55, 0.85), gloss=0.6),
    ]
    for k in range(4):
        about = turn("y", 45 + 90 * k)
        far = r + 0.1
        at = (about[0][0] * far, 0.42, about[2][0] * far)
        parts.append(wedge(at, (0.28, 0.42, 0.06), paint, (0.3, 1), rotation=about, lean=-0.7))
    return parts


def train(dice: Dice, paint: Vector) -> Parts:
    """Return a steam engine, nose towards +x."""
    r = dice.between(0.3, 0.35)
    y = 0.42 + r
    dark = scaled(paint, 0.7)
    parts = [
        box((0, 0.4, 0), (1.1, 0.09, 0.4), BLACK),
        rod((0.3, y + 0.02, 0), r, 0.68, paint, rotation=ALONG_X, gloss=0.4),
        rod((1.0, y + 0.02, 0), r * 0.86, 0.05, BLACK, rotation=ALONG_X),
        box((-0.7, y + 0.22, 0), (0.36, 0.55, 0.42), dark),
        box((-0.7, y + 0.82, 0), (0.45, 0.07, 0.5), BLACK),
        box((-0.7, y + 0.42, 0), (0.2, 0.18, 0.44), SKY_GLASS),
        cone((0.68, y + r + 0.2, 0), 0.11, 0.19, 0.24, BLACK),
        ball((0.2, y + r, 0), (0.16, 0.17, 0.16), COLORS["golden"], gloss=0.5),
        wedge((1.2, 0.22, 0), (0.2, 0.2, 0.4), COLORS["red"], (0.1, 0.8), lean=-0.8),
    ]
    for side in SIDES:
        for at, size in ((-0.7, 0.3), (0.0, 0.24), (0.6, 0.24)):
            parts.append(rod((at, size, side * 0.42), size, 0.06, COLORS["red"], rotation=ALONG_Z))
            parts.append(rod((at, size, side * 0.46), size * 0.4, 0.05, COLORS["golden"], rotation=ALONG_Z))
    return parts
