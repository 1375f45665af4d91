"""What the processes of a run must agree on: where one ends, all end, with the same line."""

import os
from collections.abc import Callable
from typing import TypeVar

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object

from belvedere.apps.config import TrainConfig
from belvedere.errors import InputError

T = TypeVar("T")


class Agreed(InputError):
    """What ends every process of a run, so that the first alone prints it."""


def prints(error: InputError) -> bool:
    """Return whether this process is to print what ends it; of those that end with the same line one is.

    Before processes have met it is one of each machine.
    """
    if isinstance(error, Agreed):
        return os.environ.get("RANK", "0") == "0"
    if torch.distributed.is_initialized():
        return _first_to_end(str(error))
    return os.environ.get("LOCAL_RANK", "0") == "0"


def _first_to_end(line: str) -> bool:
    """Return whether no process has ended with ``line`` before, by the store in which they met.

    It may have ended with the process that held it, which then has told why.
    """
    try:
        return torch.distributed.distributed_c10d._get_default_store().add(f"ended: {line}", 1) == 1
    except torch.distributed.DistError:
        return False


def require_equal(accelerator: Accelerator, number: int, otherwise: str) -> None:
    """Raise ``Agreed`` on every process unless ``number`` is the same on all."""
    if accelerator.num_processes > 1:
        numbers = accelerator.gather(torch.tensor([number], device=accelerator.device))
        if numbers.unique().numel() > 1:
            raise Agreed(f"the processes {otherwise}: start all with the same command and folder")


def require_division(config: TrainConfig, processes: int) -> None:
    """Raise ``Agreed`` unless a batch divides into equal parts, ``accumulate`` for each process."""
    parts = processes * config.accumulate
    if config.batch % parts:
        other = "" if config.batch % processes else ", or accumulate=1"
        raise Agreed(
            f"config batch: {config.batch} samples do not divide into {parts} parts (processes x accumulate): "
            f"give a multiple of {parts}, such as batch={-(-config.batch // parts) * parts}{other}"
        )


def first_trouble(trouble: str | None) -> str | None:
    """Return the ``trouble`` of the first process that has one, None when none has; all wait for each other."""
    return next((found for found in gather_object([trouble]) if found is not None), None)


def all_check(check: Callable[[], T]) -> T:
    """Return what ``check`` does; where it raises ``InputError`` on any process, raise that of the first on every one.

    It is raised as ``Agreed``.
    """
    trouble = None
    try:
        found = check()
    except InputError as error:
        trouble = str(error)
    if (trouble := first_trouble(trouble)) is not None:
        raise Agreed(trouble)
    return found


def main_checks(accelerator: Accelerator, check: Callable[[], object]) -> None:
    """Let the main process check, while the others wait; raise its ``InputError`` on every process, as ``Agreed``."""
    all_check(check if accelerator.is_main_process else lambda: None)
