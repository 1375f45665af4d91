"""The verb: what each ending becomes, what is told of it, which way the camera goes, one line for each refusal."""

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import trimesh
from PIL import Image

from belvedere.apps.requests import MAX_FRAMES, ViewRequest
from belvedere.apps.view import Viewer, cameras, turned, view, view_camera, write
from belvedere.data.toybox.views import ToyboxViews
from belvedere.errors import InputError
from belvedere.synthesis import camera_paths
from belvedere.synthesis.camera_paths import orbit
from tests.apps.conftest import Done, assert_refused
from tests.apps.view_helpers import DISTANCE, FOV, ball, request, save_model, toy

Command = Callable[..., Done]
SMALL = ("--size", "24x32")
FILM = (*SMALL, "--frames", "3")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("models") / "scenes")


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    toy().save(tmp_path / "toy.png")
    return tmp_path / "toy.png"


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("ending", ["gif", "webp", "mp4"])
def test_a_film(command: Command, model: Path, photo: Path, tmp_path: Path, ending: str) -> None:
    out = tmp_path / "new" / f"orbit.{ending}"
    done = command("view", photo, "--model", model, "--out", out, *FILM, "--json")
    facts = json.loads(done.out)
    assert facts["file"] == str(out) and facts["kind"] == "film"
    assert (facts["distance"], facts["fov"]) == (DISTANCE, pytest.approx(FOV))
    assert names(out.parent) == [out.name, f"{out.name}.json"]
    if ending != "mp4":
        with Image.open(out) as film:
            assert film.size == (24, 32) and film.n_frames == 3


def test_a_folder_of_frames_is_the_film(command: Command, model: Path, photo: Path, tmp_path: Path) -> None:
    assert command("view", photo, "--model", model, "--out", tmp_path / "frames", *FILM).code == 0
    command("view", photo, "--model", model, "--out", tmp_path / "view.png", *SMALL, "--angle", 120)
    assert names(tmp_path / "frames") == ["0001.png", "0002.png", "0003.png"]
    second, alone = (np.array(Image.open(tmp_path / name)) for name in ("frames/0002.png", "view.png"))
    assert second.shape == (32, 24, 3) and (second == alone).all()


def test_one_view_carries_its_record(command: Command, model: Path, photo: Path, tmp_path: Path) -> None:
    out = tmp_path / "view.png"
    done = command("view", photo, "--model", model, "--out", out, *SMALL, "--angle", 10)
    assert done.code == 0 and "picture of" in done.out and not (tmp_path / "view.png.json").exists()
    with Image.open(out) as image:
        made = json.loads(image.info["belvedere"])["view"]
    card = json.loads((model / "card.json").read_text())
    assert made["weights"] == card["digest"] and len(made["picture"]) == 64
    assert made["request"]["angle"] == 10 and made["request"]["size"] == [24, 32]
    assert made["camera"]["near"] == 1 and made["machine"]["torch"]
    command("view", photo, "--model", model, "--out", tmp_path / "again.png", *SMALL, "--angle", 10)
    assert (tmp_path / "again.png").read_bytes() == out.read_bytes()
    assert_refused(command("regenerate", out), "view of a scene", "belvedere view")


def test_a_network_in_bfloat16_sees_nearly_the_same(command: Command, model: Path, photo: Path, tmp_path: Path) -> None:
    asked = ("view", photo, "--model", model, *SMALL, "--angle", 10)
    for dtype in ("float32", "bfloat16"):
        assert command(*asked, "--dtype", dtype, "--out", tmp_path / f"{dtype}.png").code == 0
    images = [Image.open(tmp_path / f"{dtype}.png") for dtype in ("float32", "bfloat16")]
    assert json.loads(images[1].info["belvedere"])["view"]["request"]["dtype"] == "bfloat16"
    difference = np.abs(np.subtract(*(np.asarray(image, dtype=float) for image in images)))
    assert 0 < difference.mean() < 4


def test_a_scene_stands_for_its_picture(command: Command, model: Path, photo: Path, tmp_path: Path) -> None:
    scene = tmp_path / "scene.safetensors"
    assert command("view", photo, "--model", model, "--out", scene).code == 0
    assert names(tmp_path) == ["scene.safetensors", "toy.png"]
    for source in (scene, photo):
        out = tmp_path / f"{source.stem}.gif"
        command("view", source, "--model", model if source == photo else "no/such", "--out", out, *FILM)
    assert (tmp_path / "scene.gif").read_bytes() == (tmp_path / "toy.gif").read_bytes()
    made = [json.loads((tmp_path / f"{name}.gif.json").read_text())["view"] for name in ("scene", "toy")]
    assert len(made[0]["scene"]) == 64 and made[0]["camera"] == pytest.approx(made[1]["camera"])


@pytest.mark.parametrize("ending", ["glb", "ply"])
def test_a_mesh(ending: str, tmp_path: Path) -> None:
    scene = ball(centre=(0.2, -0.1, 0.0), radius=0.3)
    for pitch, centre in ((90.0, [0.2, 0, -0.1]), (0.0, [0.2, 0.1, 0])):  # from above, up in the picture is ahead
        replace(scene, pitch=pitch).save(tmp_path / "ball.safetensors", "")
        view(tmp_path / "ball.safetensors", tmp_path / f"ball.{ending}", ViewRequest(device="cpu"), force=True)
        mesh = trimesh.load(tmp_path / f"ball.{ending}", force="mesh")
        assert mesh.bounds.mean(0).tolist() == pytest.approx(centre, abs=0.02)
    assert names(tmp_path) == sorted(["ball.safetensors", f"ball.{ending}", f"ball.{ending}.json"])
    with pytest.raises(InputError, match="give a density below"):
        view(tmp_path / "ball.safetensors", tmp_path / "none.glb", ViewRequest(device="cpu", density=1e5))


def test_depth_opacity_and_what_is_unseen(tmp_path: Path) -> None:
    scene = ball()
    for what, angle in (("depth", 0), ("opacity", 0), ("unseen", 0), ("unseen", 180)):
        write(scene, request(what=what, angle=float(angle), size=(48, 64)), tmp_path / f"{what}{angle}.png", "")
    depth, opacity, front, back = (
        np.array(Image.open(tmp_path / f"{name}.png")) for name in ("depth0", "opacity0", "unseen0", "unseen180")
    )
    middle = 32, 24
    assert depth[middle] * 1e-4 == pytest.approx(DISTANCE - 0.4, abs=0.03) and depth[0, 0] == 0
    assert opacity[middle] == 255 and opacity[0, 0] == 0
    assert front[middle] < 20 and back[middle] > 235
    frames = [Viewer(scene).frame(view_camera(scene.camera, (24, 32)), what) for what in ("depth", "opacity")]
    assert all(frame.shape == (32, 24, 3) and frame.dtype == np.uint8 for frame in frames)
    assert frames[0][16, 12].mean() > 128 and (frames[0][0, 0] == 0).all()


def test_views_keep_the_field_of_view() -> None:
    """A wider view shows more at its sides; what is in the middle stays as large as a share of the height."""
    scene = ball(centre=(0.3, 0.0, 0.0), radius=0.2)
    for size in ((24, 32), (96, 64), (40, 40)):
        camera = view_camera(scene.camera, size)
        shown = Viewer(scene).render(camera).opacity
        assert shown.shape == (size[1], size[0])
        rows, columns = (shown > 0.5).nonzero().double().add(0.5).mean(0).tolist()
        assert rows / size[1] == pytest.approx(0.5, abs=0.02)
        right = 0.3 / DISTANCE / 2 / math.tan(math.radians(FOV) / 2)
        assert (columns - size[0] / 2) / size[1] == pytest.approx(right, abs=0.02)
    assert view_camera(scene.camera, None).size == (256, 192)


def test_paths() -> None:
    camera = view_camera(ball().camera, (24, 32))
    assert [c.pose.tolist() for c in cameras(camera, request())] == [c.pose.tolist() for c in orbit(camera, 4)]
    assert len(cameras(camera, request(frames=None))) == 48
    swing = [c.position[0].item() for c in cameras(camera, request(arc=60.0))]
    assert swing == pytest.approx([0, DISTANCE / 2, 0, -DISTANCE / 2], abs=1e-9)
    assert cameras(camera, request(elevation=30.0))[0].position[1].item() == pytest.approx(-DISTANCE / 2)
    assert cameras(camera, request(path="spiral"))[0].position.tolist() == pytest.approx([0, 0, -DISTANCE])
    assert turned(camera, 90).position.tolist() == pytest.approx([DISTANCE, 0, 0], abs=1e-9)


def test_a_path_from_a_file(tmp_path: Path) -> None:
    camera, file = view_camera(ball().camera, (24, 32)), tmp_path / "path.json"
    ends = [{"position": [x, 0, -DISTANCE], "look_at": [x, 0, 0]} for x in (-1, 1)]
    file.write_text(json.dumps(ends))
    asked = request(path=str(file), frames=None)
    assert [c.position[0].item() for c in cameras(camera, asked)] == [-1, 1]
    between = cameras(camera, replace(asked, frames=3))
    assert [c.position[0].item() for c in between] == pytest.approx([-1, 0, 1])


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--model", "nvist-nowhere"), ("no model 'nvist-nowhere'",)),
        (("--model", "dimr-toybox"), ("dimr-toybox makes no scenes",)),
        (("--path", "orbti"), ("no path 'orbti'", "orbit, spiral")),
        (("--path", "nan.json"), ("nan.json, camera 0", "finite numbers")),
        (("--path", "toy.png"), ("toy.png is no JSON",)),
        (("--near", "5"), ("near 5 and far 3", "near must be below far")),
        (("--near", "2", "--far", "2"), ("near 2 and far 2",)),
        (("--near", "nan"), ("near must be a number",)),
        (("--fov", "0"), ("fov must be a number from 1 to 170",)),
        (("--distance", "inf"), ("distance must be",)),
        (("--frames", "0"), ("frames must be a whole number from 1 to 10000",)),
        (("--frames", "10001"), ("frames must be",)),
        (("--size", "4096x4096"), ("a side of the size must be a whole number from 16 to 2048",)),
        (("--size", "8x8"), ("16 to 2048",)),
        (("--size", "32x32,64x64"), ("give one",)),
        (("--size", "big"), ("WIDTHxHEIGHT",)),
        (("--what", "sound"), ("colour, depth, opacity, unseen",)),
        (("--elevation", "90"), ("elevation must be",)),
        (("--arc", "0"), ("arc must be",)),
        (("--fps", "100", "--model", "nowhere"), ("100 frames a second", "at most 50", ".gif")),
        (("--frames", "200", "--size", "1024x1024", "--model", "nowhere"), ("200 frames", "make an .mp4")),
        (("--dtype", "float8"), ("dtype must be one of auto, float32, bfloat16, float16",)),
        (("--dtype", "float16", "--device", "cpu"), ("float16 is unusably slow on a CPU",)),
        (("--device", "tpu"), ("device",)),
        (("--out", "new/orbit.avi"), ("orbit.avi", ".mp4")),
        (
            ("--out", "new/view.png", "--path", "spiral"),
            ("--path is not used for new/view.png (picture): leave it out",),
        ),
        (("--out", "there.gif"), ("there.gif exists", "--force")),
        (("--out", "kept.gif"), ("kept.gif.json exists", "--force")),
        (("--out", "toy.png", "--force"), ("toy.png is what the views are made of",)),
        (("--out", "nan.mp4", "--path", "nan.mp4.json", "--force"), ("nan.mp4.json is what the views are made of",)),
        (("--out", "nan", "--path", "nan.json", "--force"), ("nan.json is what the views are made of",)),
        (("--out", "link"), ("link is a link",)),
        (("--out", "dangling"), ("dangling is a link",)),
        (("--path", "spiral", "--elevation", "10"), ("--elevation is not used for new/orbit.gif", "--path spiral")),
        (("--path", "nan.json", "--arc", "60"), ("--arc is not used for new/orbit.gif (film, --path nan.json)",)),
        (("--angle", "20"), ("--angle is not used for new/orbit.gif (film, --path orbit): leave it out",)),
        (("--out", "view.png", "--frames", "3"), ("--frames is not used for view.png (picture)",)),
        (("--out", "frames", "--fps", "10"), ("--fps is not used for frames",)),
        (("--out", "scene.ply", "--what", "depth"), ("--what is not used for scene.ply (mesh)",)),
        (("--out", "scene.safetensors"), ("--size is not used for scene.safetensors (scene)",)),
        (("--out", "."), ("cannot tell what to make",)),
        (("--out", "full"), ("full exists and is no empty folder",)),
        (("--out", "full/toys.gif/orbit.gif"), ("toys.gif",)),
    ],
)
def test_what_does_not_fit_is_one_line(
    command: Command,
    model: Path,
    photo: Path,
    options: tuple[str, ...],
    words: tuple[str, ...],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(photo.parent)
    Path("full").mkdir()
    for name in ("there.gif", "kept.gif.json", "full/toys.gif"):
        Path(name).write_bytes(b"mine")
    for name in ("nan.json", "nan.mp4.json"):
        Path(name).write_text('[{"position": [NaN, 0, -2], "look_at": [0, 0, 0]}]')
    Path("empty").mkdir()
    Path("link").symlink_to("empty")
    Path("dangling").symlink_to("nowhere")
    before = sorted(path for path in Path().rglob("*"))
    done = command("view", photo, "--model", model, "--out", "new/orbit.gif", "--size", "24x32", *options)
    assert_refused(done, *words)
    assert sorted(path for path in Path().rglob("*")) in (before, sorted([*before, Path("new")]))
    assert Path("there.gif").read_bytes() == b"mine"


def test_the_embedded_model_makes_a_scene_of_a_toy(command: Command, tmp_path: Path) -> None:
    """What is seen from the picture's own side is nearer to it than the picture's mean colour is."""
    toy = ToyboxViews(64, turn=0.0)[6]["image"] / 2 + 0.5  # a mushroom
    to_picture = (toy.permute(1, 2, 0) * 255).round().byte().numpy()
    Image.fromarray(to_picture).save(tmp_path / "toy.png")
    done = command("view", tmp_path / "toy.png", "--out", tmp_path / "side.png", "--size", "64x64", "--json")
    assert done.code == 0 and "nvist-toybox" in (tmp_path / "side.png").read_bytes().decode("latin-1")
    with Image.open(tmp_path / "side.png") as side:
        seen = np.asarray(side.convert("RGB"), dtype=np.float64) / 255
    truth = toy.permute(1, 2, 0).double().numpy()
    error, plain = ((seen - truth) ** 2).mean(), ((truth.mean((0, 1)) - truth) ** 2).mean()
    assert error < 0.4 * plain


def test_one_s_own_defaults_are_for_what_has_a_use_for_them(
    command: Command, model: Path, photo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {"FPS": "10", "PATH": "spiral", "FRAMES": "2", "ARC": "90"}.items():
        monkeypatch.setenv(f"BELVEDERE_VIEW_{name}", value)
    for name in ("view.png", "film.gif"):
        assert command("view", photo, "--model", model, "--out", tmp_path / name, *SMALL).code == 0
    asked = json.loads((tmp_path / "film.gif.json").read_text())["view"]["request"]
    assert [asked[name] for name in ("path", "frames", "fps", "arc")] == ["spiral", 2, 10, 360.0]
    with Image.open(tmp_path / "view.png") as picture:
        asked = json.loads(picture.info["belvedere"])["view"]["request"]
    assert (asked["path"], asked["frames"]) == ("orbit", None)


def test_force_replaces_a_file(command: Command, model: Path, photo: Path, tmp_path: Path) -> None:
    (tmp_path / "x.gif").write_bytes(b"old")
    assert command("view", photo, "--model", model, "--out", tmp_path / "x.gif", *FILM, "--force").code == 0
    with Image.open(tmp_path / "x.gif") as film:
        assert film.n_frames == 3


@pytest.mark.parametrize("name", ["orbit.gif", "orbit.mp4", "orbit.webp", "frames"])
def test_an_interrupt_leaves_nothing(name: str, tmp_path: Path) -> None:
    ball().save(tmp_path / "ball.safetensors", "")

    def interrupt(done: float, total: int) -> None:
        assert total == 4
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        view(tmp_path / "ball.safetensors", tmp_path / name, request(), progress=interrupt)
    assert names(tmp_path) == ["ball.safetensors"]


def test_a_film_that_is_too_large_is_refused_before_it_is_rendered(tmp_path: Path) -> None:
    def render(done: float, total: int) -> None:
        pytest.fail("a frame was rendered")

    with pytest.raises(InputError, match=r"3000 frames have more than 134217728 pixels: make an \.mp4"):
        write(ball(), request(frames=3000, size=None), tmp_path / "x.gif", "", render)


def test_limits_are_those_of_the_paths() -> None:
    assert MAX_FRAMES == camera_paths.MAX_FRAMES
    for wrong in ({"size": [8, 8]}, {"size": (32,)}, {"frames": True}, {"fov": "30"}, {"path": ""}, {"what": None}):
        with pytest.raises(InputError):
            ViewRequest(**wrong)  # type: ignore[arg-type]
