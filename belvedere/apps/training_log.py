"""What a run says: one JSON object a line in ``log.jsonl``, a progress line on a terminal, plain lines elsewhere."""

import json
import math
import platform
import resource
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from torch import Tensor

from belvedere.apps.config import TrainConfig
from belvedere.errors import InputError
from belvedere.files import atomic_write


@dataclass(frozen=True)
class StepResult:
    """What one step did."""

    loss: float
    grad_norm: float
    lr: float
    stop: bool
    """Some process was asked to stop."""
    logs: dict[str, float]
    """Figures of the task, of the last part of this process's batch."""

    @property
    def bad(self) -> bool:
        """Whether the loss or the gradient was not finite, so that the step changed nothing."""
        return not (math.isfinite(self.loss) and math.isfinite(self.grad_norm))


class Window:
    """The figures of the steps since the last log line."""

    def __init__(self, config: TrainConfig, device: torch.device):
        self.config, self.device = config, device
        self.results: list[StepResult] = []
        self.waited = self.seconds = 0.0

    def wait(self, batches: Iterator[dict[str, Tensor]]) -> dict[str, Tensor]:
        """Return the next batch, counting the time it took to come."""
        began = time.perf_counter()
        try:
            return next(batches)
        except InputError as error:  # a worker's comes with its traceback
            raise InputError(str(error).strip().splitlines()[-1].split("InputError: ")[-1]) from None
        finally:
            self.waited += time.perf_counter() - began

    def add(self, result: StepResult, seconds: float) -> None:
        """Count one step."""
        self.results.append(result)
        self.seconds += seconds

    def close(self, step: int) -> dict[str, Any]:
        """Return the row of these steps, the last of which was ``step`` (from 1), and begin anew."""
        count, good = len(self.results), [result for result in self.results if not result.bad] or self.results
        row = {key: fmean(result.logs[key] for result in good) for key in good[0].logs} | {
            "step": step,
            "loss": fmean(result.loss for result in good),
            "grad_norm": fmean(result.grad_norm for result in good),
            "lr": good[-1].lr,
            "images_per_s": count * self.config.batch / self.seconds,
            "data_share": self.waited / self.seconds,
            "seconds_left": (self.config.steps - step) * self.seconds / count,
            "memory_gb": peak_memory(self.device),
        }
        self.results, self.waited, self.seconds = [], 0.0, 0.0
        return row


class TrainingLog:
    """Writes ``log.jsonl`` in ``folder`` and tells the terminal; a log of no folder (other processes) is silent."""

    def __init__(self, folder: Path | None, steps: int):
        self.path = folder / "log.jsonl" if folder else None
        self.steps = steps
        self._live = sys.stdout.isatty()

    def rewind(self, step: int) -> None:
        """Forget what was logged after ``step``: a killed run may have come further than its last checkpoint."""
        if self.path is None or not self.path.exists():
            return
        kept = [line for line in self.path.read_text().splitlines() if _step_of(line) <= step]
        with atomic_write(self.path) as stream:
            stream.write("".join(line + "\n" for line in kept).encode())

    def step(self, row: dict[str, Any]) -> None:
        """Log the figures of the steps since the last call."""
        self._write(row)
        text = (
            f"step {row['step']}/{self.steps}  loss {row['loss']:.4f}  norm {row['grad_norm']:.2f}  "
            f"lr {row['lr']:.2e}  {row['images_per_s']:.1f} images/s  data {row['data_share']:.0%}  "
            f"left {_clock(row['seconds_left'])}  {row['memory_gb']:.1f} GB"
        )
        if self.path is not None:
            print(f"\r\x1b[K{text}" if self._live else text, end="" if self._live else "\n", flush=True)

    def event(self, step: int, text: str) -> None:
        """Log something that happened."""
        self._write({"step": step, "event": text})
        if self.path is not None:
            print(("\n" if self._live else "") + f"step {step}: {text}", flush=True)

    def _write(self, row: dict[str, Any]) -> None:
        if self.path is not None:
            try:
                with self.path.open("a") as stream:
                    stream.write(json.dumps(row) + "\n")
            except OSError as error:  # a full disk must not end the run
                print(f"log not written: {error}", file=sys.stderr)


def peak_memory(device: torch.device) -> float:
    """Return the most memory in use so far, in GB: of the GPU, or of this process on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e9
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9


def device_name(device: torch.device) -> str:
    """Return what a card calls this machine's GPU, or its processor and the threads in use."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{names[0] if names else platform.machine()}, {torch.get_num_threads()} threads"


def _step_of(line: str) -> float:
    try:
        return json.loads(line)["step"]
    except (ValueError, KeyError, TypeError):
        return float("inf")


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}"
