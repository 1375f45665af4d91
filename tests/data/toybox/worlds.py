"""Scenes made by hand for the tests: a few primitives, a camera on the z axis."""

from collections.abc import Sequence

import numpy as np

from belvedere.data.toybox.scene import Array, Scenes, cameras
from belvedere.data.toybox.shapes import FIELDS, Primitive


def world(
    prims: Sequence[Primitive],
    *,
    target: tuple[float, float, float] = (0.0, 0.0, 0.0),
    distance: float = 5.0,
    elevation: float = 0.0,
    sun: tuple[float, float, float] = (0.0, 1.0, 0.0),
) -> tuple[Scenes, Array]:
    """Return one scene on a white plain floor under a black sky, and its camera (1, 4, 4) looking along -z."""
    scenes = Scenes(
        prims=np.array(prims, dtype=np.float64).reshape(-1, FIELDS),
        owner=np.zeros(len(prims), dtype=np.int64),
        floor=np.ones((1, 2, 3)),
        pattern=np.zeros(1),
        sky=np.zeros((1, 2, 3)),
        sun=np.array([sun]),
        target=np.array([target]),
        distance=np.array([distance]),
        azimuth=np.zeros(1),
        elevation=np.array([elevation]),
        captions=("a test",),
    )
    return scenes, cameras(scenes)
