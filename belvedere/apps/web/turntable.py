"""A scene as a ring of small views that the page shows one at a time: coarse steps first, every way of seeing at once.

All views of one way are one picture, the sheet: a column an angle, a row an elevation. Until a view is rendered its
nearest neighbour stands in its place, so a sheet can be turned from the first view on.
"""

from collections.abc import Callable

import numpy as np
from PIL import Image

from belvedere.apps.requests import SHOWN
from belvedere.apps.scenes import Scene
from belvedere.apps.view import Viewer, turned, view_camera
from belvedere.apps.web.turntable_page import COLUMNS, RISES

SIDE = 64
"""Pixels along the longer side of a view."""
STRIDES = (COLUMNS, 6, 3, 1)
"""Columns between the views of each round."""

Place = tuple[int, int]
"""Row and column of a view."""
Sheets = dict[str, Image.Image]
"""The sheet of each way of seeing (``requests.SHOWN``)."""


class Ring:
    """The views of a scene as they are rendered."""

    def __init__(self, scene: Scene, side: int = SIDE):
        height, width = scene.camera.size
        scale = side / max(height, width)
        self.viewer = Viewer(scene)
        self.camera = view_camera(scene.camera, (max(16, round(width * scale)), max(16, round(height * scale))))
        self.views: dict[Place, list[np.ndarray]] = {}

    def render(self, place: Place) -> None:
        """Render one view."""
        row, column = place
        camera = turned(self.camera, column * 360 / COLUMNS, RISES[row], self.viewer.scene.pitch)
        self.views[place] = self.viewer.shown(camera, SHOWN)

    def sheets(self) -> Sheets:
        """Return the sheet of each way of seeing; one view at least must be there."""
        cells = [
            [self.views[nearest((row, column), self.views)] for column in range(COLUMNS)] for row in range(len(RISES))
        ]
        return {
            what: Image.fromarray(np.vstack([np.hstack([cell[i] for cell in row]) for row in cells]))
            for i, what in enumerate(SHOWN)
        }


def rounds() -> list[list[Place]]:
    """Return every place once, in rounds: the picture's own view, its row ever finer, then the other rows."""
    middle = RISES.index(0)
    fresh = [
        [(middle, column) for column in range(0, COLUMNS, stride) if not wider or column % wider]
        for wider, stride in zip((0, *STRIDES), STRIDES, strict=False)
    ]
    others = [[(row, column) for column in range(COLUMNS)] for row in range(len(RISES)) if row != middle]
    return [*fresh, *others]


def nearest(place: Place, known: dict[Place, list[np.ndarray]]) -> Place:
    """Return the known place that is the fewest steps from ``place``, whose ring closes."""

    def steps(other: Place) -> int:
        around = abs(place[1] - other[1])
        return min(around, COLUMNS - around) + abs(place[0] - other[0])

    return min(known, key=steps)


def render_ring(scene: Scene, tell: Callable[[int, int, Sheets | None], object]) -> Sheets:
    """Render all views and return the sheets; ``tell`` is called after each with how many are done, of how many, and
    at the end of each round the sheets as far as they are."""
    ring, order = Ring(scene), rounds()
    total = sum(map(len, order))
    for places in order:
        for place in places:
            ring.render(place)
            tell(len(ring.views), total, ring.sheets() if place == places[-1] else None)
    return ring.sheets()
