"""Toys that belong in a room. World axes: x right, y up, z towards the viewer at azimuth 0; the ground is y = 0."""

from belvedere.data.toybox.palette import BLACK, BROWN, COLORS, GREY, SIDES, STEEL, WHITE, Dice, Parts, scaled
from belvedere.data.toybox.shapes import ALONG_Z, CHECKS, WOOD, Vector, ball, box, cone, ring, rod, turn


def lamp(dice: Dice, paint: Vector) -> Parts:
    """Return a table lamp."""
    pole, r, half = dice.between(0.52, 0.62), dice.between(0.64, 0.76), dice.between(0.38, 0.46)
    metal = COLORS["golden"] if dice.chance(0.5) else STEEL
    top = 0.1 + 2 * pole
    return [
        cone((0, 0.06, 0), 0.48, 0.4, 0.06, metal, gloss=0.5),
        ball((0, 0.12, 0), (0.3, 0.1, 0.3), metal, cut=0.0, gloss=0.5),
        rod((0, 0.1 + pole, 0), 0.08, pole, metal, gloss=0.5),
        ball((0, 0.1 + pole * 0.8, 0), 0.14, metal, gloss=0.5),
        cone((0, top + half * 0.7, 0), r, r * dice.between(0.45, 0.6), half, paint, glow=0.35, gloss=0),
        cone((0, top - half * 0.3, 0), r * 1.02, r * 1.0, 0.05, (1.0, 0.93, 0.66), glow=0.8),
        ball((0, top + half * 1.7 + 0.06, 0), 0.08, metal),
    ]


def chair(dice: Dice, paint: Vector) -> Parts:
    """Return a chair facing +z, its back closed or slatted."""
    w, seat, back = dice.between(0.52, 0.6), dice.between(0.66, 0.78), dice.between(0.46, 0.55)
    legs = BROWN if dice.chance(0.4) else scaled(paint, 0.8)
    inner = w - 0.085
    parts = [box((0, seat, 0), (w, 0.09, w), paint)]
    for x in SIDES:
        for z in SIDES:
            parts.append(box((x * inner, seat * 0.5, z * inner), (0.085, seat * 0.5, 0.085), legs))
        parts.append(box((x * inner, seat + back, -inner), (0.085, back, 0.08), legs))
    if dice.chance(0.5):
        parts.append(box((0, seat + back * 1.15, -inner), (w - 0.1, back * 0.78, 0.05), paint))
    else:
        for level in (0.55, 1.1, 1.65):
            parts.append(box((0, seat + back * level, -inner), (w - 0.1, back * 0.2, 0.05), paint))
    return parts


def table(dice: Dice, paint: Vector) -> Parts:
    """Return a round table (some with a checked cloth) or a rectangular wooden one."""
    tall, w = dice.between(0.74, 0.9), dice.between(0.9, 1.02)
    legs = scaled(paint, 0.75)
    if dice.chance(0.35):
        d = w * dice.between(0.8, 1.0)
        cloth = {"texture": CHECKS, "second": WHITE, "repeats": 4.0} if dice.chance(0.3) else {}
        top = cone((0, tall, 0), w, w, 0.08, paint, flat=d / w, **cloth)
        inset = 0.62
    else:
        d = dice.between(0.55, 0.7)
        top = box((0, tall, 0), (w, 0.08, d), paint, texture=WOOD, second=scaled(paint, 0.72), repeats=2.5)
        inset = 0.86
    parts = [top]
    for x in SIDES:
        for z in SIDES:
            parts.append(box((x * w * inset, tall * 0.5, z * d * inset), (0.1, tall * 0.5, 0.1), legs))
        parts.append(box((0, tall - 0.16, x * d * inset), (w * inset, 0.09, 0.04), legs))
        parts.append(box((x * w * inset, tall - 0.16, 0), (0.04, 0.09, d * inset), legs))
    return parts


def mug(dice: Dice, paint: Vector) -> Parts:
    """Return a full mug with its handle towards +x."""
    r, half = dice.between(0.6, 0.7), dice.between(0.62, 0.75)
    foot = dice.between(0.82, 1.0)
    band = WHITE if paint != WHITE else COLORS["blue"]
    parts = [
        cone((0, half, 0), r * foot, r, half, paint, gloss=0.5),
        rod((0, 2 * half, 0), r * 0.88, 0.006, scaled(paint, 0.55), gloss=0),
        rod((0.06, 2 * half, 0), r * 0.80, 0.01, (0.20, 0.10, 0.05), gloss=0),
        ring((r * 0.98, half, 0), half * 0.58, 0.12, paint, rotation=ALONG_Z, gloss=0.5),
        cone((0, 0.04, 0), r * foot * 0.97, r * foot * 1.02, 0.04, scaled(paint, 0.8)),
    ]
    if dice.chance(0.4):
        middle = r * (1 + foot) / 2
        parts.append(cone((0, half, 0), middle * 1.005, middle * 1.02, half * 0.2, band, gloss=0.5))
    return parts


def robot(dice: Dice, paint: Vector) -> Parts:
    """Return a robot facing +z."""
    w, tall, head = dice.between(0.48, 0.56), dice.between(0.38, 0.44), dice.between(0.32, 0.38)
    y = 0.42 + tall
    top = y + tall + 0.1 + head
    parts = [
        box((0, y, 0), (w, tall, 0.34), paint, gloss=0.3),
        rod((0, y + tall + 0.05, 0), 0.12, 0.08, STEEL),
        box((0, top, 0), (head * 1.25, head, 0.32), GREY, gloss=0.3),
        rod((0, top + head + 0.12, 0), 0.035, 0.14, STEEL),
        ball((0, top + head + 0.3, 0), 0.1, COLORS["red"], glow=0.4),
        box((0, top - head * 0.48, 0.32), (head * 0.62, 0.05, 0.02), BLACK),
        box((0, y + tall * 0.15, 0.34), (w * 0.62, tall * 0.42, 0.02), WHITE),
        ball((-w * 0.28, y + tall * 0.2, 0.36), (0.08, 0.08, 0.04), COLORS["red"]),
        ball((w * 0.28, y + tall * 0.2, 0.36), (0.08, 0.08, 0.04), COLORS["green"]),
    ]
    raised = dice.between(5, 40)
    for side in SIDES:
        eye = (side * head * 0.55, top + head * 0.2)
        parts.append(ball((*eye, 0.31), (0.12, 0.12, 0.06), (1.0, 0.95, 0.5), glow=0.6))
        parts.append(ball((*eye, 0.36), (0.055, 0.055, 0.03), BLACK))
        arm = turn("z", side * raised)
        at = (side * (w + 0.1 + 0.3 * arm[1][0] * side), y + tall * 0.62 - 0.3 * arm[1][1], 0.0)
        parts.append(rod(at, 0.1, 0.32, GREY, rotation=arm))
        hand = (at[0] + 0.36 * arm[1][0], at[1] - 0.36 * arm[1][1], 0.0)
        parts.append(ball(hand, 0.16, paint))
        parts.append(box((side * w * 0.5, 0.24, 0), (0.13, 0.2, 0.15), GREY))
        parts.append(box((side * w * 0.5, 0.07, 0.06), (0.17, 0.08, 0.26), paint))
    return parts
