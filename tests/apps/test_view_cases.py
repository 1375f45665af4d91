"""What views are measured on: which views, in which frame, and that everything fits together geometrically."""

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import Tensor

from belvedere.apps.view_cases import (
    VIEWS,
    WIDEST,
    Case,
    capture_cases,
    case_sets,
    degrees_between,
    mvimgnet_cases,
    normalise_cameras,
    toybox_cases,
)
from belvedere.checkpoints.views import SceneModel
from belvedere.data.cameras import flip_axes
from belvedere.data.captures import open_capture
from belvedere.data.mvimgnet import MVImgNet
from belvedere.data.toybox import Toybox
from belvedere.errors import InputError
from belvedere.synthesis.camera_paths import look_at
from belvedere.synthesis.cameras import Camera
from tests.apps.view_helpers import DISTANCE, FOV, SIZE, network
from tests.data.test_mvimgnet import SIZE as PORTRAIT
from tests.data.test_mvimgnet import write_scene


def save(picture: Tensor, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = ((picture + 1) * 127.5).round().byte().permute(1, 2, 0)  # (h, w, c)
    Image.fromarray(pixels.numpy()).save(path)


def write_capture(folder: Path, views: int = 12) -> Path:
    """Write a toy as a capture with transforms.json; returns its folder."""
    toys = Toybox((48, 36), seed=5).sample(3, views=views)
    lens = toys["intrinsics"].tolist()
    frames = []
    for i, (picture, pose) in enumerate(zip(toys["image"], toys["camera_to_world"], strict=True)):
        save(picture, folder / "images" / f"{i:02d}.png")
        frames.append({"file_path": f"images/{i:02d}.png", "transform_matrix": flip_axes(pose).tolist()})
    sizes = {"w": 36, "h": 48, "fl_x": lens[0][0], "fl_y": lens[1][1], "cx": lens[0][2], "cy": lens[1][2]}
    (folder / "transforms.json").write_text(json.dumps({**sizes, "frames": frames}))
    return folder


def assert_seen(case: Case, distance: float) -> None:
    """The network's view is where networks expect it; every camera looks at the origin, strict ones are others."""
    source = case.cameras[case.source]
    assert torch.allclose(source.pose[:3, :3], torch.eye(3, dtype=torch.float64), atol=1e-6)
    assert source.position.tolist() == pytest.approx([0, 0, -distance], abs=1e-6)
    assert case.source not in case.held_out and case.held_out
    assert case.pictures.shape == (len(case.cameras), 3, *source.size) and case.mean.shape == case.pictures.shape[1:]
    assert case.pictures.min() >= 0 and case.pictures.max() <= 1


def model() -> SceneModel:
    return SceneModel(network(), "0" * 64, DISTANCE, FOV, 0.0)


def test_toys_are_seen_by_cameras_that_agree() -> None:
    """What one view shows is where the others' distances say it is, wherever they see it too."""
    (case,) = list(toybox_cases("toys", (64, 48), DISTANCE, ("house",), 1).cases())
    assert_seen(case, DISTANCE)
    assert (case.scene, case.kind, case.source) == ("house 0", "house", 0) and case.distance is not None
    assert all(0 < degrees_between(case.cameras[i], case.cameras[0]) < WIDEST + 18 for i in case.held_out)  # 18: rise
    assert case.held_out == tuple(range(1, VIEWS + 1))
    origins, rays = case.cameras[0].rays()
    there = case.distance[0].isfinite()
    points = (origins + rays * case.distance[0].unsqueeze(2))[there]
    for camera, distance in zip(case.cameras, case.distance, strict=True):
        pixels, _ = camera.project(points)
        column, row = pixels.floor().long().unbind(1)
        inside = (column >= 0) & (column < 48) & (row >= 0) & (row < 64)
        away = (points.double() - camera.position).norm(dim=1)[inside]
        seen = distance[row[inside], column[inside]]
        assert ((away - seen).abs() < 0.05).double().mean() > 0.75
        assert ((away - seen) > -0.05).double().mean() > 0.95  # what is hidden lies behind what is seen


def test_toys_are_of_every_kind_and_split_by_seed() -> None:
    toys, unseen = case_sets(None, model(), 2)
    assert (toys.count, unseen.count) == (24, 4) and unseen.split["size"] == list(SIZE)
    assert len({toys.digest, unseen.digest, case_sets(None, model(), 3)[0].digest}) == 3
    assert [part.count for part in case_sets(None, model())] == [48, 8]
    first, again = (toybox_cases("toys", (32, 32), DISTANCE, ("castle", "train"), 1) for _ in range(2))
    assert first.digest == again.digest
    cases = list(first.cases())
    assert [case.kind for case in cases] == ["castle", "train"]
    assert all(torch.equal(a.pictures, b.pictures) for a, b in zip(cases, again.cases(), strict=True))
    assert torch.equal(cases[0].mean, cases[1].mean) and cases[0].mean.isfinite().all()


def test_a_capture(tmp_path: Path) -> None:
    (part,) = case_sets(write_capture(tmp_path / "toy"), model())
    (case,) = list(part.cases())
    assert_seen(case, DISTANCE)
    assert case.held_out == (0, 8) and case.source == 6  # the middle of 1 2 3 4 5 6 7 9 10 11
    assert case.scene == "toy" and case.distance is None and part.count == 1
    train = [1, 2, 3, 4, 5, 6, 7, 9, 10, 11]
    assert torch.equal(case.mean, case.pictures[train].mean(0))
    capture = open_capture(tmp_path / "toy")
    assert part.split["views"] == capture.split().digest and part.split["input"] == "images/06.png"
    others = [capture_cases(capture, SIZE, 1.0, every=3), capture_cases(capture, SIZE[::-1], 1.0)]
    assert len({part.digest, *(other.digest for other in others)}) == 3
    poses = [camera.position.norm().item() for camera in case.cameras]
    assert poses == pytest.approx([DISTANCE] * 12, rel=1e-6)  # all toys' cameras are as far away


def test_a_network_that_knows_one_field_of_view_sees_pictures_of_it(tmp_path: Path) -> None:
    folder = write_capture(tmp_path / "toy")
    (whole,) = list(capture_cases(open_capture(folder), SIZE, DISTANCE).cases())
    seen = 2 * math.degrees(math.atan(SIZE[0] / 2 / whole.cameras[0].focal[1]))
    narrow = SceneModel(network(focal=False), "0" * 64, DISTANCE, seen * 0.6, 0.0)
    (part,) = case_sets(folder, narrow)
    (case,) = list(part.cases())
    assert_seen(case, DISTANCE)
    focal = SIZE[0] / 2 / math.tan(math.radians(seen * 0.3))
    assert [camera.focal[1] for camera in case.cameras] == pytest.approx([focal] * 12, rel=0.03)
    assert part.digest != case_sets(folder, model())[0].digest
    wide = SceneModel(network(focal=False), "0" * 64, DISTANCE, seen * 1.5, 0.0)
    with pytest.raises(InputError, match=r"00\.png: a field of view of .* give wider pictures"):
        list(case_sets(folder, wide)[0].cases())


def test_mvimgnet(tmp_path: Path) -> None:
    for category in ("7", "12"):
        for number in range(2):
            write_scene(tmp_path / category / f"scene{number}", 60 * number + 20)
    data = MVImgNet(tmp_path, "test", PORTRAIT)
    part = mvimgnet_cases(data)
    cases = list(part.cases())
    assert [(case.scene, case.kind) for case in cases] == [("12/scene0", "12"), ("7/scene0", "7")]
    for i, case in enumerate(cases):
        assert case.source == 1 and case.held_out == (0, 2)
        distance = float(data[i].capture.cameras[1].position.norm())
        assert_seen(case, distance)
    middles = torch.stack([case.pictures[1] for case in cases])
    assert torch.allclose(cases[0].mean, middles.mean(0), atol=1e-6)
    assert mvimgnet_cases(data, 1).count == 1 and mvimgnet_cases(data, 1).digest != part.digest
    assert mvimgnet_cases(MVImgNet(tmp_path, "test", (64, 36))).digest != part.digest


def test_mvimgnet_of_smaller_pictures_and_a_cache_elsewhere(tmp_path: Path) -> None:
    scene = tmp_path / "data" / "7" / "scene0"
    write_scene(scene, 20)
    (scene / "images").rename(scene / "images_12")
    portrait = SceneModel(network(image=list(PORTRAIT), patch=2), "0" * 64, DISTANCE, FOV, 0.0)
    (part,) = case_sets(tmp_path / "data", portrait, images="images_12", cache=tmp_path / "cache")
    assert part.split["views"]["7/scene0"][0] == "images_12/001.png"
    assert [path.name for path in (tmp_path / "data").iterdir()] == ["7"]
    assert (tmp_path / "cache" / "belvedere-test.safetensors").is_file()


def test_the_centre_is_where_cameras_look() -> None:
    target = torch.tensor([3.0, -2.0, 1.0], dtype=torch.float64)
    places = target + torch.tensor([[4.0, 1, 0], [0, 1, 4], [-3, 2, 3]], dtype=torch.float64)
    cameras = [Camera(look_at(place, target), (30.0, 30.0), (12.0, 16.0), SIZE) for place in places]
    normal = normalise_cameras(cameras, 2, 1.5)
    assert normal.centre == pytest.approx(target.tolist())
    assert normal.apply(cameras[2]).position.norm().item() == pytest.approx(1.5)
    parallel = [replace(cameras[0], pose=cameras[0].pose.clone()) for _ in range(2)]
    with pytest.raises(InputError, match="all look the same way"):
        normalise_cameras(parallel, 0, 1.5)


def test_data_that_is_none(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="give 1 or more"):
        case_sets(None, model(), 0)
    with pytest.raises(InputError, match="no folder"):
        case_sets(tmp_path / "none", model())
    with pytest.raises(InputError, match="no test scene"):
        case_sets(tmp_path, model())
    assert not list(tmp_path.iterdir())
