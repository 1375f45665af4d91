"""What NViST's aligned start is worth: two toys fitted from either start, ``python benchmarks/nvist_start.py``.

The checked-in config ``nvist-toybox`` with a smaller network, and the first two toys as the only
ones, 120 steps of 768 rays each after a warm-up of 15, once with ``start: random`` and once with ``start: aligned``,
three seeds; and planes and lines fitted without a network, about the most that one could reach. PSNR of the rays of the
last ten steps. A minute and a half a seed.
"""

import argparse
import json
import statistics
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from belvedere.apps.config import load_config
from belvedere.apps.record import processor
from belvedere.apps.task import Task
from belvedere.apps.tasks import make_task
from belvedere.seeds import BatchRng
from belvedere.synthesis.field import Field
from belvedere.synthesis.view_training import input_conditions

TOYS, STEPS, WARMUP, LAST = 2, 120, 15, 10
WAYS = ("random", "aligned", "no network")
SMALL = (
    *("model.patch=8", "model.dim=128", "model.encoder_depth=3", "model.encoder_heads=4", "model.decoder_depth=4"),
    *("model.decoder_heads=4", "model.resolution=56", "model.volume_patch=7", "model.samples=32"),
    *("data.spread=[45,180]", "data.kinds=[car,boat]", "loss.distance_weight=0.03"),
)
"""What is fitted instead of the config's own network, in a minute: 8 tokens a side of 128 channels."""


class Grids(nn.Module):
    """The volume that a network begins with for some pictures, itself what learns."""

    def __init__(self, network: Any, batch: dict[str, Tensor]):
        super().__init__()
        image, size = batch["image"] / 2 + 0.5, batch["image"].shape[-2]
        with torch.no_grad():
            volume = network.decode(network.encode(image), input_conditions(batch["poses"], batch["intrinsics"], size))
        self.config = network.config
        self.decoder, self.background = network.field_decoder, volume.background
        self.planes, self.lines = nn.Parameter(volume.planes), nn.Parameter(volume.lines)

    def forward(self, image: Tensor, conditions: Tensor) -> Field:
        """Return the field; nothing of the picture matters."""
        parts = {"half_side": self.config.half_side, "padding": self.config.padding, "background": self.background}
        return Field(self.planes, self.lines, self.decoder, **parts)


def learner(way: str, task: Task, batch: dict[str, Tensor]) -> tuple[nn.Module, list[dict[str, Any]]]:
    """Return what learns, and its parameter groups."""
    if way != "no network":
        return task.model, [{"params": list(task.model.parameters()), "lr": 2e-3}]
    grids = Grids(task.model, batch)
    return grids, [
        {"params": [grids.planes, grids.lines], "lr": 0.05},
        {"params": list(grids.decoder.parameters()), "lr": 3e-3},
    ]


def fit(way: str, seed: int) -> float:
    """Return the PSNR in dB that one way comes to."""
    torch.manual_seed(seed)
    start = "random" if way == "random" else "aligned"
    task = make_task(load_config("nvist-toybox", [*SMALL, f"model.start={start}", "loss.rays=768"]))
    batch = task.dataset.batch(range(TOYS))
    model, groups = learner(way, task, batch)
    optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.99), weight_decay=0.0)
    warm = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(1.0, (step + 1) / WARMUP))
    errors = []
    for step in range(STEPS):
        value, logs = task.loss(model, batch, BatchRng(seed, step, range(TOYS)))
        optimizer.zero_grad()
        value.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        warm.step()
        errors.append(logs["psnr"])
    return statistics.mean(errors[-LAST:])


def main() -> None:
    """Measure, print and store."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=Path(__file__).with_name("results") / "nvist_start.json")
    options = parser.parse_args()
    psnr = {way: [fit(way, seed) for seed in range(options.seeds)] for way in WAYS}
    for way, found in psnr.items():
        print(f"{way:12} {statistics.mean(found):6.2f} dB  ({min(found):.2f} to {max(found):.2f})", flush=True)
    machine = {"processor": processor(), "threads": torch.get_num_threads(), "torch": torch.__version__}
    options.out.write_text(json.dumps({"machine": machine, "steps": STEPS, "psnr": psnr}, indent=2) + "\n")


if __name__ == "__main__":
    main()
