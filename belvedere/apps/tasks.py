"""What each system gives the training loop, by the name that a config's ``task`` gives."""

from collections.abc import Callable

from belvedere.apps.config import TrainConfig
from belvedere.apps.task import Task
from belvedere.apps.tasks_codec import segpic_task
from belvedere.apps.tasks_concept import neti_task
from belvedere.apps.tasks_diffusion import autoencoder_task, diffusion_task
from belvedere.apps.tasks_pictures import dimr_task, fitv2_task, toybox_classifier_task
from belvedere.apps.tasks_scenes import mae_task, nvist_task
from belvedere.errors import InputError


def make_task(config: TrainConfig) -> Task:
    """Return the task a config asks for; raises ``InputError`` for an unknown one, bad keys or missing data."""
    if config.task not in TASKS:
        raise InputError(f"config task {config.task!r}: choose from {', '.join(TASKS)}")
    task = TASKS[config.task](config)
    if config.checkpointing:
        if not getattr(task.model, "_supports_gradient_checkpointing", False):
            raise InputError(f"config checkpointing: task {config.task} has no activation checkpointing; leave it out")
        task.model.enable_gradient_checkpointing()  # type: ignore[operator]
    return task


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
