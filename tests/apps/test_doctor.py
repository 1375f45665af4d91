"""``belvedere doctor``: everything it should look at is looked at, and faults are told apart from facts."""

import shutil
from pathlib import Path

import pytest

from belvedere.apps import doctor
from belvedere.checkpoints import store


def test_a_sound_machine(capsys: pytest.CaptureFixture[str]) -> None:
    found = doctor.report()
    assert list(found) == ["machine", "torch", "attention", "packages", "models", "folders"]
    assert found["machine"]["cores"] >= 1
    assert any(value == "yes: chosen" for value in found["attention"].values())
    assert doctor.faults(found) == []
    doctor.print_report(found)
    printed = capsys.readouterr().out
    assert "no faults found" in printed
    assert all(name in printed for name in (*doctor.CORE, *doctor.EXTRAS))


def test_a_missing_optional_package_names_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(doctor.EXTRAS, "no-such-package", "gpu")
    assert "pip install 'belvedere[gpu]'" in doctor.report()["packages"]["no-such-package"]


def test_faults_are_told(
    monkeypatch: pytest.MonkeyPatch, tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(tiny_model, tmp_path / "damaged")
    with (tmp_path / "damaged/network/config.json").open("a") as file:
        file.write(" ")
    monkeypatch.setattr(store, "EMBEDDED", tmp_path)
    monkeypatch.setattr(doctor, "CORE", ("no_such_package",))
    found = doctor.report()
    assert [fault.split(":")[0] for fault in doctor.faults(found)] == ["no_such_package", "damaged"]
    doctor.print_report(found)
    assert "fault: damaged: model damaged: its files do not match" in capsys.readouterr().out
