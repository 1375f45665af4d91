"""Whether a run's folder may be written is known before its first step."""

import shutil
from pathlib import Path

import pytest
import torch
from torch import nn

from belvedere.apps.run_folder import RunFolder
from belvedere.apps.start import make_room
from belvedere.errors import InputError


def test_too_little_room_is_known_before_the_run(tmp_path: Path) -> None:
    with torch.device("meta"):
        model = nn.Linear(2**20, 2**20)
    with pytest.raises(InputError, match="GB free, this run needs"):
        make_room(RunFolder(tmp_path), model, keep=2)


def test_a_resumed_run_needs_no_room_for_the_checkpoints_that_it_has(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = nn.Linear(1000, 1000, bias=False)  # 16 MB a checkpoint
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=17_000_000))
    with pytest.raises(InputError, match=r"0\.0 GB free, this run needs 0\.0"):
        make_room(RunFolder(tmp_path), model, keep=2)
    for step in (1, 2, 3):
        (tmp_path / f"checkpoints/step-{step:08d}").mkdir(parents=True)
    make_room(RunFolder(tmp_path), model, keep=2)


def test_leftovers_go_before_the_room_is_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    parts, usage = tmp_path / "checkpoints/.step-00000003.parts.tmp", shutil.disk_usage(tmp_path)
    parts.mkdir(parents=True)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=0 if parts.exists() else usage.free))
    make_room(RunFolder(tmp_path), nn.Linear(2, 2), keep=2)
    assert not parts.exists()
