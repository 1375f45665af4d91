"""COLMAP models, text and binary: both read the same, every lens, damage of any kind ends in one line."""

import random
import re
import struct
import tracemalloc
from pathlib import Path

import pytest
import torch

from belvedere.data import colmap
from belvedere.data.colmap import read_cameras, read_points
from belvedere.errors import InputError
from tests.data.colmap_files import Lens, View, turned, write_model

LENSES = {
    7: Lens("SIMPLE_PINHOLE", 64, 48, [50.0, 31.0, 25.0]),
    1: Lens("PINHOLE", 64, 48, [50.0, 52.0, 31.0, 25.0]),
    2: Lens("SIMPLE_RADIAL", 64, 48, [50.0, 31.0, 25.0, 0.1]),
    3: Lens("RADIAL", 64, 48, [50.0, 31.0, 25.0, 0.1, -0.02]),
    4: Lens("OPENCV", 64, 48, [50.0, 52.0, 31.0, 25.0, 0.1, -0.02, 0.003, -0.004]),
}
VIEWS = [
    View("b.jpg", 7, turned(0.3, -1.2, 0.5, (0.4, -2.0, 1.5))),
    View("a.jpg", 1, turned(-2.0, 0.2, 0.1, (1.0, 0.0, -3.0)), seen=0),
    View("left/a b ü.jpg", 2, turned(0.0, 3.1, 0.0, (0.0, 0.5, 0.0))),
    View("c", 3, turned(0.0, 0.0, 0.0, (0.0, 0.0, 0.0)), seen=5),
    View("d.png", 4, turned(1.0, 1.0, 1.0, (9.0, 9.0, 9.0))),
]
POINTS = torch.tensor([[0.25, -1.5, 3.0], [1e-3, 2.0, -7.125]], dtype=torch.float64)
WANTED = {
    "b.jpg": ((50, 50), ()),
    "a.jpg": ((50, 52), ()),
    "left/a b ü.jpg": ((50, 50), (0.1, 0, 0, 0)),
    "c": ((50, 50), (0.1, -0.02, 0, 0)),
    "d.png": ((50, 52), (0.1, -0.02, 0.003, -0.004)),
}
FORMS = ("bin", "txt")


@pytest.fixture(params=FORMS)
def model(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    write_model(tmp_path, LENSES, VIEWS, POINTS, [3, 12], request.param)
    return tmp_path


def file_of(model: Path, name: str) -> Path:
    (path,) = model.glob(f"{name}.*")
    return path


def test_cameras_come_back_in_the_order_of_the_file(model: Path) -> None:
    cameras = read_cameras(model)
    assert list(cameras) == [view.name for view in VIEWS]
    for view in VIEWS:
        camera = cameras[view.name]
        torch.testing.assert_close(camera.pose, view.pose, rtol=0, atol=1e-12)
        assert (camera.focal, camera.distortion) == WANTED[view.name]
        assert camera.principal == (31, 25) and camera.size == (48, 64)


def test_points_come_back_with_the_lengths_of_their_tracks(model: Path) -> None:
    points = read_points(model)
    assert torch.equal(points.positions, POINTS) and points.tracks.tolist() == [3, 12]


def test_the_pose_is_colmaps_turned_around(tmp_path: Path) -> None:
    """A quarter turn about z and a translation, by hand: world to camera takes (1, 0, 0) to (0, 1, 0) + t."""
    half = 2**-0.5
    (tmp_path / "cameras.txt").write_text("1 PINHOLE 8 8 4 4 4 4\n")
    (tmp_path / "images.txt").write_text(f"1 {half} 0 0 {half} 0.5 -1 2 1 x.png\n\n")
    camera = read_cameras(tmp_path)["x.png"]
    pixels, depth = camera.project(torch.tensor([1.0, 0.0, 0.0]))
    assert float(depth) == pytest.approx(2)
    assert pixels.tolist() == pytest.approx([4 * 0.5 / 2 + 4, 4 * 0 / 2 + 4])


def test_a_model_without_points_or_observations(tmp_path: Path) -> None:
    for form in FORMS:
        write_model(tmp_path / form, LENSES, VIEWS[1:2], torch.empty(0, 3), [], form)
        assert read_points(tmp_path / form).positions.shape == (0, 3)
        assert list(read_cameras(tmp_path / form)) == ["a.jpg"]


def test_text_of_other_programs(tmp_path: Path) -> None:
    """Line ends of Windows, blank lines, no comments, no last line of observations."""
    (tmp_path / "cameras.txt").write_bytes(b"\r\n1 SIMPLE_PINHOLE 8 6 4 4 3\r\n")
    (tmp_path / "images.txt").write_bytes(b"\r\n1 1 0 0 0 0 0 0 1 a.png\r\n1 2 3\r\n\r\n2 1 0 0 0 0 0 1 1 b c.png")
    assert list(read_cameras(tmp_path)) == ["a.png", "b c.png"]


@pytest.mark.parametrize("name", ["cameras", "images", "points3D"])
def test_a_binary_file_cut_at_any_byte_is_refused(tmp_path: Path, name: str) -> None:
    write_model(tmp_path, LENSES, VIEWS, POINTS, [3, 12], "bin")
    path = tmp_path / f"{name}.bin"
    whole = path.read_bytes()
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        with pytest.raises(InputError, match=re.escape(f"{path}: ")):
            read_points(tmp_path) if name == "points3D" else read_cameras(tmp_path)
    path.write_bytes(whole + b"\0")
    with pytest.raises(InputError, match="goes on"):
        read_points(tmp_path) if name == "points3D" else read_cameras(tmp_path)


@pytest.mark.parametrize("name", ["cameras", "images", "points3D"])
def test_a_text_file_cut_at_any_byte_is_read_whole_or_refused(tmp_path: Path, name: str) -> None:
    """What a cut inside the last word leaves cannot be told from a whole file; lines that are missing can."""
    write_model(tmp_path, LENSES, VIEWS, POINTS, [3, 12], "txt")
    path = tmp_path / f"{name}.txt"
    whole = path.read_bytes()
    read = {"points3D": lambda: len(read_points(tmp_path).positions)}.get(name, lambda: len(read_cameras(tmp_path)))
    count, refused = read(), 0
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        try:
            found = read()
        except InputError as error:
            refused += 1
            assert str(tmp_path) in str(error) and "\n" not in str(error)
        else:
            assert found == count or not re.search(rb"Number of \w+: \d+\n|Number of \w+: \d+,", whole[:length])
    assert refused > len(whole) / 3


def test_damage_of_any_kind_is_one_line(model: Path) -> None:
    dice = random.Random(0)
    for name in ("cameras", "images", "points3D"):
        path = file_of(model, name)
        whole = path.read_bytes()
        for _ in range(100):
            damaged = bytearray(whole)
            for _ in range(dice.randint(1, 6)):
                damaged[dice.randrange(len(damaged))] = dice.randrange(256)
            path.write_bytes(damaged)
            try:
                read_cameras(model)
                read_points(model)
            except InputError as error:
                assert "\n" not in str(error) and len(str(error)) < 600
        path.write_bytes(whole)


@pytest.mark.parametrize(("name", "at"), [("cameras", 0), ("images", 0), ("points3D", 0), ("points3D", 51)])
def test_a_count_beyond_the_file_takes_no_memory(tmp_path: Path, name: str, at: int) -> None:
    write_model(tmp_path, LENSES, VIEWS, POINTS, [3, 12], "bin")
    path = tmp_path / f"{name}.bin"
    content = bytearray(path.read_bytes())
    content[at : at + 8] = struct.pack("<Q", 2**63)
    path.write_bytes(content)
    with pytest.raises(InputError, match="more than its size holds"):
        read_points(tmp_path) if name == "points3D" else read_cameras(tmp_path)


@pytest.mark.parametrize(("name", "model_name"), [("OPENCV_FISHEYE", "OPENCV_FISHEYE"), ("FOV", "FOV")])
@pytest.mark.parametrize("form", FORMS)
def test_other_camera_models_are_refused_by_name(tmp_path: Path, form: str, name: str, model_name: str) -> None:
    write_model(tmp_path, {1: Lens(name, 8, 8, [1.0] * 8)}, VIEWS[1:2], POINTS, [3, 12], form)
    with pytest.raises(InputError, match=f"model {model_name} is not read: undistort"):
        read_cameras(tmp_path)


def test_a_camera_model_nobody_knows(tmp_path: Path) -> None:
    write_model(tmp_path, LENSES, VIEWS, POINTS, [3, 12], "bin")
    content = bytearray((tmp_path / "cameras.bin").read_bytes())
    content[12:16] = struct.pack("<i", 99)
    (tmp_path / "cameras.bin").write_bytes(content)
    with pytest.raises(InputError, match="number 99"):
        read_cameras(tmp_path)


@pytest.mark.parametrize("form", FORMS)
def test_what_a_model_must_not_say(tmp_path: Path, form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(message: str, lenses: dict[int, Lens] = LENSES, views: list[View] = VIEWS) -> None:
        write_model(tmp_path, lenses, views, POINTS, [3, 12], form)
        with pytest.raises(InputError, match=message):
            read_cameras(tmp_path)

    refused("a second picture", views=[VIEWS[0], VIEWS[0]])
    refused("which the model lacks", views=[View("x", 99, VIEWS[0].pose)])
    refused("without pictures", views=[])
    refused("positive", lenses={1: Lens("PINHOLE", 8, 8, [0.0, 1.0, 4.0, 4.0])}, views=VIEWS[1:2])
    refused("finite", lenses={1: Lens("PINHOLE", 8, 8, [1.0, 1.0, float("nan"), 4.0])}, views=VIEWS[1:2])
    refused("at most", lenses={1: Lens("PINHOLE", 10**7, 10**7, [1.0, 1.0, 4.0, 4.0])}, views=VIEWS[1:2])
    monkeypatch.setattr(colmap, "MAX_VIEWS", 4)
    refused("4 views allowed", lenses=dict(list(LENSES.items())[:4]))
    monkeypatch.setattr(colmap, "MAX_BYTES", 50)
    refused("50 bytes allowed")


def test_points_that_are_not_finite(tmp_path: Path) -> None:
    for form in FORMS:
        write_model(tmp_path / form, LENSES, VIEWS, torch.tensor([[0.0, float("nan"), 1.0]]), [3], form)
        with pytest.raises(InputError, match="not finite"):
            read_points(tmp_path / form)


def test_a_folder_without_a_model(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no cameras\.bin or cameras\.txt"):
        read_cameras(tmp_path)
    with pytest.raises(InputError, match=r"no points3D\.bin or points3D\.txt"):
        read_points(tmp_path)


def test_text_takes_no_more_memory_than_its_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "cameras.txt").write_bytes(b"1 SIMPLE_PINHOLE 8 6 4 4 3\n")
    (tmp_path / "images.txt").write_bytes(b"a\n\n" * 500_000)
    tracemalloc.start()
    with pytest.raises(InputError, match="a line of 1 words"):
        read_cameras(tmp_path)
    assert tracemalloc.get_traced_memory()[1] < 5 << 20
    tracemalloc.stop()
    monkeypatch.setattr(colmap, "MAX_ROW", 10)
    with pytest.raises(InputError, match="a line of more than 10 letters"):
        read_cameras(tmp_path)
