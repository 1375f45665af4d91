"""The room Orbit: a scene of a photograph, what is made of it, and what is refused."""

from pathlib import Path
from typing import Any, NamedTuple

import pytest
from PIL import Image

from belvedere.apps.requests import SHOWN, ViewRequest
from belvedere.apps.web import room_orbit, scene_results
from belvedere.apps.web.limits import Limits
from belvedere.apps.web.running import Stopped
from belvedere.apps.web.studio import Studio
from belvedere.errors import InputError
from belvedere.synthesis.field import Field
from tests.apps.view_helpers import save_model, toy


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
    with pytest.raises(InputError, match="cannot make"):
        scene_results.make(studio, scene, "../x", ViewRequest(device="cpu"), nothing)


def test_toys_differ_and_unknown_ones_are_refused() -> None:
    assert scene_results.toy(0).tobytes() != scene_results.toy(1).tobytes()
    with pytest.raises(InputError, match="whole one"):
        scene_results.toy(-1)
