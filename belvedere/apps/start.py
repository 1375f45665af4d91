"""How a run starts: its task with the first weights, its folder, the checkpoint that it goes on from."""

import dataclasses
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import torch
from accelerate import Accelerator

from belvedere.apps import training_state
from belvedere.apps.agreement import all_check, require_equal
from belvedere.apps.config import TrainConfig
from belvedere.apps.optimizers import check_optimizer
from belvedere.apps.task import Task
from belvedere.apps.tasks import make_task
from belvedere.seeds import derive

MODEL = "model"
"""Of a run's folder, what it ends with."""


def begin_task(config: TrainConfig) -> Task:
    """Return the task of a config with its first weights, always the same."""
    torch.manual_seed(derive(config.seed, "initial weights"))
    task = make_task(config)
    check_optimizer(task, config.optimizer)
    return task


def prepare_folder(held: ExitStack, folder: Path, task: Task, keep: int) -> None:
    """Make the run's folder and lock it until ``held`` ends; see that checkpoints and the model may be written."""
    training_state.make_folder(folder)
    held.enter_context(training_state.only_run(folder))
    training_state.make_room(folder, task.model, keep)
    task.check_target(folder / MODEL)


def find_start(accelerator: Accelerator, folder: Path, resume: str | Path, config: TrainConfig) -> Path | None:
    """Return the checkpoint to start from, None for the beginning; every process calls this, and finds the same."""
    report = print if accelerator.is_main_process else (lambda line: None)
    start = all_check(partial(training_state.find_start, folder, resume, dataclasses.asdict(config), report))
    step = training_state.read_progress(start).step if start else -1
    require_equal(accelerator, step, "found different checkpoints")
    return start
