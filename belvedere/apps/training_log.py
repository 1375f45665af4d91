"""What a run says: one JSON object a line of its log, a progress line on a terminal, plain lines elsewhere."""

import json
import math
import os
import platform
import resource
import secrets
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from accelerate import Accelerator
from torch.utils.flop_counter import FlopCounterMode

from belvedere.apps.config import TrainConfig
from belvedere.apps.objective import uses_bf16
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
    starved: bool = False
    """Some process could not make its next batch."""

    @property
    def bad(self) -> bool:
        """Whether the loss or the gradient was not finite, so that the step changed nothing."""
        return not (math.isfinite(self.loss) and math.isfinite(self.grad_norm))


PEAKS = (
    ("H100 PCIe", 756e12, 51e12),
    ("H100 NVL", 835e12, 60e12),
    ("H100", 989e12, 67e12),
    ("H200", 989e12, 67e12),
    ("A100", 312e12, 19.5e12),
)
"""A part of a GPU's name; its most operations a second in bf16, without sparsity, and in float32, by its data sheet."""
TRACKERS = ("tensorboard", "wandb")
"""Who can be told the figures; each is an extra of this package by the same name."""


def peak_flops(device: torch.device, bf16: bool) -> float | None:
    """Return the most operations a second of a device, in bf16 or float32; None where nobody says."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else ""
    found = (half if bf16 else single for part, half, single in PEAKS if part in name)
    return next(found, None)


def flop_counter() -> FlopCounterMode:
    """Return PyTorch's counter of operations, a product and its sum being two, right for convolutions in groups too."""
    return FlopCounterMode(display=False, custom_mapping={torch.ops.aten.convolution_backward: _convolution_backward})


def _convolution_backward(gradient: Any, x: Any, weight: Any, *options: Any, **rest: Any) -> int:
    """Return the operations for both gradients, from shapes; PyTorch takes depthwise ones for dense."""
    *_, transposed, _, _, wanted = options
    forward = 2 * x[0] * math.prod((x if transposed else gradient)[2:]) * math.prod(weight)
    return forward * (int(wanted[0]) + int(wanted[1]))


def find_tracker(name: str) -> str | None:
    """Return the tracker that a config asks for, None for none; raises ``InputError`` for one that is not there."""
    if name == "auto":
        return "tensorboard" if find_spec("tensorboard") else None
    if name in TRACKERS and not find_spec(name):
        raise InputError(f"config tracker {name}: not installed: pip install 'belvedere[{name}]', or tracker=none")
    return name if name in TRACKERS else None


def describe_run(tracker: str, folder: Path, config: TrainConfig, begins: bool) -> dict[str, Any]:
    """Return what a tracker is told of the run in a folder: the keywords of accelerate's ``init_trackers``.

    TensorBoard's project is the name of its folder. wandb takes a run that is continued for the same one by the id in
    the file ``wandb-id``, which is made here; a run that ``begins`` gets a new one.
    """
    if tracker != "wandb":
        return {"project_name": tracker}
    kept = folder / "wandb-id"
    if begins or not kept.is_file():
        with atomic_write(kept) as stream:
            stream.write(secrets.token_hex(8).encode())
    place = folder.resolve()
    told = {"name": place.name, "dir": str(place), "config": asdict(config), "id": kept.read_text(), "resume": "allow"}
    return {"project_name": os.environ.get("WANDB_PROJECT", "belvedere"), "init_kwargs": {tracker: told}}


def start_tracker(
    accelerator: Accelerator, tracker: str | None, folder: Path, config: TrainConfig, begins: bool
) -> None:
    """Let a tracker begin, or go on, with the run in a folder; raises ``InputError`` where it does not start."""
    if tracker is None:
        return
    try:
        accelerator.init_trackers(**describe_run(tracker, folder, config, begins))
    except Exception as error:  # each tracker has its own, such as wandb's without a key
        mend = "run wandb login, or give tracker=none" if tracker == "wandb" else "give tracker=none"
        raise InputError(f"config tracker {tracker}: does not start: {' '.join(str(error).split())}: {mend}") from None


class Window:
    """The figures of the steps since the last log line."""

    def __init__(self, config: TrainConfig, device: torch.device):
        self.config, self.device = config, device
        self.peak = None if config.compiled else peak_flops(device, uses_bf16(config.precision, device))
        self.flops: int | None = None
        """Operations of the first step of this process, as far as PyTorch counts them."""
        self.results: list[StepResult] = []
        self.waited = self.seconds = 0.0

    @contextmanager
    def counting(self) -> Iterator[None]:
        """Count the operations of the block, of the first step only, and where a peak to compare with is known."""
        if self.peak is None or self.flops is not None:
            yield
            return
        with flop_counter() as counter:
            yield
        self.flops = counter.get_total_flops()

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
        if self.peak is not None and self.flops is not None:
            row["peak_share"] = self.flops * count / self.seconds / self.peak
        self.results, self.waited, self.seconds = [], 0.0, 0.0
        return row


class TrainingLog:
    """Writes a file and tells the terminal; a log of no file (other processes) is silent."""

    def __init__(self, path: Path | None, steps: int):
        self.path, self.steps = path, steps
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
        peak = f"peak {row['peak_share']:.0%}  " if "peak_share" in row else ""
        text = (
            f"step {row['step']}/{self.steps}  loss {row['loss']:.4f}  norm {row['grad_norm']:.2f}  "
            f"lr {row['lr']:.2e}  {row['images_per_s']:.1f} images/s  data {row['data_share']:.0%}  {peak}"
            f"left {_clock(row['seconds_left'])}  {row['memory_gb']:.1f} GB"
        )
        if self.path is not None:
            print(f"\r\x1b[K{text}" if self._live else text, end="" if self._live else "\n", flush=True)

    def figures(self, row: dict[str, Any]) -> None:
        """Log what was measured of the weights at a step: ``step``, and figures by name."""
        self._write(row)
        told = (f"{name.replace('_', ' ')} {value:.4f}" for name, value in row.items() if name != "step")
        self._say(f"step {row['step']}: {', '.join(told)}")

    def event(self, step: int, text: str) -> None:
        """Log something that happened."""
        self._write({"step": step, "event": text})
        self._say(f"step {step}: {text}")

    def _say(self, line: str) -> None:
        if self.path is not None:
            print(("\n" if self._live else "") + line, flush=True)

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
