"""What the toys share: named colours, and the random choices of one scene."""

import random

from belvedere.data.toybox.shapes import Primitive, Vector

Parts = list[Primitive]

COLORS: dict[str, Vector] = {
    "red": (0.86, 0.13, 0.12),
    "orange": (0.96, 0.50, 0.08),
    "yellow": (0.98, 0.82, 0.12),
    "green": (0.16, 0.62, 0.22),
    "teal": (0.08, 0.62, 0.60),
    "blue": (0.13, 0.34, 0.85),
    "purple": (0.52, 0.22, 0.74),
    "pink": (0.95, 0.42, 0.62),
    "white": (0.95, 0.95, 0.93),
    "grey": (0.62, 0.65, 0.69),
    "brown": (0.50, 0.29, 0.14),
    "dark green": (0.07, 0.42, 0.20),
    "light green": (0.45, 0.74, 0.22),
    "golden": (0.90, 0.62, 0.10),
}
WHITE, GREY, BROWN, YELLOW = COLORS["white"], COLORS["grey"], COLORS["brown"], COLORS["yellow"]
BLACK: Vector = (0.09, 0.09, 0.11)
GLASS: Vector = (0.16, 0.24, 0.38)
SKY_GLASS: Vector = (0.50, 0.80, 0.96)
WINDOW: Vector = (0.25, 0.50, 0.80)
DOOR: Vector = (0.25, 0.15, 0.10)
STONE: Vector = (0.74, 0.72, 0.68)
STEEL: Vector = (0.45, 0.47, 0.52)
CREAM: Vector = (0.96, 0.90, 0.78)
SIDES = (-1, 1)


class Dice:
    """The random choices of one scene, all from one seed."""

    def __init__(self, seed: int):
        self._random = random.Random(seed).random

    def between(self, low: float, high: float) -> float:
        """Return a number in [low, high)."""
        return low + (high - low) * self._random()

    def pick(self, *options: str) -> str:
        """Return one of the options."""
        return options[int(self._random() * len(options))]

    def chance(self, share: float) -> bool:
        """Return True in that share of the cases."""
        return self._random() < share


def scaled(color: Vector, factor: float) -> Vector:
    """Return the colour made darker (factor < 1) or lighter."""
    return (color[0] * factor, color[1] * factor, color[2] * factor)
