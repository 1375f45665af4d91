"""Camera paths: they begin at the input view, keep what they say they keep, and files are read or refused."""

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from belvedere.data.toybox.dataset import KINDS
from belvedere.data.toybox.scene import build, cameras
from belvedere.errors import InputError
from belvedere.synthesis.camera_paths import MAX_FRAMES, interpolate, look_at, orbit, read_path, spiral
from belvedere.synthesis.cameras import Camera, input_camera

CAMERA = input_camera((160, 90), distance=1.5, fov=50)
CENTRE = torch.zeros(3)


def sees_the_centre(camera: Camera) -> None:
    pixels, depth = camera.project(CENTRE)
    assert pixels.tolist() == pytest.approx([45, 80], abs=1e-9) and depth > 0


def test_angle_zero_of_an_orbit_is_the_input_view() -> None:
    assert torch.equal(orbit(CAMERA, 12)[0].pose, CAMERA.pose)
    assert torch.equal(orbit(CAMERA, 5, start=-40, stop=40)[2].pose, CAMERA.pose)
    assert torch.equal(orbit(CAMERA, 1)[0].pose, CAMERA.pose)


def test_an_orbit_goes_to_the_right_and_upwards() -> None:
    right = orbit(CAMERA, 2, start=0, stop=90)[1]
    assert right.position.tolist() == pytest.approx([1.5, 0, 0])
    up = orbit(CAMERA, 1, elevation=30)[0]
    assert up.position.tolist() == pytest.approx([0, -0.75, -1.5 * 3**0.5 / 2])  # y is down
    assert orbit(CAMERA, 1, elevation=90)[0].position.tolist() == pytest.approx([0, -1.5, 0])


def test_an_orbit_keeps_distance_height_and_the_centre() -> None:
    path = orbit(CAMERA, 7, start=-100, stop=35, elevation=20)
    for camera in path:
        sees_the_centre(camera)
        assert float(camera.position.norm()) == pytest.approx(1.5)
        assert float(camera.position[1]) == pytest.approx(-1.5 * math.sin(math.radians(20)))
        assert float(camera.pose[1, 0]) == pytest.approx(0)  # the horizon is level
    angles = [math.degrees(math.atan2(camera.position[0], -camera.position[2])) for camera in path]
    assert angles == pytest.approx([-100 + 22.5 * k for k in range(7)])


def test_a_camera_that_looks_down_goes_around_the_scenes_vertical() -> None:
    """Half a turn later it looks down as steeply; around the picture's vertical it would be underground."""
    up = torch.tensor([0, -math.cos(math.radians(25)), -math.sin(math.radians(25))], dtype=torch.float64)
    path = orbit(CAMERA, 8, elevation=10, pitch=25)
    torch.testing.assert_close(orbit(CAMERA, 8, pitch=25)[0].pose, CAMERA.pose)
    for camera in path:
        sees_the_centre(camera)
        assert float(camera.position.double() @ up) == pytest.approx(1.5 * math.sin(math.radians(35)))
        assert float(camera.pose[:3, 0].double() @ up) == pytest.approx(0, abs=1e-6)  # the horizon is level
    middle = torch.stack([camera.position.double() for camera in path]).mean(0)
    assert middle.tolist() == pytest.approx((up * 1.5 * math.sin(math.radians(35))).tolist())
    with pytest.raises(InputError, match="above a camera that looks down by 25"):
        orbit(CAMERA, 1, elevation=70, pitch=25)


def test_an_orbit_is_the_one_that_toys_are_looked_at_from() -> None:
    toys = build(0, [2], KINDS)
    distance, pitch = float(toys.distance[0]), math.degrees(toys.elevation[0])
    seen = torch.from_numpy(cameras(toys))[0]
    own = input_camera((64, 64), distance=distance, fov=28)
    for angle in (-70, 40, 180):
        beside = torch.from_numpy(cameras(toys, math.radians(angle)))[0]
        pose = own.pose.double() @ seen.inverse() @ beside
        turned = orbit(own, 1, start=angle, stop=angle, pitch=pitch)[0]
        torch.testing.assert_close(turned.pose.double(), pose, atol=1e-9, rtol=0)


def test_a_whole_turn_shows_no_view_twice() -> None:
    path = orbit(CAMERA, 8)
    assert path[4].position.tolist() == pytest.approx([0, 0, 1.5])
    apart = torch.cdist(*[torch.stack([camera.position for camera in path])] * 2) + 9 * torch.eye(8)
    assert apart.min() > 1
    assert len(orbit(CAMERA, 9, start=10, stop=10)) == 9


def test_a_spiral_leaves_the_input_view_and_comes_back() -> None:
    path = spiral(CAMERA, 40, turns=3, radius=0.2)
    torch.testing.assert_close(path[0].pose, CAMERA.pose)
    offsets = torch.stack([camera.position - CAMERA.position for camera in path])
    assert offsets[:, 2].abs().max() == 0
    assert offsets.norm(dim=1).argmax() == 20 and float(offsets[20].norm()) == pytest.approx(0.3)
    assert float(offsets[39].norm()) == pytest.approx(float(offsets[1].norm()))
    turned = torch.atan2(offsets[1:, 1], offsets[1:, 0]).diff().remainder(2 * math.pi).sum()
    assert float(turned) == pytest.approx(2 * math.pi * 3 * 38 / 40)
    for camera in path:
        sees_the_centre(camera)


def test_look_at() -> None:
    torch.testing.assert_close(look_at(CAMERA.position, CENTRE), CAMERA.pose)
    pose = look_at(torch.tensor([3.0, -1.0, 2.0]), torch.tensor([0.0, 1.0, 1.0]))
    camera = replace(CAMERA, pose=pose)  # a rotation, or it would be refused
    assert camera.project(torch.tensor([0.0, 1.0, 1.0]))[0].tolist() == pytest.approx([45, 80])
    above = camera.project(torch.tensor([0.0, 0.9, 1.0]))[0]
    assert above[0] == pytest.approx(45) and above[1] < 80
    for position, up in [(CENTRE, (0.0, -1.0, 0.0)), (torch.tensor([0.0, 2.0, 0.0]), (0.0, 1.0, 0.0))]:
        with pytest.raises(InputError, match="look away from itself"):
            look_at(position, CENTRE, up)
    with pytest.raises(InputError, match="look away"):
        look_at(torch.tensor([math.nan, 0, 0]), CENTRE)


def keyframes() -> list[Camera]:
    cameras = orbit(CAMERA, 4, start=0, stop=120, elevation=10)
    return [replace(camera, focal=(100.0 + 10 * k, 90.0 + 20 * k)) for k, camera in enumerate(cameras)]


@pytest.mark.parametrize("smooth", [True, False])
def test_interpolation_passes_through_its_keyframes(smooth: bool) -> None:
    keys = keyframes()
    path = interpolate(keys, 13, smooth=smooth)
    assert len(path) == 13
    for key, camera in zip(keys, path[::4], strict=True):
        torch.testing.assert_close(camera.pose, key.pose, rtol=0, atol=1e-12)
        assert camera.focal == pytest.approx(key.focal)
    assert path[2].focal == pytest.approx((105, 100))
    assert len(interpolate(keys, 1)) == 1


def test_rotations_turn_evenly_between_keyframes() -> None:
    flat = [replace(camera, pose=camera.pose) for camera in orbit(CAMERA, 2, start=0, stop=80)]
    for k, camera in enumerate(interpolate(flat, 9)):
        want = orbit(CAMERA, 1, start=10.0 * k, stop=10.0 * k)[0].pose[:3, :3]
        torch.testing.assert_close(camera.pose[:3, :3], want, rtol=0, atol=1e-12)


def test_smooth_positions_have_no_corner_and_straight_ones_do() -> None:
    keys = keyframes()
    smooth, straight = (
        torch.stack([camera.position for camera in interpolate(keys, 301, smooth=smooth)]) for smooth in (True, False)
    )
    corner = (smooth[101] - 2 * smooth[100] + smooth[99]).norm() / (smooth[101] - smooth[100]).norm()
    assert corner < 0.03
    torch.testing.assert_close(straight[50], (keys[0].position + keys[1].position) / 2)
    assert (straight[101] - 2 * straight[100] + straight[99]).norm() / (straight[101] - straight[100]).norm() > 0.3
    radius = smooth[:, [0, 2]].norm(dim=1) / keys[0].position[[0, 2]].norm()
    assert radius.min() > 0.95  # the chord would come to 0.94


def test_a_catmull_rom_spline_reproduces_a_parabola_inside() -> None:
    poses = [replace(CAMERA, pose=CAMERA.pose.clone()) for _ in range(4)]
    for k, camera in enumerate(poses):
        camera.pose[:3, 3] = torch.tensor([k, k * k, 0.0])
    path = interpolate(poses, 31)
    for k in range(10, 21):
        assert path[k].position.tolist() == pytest.approx([k / 10, (k / 10) ** 2, 0])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: orbit(CAMERA, 0), "a path of 0 frames"),
        (lambda: orbit(CAMERA, MAX_FRAMES + 1), "a path of 10001 frames"),
        (lambda: orbit(CAMERA, 3, stop=math.nan), "angles are degrees"),
        (lambda: orbit(CAMERA, 3, start=math.inf), "angles are degrees"),
        (lambda: orbit(CAMERA, 3, elevation=91), "from -90 to 90"),
        (lambda: orbit(CAMERA, 3, elevation=math.nan), "from -90 to 90"),
        (lambda: spiral(CAMERA, -1), "a path of -1 frames"),
        (lambda: spiral(CAMERA, 3, radius=0), "a radius above 0"),
        (lambda: spiral(CAMERA, 3, radius=math.nan), "a radius above 0"),
        (lambda: spiral(CAMERA, 3, turns=math.inf), "at most 100 turns"),
        (lambda: interpolate(keyframes(), 10**9), "1000000000 frames"),
        (lambda: interpolate(keyframes()[:1], 5), "two or more"),
        (lambda: interpolate([CAMERA, CAMERA.scaled((80, 45))], 5), "several picture sizes"),
    ],
)
def test_paths_that_are_refused(call: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        call()


def read(tmp_path: Path, content: Any) -> list[Camera]:
    path = tmp_path / "path.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return read_path(path, CAMERA)


def test_a_path_file(tmp_path: Path) -> None:
    pose = orbit(CAMERA, 1, start=30, stop=30)[0].pose
    entries = [
        {"pose": CAMERA.pose.tolist()},
        {"position": [1, -1.0, -1], "look_at": [0, 0, 0], "fov": 90},
        {"pose": pose.tolist(), "fov": 20.5},
    ]
    first, second, third = read(tmp_path, entries)
    assert torch.equal(first.pose, CAMERA.pose) and first.focal == CAMERA.focal
    sees_the_centre(second)
    assert second.position.tolist() == [1, -1, -1] and second.focal == pytest.approx((80, 80))
    assert torch.equal(third.pose, pose) and third.size == (160, 90)
    assert third.focal[1] == pytest.approx(80 / math.tan(math.radians(10.25)))
    assert len(interpolate([first, second, third], 30)) == 30


POSITIONS = {"position": [0, 0, -1], "look_at": [0, 0, 0]}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("not json", "no JSON"),
        ({"pose": []}, "is no path"),
        ([], "is no path"),
        ([POSITIONS] * (MAX_FRAMES + 1), "1 to 10000 cameras"),
        ([POSITIONS, 3], "camera 1: must be an object"),
        ([{"position": [0, 0, 0]}], "camera 0: must be an object"),
        ([POSITIONS | {"pose": []}], "must be an object"),
        ([POSITIONS | {"roll": 3}], "must be an object"),
        ('[{"position": [0, 0, NaN], "look_at": [0, 0, 0]}]', "position must be a list of 3 finite"),
        ('[{"position": [0, 0, 1e999], "look_at": [0, 0, 0]}]', "position must be a list of 3 finite"),
        ([POSITIONS | {"look_at": [0, 0]}], "look_at must be a list of 3 finite"),
        ([POSITIONS | {"look_at": [0, 0, "1"]}], "look_at must be a list of 3 finite"),
        ([POSITIONS | {"look_at": [0, 0, -1]}], "camera 0: .*look away from itself"),
        ([POSITIONS | {"position": [0, 0, 1e200]}], "position must be a list of 3 finite"),
        ([POSITIONS | {"position": [0, 0, 1e20]}], "finite numbers, none beyond"),
        ([POSITIONS | {"fov": 180}], "below 180"),
        ([POSITIONS | {"fov": None}], "fov must be a finite number"),
        ([{"pose": [[1, 0, 0, 0]] * 4}], "rotation"),
        ('[{"pose": [[1,0,0,0],[0,1,0,0],[0,0,1,NaN],[0,0,0,1]]}]', "4 finite numbers"),
    ],
)
def test_path_files_that_are_refused(tmp_path: Path, content: Any, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        read(tmp_path, content)
    assert "path.json" in str(caught.value) and "\n" not in str(caught.value)


def test_a_path_file_that_is_missing(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot read"):
        read_path(tmp_path / "nothing.json", CAMERA)
