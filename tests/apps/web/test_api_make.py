"""What docs/studio.md tells of ``gradio_client`` for the rooms Make and Machine."""

import io
import json
import shutil
import time
import urllib.request
from pathlib import Path
from typing import Any

import pytest
from gradio_client import Client, handle_file
from gradio_client.exceptions import AppError
from PIL import Image

from belvedere.apps import output, record, work
from belvedere.apps.requests import GenerateRequest
from belvedere.apps.web.shelf import Shelf
from tests.apps.web.conftest import Server, start, stop

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def client(server: Server) -> Client:
    return Client(server.url, verbose=False)


def make(client: Client, **options: Any) -> list[dict[str, Any]]:
    options = {"model": "dimr-toybox", "kinds": ["car"], "steps": 2, "count": 1, **options}
    return client.predict(**options, api_name="/make")[1]


def fetch(server: Server, url: str) -> bytes:
    return urllib.request.urlopen(server.url + url).read()


def test_pictures_are_those_of_the_command_line(client: Client, server: Server, tmp_path: Path) -> None:
    made = make(client, kinds=["boat", "car"], count=2, seed=5, guidance=1.5)
    assert [(one["kind"], one["index"], one["seed"]) for one in made] == [("boat", 0, 5), ("car", 1, 5)]
    asked = GenerateRequest(classes=("boat", "car"), count=2, seed=5, steps=2, guidance=1.5, device="cpu")
    assert [one["pixels"] for one in made] == [picture.record.pixels for picture in work.generate(asked)]
    file = tmp_path / "picture.png"
    file.write_bytes(fetch(server, made[1]["url"]))
    told = record.read(file)
    assert (told.index, told.kind, told.pixels) == (1, "car", made[1]["pixels"])
    assert record.pixel_digest(Image.open(file)) == told.pixels


def test_any_size_of_a_model_of_any_size(client: Client, server: Server) -> None:
    (made,) = make(client, model="fitv2-toybox", width=96, height=48)
    assert (made["width"], made["height"]) == (96, 48)
    assert Image.open(io.BytesIO(fetch(server, made["url"]))).size == (96, 48)


def test_text(client: Client) -> None:
    (made,) = make(client, model="toybox-diffusion", kinds=[], words="a red car  on grass")
    assert made["kind"] == "a red car on grass"


def test_kinds_may_be_written(client: Client) -> None:
    made = make(client, kinds=[], words="mug, 0", count=2)
    assert [one["kind"] for one in made] == ["mug", "car"]


def test_the_own_settings_of_models(client: Client) -> None:
    any_size, text = (client.predict(model, api_name="/choose") for model in ("fitv2-toybox", "toybox-diffusion"))
    assert (any_size["kinds"][0], any_size["prompt"]) == ("car", False)
    assert text == client.predict("toybox-diffusion", api_name="/choose")
    assert (text["kinds"], text["width"], text["height"], text["prompt"]) == ([], 64, 64, True)


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"words": "zeppelin"}, "No class 'zeppelin'"),
        ({"model": "toybox-diffusion", "kinds": []}, "write what you want to see"),
        ({"model": "fitv2-toybox", "width": 65, "height": 64}, "multiples of"),
        ({"model": "fitv2-toybox", "width": 1024, "height": 1024, "steps": 100, "count": 24}, "too much work"),
    ],
)
def test_refusals_are_told(options: dict[str, Any], word: str, client: Client) -> None:
    with pytest.raises(AppError, match=word):
        make(client, **options)


@pytest.mark.parametrize("model", ["/etc", "openai/clip", "../dimr-toybox", "segpic-photo"])
def test_no_other_model_is_opened(model: str, client: Client) -> None:
    with pytest.raises(AppError):
        make(client, model=model)
    with pytest.raises(AppError):
        client.predict(model, api_name="/choose")


def test_a_model_of_ones_own_makes_kinds_that_no_other_knows(tmp_path: Path, tiny_model: Path) -> None:
    own = shutil.copytree(tiny_model, tmp_path / "own")
    index = json.loads((own / "model_index.json").read_text()) | {"id2label": {"0": "cat", "1": "dog"}}
    (own / "model_index.json").write_text(json.dumps(index))
    for name in ("card.json", "manifest.json"):
        (own / name).unlink()
    server = start(tmp_path / "kept", "--model", f"mine={own}")
    try:
        client = Client(server.url, verbose=False)
        assert client.predict("mine", api_name="/choose")["kinds"] == ["cat", "dog"]
        (made,) = make(client, model="mine", kinds=["dog"])
        (tmp_path / "dog.png").write_bytes(fetch(server, made["url"]))
        assert client.predict(handle_file(tmp_path / "dog.png"), api_name="/recall")[0] == "mine"
        (other,) = make(client, kinds=["mug"])  # the list of the session has the kinds of the other model now
        assert (made["kind"], other["kind"]) == ("dog", "mug")
        with pytest.raises(AppError, match="No class 'mug' in this model"):
            make(client, model="mine", kinds=["mug"])
    finally:
        assert stop(server) == 0


def test_a_concept_that_was_kept_before_is_taken(client: Client, server: Server) -> None:
    facts = {"kind": "concept", "token": "<thing>", "like": "car", "base": "toybox-diffusion", "steps": 1}
    id = Shelf(server.folder / "results").put("Personalise", {"thing.concept.safetensors": b"x"}, facts)
    try:
        with pytest.raises(AppError, match="must hold &lt;thing&gt;"):
            client.predict(id, "a photo of a car", seed=None, api_name="/personalise_try")
    finally:
        shutil.rmtree(server.folder / "results" / id)  # other tests show what is on the shelf


def test_settings_come_back_from_a_picture(client: Client, server: Server, tmp_path: Path) -> None:
    (made,) = make(client, model="fitv2-toybox", kinds=["mug"], width=64, height=32, seed=9, guidance=1.2)
    file = tmp_path / "found.png"
    file.write_bytes(fetch(server, made["url"]))
    model, kinds, words, _, width, height, steps, guidance, seed, count, *_, told = client.predict(
        handle_file(file), api_name="/recall"
    )
    values = [one["value"] if isinstance(one, dict) else one for one in (kinds, words, width, height, steps, guidance)]
    assert (model, seed, count) == ("fitv2-toybox", 9, 1)
    assert values == [["mug"], "", 64, 32, 2, 1.2]
    assert "picture 1 of 1" in told and "extrapolation" not in told


def test_what_the_page_cannot_set_is_told(client: Client, tmp_path: Path) -> None:
    sizes = ((96, 96),)
    asked = GenerateRequest("fitv2-toybox", steps=2, sizes=sizes, extrapolation="vision-ntk", device="cpu")
    (made,) = work.generate(asked)
    (tmp_path / "large.png").write_bytes(output.encode(made.image, "png", made.record.to_json()))
    told = client.predict(handle_file(tmp_path / "large.png"), api_name="/recall")[-1]
    assert "--extrapolation vision-ntk" in told


def test_what_was_finished_before_a_stop_is_kept(client: Client) -> None:
    job = client.submit(model="dimr-toybox", kinds=["mug"], steps=40, count=24, api_name="/make")
    while not (job.outputs() and job.outputs()[-1][1]):
        assert not job.done()
        time.sleep(0.05)
    made = job.outputs()[-1][1]
    assert job.cancel()
    shown, _ = client.predict(made, api_name="/stop")
    assert all(picture["url"] in shown for picture in made)


def test_a_job_can_be_cancelled(client: Client, server: Server) -> None:
    job = client.submit("dimr-toybox", ["car"], steps=100, count=24, api_name="/make")
    while not job.outputs():
        assert not job.done()
        time.sleep(0.05)
    assert job.cancel()
    began = time.monotonic()
    make(client)  # waits for the thread that works: the cancelled job left it
    assert time.monotonic() - began < 30


def test_the_machine_tells_what_it_does(client: Client) -> None:
    make(client, kinds=["tree"])
    state = client.predict(api_name="/state")
    assert "1 pictures by dimr-toybox" in state and "waiting" in state
    assert "attention" in client.predict(api_name="/doctor")
