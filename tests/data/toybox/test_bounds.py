"""Screen bounds hold every point of a primitive, touch it, and are exact for a ball on the axis."""

import numpy as np
import pytest

from belvedere.data.toybox.bounds import flattened, screen_bounds
from belvedere.data.toybox.shapes import ball, box, cone, ring, rod, turn, wedge
from tests.data.toybox.worlds import world

WHITE = (1.0, 1.0, 1.0)
TILT = turn("x", 35)
SHAPES = {
    "ball": ball((0.4, 0.7, -0.3), (0.5, 0.9, 0.3), WHITE, rotation=TILT),
    "rod": rod((-0.6, 0.2, 0.5), 0.4, 0.8, WHITE, rotation=TILT),
    "cone": cone((0.2, -0.5, 0.1), 0.9, 0.1, 0.6, WHITE, rotation=TILT, flat=0.5),
    "box": box((0.3, 0.3, 0.2), (0.7, 0.2, 0.4), WHITE, rotation=TILT),
    "leaning wedge": wedge((0.3, -0.2, 0.1), (0.5, 0.6, 0.2), WHITE, (0.2, 1.5), rotation=TILT, lean=0.8),
    "ring": ring((0.1, 0.2, 0.3), 0.6, 0.15, WHITE, rotation=TILT),
}


def surface(name: str, form: tuple[float, float]) -> np.ndarray:
    """Return many points (k, 3) of the unit shape's surface, its extremes among them."""
    a, b = np.meshgrid(np.linspace(0, 2 * np.pi, 361), np.linspace(-1, 1, 201))
    if name == "ball":
        level = np.sin(b * np.pi / 2)
        points = (np.cos(a) * np.sqrt(1 - level**2), level, np.sin(a) * np.sqrt(1 - level**2))
    elif name == "ring":
        out = 1 + form[0] * np.cos(b * np.pi)
        points = (np.cos(a) * out, form[0] * np.sin(b * np.pi), np.sin(a) * out)
    elif name in ("rod", "cone"):
        r = form[0] + (form[1] - form[0]) * (b + 1) / 2
        points = (np.cos(a) * r, b, np.sin(a) * r)
    else:
        corner = [(x, y, z) for x in (-1, 1) for y in (-1, 1) for z in (-1, 1)]
        return np.array([(x * (form[0] if y > 0 else 1), y, z * (form[1] if y > 0 else 1)) for x, y, z in corner])
    return np.stack(points, -1).reshape(-1, 3)


@pytest.mark.parametrize("name", SHAPES)
def test_bounds_hold_and_touch_the_surface(name: str) -> None:
    scenes, pose = world([SHAPES[name]], distance=4.0, elevation=0.3)
    prim = scenes.prims[0]
    points = prim[1:4] + surface(name, tuple(prim[13:15])) @ prim[4:13].reshape(3, 3).T
    seen = (points - pose[0, :3, 3]) @ pose[0, :3, :3]
    x, y = seen[:, 0] / seen[:, 2], seen[:, 1] / seen[:, 2]
    low_x, high_x, low_y, high_y = (v[0] for v in screen_bounds(scenes.prims, scenes.owner, pose))
    slack = 0.12 if name == "ring" else 2e-3  # a ring is bounded as the cylinder around it
    for low, high, value in ((low_x, high_x, x), (low_y, high_y, y)):
        assert value.min() >= low - 1e-9 and value.max() <= high + 1e-9
        assert value.min() <= low + slack and value.max() >= high - slack


def test_a_ball_on_the_axis_spans_the_tangent() -> None:
    scenes, pose = world([ball((0, 0, 0), 1.0, WHITE)], distance=5.0)
    bounds = screen_bounds(scenes.prims, scenes.owner, pose)
    assert np.allclose(np.concatenate(bounds), np.array([-1, 1, -1, 1]) / np.sqrt(24))


@pytest.mark.parametrize("prim", [ball((0, 0, 4.9), 0.5, WHITE), box((0, 0, 5.0), (1, 1, 1), WHITE)])
def test_what_reaches_behind_the_camera_may_cover_everything(prim: tuple[float, ...]) -> None:
    scenes, pose = world([prim], distance=5.0)
    assert np.array_equal(np.concatenate(screen_bounds(scenes.prims, scenes.owner, pose)), [-np.inf, np.inf] * 2)


def test_a_shadow_is_pressed_onto_the_ground_along_the_sun() -> None:
    sun = np.array([[0.6, 0.8, 0.0]])
    flat = flattened(np.array([box((1, 2, 3), (1, 1, 1), WHITE)]), sun)[0]
    assert np.allclose(flat[1:4], (1 - 2 * 0.75, 0, 3))
    assert np.allclose(flat[4:13].reshape(3, 3), [[1, -0.75, 0], [0, 0, 0], [0, 0, 1]])
