"""``belvedere models``: the facts of a folder and its card."""

import shutil
from pathlib import Path

import pytest

from belvedere.apps import models
from belvedere.checkpoints import store
from belvedere.errors import InputError
from tests.conftest import CLASSES


def test_facts(tiny_model: Path) -> None:
    found = models.facts(str(tiny_model))
    assert found["system"] == "DiMR"
    assert found["classes"] == list(CLASSES)
    assert found["bytes"] == (tiny_model / "network/diffusion_pytorch_model.safetensors").stat().st_size
    assert found["digest"] == store.card(tiny_model)["digest"]
    assert found["intact"] is True
    assert models.quality(found["card"]) == "recognised 0.25"
    assert models.quality({}) == "not measured"


def test_a_changed_model_is_shown_as_damaged(
    tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "model"
    shutil.copytree(tiny_model, folder)
    with (folder / "network/config.json").open("a") as file:
        file.write(" ")
    found = models.facts(str(folder))
    assert found["intact"] is False
    models.print_listing([found])
    assert "damaged" in capsys.readouterr().out
    models.print_facts(found)
    assert "does not match the card" in capsys.readouterr().out


def test_every_embedded_model_is_listed_intact(capsys: pytest.CaptureFixture[str]) -> None:
    rows = models.listing()
    assert [row["name"] for row in rows] == store.embedded()
    assert all(row["intact"] for row in rows)
    models.print_listing(rows)
    assert all(name in capsys.readouterr().out for name in store.embedded()[:1])


def test_an_unknown_model_is_refused() -> None:
    with pytest.raises(InputError, match="no model 'nope'"):
        models.facts("nope")
