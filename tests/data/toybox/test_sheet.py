"""The contact sheet's command."""

from pathlib import Path

import pytest
from PIL import Image

from belvedere.data.toybox.sheet import main, sheet


def test_the_sheet_shows_fourteen_rows() -> None:
    page = sheet(columns=2, size=16, scale=3)
    assert page.size == (100 + 2 * 48, 14 * 48)
    assert page.getpixel((150, 20)) != (255, 255, 255)


def test_the_command_writes_a_png(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("belvedere.data.toybox.sheet.sheet", lambda: sheet(columns=1, size=8, scale=1))
    assert main([str(tmp_path / "toys.png")]) == 0
    with Image.open(tmp_path / "toys.png") as page:
        assert page.format == "PNG"


def test_the_command_refuses_bad_paths(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 2
    assert main([str(tmp_path / "missing" / "toys.png")]) == 2
    assert "make it first" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
