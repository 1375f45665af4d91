"""A tiny DiMR run, and ways to disturb it, for the tests of the trainer."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load
from torch import Tensor

from belvedere.apps import tasks
from belvedere.apps.config import TrainConfig
from belvedere.seeds import BatchRng

STAGES = [
    {"kind": "transformer", "dim": 16, "hidden": 32, "blocks": 3, "heads": 2, "height": 4, "width": 4}
    | {"patch": 4, "head_patch": 2},
    {"kind": "convnext", "dim": 8, "hidden": 16, "blocks": 3, "kernel": 3, "height": 8, "width": 8}
    | {"patch": 2, "head_patch": 2},
]
MODEL = {"channels": 3, "num_classes": 13, "prediction": "sample", "schedule": "flow", "stage_configs": STAGES}
CONFIG: dict[str, Any] = {
    "task": "dimr",
    "model": MODEL | {"class_everywhere": True},
    "data": {"kind": "toybox", "size": 16, "length": 30},
    "steps": 10,
    "batch": 4,
    "workers": 0,
    "optimizer": {"lr": 1e-3, "warmup_steps": 3, "clip": 1.0, "decay": "linear", "decay_steps": 4},
    "ema": {"decay": 0.9},
    "log_every": 1,
    "save_every": 4,
    "tracker": "none",
    "export": {"default_steps": 2, "dtype": "float32"},
}
"""Ten steps that cross an epoch's end (30 samples, 4 a step)."""

Disturb = Callable[[int, Any], float]


def write_config(folder: Path, **changes: Any) -> str:
    """Write ``CONFIG`` with ``changes`` and return its path."""
    path = folder / "tiny.yaml"
    path.write_text(yaml.safe_dump(CONFIG | changes))
    return str(path)


def disturb(monkeypatch: pytest.MonkeyPatch, act: Disturb) -> None:
    """Multiply the loss of every step by ``act(step, model)``, which may do anything else first."""
    original = tasks.dimr_task

    def disturbed(config: TrainConfig) -> tasks.Task:
        task = original(config)

        def loss(model: Any, batch: dict[str, Tensor], rng: BatchRng) -> tuple[Tensor, dict[str, float]]:
            factor = act(rng.step, model)
            value, logs = task.loss(model, batch, rng)
            return value * factor, logs

        return dataclasses.replace(task, loss=loss)

    monkeypatch.setitem(tasks.TASKS, "dimr", disturbed)


def tensors(run: Path, step: int) -> dict[str, Tensor]:
    """Return all tensors of a checkpoint: weights, average and optimizer."""
    folder = run / "checkpoints" / f"step-{step:08d}"
    files = {path.stem: load(path.read_bytes()) for path in sorted(folder.glob("*.safetensors"))}
    return {f"{stem}: {name}": value for stem, named in files.items() for name, value in named.items()}


def assert_same(mine: dict[str, Tensor], theirs: dict[str, Tensor]) -> None:
    """Assert that two checkpoints hold the same bits."""
    assert mine.keys() == theirs.keys() and len(mine) > 0
    assert [name for name in mine if not torch.equal(mine[name], theirs[name])] == []


def lines(run: Path) -> list[dict[str, Any]]:
    """Return the lines of a run's log."""
    return [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]


def rows(run: Path) -> list[dict[str, Any]]:
    """Return the lines of the log that give figures."""
    return [line for line in lines(run) if "loss" in line]


def looks(run: Path) -> list[tuple[int, float]]:
    """Return the step of each look at held-out samples, and their loss."""
    return [(line["step"], line["held_out_loss"]) for line in lines(run) if "held_out_loss" in line]


def events(run: Path) -> list[str]:
    """Return what the log says happened."""
    return [line["event"] for line in lines(run) if "event" in line]
