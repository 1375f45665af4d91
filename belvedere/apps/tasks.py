"""What each system gives the training loop, by the name that a config's ``task`` gives."""

import inspect
import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from belvedere.apps.config import TrainConfig
from belvedere.apps.finetune import begin
from belvedere.apps.task import Task, blocks, dataset_class, make_dataset
from belvedere.apps.tasks_codec import segpic_task
from belvedere.apps.tasks_concept import neti_task
from belvedere.apps.tasks_diffusion import autoencoder_task, diffusion_task
from belvedere.apps.tasks_pictures import dimr_task, fitv2_task, toybox_classifier_task
from belvedere.apps.tasks_scenes import mae_task, nvist_task
from belvedere.data import Dataset
from belvedere.data.labels import Relabelled
from belvedere.errors import InputError

HOW_SEEN = ("flip", "max_skipped", "crops", "scale", "seed")
"""Keys of data on disk that say nothing of which samples they are."""


def make_task(config: TrainConfig) -> Task:
    """Return the task a config asks for; raises ``InputError`` for an unknown one, bad keys or missing data."""
    if config.task not in TASKS:
        raise InputError(f"config task {config.task!r}: choose from {', '.join(TASKS)}")
    task = TASKS[config.task](config)
    if config.evaluate_every and _which(config.data | config.held_out) == _which(config.data):
        raise InputError("config held_out: those are the samples of data: name others, such as held_out.path=FOLDER")
    if config.finetune is not None:
        task = replace(task, began_with=begin(config.task, task.model, config.finetune))
    if config.evaluate_every and task.held_out is None:
        task = replace(task, held_out=_held_out(config, task.dataset))
    if config.checkpointing:
        if not getattr(task.model, "_supports_gradient_checkpointing", False):
            raise InputError(f"config checkpointing: task {config.task} has no activation checkpointing; leave it out")
        task.model.enable_gradient_checkpointing()  # type: ignore[operator]
    if config.compiled:
        check_compiler()
        for module in blocks(task.model) or [task.model]:
            module.compile()
    return task


def _which(data: Mapping[str, Any]) -> dict[str, Any]:
    """Return what tells the samples of a config's ``data``, or of what is held out of it: all keys, defaults too, but
    beside a path, which is resolved, not ``HOW_SEEN``."""
    defaults = inspect.signature(dataset_class(data["kind"])).parameters
    filled = {**{name: parameter.default for name, parameter in defaults.items()}, **data}
    if "path" not in data:
        return filled
    filled["path"] = str(Path(data["path"]).resolve()) if isinstance(data["path"], str | Path) else data["path"]
    return {name: value for name, value in filled.items() if name not in HOW_SEEN}


def _held_out(config: TrainConfig, seen: Dataset) -> Dataset:
    """Return the held-out samples of a config, labelled as those ``seen``, some of whose classes they may lack.

    Raises ``InputError`` for other classes or another form.
    """
    dataset = make_dataset({**config.data, **config.held_out})
    if dataset.batch([0]).keys() != seen.batch([0]).keys():
        raise InputError("config held_out: its samples have another form than data's: give the same")
    if dataset.classes == seen.classes:
        return dataset
    others = [name for name in dataset.classes if name not in seen.classes]
    if others or not dataset.classes:
        what = f"class {others[0]!r}, which data lacks" if others else "no classes, data has some"
        raise InputError(f"config held_out: its samples have {what}: give samples of data's classes")
    return Relabelled(dataset, seen.classes)


def check_compiler() -> None:
    """Raise ``InputError`` where ``torch.compile`` would find no compiler for a CPU's code."""
    name = os.environ.get("CXX", "g++")
    if not torch.cuda.is_available() and shutil.which(name) is None:
        raise InputError(f"config compiled: no C++ compiler {name}: install one, name it in CXX, or leave it out")


TASKS: dict[str, Callable[[TrainConfig], Task]] = {
    "dimr": dimr_task,
    "fitv2": fitv2_task,
    "segpic": segpic_task,
    "mae": mae_task,
    "neti": neti_task,
    "nvist": nvist_task,
    "autoencoder": autoencoder_task,
    "diffusion": diffusion_task,
    "toybox-classifier": toybox_classifier_task,
}
"""Every task by the name that a config's ``task`` gives."""
