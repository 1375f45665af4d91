"""Scenes: cameras, framing, captions and balance."""

import numpy as np
import pytest

from belvedere.data.toybox import HELD_OUT, KINDS
from belvedere.data.toybox.bounds import screen_bounds
from belvedere.data.toybox.kinds import TOYS
from belvedere.data.toybox.palette import COLORS
from belvedere.data.toybox.scene import FOCAL, build, cameras
from belvedere.data.toybox.shapes import BALL, RING

ALL = KINDS + HELD_OUT


def test_cameras_are_rigid_and_look_at_the_target() -> None:
    scenes = build(0, range(20), ALL)
    pose = cameras(scenes, 0.7, 0.1)
    rotation = pose[:, :3, :3]
    assert np.allclose(rotation.transpose(0, 2, 1) @ rotation, np.eye(3), atol=1e-12)
    assert np.allclose(np.linalg.det(rotation), 1)
    reach = pose[:, :3, 3] + rotation[:, :, 2] * scenes.distance[:, None]
    assert np.allclose(reach, scenes.target)
    assert (rotation[:, 1, 1] < 0).all()  # the y axis of the camera points down
    assert np.allclose(rotation[:, 1, 0], 0)  # and the horizon is level


def test_every_toy_is_centred_and_fills_its_share_of_the_frame() -> None:
    scenes = build(4, range(140), ALL)
    low_x, high_x, low_y, high_y = screen_bounds(scenes.prims, scenes.owner, cameras(scenes))
    for i in range(140):
        mine = scenes.owner == i
        left, right = low_x[mine].min() * FOCAL, high_x[mine].max() * FOCAL
        top, bottom = low_y[mine].min() * FOCAL, high_y[mine].max() * FOCAL
        assert 0.74 < max(right - left, bottom - top) < 0.88
        assert abs(left + right) < 0.02 and abs(top + bottom) < 0.02


@pytest.mark.parametrize("kind", ALL)
def test_every_toy_stands_on_the_ground_in_four_parts_or_more(kind: str) -> None:
    scenes = build(1, range(30), (kind,))
    assert np.bincount(scenes.owner, minlength=30).min() >= 4
    axes = scenes.prims[:, 4:13].reshape(-1, 3, 3)
    assert (np.abs(np.linalg.det(axes)) > 1e-6).all()
    round_ = np.isin(scenes.prims[:, 0], (BALL, RING))
    reach = np.where(round_, np.sqrt((axes[:, 1] ** 2).sum(1)), np.abs(axes[:, 1]).sum(1))
    lowest = np.array([(scenes.prims[:, 2] - reach)[scenes.owner == i].min() for i in range(30)])
    assert (lowest > -0.2).all() and (lowest < 0.1).all()


def test_captions_name_the_colour_the_kind_and_the_floor() -> None:
    scenes = build(0, range(48), KINDS)
    for i, caption in enumerate(scenes.captions):
        kind = KINDS[i % 12]
        article, rest = caption.split(" ", 1)
        color, place = rest.split(f" {kind} on ")
        assert color in TOYS[kind].colors and color in COLORS
        assert article == ("an" if color[0] in "aeiou" else "a")
        assert place.split(" ")[-1] in ("floor", "grass", "water")
    assert len(set(scenes.captions)) > 30


def test_a_scene_does_not_depend_on_the_others() -> None:
    together, alone = build(5, [3, 17, 40], ALL), build(5, [17], ALL)
    mine = together.owner == 1
    assert np.array_equal(together.prims[mine], alone.prims)
    for name in ("floor", "sky", "sun", "target", "distance", "azimuth", "elevation"):
        assert np.array_equal(getattr(together, name)[1], getattr(alone, name)[0]), name
    assert not np.array_equal(alone.target, build(6, [17], ALL).target)
