"""The room Orbit: a scene of a photograph, what is made of it, and what is refused."""

import json
from pathlib import Path
from typing import Any, NamedTuple

import gradio as gr
import pytest
from PIL import Image

from belvedere.apps.requests import SHOWN, ViewRequest
from belvedere.apps.scenes import build_scene, exif_fov
from belvedere.apps.web import page, room_orbit, scene_results, turntable
from belvedere.apps.web.limits import Limits
from belvedere.apps.web.running import Stopped
from belvedere.apps.web.studio import Studio
from belvedere.errors import InputError
from belvedere.synthesis.field import Field
from tests.apps.test_scenes import exif
from tests.apps.view_helpers import FOV, save_model, toy
from tests.data.test_images import ADOBE, profile


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("models") / "small")


def make_studio(folder: Path, model: Path) -> Studio:
    return Studio(folder / "kept", "cpu", Limits(upload_pixels=100_000, frames=6), {"small": model})


@pytest.fixture
def studio(tmp_path: Path, model: Path) -> Studio:
    return make_studio(tmp_path, model)


@pytest.fixture(scope="module")
def picture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("pictures") / "toy.png"
    toy().save(path)
    return path


class Built(NamedTuple):
    studio: Studio
    scene: str
    table: dict[str, Any]
    told: list[Any]


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory, model: Path, picture: Path) -> Built:
    """A studio with a scene on its shelf."""
    studio, told = make_studio(tmp_path_factory.mktemp("studio"), model), list[Any]()
    return Built(studio, *scene_results.build(studio, str(picture), "small", told.append), told)


def nothing(_: Any) -> None:
    """What is told to nobody."""


def test_a_scene_is_built_told_as_it_grows_and_kept(built: Built) -> None:
    studio, id, table, told = built
    assert all(key == "" for key, _ in told) and told[0][1]["note"] == "1 of 72 views"
    assert told[0][1]["sheets"]["depth"].startswith("data:image/webp;base64,")
    assert table["sheets"] == {what: studio.url(id, f"{what}.webp") for what in SHOWN}
    assert Field.load(studio.shelf.file(id, scene_results.SCENE)).scenes == 1
    again = Studio(studio.folder, "cpu")
    assert scene_results.opened(again, id) == table
    assert [entry.id for entry in scene_results.newest(again, 5)] == [id]
    assert id in room_orbit._earlier(again)


def test_a_photograph_tells_its_field_of_view_and_its_colours(
    studio: Studio, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As it does to ``view``: the first to a network that is told of focal lengths, and to no other."""
    monkeypatch.setattr(turntable, "render_ring", lambda *_: {})
    told = tmp_path / "told.png"
    toy().save(told, exif=exif(50), icc_profile=profile(ADOBE, [563]))
    fov = exif_fov(exif(50).tobytes(), toy().size)
    one = save_model(tmp_path / "one", focal=False)
    alone = Studio(tmp_path / "alone", "cpu", Limits(), {"small": one})
    for place, expected in ((studio, fov), (alone, FOV)):
        scene, _ = scene_results.build(place, str(told), "small", nothing)
        assert place.shelf.entry(scene).facts["fov"] == pytest.approx(expected)
        record = json.loads(Field.load(place.shelf.file(scene, scene_results.SCENE)).facts["record"])["view"]
        assert record["picture"] == build_scene(told, ViewRequest(str(one), device="cpu")).origin["picture"]


def test_what_is_made_of_a_scene_is_kept_beside_it(built: Built) -> None:
    studio, scene = built[:2]
    asked = {"film": ViewRequest(device="cpu", frames=3, size=(32, 32)), "view": ViewRequest(device="cpu", angle=30)}
    made = {kind: scene_results.make(studio, scene, kind, request, nothing) for kind, request in asked.items()}
    with Image.open(studio.shelf.file(made["view"], "view.png")) as image:
        assert max(image.size) == 256
    assert studio.shelf.file(made["film"], "film.mp4").read_bytes()[4:8] == b"ftyp"
    assert studio.shelf.file(made["film"], "film.mp4.json").is_file()
    assert {entry.id for entry in scene_results.newest(studio, 9, scene)} >= set(made.values())
    shown = room_orbit._made(studio, scene)
    assert studio.url(made["film"], "film.mp4") in shown and studio.url(scene, scene_results.SCENE) in shown


def test_a_mesh_is_made_once(built: Built) -> None:
    studio, scene = built[:2]
    first = scene_results.make(studio, scene, "mesh", ViewRequest(device="cpu"), nothing)
    assert studio.shelf.file(first, "mesh.glb").read_bytes()[:4] == b"glTF"
    assert scene_results.make(studio, scene, "mesh", ViewRequest(device="cpu"), nothing) == first


def test_stopping_keeps_nothing(studio: Studio, picture: Path) -> None:
    def stop(_: Any) -> None:
        raise Stopped

    with pytest.raises(Stopped):
        scene_results.build(studio, str(picture), "small", stop)
    assert studio.shelf.used == (0, 0)


@pytest.mark.parametrize("upload", [None, "gone.png"])
def test_no_photograph_is_said_in_words(studio: Studio, upload: str | None) -> None:
    with pytest.raises(InputError, match="drop"):
        scene_results.build(studio, upload, "small", nothing)


def test_what_does_not_fit_is_refused(built: Built, picture: Path, tmp_path: Path) -> None:
    studio, scene = built[:2]
    Image.new("RGB", (400, 400)).save(tmp_path / "large.png")
    with pytest.raises(InputError, match="100000"):
        scene_results.build(studio, str(tmp_path / "large.png"), "small", nothing)
    with pytest.raises(InputError, match="offers no model"):
        scene_results.build(studio, str(picture), "../small", nothing)
    with pytest.raises(InputError, match="no such result"):
        scene_results.opened(studio, "../../etc")
    with pytest.raises(InputError, match="too many"):
        scene_results.make(studio, scene, "film", ViewRequest(device="cpu", frames=7, size=(32, 32)), nothing)
    with pytest.raises(InputError, match="no scene yet: drop a photograph, or wait"):
        scene_results.make(studio, "", "view", ViewRequest(device="cpu"), nothing)
    with pytest.raises(InputError, match="cannot make"):
        scene_results.make(studio, scene, "../x", ViewRequest(device="cpu"), nothing)


def test_what_was_stopped_leaves_no_scene_half_built(built: Built) -> None:
    studio, scene, table = built[:3]
    made = room_orbit._made(studio, scene)
    assert room_orbit._ended(studio, "", "") == room_orbit._ended(studio, "", "0" * 32) == ("", {}, "")
    assert room_orbit._ended(studio, scene, "") == (gr.skip(), gr.skip(), made)
    assert room_orbit._ended(studio, "", scene) == (scene, table, made)


def test_the_scene_before_is_known_while_another_one_is_built(tmp_path: Path) -> None:
    begins = [
        fn for fn in page.build(Studio(tmp_path, "cpu")).fns.values() if fn.name == "begin" and len(fn.outputs) == 4
    ]
    assert len(begins) == 2
    for begin in begins:
        shown = ("", "before", {"note": room_orbit.OPENING}, "")
        assert begin.fn("before", "older") == begin.fn("", "before") == shown
        assert not [out for out in begin.outputs if isinstance(out, gr.Model3D)]


def test_toys_differ_and_unknown_ones_are_refused() -> None:
    assert scene_results.toy(0).tobytes() != scene_results.toy(1).tobytes()
    with pytest.raises(InputError, match="whole one"):
        scene_results.toy(-1)
