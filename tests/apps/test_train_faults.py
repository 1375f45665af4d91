"""What goes wrong in the middle of a run: data that cannot be had, a save or a sheet that fails."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from PIL import Image

import belvedere
from belvedere.apps import tasks
from belvedere.apps.average import Ema
from belvedere.apps.config import load_config
from belvedere.apps.order import Order
from belvedere.apps.run_folder import RunFolder
from belvedere.apps.run_writer import RunWriter
from belvedere.apps.sharding import Part
from belvedere.apps.train import main, train
from belvedere.apps.training_log import TrainingLog
from belvedere.apps.training_state import Progress, RunState, checkpoints, verify
from belvedere.errors import InputError
from tests.apps.training_helpers import MODEL, assert_same, events, looks, rows, tensors, write_config
from tests.apps.training_processes import start_two, words

pytestmark = pytest.mark.usefixtures("one_thread")

BAD = Order(30, 0, 4, 1).indices(5, 0)[3]
"""A sample of step 5 alone in the first ten; of two processes the second has it."""


def write_pictures(folder: Path) -> list[Path]:
    """Write thirty pictures of two classes; return their files, in the order of the dataset."""
    noise = np.random.default_rng(0)
    for number in range(30):
        path = folder / ("left", "right")[number // 15] / f"{number:02d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(noise.integers(0, 256, (16, 16, 3), np.uint8)).save(path)
    return sorted(folder.rglob("*.png"))


def write_folder_config(folder: Path, pictures: Path, **changes: Any) -> str:
    """Write the config of a run of ten steps on the pictures in a folder."""
    model = MODEL | {"class_everywhere": True, "num_classes": 3}
    data = {"kind": "folder", "path": str(pictures), "size": 16}
    return write_config(folder, model=model, data=data, save_every=100, log_every=100, **changes)


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 1])
def test_a_batch_that_cannot_be_made_saves_ends_and_goes_on_when_mended(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], workers: int
) -> None:
    pictures = write_pictures(tmp_path / "pictures")
    config, run = write_folder_config(tmp_path, tmp_path / "pictures", workers=workers), tmp_path / "run"
    train(config, out=tmp_path / "straight")
    good = pictures[BAD].read_bytes()
    pictures[BAD].write_bytes(good[:60])
    capsys.readouterr()
    for _ in range(2):  # the second time before its first step
        assert main(["--config", config, "--out", str(run)]) == 2
        error = capsys.readouterr().err
        assert error.startswith("error: could not make a batch: ") and error.count("\n") == 1
        assert pictures[BAD].name in error and events(run)[-1] == f"stopped: {error[7:-1]}"
        (saved,) = checkpoints(run / "checkpoints")
        assert saved.name == "step-00000005" and verify(saved) is None and rows(run)[-1]["step"] == 5
    pictures[BAD].write_bytes(good)
    assert main(["--config", config, "--out", str(run)]) == 0
    assert_same(tensors(tmp_path / "straight", 10), tensors(run, 10))


@pytest.mark.slow
def test_a_batch_that_the_second_process_cannot_make_ends_both(tmp_path: Path) -> None:
    pictures, run = write_pictures(tmp_path / "pictures"), tmp_path / "run"
    pictures[BAD].write_bytes(pictures[BAD].read_bytes()[:60])
    processes = start_two(write_folder_config(tmp_path, tmp_path / "pictures"), run)
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [2, 2]
    told = words(run).read_text()
    assert told.count("error: could not make a batch: ") == 1 and pictures[BAD].name in events(run)[-1]
    assert not [rank for rank in range(2) if "Traceback" in words(run, rank).read_text()]
    assert "error: " not in words(run, 1).read_text()
    (saved,) = checkpoints(run / "checkpoints")
    assert saved.name == "step-00000005" and verify(saved) is None


def test_held_out_samples_that_are_those_of_the_data_are_refused(tmp_path: Path) -> None:
    write_pictures(tmp_path / "pictures")
    for same in ({"path": f"{tmp_path}/pictures/../pictures/"}, {"flip": True}):
        config = write_folder_config(tmp_path, tmp_path / "pictures", evaluate_every=3, held_out=same)
        with pytest.raises(InputError, match="those are the samples of data"):
            train(config, out=tmp_path / "run")


def test_held_out_samples_that_cannot_be_had_end_the_run_when_it_has_saved(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_pictures(tmp_path / "pictures")
    held_out = write_pictures(tmp_path / "held_out")
    held_out[-1].write_bytes(held_out[-1].read_bytes()[:60])
    looking = {"evaluate_every": 3, "held_out": {"path": str(tmp_path / "held_out")}}
    config, run = write_folder_config(tmp_path, tmp_path / "pictures", **looking), tmp_path / "run"
    assert main(["--config", config, "--out", str(run)]) == 2
    error = capsys.readouterr().err
    assert held_out[-1].name in error and error.count("\n") == 1 and events(run)[-1] == f"stopped: {error[7:-1]}"
    assert [path.name for path in checkpoints(run / "checkpoints")] == ["step-00000003"]


@pytest.mark.slow
@pytest.mark.parametrize("every", [3, 100])
def test_a_look_that_failed_is_made_up_for(tmp_path: Path, every: int) -> None:
    write_pictures(tmp_path / "pictures")
    held_out = write_pictures(tmp_path / "held_out")
    looking = {"evaluate_every": every, "held_out": {"path": str(tmp_path / "held_out")}}
    config, run = write_folder_config(tmp_path, tmp_path / "pictures", **looking), tmp_path / "run"
    train(config, out=tmp_path / "straight")
    good = held_out[-1].read_bytes()
    held_out[-1].write_bytes(good[:60])
    assert main(["--config", config, "--out", str(run)]) == 2
    assert (run / "model").exists() == (every == 100), "a last look does not cost the model"
    held_out[-1].write_bytes(good)
    for _ in range(2):
        assert main(["--config", config, "--out", str(run)]) == 0
    assert [step for step, _ in looks(run)] == ([3, 6, 9, 10] if every == 3 else [10])
    assert looks(run) == looks(tmp_path / "straight")
    assert_same(tensors(tmp_path / "straight", 10), tensors(run, 10))


@pytest.fixture
def no_sheet(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let every sheet fail."""

    def fail(model: Any, path: Path) -> None:
        raise RuntimeError("no sheet")

    original = tasks.dimr_task
    monkeypatch.setitem(tasks.TASKS, "dimr", lambda config: dataclasses.replace(original(config), sheet=fail))


@pytest.mark.usefixtures("no_sheet")
def test_a_last_sheet_that_fails_does_not_cost_the_model(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="no sheet"):
        train(write_config(tmp_path), out=tmp_path / "run")
    assert events(tmp_path / "run")[-1].startswith("model written")
    assert belvedere.load(tmp_path / "run/model").labels["car"] == 0


@pytest.mark.usefixtures("no_sheet")
def test_a_sheet_is_drawn_after_the_checkpoint_of_its_step(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="no sheet"):
        train(write_config(tmp_path, sheet_every=4), out=tmp_path / "run")
    assert [path.name for path in checkpoints(tmp_path / "run/checkpoints")] == ["step-00000004"]


def test_a_sharded_save_that_fails_leaves_no_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first of two processes, as far as it gets alone."""

    def full(state: RunState, directory: Path) -> None:
        (directory / "model-00001-of-00002.safetensors").write_bytes(b"half")
        raise OSError(28, "No space left on device")

    accelerator, run = Accelerator(cpu=True), RunFolder(tmp_path)
    config = load_config(write_config(tmp_path))
    model = tasks.make_task(config).model
    state = RunState(model, Ema(model, 0.9, warmup=False), torch.optim.SGD(model.parameters()), Progress(), Part(0, 2))
    writer = RunWriter(config, accelerator, run, state, TrainingLog(run.log, config.steps))
    writer.begin(None)
    state.progress.step = 4
    monkeypatch.setattr(RunState, "_write", full)
    writer.save(final=False)
    assert "checkpoint not written: [Errno 28] No space left on device" in events(tmp_path)
    assert list(run.checkpoints.iterdir()) == []
