"""What TD-LN, two resolutions and rotary positions are worth: ``python benchmarks/comparison.py TRAIN TEST``.

Two small studies of networks that differ in one thing and have the same number of parameters (to 2 %), steps, samples,
order, noise and times, from each of several seeds, trained by the loop of ``belvedere train``:

* DiMR on CIFAR-10 (TRAIN and TEST are its parquet files): time-dependent layer norm, layer norm or adaLN in the blocks
  of two resolutions; and one resolution, of coarse or of fine patches;
* FiTv2 on toys of three aspects: 2-D rotary positions, or DiT's absolute ones; judged at sizes it has never seen, too.

Of each network: the training loss, mean of the last tenth of the steps; of its averaged weights the loss of held-out
pictures, at the last resolution, noise and times the same for all; and the Frechet distance of pictures it makes from
real ones, in the features of the embedded classifier of toys. A finished row is stored at once, and one that is there
is not made again. Prints the tables, and writes them into docs/comparison.md.
"""

import argparse
import json
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import yaml
from comparison_judge import JUDGED, TIME_MEAN, TRAINED, Judge, operations
from comparison_networks import AbsoluteFiTv2, AdaptiveDiMR, PlainDiMR
from comparison_tables import tables, write_into

from belvedere.apps.config import TrainConfig, load_config
from belvedere.apps.record import processor
from belvedere.apps.task import Task, export_network
from belvedere.apps.tasks import TASKS, make_task
from belvedere.apps.tasks_pictures import dimr_task, fitv2_task
from belvedere.apps.train import train_config
from belvedere.checkpoints.tensors import read_state_dict
from belvedere.generation.dimr import DiMR
from belvedere.generation.fitv2 import FiTv2
from belvedere.seeds import derive

NETWORKS = {"dimr": DiMR, "plain": PlainDiMR, "adaptive": AdaptiveDiMR, "fitv2": FiTv2, "absolute": AbsoluteFiTv2}
BATCH = 16
COARSE = {"kind": "transformer", "dim": 64, "hidden": 160, "blocks": 5, "heads": 4}
FINE = {"kind": "convnext", "dim": 32, "hidden": 80, "blocks": 3, "kernel": 7}
PATCHES_4, PATCHES_2 = {"height": 8, "width": 8, "patch": 4}, {"height": 16, "width": 16, "patch": 2}
TWO = (COARSE | PATCHES_4 | {"head_patch": 2}, FINE | PATCHES_2 | {"head_patch": 2})
DIMR = {"channels": 3, "num_classes": 11, "norm": "LN", "class_everywhere": True, "class_std": 0.3}
DIMR |= {"prediction": "sample", "schedule": "flow"}
FITV2 = {"dim": 64, "depth": 5, "heads": 4, "num_classes": 13, "channels": 3, "patch": 4, "trained_side": 8}
FITV2 |= {"adaln_rank": 16, "prediction": "sample", "class_std": 0.3}
OPTIMIZER = {
    "lr": 1e-3,
    "betas": [0.9, 0.99],
    "weight_decay": 0.02,
    "warmup_steps": 20,
    "decay": "linear",
    "clip": 1.0,
}


@dataclass(frozen=True)
class Arm:
    """One network of a study."""

    study: str
    """dimr or fitv2."""
    name: str
    network: str
    """Of ``NETWORKS``."""
    stages: tuple[dict[str, Any], ...] = ()
    """Of a DiMR; the first one's ``hidden`` is chosen so that parameters are as many as the first arm's."""

    def fields(self, hidden: int) -> dict[str, Any]:
        """Return what makes the network: keywords of its class."""
        if not self.stages:
            return FITV2
        first, *rest = self.stages
        return DIMR | {"stage_configs": [first | {"hidden": hidden}, *rest]}


ARMS = (
    Arm("dimr", "TD-LN, two resolutions", "dimr", TWO),
    Arm("dimr", "LN, two resolutions", "plain", TWO),
    Arm("dimr", "adaLN, two resolutions", "adaptive", TWO),
    Arm("dimr", "TD-LN, one resolution, patches of 4", "dimr", (COARSE | PATCHES_4 | {"head_patch": 4},)),
    Arm("fitv2", "rotary positions (FiTv2)", "fitv2"),
    Arm("fitv2", "absolute positions (DiT)", "absolute"),
    Arm("dimr", "TD-LN, one resolution, patches of 2", "dimr", (COARSE | PATCHES_2 | {"head_patch": 2},)),
)
"""In the order in which they are made: the last one takes the longest."""


def parameters(arm: Arm, hidden: int) -> int:
    """Return the number of an arm's parameters."""
    return sum(p.numel() for p in NETWORKS[arm.network](**arm.fields(hidden)).parameters())


def fitting(arm: Arm, target: int) -> int:
    """Return the hidden width of the first stage with which an arm has the most nearly ``target`` parameters."""
    if not arm.stages:
        return 0
    few, more = parameters(arm, 8), parameters(arm, 16)  # it grows linearly
    return max(8, round(8 + 8 * (target - few) / (more - few)))


def settings_of(arm: Arm, hidden: int, steps: int, seed: int, train: Path) -> dict[str, Any]:
    """Return the training run as a config's file has it."""
    toys = {"kind": "mixed-toybox", "sizes": [list(size) for size in TRAINED], "seed": seed}
    pictures = {"kind": "parquet", "path": str(train), "size": 32, "flip": True}
    return {
        "task": "comparison",
        "model": {"network": arm.network, **arm.fields(hidden)},
        "data": pictures if arm.study == "dimr" else toys,
        "loss": {"class_dropout": 0.1} | ({} if arm.study == "dimr" else {"time_mean": TIME_MEAN}),
        "steps": steps,
        "batch": BATCH,
        "seed": seed,
        "precision": "no",
        "optimizer": OPTIMIZER | {"decay_steps": steps // 2},
        "ema": {"decay": 0.99},
        "workers": 0,
        "log_every": steps // 10,
        "tracker": "none",
    }


def comparison_task(config: TrainConfig) -> Task:
    """Return the task of a picture network, made by the class that ``model.network`` names."""
    fields = dict(config.model)
    cls = NETWORKS[fields.pop("network")]
    task = (dimr_task if issubclass(cls, DiMR) else fitv2_task)(replace(config, model=fields))
    torch.manual_seed(derive(config.seed, "initial weights"))  # what networks have in common begins the same
    model = cls(**fields)

    def export(network: Any, folder: Path, facts: dict[str, Any]) -> str:
        return export_network(network, "float32", folder, facts)

    return replace(task, model=model, export=export, sheet=None)


def trained(values: dict[str, Any], folder: Path) -> tuple[Any, float]:
    """Train a network in ``folder``; return it with its averaged weights, and the loss of the last tenth."""
    folder.mkdir()
    file = folder / "config.yaml"
    file.write_text(yaml.safe_dump(values))
    config = load_config(file)
    train_config(config, folder / "run", "benchmarks/comparison.py")
    if not (folder / "run" / "model").is_dir():
        raise SystemExit("training was stopped; the same command makes the rows that are missing")
    lines = [json.loads(line) for line in (folder / "run" / "log.jsonl").read_text().splitlines()]
    network: Any = make_task(config).model
    (weights,) = (folder / "run" / "model").glob("*.safetensors")
    network.load_state_dict(read_state_dict(weights))
    return network.eval(), [line["loss"] for line in lines if "loss" in line][-1]


def run(arm: Arm, steps: int, seed: int, train: Path, judge: Judge) -> dict[str, Any]:
    """Train and judge one network; return its row."""
    hidden = fitting(arm, parameters(ARMS[0], 160))
    values = settings_of(arm, hidden, steps, seed, train)
    began = time.process_time()
    with tempfile.TemporaryDirectory() as temporary:
        network, loss = trained(values, Path(temporary) / "arm")
    seconds = time.process_time() - began
    size = sum(p.numel() for p in network.parameters())
    row = {"study": arm.study, "arm": arm.name, "seed": seed, "parameters": size, "flops": operations(network)}
    row |= {"cpu_seconds": round(seconds), "training": loss}
    return row | (judge.dimr(network) if arm.study == "dimr" else judge.fitv2(network))


def main() -> None:
    """Make the rows that are missing and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("train", type=Path, help="CIFAR-10's training set, parquet")
    parser.add_argument("test", type=Path, help="its test set")
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--out", type=Path, default=Path(__file__).with_name("results") / "comparison.json")
    parser.add_argument("--page", type=Path, default=Path(__file__).parents[1] / "docs" / "comparison.md")
    options = parser.parse_args()
    TASKS["comparison"] = comparison_task
    settings = {"steps": options.steps, "batch": BATCH, "optimizer": OPTIMIZER, **JUDGED}
    result = {"settings": settings, "processor": processor(), "real": {}, "rows": []}
    if options.out.exists():
        result = json.loads(options.out.read_text())
        if result["settings"] != settings:
            raise SystemExit(f"{options.out} was made with other settings: give another --out")
    done = {(row["study"], row["arm"], row["seed"]) for row in result["rows"]}
    wanted = [(arm, seed) for arm in ARMS for seed in range(options.seeds)]
    missing = [(arm, seed) for arm, seed in wanted if (arm.study, arm.name, seed) not in done]
    if missing:
        judge = Judge(options.test)
        result["real"] = judge.floors()
        for arm, seed in missing:
            result["rows"].append(run(arm, options.steps, seed, options.train, judge))
            print(result["rows"][-1], flush=True)
            options.out.write_text(json.dumps(result, indent=1) + "\n")
    print("\n\n".join(tables(result)))
    write_into(options.page, result)


if __name__ == "__main__":
    main()
