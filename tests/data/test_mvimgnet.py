"""MVImgNet: scenes, split, normalised cameras matched by stem, and a cache that is neither trusted nor overwritten."""

import json
import math
import shutil
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from belvedere.data import mvimgnet
from belvedere.data.cameras import Camera
from belvedere.data.mvimgnet import MVImgNet
from belvedere.data.normalisation import normalise_scene
from belvedere.errors import InputError
from tests.data.colmap_files import Lens, View, turned, write_model, write_pinholes

SIZE = (32, 18)
POINTS = torch.rand(60, 3, generator=torch.Generator().manual_seed(3)).double() + torch.tensor([0.0, 0.0, 3.0])


def cameras(names: list[str]) -> dict[str, Camera]:
    """Cameras beside one another, of pictures twice the size."""
    return {
        name: Camera(turned(0, 0.05 * n, 0, (0.2 * n, 0.4, 0.1 * n)), (40.0, 40.0), (18.0, 32.0), (64, 36))
        for n, name in enumerate(names)
    }


def write_scene(folder: Path, shade: int, names: tuple[str, ...] = ("001.jpg", "002.jpg", "004.jpg")) -> None:
    """Write a scene of one shade of grey, a picture nobody knows the camera of among its pictures."""
    write_pinholes(folder / "sparse" / "0", cameras(list(names)), POINTS, 10)
    (folder / "images").mkdir()
    for number, name in enumerate((*names, "003.jpg")):
        Image.new("RGB", (36, 64), (shade, shade, 40 * number)).save(folder / "images" / f"{Path(name).stem}.png")


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two categories of three scenes each, and a folder that is no scene."""
    root = tmp_path_factory.mktemp("mvimgnet")
    for category in ("7", "12"):
        for number in range(3):
            write_scene(root / category / f"scene{number}", 60 * number + 20)
    (root / "12" / "nothing" / "images").mkdir(parents=True)
    (root / "readme.txt").write_text("not a category")
    return root


@pytest.fixture
def data_dir(written: Path, tmp_path: Path) -> Path:
    shutil.copytree(written, tmp_path / "data")
    return tmp_path / "data"


def test_the_first_of_every_hundred_scenes_of_a_category_is_for_testing(
    data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert MVImgNet(data_dir, "test", SIZE).scenes == ("12/scene0", "7/scene0")
    train = MVImgNet(data_dir, "train", SIZE)
    assert train.scenes == ("12/scene1", "12/scene2", "7/scene1", "7/scene2") and train.classes == ("12", "7")
    monkeypatch.setattr(mvimgnet, "TEST_EVERY", 2)
    assert MVImgNet(data_dir, "test", SIZE).scenes == ("12/scene0", "12/scene2", "7/scene0", "7/scene2")


def test_views_are_matched_by_stem_and_normalised(data_dir: Path) -> None:
    data = MVImgNet(data_dir, "train", SIZE)
    scene = data[2]
    originals = list(cameras(["001.jpg", "002.jpg", "004.jpg"]).values())
    normal = normalise_scene(POINTS, torch.full((60,), 10), originals)
    assert scene.capture.names == ("images/001.png", "images/002.png", "images/004.png")
    assert scene.label == 1 and (scene.near, scene.far) == pytest.approx((normal.near, normal.far))
    for camera, original in zip(scene.capture.cameras, originals, strict=True):
        torch.testing.assert_close(camera.pose, normal.apply(original).pose, rtol=0, atol=1e-12)
        assert (camera.focal, camera.size, camera.distortion) == (original.focal, original.size, ())
    assert data.near_far == pytest.approx((normal.near, normal.far))
    with pytest.raises(IndexError):
        data[4]


def test_a_sample_has_pictures_and_cameras_of_the_size_asked_for(data_dir: Path) -> None:
    sample = MVImgNet(data_dir, "train", SIZE).sample(1, [2, 0, 2])
    assert sample["image"].shape == (3, 3, *SIZE) and sample["label"] == 0
    shade = sample["image"][:, :, 0, 0] * 127.5 + 127.5
    torch.testing.assert_close(shade, torch.tensor([[140.0, 140, 80], [140, 140, 0], [140, 140, 80]]), atol=2, rtol=0)
    assert [camera.size for camera in sample["cameras"]] == [SIZE] * 3
    assert sample["cameras"][0].focal == (20, 20)
    assert sample["cameras"][0].position[0] > sample["cameras"][1].position[0]


def test_the_cache_is_used_and_made_again_when_a_model_changes(
    data_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[tuple[int, int]] = []
    cache = tmp_path / "a" / "cache"
    first = MVImgNet(data_dir, "train", SIZE, cache=cache, progress=lambda *done: calls.append(done))
    assert calls == [(1, 4), (2, 4), (3, 4), (4, 4)]
    again = MVImgNet(data_dir, "train", SIZE, cache=cache, progress=lambda *done: calls.append(done))
    assert len(calls) == 4 and again.scenes == first.scenes and again.near_far == first.near_far
    assert torch.equal(again[3].capture.cameras[2].pose, first[3].capture.cameras[2].pose)
    write_pinholes(data_dir / "7" / "scene1" / "sparse" / "0", cameras(["001.jpg", "002.jpg"]), POINTS, 10)
    changed = MVImgNet(data_dir, "train", SIZE, cache=cache, progress=lambda *done: calls.append(done))
    assert len(calls) == 8 and len(changed[2].capture) == 2
    assert (cache / "belvedere-train.safetensors").is_file()
    assert not list(data_dir.glob("*belvedere*")) and not list(data_dir.glob(".belvedere*"))


def test_lenses_have_no_distortion(data_dir: Path) -> None:
    """NViST is trained without, though near and far are those of the points that pictures show with it."""
    plain = MVImgNet(data_dir, "test", SIZE)[0]
    names = ["001.jpg", "002.jpg", "004.jpg"]
    poses = [camera.pose for camera in cameras(names).values()]
    views = [View(name, 1, pose) for name, pose in zip(names, poses, strict=True)]
    lens = Lens("OPENCV", 36, 64, [40, 40, 18, 32, 0.4, 0, 0, 0])
    write_model(data_dir / "12" / "scene0" / "sparse" / "0", {1: lens}, views, POINTS, [10] * 60, "bin")
    bent = MVImgNet(data_dir, "test", SIZE)[0]
    for a, b in zip(bent.capture.cameras, plain.capture.cameras, strict=True):
        assert a.distortion == () and (a.focal, a.principal) == (b.focal, b.principal) and torch.equal(a.pose, b.pose)


def test_a_table_of_no_scenes_replaces_none(data_dir: Path) -> None:
    MVImgNet(data_dir, "train", SIZE)
    cache = data_dir / "belvedere-train.safetensors"
    good = cache.read_bytes()
    with pytest.raises(InputError, match="no train scene"):
        MVImgNet(data_dir, "train", (18, 32))
    with pytest.raises(InputError, match=r"no train scene .* are missing in .*nowhere"):
        MVImgNet(data_dir, "train", SIZE, "nowhere")
    assert cache.read_bytes() == good


def test_a_scene_that_cannot_be_read_is_left_out_and_named(data_dir: Path) -> None:
    (data_dir / "7" / "scene1" / "images" / "002.png").unlink()
    (data_dir / "7" / "scene2" / "sparse" / "0" / "points3D.bin").write_bytes(b"?")
    for _ in range(2):  # made, then from the cache
        data = MVImgNet(data_dir, "train", SIZE)
        assert data.scenes == ("12/scene1", "12/scene2") and set(data.skipped) == {"7/scene1", "7/scene2"}
        assert "002.jpg" in data.skipped["7/scene1"] and "points3D.bin" in data.skipped["7/scene2"]
    Image.new("RGB", (36, 64)).save(data_dir / "7" / "scene1" / "images" / "002.png")
    assert MVImgNet(data_dir, "train", SIZE).scenes == ("12/scene1", "12/scene2", "7/scene1")


def test_scenes_of_another_aspect_are_left_out(data_dir: Path) -> None:
    with pytest.raises(InputError, match=r"no train scene .* pictures of 36 x 64, not of the aspect 32 x 18"):
        MVImgNet(data_dir, "train", (18, 32))


def listing(cache: Path, **changes: Any) -> None:
    """Change the names in a cache whose digest stays right."""
    with safe_open(cache, "pt") as file:
        metadata = file.metadata()
    tensors = load_file(cache)
    content = json.loads(bytes(tensors["listing"].numpy())) | changes
    tensors["listing"] = torch.frombuffer(bytearray(json.dumps(content).encode()), dtype=torch.uint8)
    save_file(tensors, cache, metadata)


@pytest.mark.parametrize(
    "changes",
    [
        {"scenes": ["../../x"] * 4},
        {"scenes": "abcd"},
        {"scenes": [1, 2, 3, 4]},
        {"scenes": [["12/scene1"]] * 4},
        {"names": [["a"]] * 4},
        {"names": [[1, 2, 3]] * 4},
        {"names": 3},
        {"skipped": []},
        {"skipped": {"a": 1}},
        {"more": 1},
        {"scenes": [], "names": []},
    ],
)
def test_a_hostile_cache_is_refused(data_dir: Path, changes: dict[str, Any]) -> None:
    MVImgNet(data_dir, "train", SIZE)
    cache = data_dir / "belvedere-train.safetensors"
    listing(cache, **changes)
    with pytest.raises(InputError, match="remove it or give cache another folder"):
        MVImgNet(data_dir, "train", SIZE)


def test_a_cache_whose_names_lead_out_is_refused(data_dir: Path) -> None:
    MVImgNet(data_dir, "train", SIZE)
    listing(data_dir / "belvedere-train.safetensors", names=[["../../../x", "b", "c"]] * 4)
    with pytest.raises(InputError, match=r"without '\.\.'"):
        MVImgNet(data_dir, "train", SIZE)[0]


def test_files_that_are_no_cache_are_not_replaced(data_dir: Path, tmp_path: Path) -> None:
    weights, text, folder = (tmp_path / name / "belvedere-train.safetensors" for name in ("weights", "text", "folder"))
    for path in (weights, text):
        path.parent.mkdir()
    save_file({"w": torch.zeros(3)}, weights)
    text.write_text("keep me")
    folder.mkdir(parents=True)
    for path in (weights, text, folder):
        before = path.read_bytes() if path.is_file() else b""
        with pytest.raises(InputError, match="is no cache of MVImgNet"):
            MVImgNet(data_dir, "train", SIZE, cache=path.parent)
        assert not path.is_file() or path.read_bytes() == before
    with pytest.raises(InputError, match=r"cannot write .* give cache a folder that can be written"):
        MVImgNet(data_dir, "train", SIZE, cache=text)


def test_what_is_asked_must_be_there(tmp_path: Path, data_dir: Path) -> None:
    with pytest.raises(InputError, match="choose train or test"):
        MVImgNet(data_dir, "val", SIZE)
    with pytest.raises(InputError, match="no folder"):
        MVImgNet(tmp_path / "nothing", "train", SIZE)
    with pytest.raises(InputError, match=r"no train scene in .*: MVImgNet has category/scene/sparse/0, a capture"):
        MVImgNet(data_dir / "7", "train", SIZE)
    assert not list((data_dir / "7").glob("*belvedere*")) and not list((data_dir / "7").glob(".belvedere*"))


def test_of_several_that_begin_at_once_one_reads_the_scenes(data_dir: Path) -> None:
    calls: list[int] = []

    def progress(done: int, total: int) -> None:
        calls.append(done)
        time.sleep(0.05)

    with ThreadPoolExecutor(3) as threads:
        found = [threads.submit(MVImgNet, data_dir, "train", SIZE, progress=progress) for _ in range(3)]
    assert calls == [1, 2, 3, 4] and len({data.result().scenes for data in found}) == 1


def test_what_is_read_and_left_out_is_told(
    data_dir: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(mvimgnet, "TOLD_EVERY", 3)
    (data_dir / "7" / "scene1" / "images" / "002.png").unlink()
    MVImgNet(data_dir, "train", SIZE)
    told = capsys.readouterr().err.splitlines()
    assert told[0] == "cameras of 3 of 4 scenes are read" and len(told) == 2
    assert told[1].startswith("1 of 4 scenes are left out, such as 7/scene1: ") and "002.jpg" in told[1]
    MVImgNet(data_dir, "train", SIZE)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("name", ["poses", "lenses", "near_far"])
def test_a_cache_of_numbers_that_are_none_is_refused(data_dir: Path, name: str, value: float) -> None:
    MVImgNet(data_dir, "train", SIZE)
    cache = data_dir / "belvedere-train.safetensors"
    with safe_open(cache, "pt") as file:
        metadata = file.metadata()
    tensors = load_file(cache)
    tensors[name].view(-1)[0] = value
    save_file(tensors, cache, metadata)
    with pytest.raises(InputError, match="remove it or give cache another folder"):
        MVImgNet(data_dir, "train", SIZE)


def test_a_picture_that_a_cache_names_is_no_link_out_of_its_folder(data_dir: Path, tmp_path: Path) -> None:
    data = MVImgNet(data_dir, "train", SIZE)
    picture = data_dir / data.scenes[0] / data[0].capture.names[1]
    picture.rename(tmp_path / "private.png")
    picture.symlink_to(tmp_path / "private.png")
    data.sample(0, [0])
    with pytest.raises(InputError, match="a link out of"):
        data.sample(0, [1])
