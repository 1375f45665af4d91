"""The frame of the input view: against the official numbers, and what does not change in it."""

from dataclasses import replace

import pytest
import torch

from belvedere.errors import InputError
from belvedere.synthesis.cameras import Camera, conditions, input_camera, relative_cameras, relative_poses

SCENE = torch.tensor(
    [
        [
            [0.9943930759701526, 0.05386497963603795, -0.0909998595132314, 0.12034980483808361],
            [-0.04971965379850763, 0.9976461885522485, 0.04722328338148526, -0.05650718569755554],
            [0.09332934419985595, -0.04243402450841462, 0.9947306103037364, -0.7290023333625111],
            [0.0, 0.0, 0.0, 1.0],
        ],
        [
            [0.9230419292151022, 0.04023701243490104, -0.3825893094967186, 0.354591929738331],
            [-0.08370044299600678, 0.991695822544834, -0.0976403164138523, 0.057734666543293955],
            [0.3754834653525166, 0.12214900072222692, 0.9187446810019783, -0.6914428510596426],
            [0.0, 0.0, 0.0, 1.0],
        ],
    ],
    dtype=torch.float64,
)
"""Two views of the golden case nvist_full_vm, the input view first."""
RELATIVE_1 = torch.tensor(
    [
        [0.9570716858694122, 0.0021047197247082918, -0.28984367900984476, 0.2307540836104392],
        [-0.04971706778599338, 0.9863456497301363, -0.15700468919493538, 0.12499659575632344],
        [0.285555601026918, 0.164674920413874, 0.9441081343304059, -0.7195869124981656],
        [0.0, 0.0, 0.0, 1.0],
    ],
    dtype=torch.float64,
)
FOCAL, DISTANCE = 23.0, 0.7410273551940918


def scene() -> list[Camera]:
    return [Camera(pose, (FOCAL, FOCAL), (5.0, 10.0), (20, 10)) for pose in SCENE]


def test_relative_poses_are_the_official_ones() -> None:
    got = relative_poses(SCENE)
    want = torch.eye(4, dtype=torch.float64)
    want[2, 3] = -DISTANCE
    torch.testing.assert_close(got[0], want, rtol=0, atol=1e-7)
    torch.testing.assert_close(got[1], RELATIVE_1, rtol=0, atol=1e-14)


def test_batches_and_other_input_views() -> None:
    scenes = torch.stack([SCENE, SCENE.flip(0)])
    assert torch.equal(relative_poses(scenes)[0], relative_poses(SCENE))
    torch.testing.assert_close(relative_poses(scenes, 1)[1].flip(0), relative_poses(SCENE), rtol=0, atol=0)


def test_what_views_see_of_each_other_does_not_change() -> None:
    point = torch.tensor([0.1, -0.2, 0.3], dtype=torch.float64)
    moved = relative_cameras(scene(), 1)
    motion = moved[0].pose @ torch.linalg.inv(SCENE[0])
    there = motion[:3, :3] @ point + motion[:3, 3]
    for before, after in zip(scene(), moved, strict=True):
        for a, b in zip(before.project(point), after.project(there), strict=True):
            torch.testing.assert_close(a, b)
    assert torch.equal(moved[1].pose[:3, :3].round(decimals=12), torch.eye(3).double())


def test_conditions_are_distance_and_focal() -> None:
    want = torch.tensor([[DISTANCE, FOCAL / 20]])
    torch.testing.assert_close(conditions(scene()[:1]), want, rtol=0, atol=1e-7)
    torch.testing.assert_close(conditions(relative_cameras(scene())[:1]), want, rtol=0, atol=1e-7)
    torch.testing.assert_close(conditions([scene()[0].scaled((160, 90))]), want, rtol=0, atol=1e-7)
    assert conditions([]).shape == (0, 2)


def test_the_camera_of_a_single_photograph() -> None:
    camera = input_camera((160, 90), distance=0.9, fov=90)
    torch.testing.assert_close(conditions([camera]), torch.tensor([[0.9, 0.5]]))
    again = relative_cameras([camera])[0]
    assert torch.equal(again.pose, camera.pose) and camera.principal == (45, 80)
    assert replace(camera, focal=(80.0, 80.0)).focal == pytest.approx(camera.focal)
    for distance, fov, message in [
        (0, 60, "distance"),
        (float("nan"), 60, "distance"),
        (float("inf"), 60, "distance"),
        (1, 0, "below 180"),
        (1, 180, "below 180"),
        (1, float("nan"), "below 180"),
    ]:
        with pytest.raises(InputError, match=message):
            input_camera((160, 90), distance=distance, fov=fov)
