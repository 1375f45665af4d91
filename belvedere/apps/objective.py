"""What a step minimises: a task's loss as a module, and the learning rate; and what that loss is for held-out samples,
or for one batch that is fitted."""

import math
import time
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

from belvedere.apps.config import OptimizerConfig, TrainConfig
from belvedere.apps.optimizers import make_optimizer
from belvedere.apps.order import Order
from belvedere.apps.task import Task
from belvedere.kernels.layout import place
from belvedere.seeds import BatchRng, derive

HELD_OUT = 256
"""Held-out samples that are looked at."""


class Objective(nn.Module):
    """A task's loss as a module, so that a wrapper of the model (DDP) sees its forward; bf16 by autocast."""

    def __init__(self, task: Task, bf16: bool):
        super().__init__()
        self.model, self.loss, self.bf16 = task.model, task.loss, bf16

    def forward(self, batch: dict[str, Tensor], rng: BatchRng) -> tuple[Tensor, dict[str, float]]:
        """Return the mean loss of a batch, float32, and what to log."""
        with torch.autocast(torch.device(rng.device).type, torch.bfloat16, enabled=self.bf16):
            value, logs = self.loss(self.model, batch, rng)
        return value.float(), logs


def uses_bf16(precision: str, device: torch.device) -> bool:
    """Return whether a config's ``precision`` means bf16 on a device; a CPU without it is ten times slower in it."""
    if precision != "auto":
        return precision == "bf16"
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    info = Path("/proc/cpuinfo")
    flags = set(info.read_text().split()) if device.type == "cpu" and info.is_file() else set()
    return not flags.isdisjoint(("avx512_bf16", "amx_bf16", "bf16"))


def learning_rate(config: OptimizerConfig, steps: int, step: int) -> float:
    """Return the learning rate of ``step`` (from 0) of ``steps``: warm-up, constant, decay to zero at the end."""
    rate = config.lr * min(1.0, (step + 1) / config.warmup_steps) if config.warmup_steps else config.lr
    if config.decay == "none":
        return rate
    left = min(1.0, (steps - step) / config.decay_steps)
    return rate * (left if config.decay == "linear" else (1 - math.cos(math.pi * left)) / 2)


@torch.no_grad()
def held_out_loss(config: TrainConfig, task: Task, network: nn.Module, chunk: int, device: torch.device) -> float:
    """Return the mean loss of up to ``HELD_OUT`` held-out samples by ``network``, ``chunk`` of them at once.

    Samples, noise and times are the same whenever and for whichever network or run it is asked.
    """
    assert task.held_out is not None
    objective = Objective(replace(task, model=network), uses_bf16(config.precision, device))
    count, total = min(HELD_OUT, len(task.held_out)), 0.0
    indices = Order(len(task.held_out), 0, count, 1).indices(0, 0)
    for start in range(0, count, chunk):
        places = range(start, min(start + chunk, count))
        batch = {key: value.to(device) for key, value in task.held_out.batch([indices[i] for i in places]).items()}
        value, _ = objective(batch, BatchRng(derive("held out"), 0, places, device))
        total += value.item() * len(places)
    return total / count


def run_check(config: TrainConfig, task: Task, device: torch.device) -> int:
    """Fit one fixed batch with fixed noise; return 0 when the loss fell by the config's factor, else 1."""
    settings = config.check
    objective = place(Objective(task, uses_bf16(config.precision, device)), device)
    optimizer = make_optimizer(task, config.optimizer)
    indices = Order(len(task.dataset), config.seed, settings.batch, 1).indices(0, 0)
    batch = {key: value.to(device) for key, value in task.dataset.batch(indices).items()}
    losses, began = [], time.perf_counter()
    for _ in range(settings.steps):
        value, _ = objective(batch, BatchRng(config.seed, 0, range(settings.batch), device))
        optimizer.zero_grad()
        value.backward()
        nn.utils.clip_grad_norm_(task.model.parameters(), config.optimizer.clip or math.inf, foreach=True)
        optimizer.step()
        losses.append(value.item())
    fell = losses[0] / losses[-1]
    passed = fell >= settings.factor  # false for NaN
    print(
        f"check {'passed' if passed else 'FAILED'}: loss {losses[0]:.4f} -> {losses[-1]:.4f} "
        f"({fell:.1f}x, at least {settings.factor:g}x asked) in {settings.steps} steps on {settings.batch} samples, "
        f"{time.perf_counter() - began:.1f} s"
    )
    return 0 if passed else 1
