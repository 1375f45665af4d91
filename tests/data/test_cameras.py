"""Cameras: rays and projection are inverses with any lens, cuts and sizes of pictures, what is no camera is refused."""

import math
from dataclasses import replace
from typing import Any

import pytest
import torch

from belvedere.data.cameras import Camera, distort, flip_axes, invert, undistort
from belvedere.errors import InputError
from tests.data.colmap_files import turned

POSE = turned(0.3, -1.2, 0.5, (0.4, -2.0, 1.5))
CAMERA = Camera(POSE, (31.0, 29.0), (17.2, 11.9), (24, 36))
LENSES = [(), (0.06, -0.08, -0.001, 0.0002), (-0.25, 0.05, 0.003, -0.002), (0.1, -0.2, 0.0, 0.0, 0.05)]

POSE_1 = [
    [0.9570716858694122, 0.0021047197247083, -0.2898436790098448, 0.2307540836104392],
    [-0.0497170677859934, 0.9863456497301363, -0.1570046891949354, 0.1249965957563234],
    [0.285555601026918, 0.164674920413874, 0.9441081343304059, -0.7195869124981656],
    [0.0, 0.0, 0.0, 1.0],
]
DIRECTIONS_1 = [
    [-0.456315875, -0.366067916, 0.811030269],
    [-0.268541217, -0.221888661, 0.937363803],
    [-0.095249549, 0.144786894, 0.984867692],
]


def centres(camera: Camera) -> torch.Tensor:
    """(x, y) of the centre of every pixel (h, w, 2)."""
    y, x = torch.meshgrid(*(torch.arange(side).double() + 0.5 for side in camera.size), indexing="ij")
    return torch.stack([x, y], -1)


@pytest.mark.parametrize("lens", LENSES)
def test_a_ray_runs_through_the_centre_of_its_pixel(lens: tuple[float, ...]) -> None:
    camera = replace(CAMERA, distortion=lens)
    origins, directions = camera.rays()
    assert origins.dtype == directions.dtype == torch.float32
    assert origins.shape == directions.shape == (24, 36, 3)
    torch.testing.assert_close(directions.norm(dim=-1), torch.ones(24, 36))
    for distance in (0.1, 7.0):
        pixels, depth = camera.project(origins + distance * directions)
        assert bool((depth > 0).all())
        torch.testing.assert_close(pixels, centres(camera), rtol=0, atol=1e-4)


def test_the_axes_are_opencv() -> None:
    camera = Camera(torch.eye(4, dtype=torch.float64), (10.0, 10.0), (2.5, 1.5), (3, 5))
    _, directions = camera.rays()
    assert directions[1, 2].tolist() == [0, 0, 1]
    assert directions[1, 4, 0] > 0 and directions[2, 2, 1] > 0  # x to the right, y down
    pixels, depth = camera.project(torch.tensor([0.2, -0.1, 2.0]))
    assert pixels.tolist() == pytest.approx([3.5, 1.0]) and float(depth) == pytest.approx(2)
    assert float(camera.project(torch.tensor([0.0, 0.0, -1.0]))[1]) == -1


def test_rays_of_chosen_pixels() -> None:
    chosen = torch.tensor([5, 0, 863, 5])
    origins, directions = CAMERA.rays(chosen)
    all_origins, all_directions = CAMERA.rays()
    assert torch.equal(directions, all_directions.view(-1, 3)[chosen])
    assert torch.equal(origins, all_origins.reshape(-1, 3)[chosen])
    assert CAMERA.rays(torch.empty(0, dtype=torch.int64))[1].shape == (0, 3)
    for outside in (-1, 864):
        with pytest.raises(IndexError, match="863"):
            CAMERA.rays(torch.tensor([outside]))


def test_rays_of_the_official_model() -> None:
    """View 1 of the golden case nvist_full_vm: pixels 40, 85 and 179 of 20 x 10."""
    pose = torch.tensor(POSE_1, dtype=torch.float64)
    origins, directions = Camera(pose, (23.0, 23.0), (5.0, 10.0), (20, 10)).rays(torch.tensor([40, 85, 179]))
    torch.testing.assert_close(directions, torch.tensor(DIRECTIONS_1), rtol=0, atol=2e-7)
    torch.testing.assert_close(origins, pose[:3, 3].float().expand(3, 3), rtol=0, atol=0)


def test_a_part_of_a_picture_has_its_part_of_the_rays() -> None:
    part = CAMERA.cropped((4, 3, 20, 24))
    assert part.size == (21, 16)
    torch.testing.assert_close(part.rays()[1], CAMERA.rays()[1][3:24, 4:20], rtol=0, atol=1e-7)
    for box in [(-1, 0, 5, 5), (0, 0, 37, 5), (5, 0, 5, 5), (0, 9, 5, 8)]:
        with pytest.raises(InputError, match="36 x 24"):
            CAMERA.cropped(box)


@pytest.mark.parametrize("lens", LENSES)
def test_a_resized_picture_shows_the_same_at_the_same_share_of_it(lens: tuple[float, ...]) -> None:
    camera = replace(CAMERA, distortion=lens)
    points = camera.position + torch.rand(50, 3, generator=torch.Generator().manual_seed(0)) @ POSE[:3, :3].T.float()
    small = camera.scaled((12, 54))
    assert small.size == (12, 54)
    torch.testing.assert_close(small.project(points)[0], camera.project(points)[0] * torch.tensor([1.5, 0.5]))


@pytest.mark.parametrize("lens", LENSES[1:])
def test_undistort_is_the_inverse_of_distort(lens: tuple[float, ...]) -> None:
    x, y = (torch.rand(2, 500, generator=torch.Generator().manual_seed(1)).double() * 1.4 - 0.7).unbind()
    again = undistort(*distort(x, y, lens), lens)
    torch.testing.assert_close(torch.stack(again), torch.stack([x, y]), rtol=0, atol=1e-9)


def test_distortion_is_that_of_opencv() -> None:
    """By hand, from the formula in OpenCV's documentation: x = 0.5, y = -0.25, r^2 = 0.3125."""
    k1, k2, p1, p2, k3 = 0.1, -0.2, 0.01, -0.02, 0.3
    radial = 1 + k1 * 0.3125 + k2 * 0.3125**2 + k3 * 0.3125**3
    x = 0.5 * radial + 2 * p1 * 0.5 * -0.25 + p2 * (0.3125 + 2 * 0.25)
    y = -0.25 * radial + p1 * (0.3125 + 2 * 0.0625) + 2 * p2 * 0.5 * -0.25
    got = distort(torch.tensor(0.5).double(), torch.tensor(-0.25).double(), (k1, k2, p1, p2, k3))
    assert [float(v) for v in got] == pytest.approx([x, y], abs=1e-12)


def test_a_lens_that_folds_the_picture_over_is_refused() -> None:
    with pytest.raises(InputError, match="undistort the pictures first"):
        replace(CAMERA, distortion=(-2.0, 0.0, 0.0, 0.0)).rays()


def test_opengl_looks_along_minus_z_with_y_up() -> None:
    pose = flip_axes(POSE)
    assert torch.equal(pose[:, [0, 3]], POSE[:, [0, 3]])
    assert torch.equal(pose[:, [1, 2]], -POSE[:, [1, 2]])
    assert torch.equal(flip_axes(pose), POSE)


def test_invert_is_the_inverse_of_many_poses() -> None:
    poses = torch.stack([POSE, turned(0, 0, 1, (1, 2, 3))])
    torch.testing.assert_close(invert(poses) @ poses, torch.eye(4).double().expand(2, 4, 4))


def test_every_rotation_is_taken_and_no_mirror() -> None:
    dice = torch.Generator().manual_seed(2)
    for _ in range(20):
        pose = turned(*(4 * torch.rand(3, generator=dice) - 2).tolist(), (50.0, -3.0, 8.0))
        assert torch.equal(replace(CAMERA, pose=pose).pose, pose)
        pose[:, 1] *= -1
        with pytest.raises(InputError, match="mirror"):
            replace(CAMERA, pose=pose)


def changed(row: int, column: int, value: float) -> torch.Tensor:
    pose = POSE.clone()
    pose[row, column] = value
    return pose


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"pose": POSE.float()}, "float64"),
        ({"pose": POSE[:3]}, r"\(4, 4\)"),
        ({"pose": changed(1, 3, math.nan)}, "finite"),
        ({"pose": changed(1, 3, math.inf)}, "finite"),
        ({"pose": changed(1, 3, 1e12)}, "beyond"),
        ({"pose": changed(0, 0, 0.9)}, "rotation"),
        ({"pose": POSE * torch.tensor([2.0, 2, 2, 1])}, "rotation"),
        ({"pose": POSE * torch.tensor([-1.0, 1, 1, 1])}, "mirror"),
        ({"pose": changed(3, 0, 0.1)}, "0, 0, 0, 1"),
        ({"focal": (0.0, 5.0)}, "positive"),
        ({"focal": (5.0, -5.0)}, "positive"),
        ({"focal": (math.nan, 5.0)}, "finite"),
        ({"focal": (5.0,)}, "2 focal lengths"),
        ({"principal": (math.inf, 1.0)}, "finite"),
        ({"distortion": (0.1, 0.2)}, "4 or 5"),
        ({"distortion": (0.1, 0.2, 0.0, math.nan)}, "finite"),
        ({"size": (0, 5)}, "at least 1"),
        ({"size": (5.5, 5)}, "whole"),
        ({"size": (100_000, 100_000)}, "at most"),
    ],
)
def test_what_is_no_camera_is_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        replace(CAMERA, **change)
    assert "\n" not in str(caught.value)
