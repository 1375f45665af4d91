"""The trainer in processes of its own, which come from a fork server: real ones, without seconds of imports each."""

import multiprocessing
import os
import socket
import subprocess
import sys
from contextlib import suppress
from multiprocessing.process import BaseProcess
from pathlib import Path

import torch

from belvedere.apps.train import main
from tests.apps.training_helpers import rows
from tests.waiting import Process, wait_until

MODULES = [
    "belvedere.apps.train",
    "belvedere.checkpoints.codecs",
    "belvedere.checkpoints.views",
    "belvedere.compression.initial",
    "belvedere.data.concept_photos",
    "belvedere.data.photographs",
    "belvedere.data.toybox.mixed",
    "belvedere.data.toybox.views",
    "belvedere.generation.fitv2_pipeline",
    "belvedere.generation.neti_training",
    "belvedere.generation.pipelines",
    "belvedere.synthesis.view_training",
    "diffusers.models.unets.unet_2d_condition",
    "diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion",
]
"""Loaded once, by the server; it makes no tensor, so that its children may."""

_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(MODULES)


def start(config: str, run: Path, *overrides: str, rank: int = 0, port: int = 0) -> BaseProcess:
    """Start the trainer on one thread, as process ``rank`` of two when they have a ``port`` in common."""
    environment = {"ACCELERATE_USE_CPU": "true"}
    if port:
        environment |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
        environment |= {"MASTER_ADDR": "localhost", "MASTER_PORT": str(port)}
    process = _context.Process(target=_train, args=(config, run, overrides, environment, words(run, rank)))
    process.start()
    return process


def _train(config: str, run: Path, overrides: tuple[str, ...], environment: dict[str, str], said: Path) -> None:
    os.environ.update(environment)
    with said.open("a") as stream:
        os.dup2(stream.fileno(), 1)
        os.dup2(stream.fileno(), 2)
    torch.set_num_threads(1)
    sys.exit(main(["--config", config, "--out", str(run), *overrides]))


def words(run: Path, rank: int = 0) -> Path:
    """Return the file of what a process writes."""
    return run.with_name(f"{run.name}.{rank}.txt")


def finish(run: Path, *processes: BaseProcess) -> None:
    """Wait for processes that must succeed."""
    for rank, process in enumerate(processes):
        process.join(120)
        assert process.exitcode == 0, words(run, rank).read_text()


def run_one(config: str, run: Path, *overrides: str) -> None:
    """Train in one process."""
    finish(run, start(config, run, *overrides))


def run_two(config: str, run: Path, *overrides: str) -> None:
    """Train in two processes."""
    finish(run, *start_two(config, run, *overrides))


def start_two(config: str, run: Path, *overrides: str) -> list[BaseProcess]:
    """Start the trainer as two processes, which meet by gloo."""
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        port = probe.getsockname()[1]
    return [start(config, run, *overrides, rank=rank, port=port) for rank in range(2)]


def wait_for_step(run: Path, step: int, process: Process) -> None:
    """Wait until the log of ``process`` has come to ``step``."""

    def came() -> bool:
        with suppress(FileNotFoundError, ValueError):  # not yet there, or a line half written
            return any(row["step"] >= step for row in rows(run))
        return False

    wait_until(came, process, 120, None if isinstance(process, subprocess.Popen) else words(run))
