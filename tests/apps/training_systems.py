"""A tiny run of each of the five systems, for the tests of what holds for all of them."""

import io
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch
import yaml
from PIL import Image

from tests.apps.training_helpers import CONFIG
from tests.compression.test_segpic import SMALL as SEGPIC_MODEL
from tests.generation.neti_models import save_photographs, save_tiny_base

SYSTEMS = ("dimr", "fitv2", "segpic", "nvist", "neti")

FITV2: dict[str, Any] = {
    "task": "fitv2",
    "model": {"dim": 16, "depth": 2, "heads": 2, "adaln_rank": 4, "num_classes": 13, "channels": 3, "patch": 4}
    | {"trained_side": 4, "prediction": "sample"},
    "data": {"kind": "mixed-toybox", "sizes": [[16, 16], [16, 32], [24, 8]], "length": 30, "samples": 1},
}
"""What makes ``CONFIG`` a tiny FiTv2 run."""

ENCODER = {"patch": 8, "dim": 16, "encoder_depth": 1, "encoder_heads": 2}
NVIST: dict[str, Any] = {
    "task": "nvist",
    "model": ENCODER
    | {"image": [32, 32], "decoder_depth": 2, "decoder_heads": 2, "resolution": 8, "volume_patch": 4, "focal": False}
    | {"density": 2, "colour": 4, "hidden": 8, "samples": 8},
    "data": {"kind": "toybox-views", "size": 32, "samples": 1, "length": 24, "distances": True},
    "loss": {"patch": [28, 28], "rays": 16, "distance_weight": 0.1},
    "optimizer": {"lr": 1e-3},
}
"""What makes it a tiny NViST run."""


def segpic(folder: Path) -> dict[str, Any]:
    """Write photographs with region maps; return what makes ``CONFIG`` a tiny SegPIC run of two rates."""
    waves = torch.linspace(0, 12, 96).sin().outer(torch.linspace(0, 9, 80).cos()) * 127 + 128
    rows = {"image": [_png(waves), _png(waves.flip(0))], "regions": [_png((waves > 128) * 200.0), None]}
    pq.write_table(pa.table(rows), folder / "photographs.parquet")
    return {
        "task": "segpic",
        "model": SEGPIC_MODEL | {"rates": 2},
        "data": {"kind": "photographs", "paths": [str(folder / "photographs.parquet")], "size": 64, "crops": 15},
        "loss": {"weights": [0.002, 0.02]},
    }


def neti(folder: Path) -> dict[str, Any]:
    """Write a base and photographs; return what makes ``CONFIG`` the tiny run of a concept."""
    save_tiny_base(folder / "base")
    save_photographs(folder / "photos")
    concept = {"base": str(folder / "base"), "token": "<toy>", "like": "cat"}
    return {
        "task": "neti",
        "model": concept | {"hidden": 32, "frequencies": 32, "anchors": 5},
        "data": {"kind": "concept-photos", "path": str(folder / "photos"), "shown": ["a {}"]},
    }


def write_system(name: str, folder: Path, **changes: Any) -> str:
    """Write the config of a tiny run of a system, and the data it needs; return its path."""
    made = {"segpic": segpic, "neti": neti}
    special = made[name](folder) if name in made else {"dimr": {}, "fitv2": FITV2, "nvist": NVIST}[name]
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(CONFIG | special | changes))
    return str(path)


def _png(grey: torch.Tensor) -> dict[str, bytes]:
    stream = io.BytesIO()
    Image.fromarray(grey.clamp(0, 255).byte().numpy()).convert("RGB").save(stream, "PNG")
    return {"bytes": stream.getvalue()}
