"""A tiny autoencoder and a tiny Stable Diffusion, trained for two steps, for tests."""

from pathlib import Path
from typing import Any

import yaml

from belvedere.apps.train import train

DATA = {"kind": "captioned-toybox", "size": 16, "samples": 1, "length": 48}
COMMON: dict[str, Any] = {
    "data": DATA,
    "optimizer": {"lr": 1e-3},
    "steps": 2,
    "batch": 4,
    "precision": "no",
    "workers": 0,
    "export": {"dtype": "float16", "default_steps": 2, "default_guidance": 2.0},
}
AUTOENCODER = COMMON | {"task": "autoencoder", "model": {"channels": [8, 16], "latent_channels": 2}}
TEXT = {"width": 16, "layers": 1, "heads": 2, "length": 20}
DIFFUSION = COMMON | {
    "task": "diffusion",
    "model": {"text": TEXT, "unet": {"channels": [8, 16], "heads": 2}, "prediction": "v_prediction"},
    "loss": {"caption_dropout": 0.1},
}


def train_config(config: dict[str, Any], out: Path) -> Path:
    """Train a config and return the folder of the model."""
    path = out.with_suffix(".yaml")
    path.write_text(yaml.safe_dump(config))
    assert train(path, out=out) == 0
    return out / "model"
