"""A scene comes into the unit cube: box, near and far by hand, outliers and short tracks ignored."""

import math
from dataclasses import replace

import pytest
import torch

from belvedere.data.cameras import Camera
from belvedere.data.normalisation import normalise_scene
from belvedere.errors import InputError
from tests.data.colmap_files import turned

CAMERA = Camera(turned(0, 0, 0, (10.0, 20.0, 0.0)), (50.0, 50.0), (50.0, 50.0), (100, 100))
"""Looks along z from (10, 20, 0), 45 degrees to each side."""


def line(count: int = 101) -> torch.Tensor:
    """Points on the camera's axis at depths 2 to 6."""
    return torch.tensor([[10.0, 20.0, 2 + 4 * i / (count - 1)] for i in range(count)], dtype=torch.float64)


def test_box_near_and_far() -> None:
    points = line()
    normal = normalise_scene(points, torch.full((101,), 10), [CAMERA])
    low, high = 2 + 4 * 0.025, 2 + 4 * 0.975  # the central 95 %, from 2.1 to 5.9
    low, high = (
        2 + 4 * math.ceil(low * 25 - 50) / 100,
        2 + 4 * math.floor(high * 25 - 50) / 100,
    )  # of what points there are
    assert normal.centre == pytest.approx((10, 20, high / 2))
    assert normal.scale == pytest.approx(1 / high)
    span = high - low
    assert normal.near == pytest.approx(0.9 * (low + 0.001 * span) / high)
    assert normal.far == pytest.approx(1.1 * (low + 0.999 * span) / high)


def test_outliers_and_points_of_short_tracks_change_nothing() -> None:
    points, tracks = line(), torch.full((101,), 12)
    want = normalise_scene(points, tracks, [CAMERA])
    far = torch.tensor([[1e4, 0.0, 0.0]]).double().repeat(30, 1)
    assert normalise_scene(torch.cat([points, far]), torch.cat([tracks, torch.full((30,), 9)]), [CAMERA]) == want
    outlier = torch.tensor([[1e4, 1e4, 1e4]]).double()
    got = normalise_scene(torch.cat([points, outlier]), torch.cat([tracks, torch.tensor([12])]), [CAMERA])
    assert got.scale == pytest.approx(want.scale, rel=0.02)


def test_a_camera_in_the_new_coordinates_sees_the_same() -> None:
    points = line() + 0.3 * torch.randn(101, 3, generator=torch.Generator().manual_seed(0))
    other = replace(CAMERA, pose=turned(0.1, 0.4, 0.0, (8.0, 20.5, 1.0)))
    normal = normalise_scene(points, torch.full((101,), 10), [CAMERA, other])
    moved = (points - torch.tensor(normal.centre, dtype=torch.float64)) * normal.scale
    for camera in (CAMERA, other):
        pixels, depth = camera.project(points)
        new_pixels, new_depth = normal.apply(camera).project(moved)
        torch.testing.assert_close(new_pixels, pixels)
        torch.testing.assert_close(new_depth, depth * normal.scale)
        assert normal.apply(camera).position.abs().max() <= 0.5 + 1e-9


def test_near_and_far_are_of_what_pictures_show() -> None:
    """A second camera looks away, and a third sees the line from the side, at its own distance."""
    away = replace(CAMERA, pose=turned(0, math.pi, 0, (10.0, 20.0, 0.0)))
    side = replace(CAMERA, pose=turned(0, math.pi / 2, 0, (-20.0, 20.0, 4.0)))
    alone = normalise_scene(line(), torch.full((101,), 10), [CAMERA])
    assert normalise_scene(line(), torch.full((101,), 10), [CAMERA, away]) == alone
    both = normalise_scene(line(), torch.full((101,), 10), [CAMERA, side])
    assert both.far / both.scale == pytest.approx(1.1 * 30, rel=0.01)
    assert both.near / both.scale == pytest.approx(alone.near / alone.scale, rel=0.02)


def test_scenes_that_have_no_scale() -> None:
    with pytest.raises(InputError, match="found in 10 pictures"):
        normalise_scene(line(), torch.full((101,), 9), [CAMERA])
    away = replace(CAMERA, pose=turned(0, math.pi, 0, (10.0, 20.0, 0.0)))
    with pytest.raises(InputError, match="show none of its points"):
        normalise_scene(line(), torch.full((101,), 10), [away])
