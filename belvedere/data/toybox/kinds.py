"""The fourteen toys, and three ways to put their parts together at random: how each is made, its colours and where it
is best seen from.

A toy is a composition of 4 to 21 primitives about two world units in size, standing on the ground y = 0.
"""

from collections.abc import Callable
from dataclasses import dataclass

from belvedere.data.toybox.assemblies import cluster, row, stack
from belvedere.data.toybox.indoors import chair, lamp, mug, robot, table
from belvedere.data.toybox.outdoors import castle, house, mushroom, tree
from belvedere.data.toybox.palette import COLORS, Dice, Parts
from belvedere.data.toybox.shapes import Vector
from belvedere.data.toybox.vehicles import boat, car, plane, rocket, train


@dataclass(frozen=True)
class Kind:
    """How to make a kind: its function, its colours, the azimuth it is best seen from and the spread."""

    make: Callable[[Dice, Vector], Parts]
    colors: tuple[str, ...]
    azimuth: float
    spread: float = 40.0
    elevation: tuple[float, float] = (15.0, 32.0)


TOYS: dict[str, Kind] = {
    "car": Kind(car, ("red", "orange", "yellow", "green", "blue", "purple", "white"), 30),
    "boat": Kind(boat, ("red", "orange", "green", "teal", "purple", "pink"), 15, 35),
    "plane": Kind(plane, ("red", "orange", "yellow", "green", "blue", "purple"), 40, 35, (22, 38)),
    "rocket": Kind(rocket, ("red", "orange", "green", "blue", "purple", "pink"), 0, 35),
    "house": Kind(house, ("red", "orange", "green", "blue", "purple", "brown"), 28, 30),
    "tree": Kind(tree, ("green", "dark green", "light green"), 0),
    "mushroom": Kind(mushroom, ("red", "orange", "purple", "brown", "pink"), 0),
    "lamp": Kind(lamp, ("red", "orange", "yellow", "green", "teal", "blue", "pink"), 0, 40, (12, 26)),
    "chair": Kind(chair, ("red", "orange", "yellow", "green", "blue", "purple", "brown"), 30, 30),
    "table": Kind(table, ("brown", "golden", "red", "white", "green", "blue"), 25, 35),
    "mug": Kind(mug, ("red", "orange", "yellow", "green", "blue", "purple", "white"), 0, 40, (20, 35)),
    "robot": Kind(robot, ("red", "orange", "yellow", "green", "blue", "purple"), 0, 35, (12, 26)),
    "castle": Kind(castle, ("red", "orange", "green", "blue", "purple"), 30, 35),
    "train": Kind(train, ("red", "orange", "green", "blue", "purple"), 35, 30),
}

ASSEMBLIES: dict[str, Kind] = {
    make.__name__: Kind(make, tuple(COLORS), 0, 180, (12, 38)) for make in (stack, row, cluster)
}
"""What is no toy: neither trained on nor tested with unless it is named."""

ALL = TOYS | ASSEMBLIES
"""Every kind by its name."""
