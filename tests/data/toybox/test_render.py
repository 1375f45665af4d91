"""Pictures of scenes made by hand: depths, regions, colours and shadows that can be worked out on paper."""

import math

import numpy as np
import pytest
import torch

from belvedere.data.toybox.render import geometry, image, intrinsics
from belvedere.data.toybox.shapes import STRIPES, ball, box, rod
from belvedere.data.toybox.view import PIXELS, TILE, Pairs, View, bands
from tests.data.toybox.worlds import world

CPU = torch.device("cpu")
RED, GREEN, WHITE = (1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (1.0, 1.0, 1.0)


def test_a_ball_straight_ahead_is_its_radius_nearer_than_its_centre() -> None:
    scenes, pose = world([ball((0, 3, 0), 1.0, RED)], target=(0, 3, 0))
    regions, depth = geometry(scenes, pose, (9, 9), CPU)
    assert depth[0, 4, 4].item() == pytest.approx(4.0, abs=1e-5)
    assert regions[0, 4, 4] == 2


def test_the_outline_of_a_ball_is_where_the_tangent_says() -> None:
    scenes, pose = world([ball((0, 3, 0), 1.0, RED)], target=(0, 3, 0))
    size = 65
    regions, _ = geometry(scenes, pose, (size, size), CPU)
    offset = (torch.arange(size) + 0.5 - size / 2) / intrinsics((size, size))[0, 0]
    inside = offset[:, None] ** 2 + offset[None] ** 2 < 1 / 24  # tan^2 of the angle whose sine is 1/5
    assert torch.equal(regions[0] == 2, inside)


def test_off_axis_depth_is_along_the_optical_axis() -> None:
    wall = box((0, 3, -1), (4, 4, 1), GREEN)
    scenes, pose = world([wall], target=(0, 3, 0))
    _, depth = geometry(scenes, pose, (16, 16), CPU)
    assert torch.allclose(depth, torch.full_like(depth, 5.0), atol=1e-5)


def test_the_nearer_primitive_wins_whatever_the_order() -> None:
    near, far = ball((0, 3, 1), 0.5, RED), box((0, 3, -1), (1, 1, 1), GREEN)
    for prims in ((near, far), (far, near)):
        scenes, pose = world(prims, target=(0, 3, 0))
        regions, depth = geometry(scenes, pose, (33, 33), CPU)
        assert depth[0, 16, 16].item() == pytest.approx(3.5, abs=1e-5)
        assert regions[0, 16, 16] == 2 + prims.index(near)
        assert (regions[0] == 2 + prims.index(far)).any()


def test_ground_depth_by_the_height_of_the_camera_and_sky_at_infinity() -> None:
    scenes, pose = world([ball((0, 0.1, 0), 0.1, RED)], elevation=0.5)
    height = 5 * math.sin(0.5)
    regions, depth = geometry(scenes, pose, (65, 65), CPU)
    row = 60
    slope = (row + 0.5 - 32.5) / 130
    expected = height / (math.sin(0.5) + slope * math.cos(0.5))
    assert depth[0, row, 32].item() == pytest.approx(expected, rel=1e-5)
    assert regions[0, row, 32] == 1
    level, up = world([ball((0, 3, 0), 0.1, RED)], target=(0, 3, 0))
    regions, depth = geometry(level, up, (16, 16), CPU)
    assert regions[0, 0, 0] == 0 and depth[0, 0, 0] == math.inf


def test_a_box_under_the_sun_takes_ambient_sky_and_sun_light() -> None:
    paint = (0.5, 0.25, 0.125)
    top = box((0, 0, 0), (3, 1, 3), paint, gloss=0.0)
    scenes, pose = world([top], target=(0, 1, 0), elevation=math.pi / 2, sun=(0.0, 1.0, 0.0))
    picture = (image(scenes, pose, (8, 8), 4, CPU)[0] + 1) / 2
    expected = torch.tensor(paint) * (0.46 + 0.16 + 0.62)
    assert torch.allclose(picture[:, 4, 4], expected, atol=1e-3)


def test_stripes_show_both_colours() -> None:
    post = rod((0, 3, 0), 1.0, 1.0, RED, texture=STRIPES, second=GREEN, gloss=0.0)
    scenes, pose = world([post], target=(0, 3, 0))
    column = image(scenes, pose, (64, 64), 4, CPU)[0, :, :, 32]
    hit = geometry(scenes, pose, (64, 64), CPU)[0][0, :, 32] == 2
    greener = column[1, hit] > column[0, hit]
    assert greener.any() and (~greener).any()


def test_the_shadow_lies_below_and_away_from_the_sun() -> None:
    sun = (-math.sqrt(0.5), math.sqrt(0.5), 0.0)
    scenes, pose = world([ball((0, 1.5, 0), 0.5, RED)], elevation=1.2, distance=9.0, sun=sun)
    picture = image(scenes, pose, (96, 96), 1, CPU)[0].mean(0)
    clear = image(*world([ball((0, 30, 0), 0.1, RED)], elevation=1.2, distance=9.0), (96, 96), 1, CPU)[0].mean(0)

    def at(x: float, z: float) -> tuple[int, int]:
        seen = (np.array([x, 0, z]) - pose[0, :3, 3]) @ pose[0, :3, :3]
        return int(seen[1] / seen[2] * 192 + 48), int(seen[0] / seen[2] * 192 + 48)

    assert picture[at(1.5, 0)] < clear[at(1.5, 0)] - 0.5  # the centre: 0.42 of the light, twice in [-1, 1]
    assert picture[at(0.4, 0.9)] == pytest.approx(clear[at(0.4, 0.9)].item(), abs=1e-6)


def test_what_lies_below_the_ground_casts_no_shadow_towards_the_sun() -> None:
    sunk = box((0, -0.9, 0), (0.5, 1.0, 0.5), RED)
    sun = (-math.sqrt(0.5), math.sqrt(0.5), 0.0)
    scenes, pose = world([sunk], elevation=1.2, sun=sun)
    picture = image(scenes, pose, (64, 64), 1, CPU)[0].mean(0)
    bare = image(*world([ball((0, 30, 0), 0.1, RED)], elevation=1.2), (64, 64), 1, CPU)[0].mean(0)
    left, right = slice(2, 15), slice(44, 48)
    assert torch.allclose(picture[32, left], bare[32, left], atol=1e-6)
    assert (picture[32, right] < bare[32, right] - 0.01).any()


def test_antialiasing_gives_the_edge_a_share_of_both_sides() -> None:
    half = box((-2, 0, 0), (2, 3, 1), (0.0, 0.0, 0.0), gloss=0.0)
    scenes, pose = world([half], target=(0, 1, 0), elevation=0.6)
    picture = image(scenes, pose, (33, 33), 16, CPU)[0, 0, 8]
    free = picture[16].item()
    assert picture[10] < -0.99 and picture[22] > picture[10]
    assert picture[10] + 0.05 < free < picture[22] - 0.05


def test_bands_of_a_large_picture_join_without_a_seam(monkeypatch: pytest.MonkeyPatch) -> None:
    scenes, pose = world([ball((0, 0.6, 0), 0.6, RED), box((0.5, 0.3, 0.4), (0.3, 0.3, 0.3), GREEN)], elevation=0.4)
    size = (44, 70)
    whole, (regions, depth) = image(scenes, pose, size, 4, CPU), geometry(scenes, pose, size, CPU)
    monkeypatch.setattr("belvedere.data.toybox.view.BAND_RAYS", 9 * PIXELS * 4 * 2)
    assert len(list(bands(scenes, pose, size, 4, CPU))) == 3
    assert torch.equal(image(scenes, pose, size, 4, CPU), whole)
    again = geometry(scenes, pose, size, CPU)
    assert torch.equal(again[0], regions) and torch.equal(again[1], depth)


def test_rounds_hold_every_pair_once_and_no_tile_twice() -> None:
    rng = np.random.default_rng(0)
    pairs = Pairs(np.arange(200), rng.integers(0, 30, 200))
    rounds = pairs.rounds()
    assert sorted(np.concatenate(rounds).tolist()) == list(range(200))
    assert all(len(set(pairs.tile[r])) == len(r) for r in rounds)
    assert Pairs(np.arange(0), np.arange(0)).rounds() == []


def test_samples_are_spread_about_the_pixel_centre() -> None:
    scenes, pose = world([ball((0, 1, 0), 1.0, WHITE)])
    view = View(scenes, pose, (64, 64), 4, CPU)
    for samples in (1, 2, 4, 7):
        dx, dy = (x.view(samples, PIXELS) * view.focal for x in view.offsets(samples))
        cell = torch.arange(PIXELS)
        for at, corner in ((dx, cell % TILE), (dy, cell // TILE)):
            inside = at - corner
            assert inside.min() > -0.05 and inside.max() < 1.05
            assert torch.allclose(inside.mean(0), torch.tensor(0.5), atol=1e-4)
            assert len(inside[:, 0].unique()) == samples
