"""transforms.json: the three dialects, intrinsics of file and frame, and what is refused."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from belvedere.data import transforms
from belvedere.data.cameras import Camera, flip_axes
from belvedere.data.transforms import read_transforms
from belvedere.errors import InputError
from tests.data.colmap_files import turned

POSE = turned(0.3, -1.2, 0.5, (0.4, -2.0, 1.5))
FRAME = {"file_path": "images/a.png", "transform_matrix": flip_axes(POSE).tolist()}
NGP = {"w": 64.0, "h": 48, "fl_x": 50.0, "fl_y": 52, "cx": 31, "cy": 25}


def read(tmp_path: Path, content: Any, size: tuple[int, int] = (80, 100)) -> dict[str, Camera]:
    path = tmp_path / "transforms.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return read_transforms(path, lambda name: size)


def test_instant_ngp(tmp_path: Path) -> None:
    lens = {"k1": 0.1, "k2": -0.02, "p1": 0.003, "p2": -0.004, "camera_angle_x": 1.0, "aabb_scale": 4}
    camera = read(tmp_path, NGP | lens | {"frames": [FRAME]})["images/a.png"]
    torch.testing.assert_close(camera.pose, POSE, rtol=0, atol=1e-12)
    assert camera.focal == (50, 52) and camera.principal == (31, 25) and camera.size == (48, 64)
    assert camera.distortion == (0.1, -0.02, 0.003, -0.004, 0)


def test_blender_scenes_of_nerf(tmp_path: Path) -> None:
    frames = [FRAME | {"rotation": 0.01}, FRAME | {"file_path": "./train/r_1"}]
    cameras = read(tmp_path, {"camera_angle_x": math.radians(90), "frames": frames})
    assert list(cameras) == ["images/a.png", "./train/r_1"]
    for camera in cameras.values():
        assert camera.focal == pytest.approx((50, 50)) and camera.principal == (50, 40)
        assert camera.size == (80, 100) and camera.distortion == ()


def test_angles_of_both_axes(tmp_path: Path) -> None:
    angles = {"camera_angle_x": math.radians(90), "camera_angle_y": math.radians(60)}
    camera = read(tmp_path, angles | {"frames": [FRAME]})["images/a.png"]
    assert camera.focal == pytest.approx((50, 40 * 3**0.5))


def test_a_frame_of_nerfstudio_has_its_own_lens(tmp_path: Path) -> None:
    own = FRAME | {"file_path": "b.png", "fl_x": 70.0, "fl_y": 70.0, "k3": 0.5, "camera_model": "OPENCV"}
    cameras = read(tmp_path, NGP | {"frames": [FRAME, own]})
    assert cameras["images/a.png"].focal == (50, 52)
    assert cameras["b.png"].focal == (70, 70) and cameras["b.png"].distortion == (0, 0, 0, 0, 0.5)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "no JSON"),
        ("[" * 100_000, "no JSON"),
        ("[]", "lists no views"),
        ({"frames": []}, "lists no views"),
        ({"frames": [3]}, "lists no views"),
        (NGP | {"frames": [FRAME, FRAME]}, "frame 1: file_path must name a picture, and no other"),
        (NGP | {"frames": [{"file_path": 3}]}, "file_path must name"),
        (NGP | {"frames": [{"file_path": "a"}]}, "transform_matrix must be a list of 4 rows"),
        (NGP | {"frames": [{"file_path": "a", "transform_matrix": [[1, 2, 3]] * 4}]}, "4 finite numbers"),
        (NGP | {"frames": [{"file_path": "a", "transform_matrix": [[math.nan] * 4] * 4}]}, "4 finite numbers"),
        (NGP | {"frames": [{"file_path": "a", "transform_matrix": [[True] * 4] * 4}]}, "4 finite numbers"),
        (NGP | {"frames": [{"file_path": "a", "transform_matrix": [[2.0] * 4] * 4}]}, "frame 0: .*rotation"),
        ({"frames": [FRAME]}, "no focal length"),
        (NGP | {"fl_x": "50", "frames": [FRAME]}, "fl_x must be a finite number"),
        (NGP | {"fl_x": 10**400, "frames": [FRAME]}, "fl_x must be a finite number"),
        (NGP | {"fl_x": -1, "frames": [FRAME]}, "positive"),
        (NGP | {"fl_y": 0, "frames": [FRAME]}, "positive"),
        (NGP | {"w": 64.5, "frames": [FRAME]}, "w must be a whole number"),
        (NGP | {"w": 1e9, "frames": [FRAME]}, "at most"),
        (NGP | {"h": -3, "frames": [FRAME]}, "at least 1 pixel"),
        ({"camera_angle_x": 3.2, "frames": [FRAME]}, "below pi"),
        (NGP | {"is_fisheye": True, "frames": [FRAME]}, "a fisheye is not read: undistort"),
        (NGP | {"camera_model": "OPENCV_FISHEYE", "frames": [FRAME]}, "OPENCV_FISHEYE is not read: undistort"),
        (NGP | {"k4": 0.1, "frames": [FRAME]}, "k4 is not read"),
    ],
)
def test_what_is_refused(tmp_path: Path, content: Any, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        read(tmp_path, content)
    assert "transforms.json" in str(caught.value) and "\n" not in str(caught.value)


def test_too_many_views_and_too_large_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transforms, "MAX_VIEWS", 1)
    with pytest.raises(InputError, match="2 views: at most 1"):
        read(tmp_path, NGP | {"frames": [FRAME, FRAME]})
    monkeypatch.setattr("belvedere.data.reading.MAX_JSON", 20)
    with pytest.raises(InputError, match="20 bytes allowed"):
        read(tmp_path, NGP | {"frames": [FRAME]})
