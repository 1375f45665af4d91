"""What the published recipes cost: ``python benchmarks/training_cost.py``.

Counts the operations of forward and backward pass of one sample of each packaged recipe (PyTorch's counter; a product
and its sum are two; norms and other elementwise work is not counted), multiplied by steps and batch. Large networks are
counted without memory, on PyTorch's meta device. Hours are what one H100 would need at ``SHARE`` of its peak, which is
assumed, not measured. Prints the table of docs/training.md.
"""

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from belvedere.apps.config import TrainConfig, load_config
from belvedere.apps.finetune import is_part
from belvedere.apps.training_log import PEAKS, flop_counter
from belvedere.compression import segpic, segpic_config
from belvedere.data.toybox.views import ToyboxViews
from belvedere.generation import dimr_config, fitv2_config
from belvedere.generation.dimr import DiMR
from belvedere.generation.fitv2 import FiTv2
from belvedere.seeds import BatchRng
from belvedere.synthesis import mae, nvist_config, view_training
from belvedere.synthesis.nvist import NViST
from belvedere.synthesis.perceptual import structure_loss

SHARE = 0.4
"""Of the peak in bf16 or, for recipes in float32, of that in float32."""
BF16, FLOAT32 = next((half, single) for name, half, single in PEAKS if name == "H100")


def count(pass_: Callable[[], Tensor]) -> int:
    """Return the operations of a forward pass and of its backward pass."""
    with flop_counter() as counter:
        pass_().float().sum().backward()
    return counter.get_total_flops()


def dimr_sample(config: TrainConfig) -> int:
    """Return the operations of a sample of DiMR."""
    with torch.device("meta"):
        network = DiMR(**dimr_config.VARIANTS[config.model["variant"]])
        last = network.sizes[-1]
        x = torch.zeros(1, network.config.channels, last.height * last.ratio, last.width * last.ratio)
        t, label = torch.zeros(1), torch.zeros(1, dtype=torch.int64)
    return count(lambda: sum((part.sum() for part in network(x, t, label)), torch.zeros((), device="meta")))


def fitv2_sample(config: TrainConfig) -> int:
    """Return the operations of a picture of FiTv2 with the most tokens: 256, of high resolution 1024."""
    fine = config.model["variant"].startswith("HR")
    side = 32 if fine else 16
    with torch.device("meta"):
        network = FiTv2(**fitv2_config.VARIANTS[config.model["variant"]])
        x, t, label = torch.zeros(side * side, 16), torch.zeros(1), torch.zeros(1, dtype=torch.int64)
    if config.finetune is not None:
        for name, parameter in network.named_parameters():
            parameter.requires_grad_(is_part(name, config.finetune.train))
    return count(lambda: network(x, t, label, sizes=[(side, side)]))


def mae_sample(config: TrainConfig) -> int:
    """Return the operations of a picture of NViST's pre-training."""
    network = mae.MAE(**nvist_config.MAE_VARIANTS[config.model["variant"]])
    batch = {"image": torch.zeros(1, 3, *config.data["size"])}
    return count(lambda: mae.loss(network, batch, BatchRng(0, 0, range(1)), **config.loss)[0])


def nvist_sample(config: TrainConfig) -> int:
    """Return the operations of a scene of NViST, with a structural loss in place of LPIPS."""
    views = ToyboxViews(tuple(config.data["size"]), length=1, samples=1)
    fields = nvist_config.VARIANTS[config.model["variant"]] | dict(zip(("near", "far"), views.near_far, strict=True))
    network, batch = NViST(**fields), views.batch([0])
    options = {key: value for key, value in config.loss.items() if key not in ("lpips", "perceptual")}
    options["perceptual"] = structure_loss
    return count(lambda: view_training.loss(network, batch, BatchRng(0, 0, range(1)), **options)[0])


def segpic_sample(config: TrainConfig) -> int:
    """Return the operations of a crop of SegPIC."""
    network = segpic.SegPIC(**segpic_config.VARIANTS[config.model["variant"]])
    size = config.data["size"]
    batch = {"image": torch.rand(1, 3, size, size) * 2 - 1, "regions": torch.zeros(1, size, size, dtype=torch.int64)}
    return count(lambda: segpic.loss(network, batch, BatchRng(0, 0, range(1)), **config.loss)[0])


RECIPES: dict[str, Callable[[TrainConfig], int]] = {
    "dimr-imagenet256": dimr_sample,
    "dimr-g-imagenet256": dimr_sample,
    "dimr-imagenet512": dimr_sample,
    "fitv2-imagenet256": fitv2_sample,
    "fitv2-3b-imagenet256": fitv2_sample,
    "fitv2-hr-imagenet512": fitv2_sample,
    "fitv2-hr-3b-imagenet512": fitv2_sample,
    "mae-mvimgnet": mae_sample,
    "nvist-mvimgnet": nvist_sample,
    "segpic-coco": segpic_sample,
}


def cost(name: str) -> dict[str, Any]:
    """Return the cost of a recipe."""
    config = load_config(name)
    sample = RECIPES[name](config)
    total, peak = sample * config.steps * config.batch, FLOAT32 if config.precision == "no" else BF16
    row = {"recipe": name, "steps": config.steps, "batch": config.batch, "sample_flops": sample, "flops": total}
    return row | {"peak_flops": peak, "h100_hours": total / (SHARE * peak) / 3600}


def table(rows: list[dict[str, Any]]) -> str:
    """Return the table in Markdown."""
    lines = ["| config | steps x batch | GFLOP a sample | EFLOP | H100 hours |", "|---|---|---|---|---|"]
    for row in rows:
        sample, total = row["sample_flops"] / 1e9, row["flops"] / 1e18
        lines.append(
            f"| `{row['recipe']}` | {row['steps']:,} x {row['batch']:,} | {sample:,.0f} | {total:,.1f} | "
            f"{row['h100_hours']:,.1f} |"
        )
    return "\n".join(lines)


def main() -> None:
    """Count, print and store."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path(__file__).with_name("results") / "training_cost.json")
    options = parser.parse_args()
    rows = []
    for name in RECIPES:
        rows.append(cost(name))
        print(rows[-1], flush=True)
    options.out.write_text(json.dumps({"share_of_peak": SHARE, "rows": rows}, indent=1) + "\n")
    print(table(rows))


if __name__ == "__main__":
    main()
