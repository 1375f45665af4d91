"""Captures: pictures and cameras found by name, resized together, held out by a rule; geometry holds across views."""

import json
import math
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from PIL.JpegImagePlugin import JpegImageFile

from belvedere.data.cameras import Camera, flip_axes
from belvedere.data.captures import Capture, is_capture, open_capture
from belvedere.data.toybox import Toybox
from belvedere.errors import InputError
from tests.data.colmap_files import turned, write_pinholes

VIEWS = 3
SIZE = (48, 36)
FOX = os.environ.get("BELVEDERE_FOX", "")
"""Folder of instant-ngp's fox, where there is one."""


@pytest.fixture(scope="module")
def toys() -> dict[str, Any]:
    """One toy from three sides."""
    return Toybox(SIZE, seed=5).sample(3, views=VIEWS)


def save(picture: torch.Tensor, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = ((picture + 1) * 127.5).round().to(torch.uint8).permute(1, 2, 0)  # (h, w, c)
    Image.fromarray(pixels.numpy()).save(path)


def write_transforms(folder: Path, toys: dict[str, Any], names: list[str]) -> None:
    """Write the cameras of the toy to transforms.json."""
    lens = toys["intrinsics"].tolist()
    frames = [
        {"file_path": name, "transform_matrix": flip_axes(pose).tolist()}
        for name, pose in zip(names, toys["camera_to_world"], strict=True)
    ]
    intrinsics = {
        "w": SIZE[1],
        "h": SIZE[0],
        "fl_x": lens[0][0],
        "fl_y": lens[1][1],
        "cx": lens[0][2],
        "cy": lens[1][2],
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "transforms.json").write_text(json.dumps({**intrinsics, "frames": frames}))


def cameras_of(toys: dict[str, Any], names: list[str]) -> dict[str, Camera]:
    lens = toys["intrinsics"].tolist()
    focal, principal = (lens[0][0], lens[1][1]), (lens[0][2], lens[1][2])
    return {
        name: Camera(pose, focal, principal, SIZE) for name, pose in zip(names, toys["camera_to_world"], strict=True)
    }


@pytest.fixture
def folder(tmp_path: Path, toys: dict[str, Any]) -> Path:
    """The toy as a capture with transforms.json, its frames not in the order of their names."""
    names = ["images/b.png", "images/c.png", "images/a.png"]
    for name, picture in zip(names, toys["image"], strict=True):
        save(picture, tmp_path / name)
    write_transforms(tmp_path, toys, names)
    return tmp_path


@pytest.fixture
def model(tmp_path: Path, toys: dict[str, Any]) -> Path:
    """The same as COLMAP leaves it."""
    names = ["b.png", "c.png", "a.png"]
    for name, picture in zip(names, toys["image"], strict=True):
        save(picture, tmp_path / "images" / name)
    write_pinholes(tmp_path / "sparse" / "0", cameras_of(toys, names), torch.empty(0, 3), 0)
    return tmp_path


@pytest.mark.parametrize("kind", ["folder", "model"])
def test_views_come_with_the_cameras_that_took_them(
    kind: str, request: pytest.FixtureRequest, toys: dict[str, Any]
) -> None:
    capture = open_capture(request.getfixturevalue(kind))
    assert capture.names == ("images/a.png", "images/b.png", "images/c.png") and len(capture) == VIEWS
    for index, original in enumerate((2, 0, 1)):
        view = capture.view(index)
        assert view["image"].dtype == torch.float32
        torch.testing.assert_close(view["image"], toys["image"][original], rtol=0, atol=1 / 127)
        torch.testing.assert_close(view["camera"].pose, toys["camera_to_world"][original], rtol=0, atol=1e-12)
        assert view["camera"].size == SIZE and view["camera"].focal[0] == pytest.approx(toys["intrinsics"][0, 0].item())
    with pytest.raises(IndexError):
        capture.view(VIEWS)


@pytest.mark.parametrize("kind", ["folder", "model"])
def test_a_point_of_the_scene_is_the_same_toy_in_every_view(
    kind: str, request: pytest.FixtureRequest, toys: dict[str, Any]
) -> None:
    """Go along the ray of a pixel as far as the depth map says, and look where it lands in another view."""
    capture = open_capture(request.getfixturevalue(kind))
    order = (2, 0, 1)
    first, second = capture.view(1)["camera"], capture.view(2)["camera"]
    depth, regions = toys["depth"][order[1]], toys["regions"][order[1]]
    origins, directions = first.rays()
    along = depth / (directions.double() @ first.pose[:3, 2]).float()
    shown = torch.isfinite(depth)
    points = (origins + directions * along[..., None])[shown]
    pixels, ahead = second.project(points)
    x, y = pixels.floor().long().unbind(-1)
    inside = (x >= 1) & (x < SIZE[1] - 1) & (y >= 1) & (y < SIZE[0] - 1)
    seen = toys["depth"][order[2]][y[inside], x[inside]]
    visible = (seen - ahead[inside]).abs() < 0.02 * seen  # nothing stands in front
    assert visible.sum() > 100
    same = regions[shown][inside][visible] == toys["regions"][order[2]][y[inside], x[inside]][visible]
    assert same.float().mean() > 0.95
    assert (regions[shown][inside][visible] > 1).sum() > 20  # of the toy itself


def test_a_view_of_another_size_and_aspect(folder: Path) -> None:
    capture = open_capture(folder)
    whole, square = capture.view(0), capture.view(0, (18, 18))
    assert square["image"].shape == (3, 18, 18) and square["camera"].size == (18, 18)
    point = whole["camera"].rays()[0][0, 0] + 2 * whole["camera"].rays()[1][24, 18]
    x, y = whole["camera"].project(point)[0].tolist()
    assert square["camera"].project(point)[0].tolist() == pytest.approx([x / 2, (y - 6) / 2])
    wide = capture.view(0, (10, 40))
    assert wide["camera"].project(point)[0].tolist() == pytest.approx([x * 40 / 36, (y - 19.5) * 10 / 9], abs=0.6)


def degrees(camera: Camera) -> float:
    return math.degrees(2 * math.atan(camera.size[0] / 2 / camera.focal[1]))


def test_a_view_is_cut_to_a_field_of_view(folder: Path) -> None:
    capture = open_capture(folder)
    whole = capture.view(0)["camera"]
    cut = capture.view(0, (24, 18), fov=degrees(whole) / 2)
    assert cut["image"].shape == (3, 24, 18) and degrees(cut["camera"]) == pytest.approx(degrees(whole) / 2, rel=0.02)
    point = whole.rays()[0][0, 0] + 2 * whole.rays()[1][24, 18]
    offset = [a - b / 2 for a, b in zip(whole.project(point)[0].tolist(), (36, 48), strict=True)]
    scale = cut["camera"].focal[1] / whole.focal[1]
    expected = [offset[0] * scale + 9, offset[1] * scale + 12]
    assert cut["camera"].project(point)[0].tolist() == pytest.approx(expected, abs=0.6)
    assert capture.view(0, (24, 18), fov=degrees(whole))["camera"].focal == pytest.approx(
        capture.view(0, (24, 18))["camera"].focal
    )
    for size, fov in (((24, 18), degrees(whole) * 1.2), ((18, 24), degrees(whole))):
        with pytest.raises(InputError, match=r"a\.png: a field of view of [\d.]+ degrees, less than the [\d.]+ needed"):
            capture.view(0, size, fov=fov)


@pytest.mark.parametrize("orientation", [3, 6])
def test_cameras_describe_the_pixels_that_are_stored(folder: Path, toys: dict[str, Any], orientation: int) -> None:
    """COLMAP takes no notice of EXIF's orientation."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    for path in (folder / "images").iterdir():
        Image.open(path).save(path, exif=exif)
    content = json.loads((folder / "transforms.json").read_text())
    for key in ("w", "h", "cx", "cy"):
        del content[key]  # the size is that of the first picture
    (folder / "transforms.json").write_text(json.dumps(content))
    view = open_capture(folder).view(1)
    assert view["camera"].size == SIZE
    torch.testing.assert_close(view["image"], toys["image"][0], rtol=0, atol=1 / 127)


def test_a_large_jpeg_is_the_same_view_decoded_smaller(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for path in (folder / "images").iterdir():
        image = Image.open(path).resize((36 * 16, 48 * 16), Image.Resampling.BICUBIC)
        image.save(path.with_suffix(".jpg"), quality=95)
        path.unlink()
    drafts: list[tuple[int, int]] = []
    draft = JpegImageFile.draft

    def noted(self: JpegImageFile, mode: str | None, size: tuple[int, int]) -> Any:
        drafts.append(size)
        return draft(self, mode, size)

    monkeypatch.setattr(JpegImageFile, "draft", noted)
    quick = open_capture(folder).view(0, SIZE)
    assert drafts == [(36 * 2, 48 * 2)]
    monkeypatch.setattr(JpegImageFile, "draft", lambda *_: None)
    exact = open_capture(folder).view(0, SIZE)
    assert quick["camera"].focal == exact["camera"].focal and quick["camera"].principal == exact["camera"].principal
    error = (quick["image"] - exact["image"]).square().mean()
    assert 10 * math.log10(4 / error) > 45


def test_smaller_pictures_have_the_camera_of_their_size(model: Path) -> None:
    for path in (model / "images").iterdir():
        Image.open(path).resize((18, 24)).save(path)
    camera = open_capture(model).view(0)["camera"]
    assert camera.size == (24, 18) and camera.principal == (9, 12)


def test_pictures_are_found_by_their_stem(folder: Path, toys: dict[str, Any]) -> None:
    write_transforms(folder, toys, ["./images/b", "images/c.jpg", "images/a.JPEG"])
    assert open_capture(folder).names == ("images/a.png", "images/b.png", "images/c.png")
    assert open_capture(folder / "transforms.json").names[0] == "images/a.png"
    save(toys["image"][0], folder / "images" / "c.webp")
    with pytest.raises(InputError, match=r"c\.jpg is missing and may be c\.png or c\.webp"):
        open_capture(folder)


def test_pictures_without_a_camera_are_left_out(model: Path, toys: dict[str, Any]) -> None:
    """Matching by count, as the official loader does, would give every view after the first a wrong camera."""
    save(toys["image"][0], model / "images" / "aa.png")
    capture = open_capture(model)
    assert capture.names == ("images/a.png", "images/b.png", "images/c.png")
    torch.testing.assert_close(capture.cameras[1].pose, toys["camera_to_world"][0], rtol=0, atol=1e-12)


def test_a_model_as_colmaps_image_undistorter_leaves_it(model: Path) -> None:
    names = open_capture(model).names
    assert is_capture(model) and is_capture(model / "sparse" / "0" / "cameras.bin") and not is_capture(model / "images")
    for path in (model / "sparse" / "0").iterdir():
        path.rename(model / "sparse" / path.name)
    (model / "sparse" / "0").rmdir()
    assert is_capture(model) and open_capture(model).names == names
    (model / "sparse" / "cameras.bin").unlink()
    assert not is_capture(model)


def test_images_of_another_folder(model: Path) -> None:
    (model / "images").rename(model / "images_12")
    assert open_capture(model, "images_12").names[0] == "images_12/a.png"
    with pytest.raises(InputError, match=r"3 pictures that .*sparse/0 names are missing in .*images, such as 'a\.png'"):
        open_capture(model)
    for name in ("/elsewhere", "../images", ".."):
        with pytest.raises(InputError, match=r"images: .*relative path"):
            open_capture(model, name)


def test_images_beside_the_cameras(model: Path) -> None:
    for path in (model / "images").iterdir():
        path.rename(model / path.name)
    capture = open_capture(model, ".")
    assert capture.names == ("a.png", "b.png", "c.png") and capture.view(0)["image"].isfinite().all()


def test_a_file_without_sizes_takes_them_from_the_first_picture(folder: Path) -> None:
    content = json.loads((folder / "transforms.json").read_text())
    for key in ("w", "h", "cx", "cy"):
        del content[key]
    (folder / "transforms.json").write_text(json.dumps(content))
    assert open_capture(folder).cameras[0].size == SIZE
    (folder / "images" / "b.png").unlink()
    with pytest.raises(InputError, match=r"frame 0: no w and h, and no picture 'images/b\.png'"):
        open_capture(folder)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("../images/b.png", "without '..'"),
        ("images/../../b.png", "without '..'"),
        ("images\\..\\..\\b.png", "without '..'"),
        ("/etc/passwd", "relative"),
        ("C:\\b.png", "relative"),
        ("images/link.png", "a link out of"),
        ("images/nothing.png", "1 pictures that .* are missing"),
        ("images/pipe.png", "1 pictures that .* are missing"),
        ("images/pipe", "1 pictures that .* are missing"),
        ("images/\0.png", "printed letters"),
        ("images/a\n.png", "printed letters"),
        ("images/\ud800.png", "missing"),
        ("x" * 5000, "missing"),
        ("y/" * 2000, "missing"),
        ("", "relative"),
        (".", "relative"),
        ("images", "missing"),
        ("./images/a.png", "twice"),
    ],
)
def test_names_that_lead_elsewhere(folder: Path, toys: dict[str, Any], name: str, message: str) -> None:
    outside = folder.parent / f"{folder.name}.png"
    save(toys["image"][0], outside)
    (folder / "images" / "link.png").symlink_to(outside)
    os.mkfifo(folder / "images" / "pipe.png")
    write_transforms(folder, toys, [name, "images/c.png", "images/a.png"])
    with pytest.raises(InputError, match=message) as caught:
        open_capture(folder)
    assert "\n" not in str(caught.value)
    str(caught.value).encode()


def test_links_to_pictures_elsewhere_in_the_folder_are_followed(folder: Path, toys: dict[str, Any]) -> None:
    (folder / "raw").mkdir()
    (folder / "images" / "b.png").rename(folder / "raw" / "b.png")
    (folder / "images" / "b.png").symlink_to("../raw/b.png")
    write_transforms(folder, toys, [f"images/{name}.png" for name in "abc"])
    capture = open_capture(folder)
    assert capture.names[1] == "images/b.png" and capture.view(1)["image"].isfinite().all()


def test_the_folder_of_colmaps_pictures_may_be_a_link(model: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    elsewhere = tmp_path_factory.mktemp("pictures") / "images"
    (model / "images").rename(elsewhere)
    (model / "images").symlink_to(elsewhere)
    assert open_capture(model).view(0)["image"].isfinite().all()


def test_what_is_no_capture(tmp_path: Path, folder: Path) -> None:
    for path in (tmp_path / "nothing", folder / "images"):
        with pytest.raises(InputError, match=r"no capture: give a folder with transforms\.json or a COLMAP model"):
            open_capture(path)
    with pytest.raises(InputError, match="relative"):
        Capture(folder, ("../a.png",), open_capture(folder).cameras[:1])


def test_a_picture_of_another_aspect_is_refused(folder: Path) -> None:
    Image.new("RGB", (48, 36)).save(folder / "images" / "a.png")
    with pytest.raises(InputError, match=r"a\.png has 48 x 36 pixels, its camera 36 x 48"):
        open_capture(folder).view(0)


def test_every_nth_view_is_held_out() -> None:
    names = tuple(f"{number:03d}.png" for number in range(10))
    capture = Capture(Path(), names, (Camera(turned(0, 0, 0, (0, 0, 0)), (1, 1), (1, 1), (2, 2)),) * 10)
    split = capture.split(4)
    assert split.held_out == (0, 4, 8) and split.train == (1, 2, 3, 5, 6, 7, 9)
    assert split.digest == capture.split(4).digest and len(split.digest) == 16
    renamed = Capture(Path(), (*names[:9], "x.png"), capture.cameras)
    assert len({split.digest, capture.split(5).digest, renamed.split(4).digest}) == 3
    for every in (1, 0, -2):
        with pytest.raises(InputError, match="2 or more"):
            capture.split(every)


@pytest.mark.skipif(not FOX, reason="set BELVEDERE_FOX to the folder of the fox, a capture of instant-ngp")
def test_the_fox() -> None:
    capture = open_capture(FOX)
    assert len(capture) == 50 and len(capture.split().held_out) == 7
    view = capture.view(7, (160, 90))
    assert view["image"].shape == (3, 160, 90)
    origins, directions = view["camera"].rays()
    pixels, _ = view["camera"].project(origins + 3 * directions)
    assert (pixels[20, 30] - torch.tensor([30.5, 20.5])).abs().max() < 1e-3
    for camera in capture.cameras:  # colmap2nerf puts the origin where all cameras look
        (x, y), depth = camera.project(torch.zeros(3))
        assert depth > 3 and 0 < x < 270 and 0 < y < 480
