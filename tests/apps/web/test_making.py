"""A picture gives its settings back, and what cannot be set is told."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from belvedere.apps import work
from belvedere.apps.record import Record
from belvedere.apps.requests import GenerateRequest
from belvedere.apps.web import making
from belvedere.apps.web.studio import Studio
from belvedere.errors import InputError

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def studio(tmp_path: Path, tiny_model: Path) -> Studio:
    return Studio(tmp_path / "studio", "cpu", models={"mine": tiny_model})


def made(model: Path, **asked: Any) -> Record:
    """The record of the first picture of a request."""
    request = GenerateRequest(**{"model": str(model), "steps": 1, "device": "cpu", **asked})
    return next(work.generate(request)).record


def told(studio: Studio, record: Record) -> list[str]:
    return making.recall(studio, record)[2].split(". ")[1:]


def test_all_settings_come_back_in_silence(studio: Studio, tiny_model: Path) -> None:
    record = made(tiny_model, classes=("boat", 0), count=3, seed=5, guidance=2.5)
    settings, _, _ = making.recall(studio, record)
    assert (settings.model, settings.kinds, settings.words) == ("mine", ("boat", "car"), "")
    assert (settings.count, settings.seed, settings.steps, settings.guidance) == (3, 5, 1, 2.5)
    assert told(studio, record) == []


def test_a_model_is_known_by_its_weights_wherever_they_lie(tmp_path: Path, tiny_model: Path, other_model: Path) -> None:
    copy = shutil.copytree(tiny_model, tmp_path / "copy")
    studio = Studio(tmp_path / "studio", "cpu", models={"other": other_model, "moved": copy})
    record = made(tiny_model)
    assert making.recall(studio, record)[0].model == "moved" and told(studio, record) == []
    renamed = replace(record, request=replace(record.request, model=str(other_model)))
    assert making.recall(studio, renamed)[0].model == "moved"
    with pytest.raises(InputError, match="does not offer"):
        making.recall(Studio(tmp_path / "less", "cpu", models={"other": other_model}), record)


def test_other_weights_of_the_same_name_are_told(studio: Studio, tiny_model: Path, other_model: Path) -> None:
    record = made(other_model)
    record = replace(record, request=replace(record.request, model=str(tiny_model)))
    assert told(studio, record) == ["Its model has other weights by now, so another picture will come"]


@pytest.mark.parametrize(
    ("asked", "word"),
    [
        ({"dtype": "bfloat16"}, "made in bfloat16"),
        ({"classes": ("car", "car", "boat")}, "kinds repeat"),
        ({"classes": ("car", 0)}, "kinds repeat"),
        ({"seed": making.EXACT + 1}, "seed, 9007199254740992,"),
        ({"guidance_power": 2.0}, "made with --guidance-power 2.0,"),
        ({"guidance_interval": (0.2, 0.9)}, "made with --guidance-interval 0.2,0.9,"),
    ],
)
def test_what_the_page_cannot_set_is_told(asked: dict[str, Any], word: str, studio: Studio, tiny_model: Path) -> None:
    (sentence,) = told(studio, made(tiny_model, **asked))
    assert word in sentence


def test_kinds_that_are_written_come_back_whatever_their_names_hold(
    tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = shutil.copytree(tiny_model, tmp_path / "model")
    names = {"0": "tench, Tinca tinca", "1": "goldfish", "2": "crane, bird", "3": "crane, machine"}
    index = json.loads((model / "model_index.json").read_text()) | {"id2label": names}
    (model / "model_index.json").write_text(json.dumps(index))
    for name in ("card.json", "manifest.json"):
        (model / name).unlink()
    monkeypatch.setattr(making, "CHIPS", 3)
    studio = Studio(tmp_path / "studio", "cpu", models={"fish": model})
    record = made(model, classes=("tench", "goldfish", "crane, machine"), count=3)
    settings, _, _ = making.recall(studio, record)
    assert settings.kinds == () and told(studio, record) == []
    again = work.prepare(making.request_of(studio, settings), model=making.load(studio, "fish"))
    assert again.labels == (0, 1, 3)
