"""How a run starts: its task with the first weights, its folder, the checkpoint that it goes on from."""

import dataclasses
import secrets
import shutil
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import nn

from belvedere.apps import training_state
from belvedere.apps.agreement import all_check, require_equal
from belvedere.apps.config import TrainConfig
from belvedere.apps.locks import only_run
from belvedere.apps.optimizers import check_optimizer
from belvedere.apps.run_folder import RunFolder
from belvedere.apps.task import Task
from belvedere.apps.tasks import make_task
from belvedere.errors import InputError
from belvedere.seeds import derive


def begin_task(config: TrainConfig) -> Task:
    """Return the task of a config with its first weights, always the same."""
    torch.manual_seed(derive(config.seed, "initial weights"))
    task = make_task(config)
    check_optimizer(task, config.optimizer)
    return task


def prepare_folder(held: ExitStack, folder: RunFolder, task: Task, config: TrainConfig) -> None:
    """Make the run's folder and lock it until ``held`` ends; see that checkpoints and the model may be written."""
    _make(folder)
    held.enter_context(only_run(folder.path))
    make_room(folder, task.model, config.keep, copies=5 if config.patience else 4)
    task.check_target(folder.model)


def _make(folder: RunFolder) -> None:
    """Make the folder and see that it can be written, before any work."""
    try:
        folder.checkpoints.mkdir(parents=True, exist_ok=True)
        probe = folder.path / f".{secrets.token_hex(4)}.tmp"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise InputError(f"cannot write in {folder.path}: {error.strerror}; choose another --out") from None


def make_room(folder: RunFolder, model: nn.Module, keep: int, copies: int = 4) -> None:
    """Remove what interrupted writers left in a folder that no other run has; see that the checkpoints have room.

    ``copies``: of the weights in each.
    """
    training_state.remove_leftovers(folder.checkpoints)
    weights = sum(p.numel() for p in model.parameters()) * 4
    there = min(keep, len(training_state.checkpoints(folder.checkpoints)))  # they go when as many new ones have come
    need, free = weights * copies * (keep + 1 - there), shutil.disk_usage(folder.path).free
    if free < need:
        raise InputError(
            f"{folder.path}: {free / 1e9:.1f} GB free, this run needs {need / 1e9:.1f}; make room or lower keep"
        )


def find_start(accelerator: Accelerator, folder: RunFolder, resume: str | Path, config: TrainConfig) -> Path | None:
    """Return the checkpoint to start from, None for the beginning; every process calls this, and finds the same.

    ``resume`` as in ``train``. Raises ``InputError`` for a checkpoint that is missing, damaged or of another run, and
    rather than write into a folder whose later checkpoints do not belong to this start.
    """
    report = print if accelerator.is_main_process else (lambda line: None)
    start = all_check(partial(_find, folder, resume, dataclasses.asdict(config), report))
    step = training_state.read_progress(start).step if start else -1
    require_equal(accelerator, step, "found different checkpoints")
    return start


def _find(
    folder: RunFolder, resume: str | Path, config: Mapping[str, Any], report: Callable[[str], None]
) -> Path | None:
    start = None
    if resume == "auto":
        start = training_state.last_good(folder.checkpoints, report)
    elif resume != "never":
        start = _named(Path(resume), report)
    if start is not None:
        _check_same_run(start, config)
    first = training_state.read_progress(start).step if start else 0
    saved = training_state.checkpoints(folder.checkpoints)
    if resume != "auto" and any(training_state.step_of(later) > first for later in saved):
        raise InputError(
            f"{folder.path} holds checkpoints later than step {first}: choose another --out, or --resume auto"
        )
    return start


def _named(path: Path, report: Callable[[str], None]) -> Path:
    """Return a checkpoint given by itself or by its run."""
    if not path.is_dir():
        raise InputError(f"no checkpoint {path}: give auto, never, a checkpoint or the folder of a run")
    if (checkpoints := RunFolder(path).checkpoints).is_dir():
        if (found := training_state.last_good(checkpoints, report)) is None:
            raise InputError(f"{path} holds no good checkpoint")
        return found
    if trouble := training_state.verify(path):
        raise InputError(f"checkpoint {path}: {trouble}")
    return path


def _check_same_run(start: Path, config: Mapping[str, Any]) -> None:
    """Raise ``InputError`` when a key that fixes the weights, their moments or the order of the data differs."""
    then, now = _fixed(training_state.read_state(start)["config"]), _fixed(config)
    for key, value in now.items():
        if then[key] != value:
            raise InputError(f"{start} has {key} {then[key]!r}, not {value!r}: change it back or use a new --out")


def _fixed(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a run cannot change; before optimizers had names all were AdamW."""
    keys = {key: config.get(key) for key in ("task", "model", "seed", "batch")}
    return keys | {"optimizer.name": config["optimizer"].get("name", "adamw")}
