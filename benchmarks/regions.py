"""Whether region maps in training help: ``python benchmarks/regions.py BSDS500.parquet KODAK``.

Trains the network at an eighth of its width, one rate, on the same crops in the same order for the same steps: once
with the maps that people drew, once with the cells of a grid over the whole photograph in their place. Files are made
with a grid either way. Prints and stores bits a pixel and PSNR of real files, and the loss that both minimise,
lambda 255^2 MSE + bits a pixel, for each seed.
"""

import argparse
import json
import math
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import yaml

import belvedere
from belvedere.apps.config import load_config
from belvedere.apps.evaluate_compression import pictures_in
from belvedere.apps.record import processor
from belvedere.compression.codec import Codec
from belvedere.data.images import open_image

LAMBDA = 0.013


def config(data: Path, steps: int, seed: int) -> dict[str, Any]:
    """Return the training: that of segpic-photo where nothing else is needed."""
    return {
        "task": "segpic",
        "model": {"variant": "SegPIC/8", "start": "linear"},
        "data": {"kind": "photographs", "paths": [str(data)], "size": 128, "seed": seed},
        "loss": {"weights": [LAMBDA], "prototype_share": 0.25},
        "steps": steps,
        "batch": 4,
        "seed": seed,
        "precision": "no",
        "optimizer": {"lr": 3e-4, "warmup_steps": 100, "decay": "linear", "decay_steps": steps // 2, "clip": 1.0},
        "ema": {"decay": 0.998},
    }


def train(data: Path, steps: int, seed: int, folder: Path) -> Codec:
    """Train one network; return it as a codec."""
    folder.mkdir(parents=True)
    file = folder / "config.yaml"
    file.write_text(yaml.safe_dump(config(data, steps, seed)))
    load_config(str(file))  # says at once what is wrong with it
    command = [sys.executable, "-m", "belvedere", "train", "run", str(file), "--out", str(folder / "run")]
    subprocess.run(command, check=True)
    return belvedere.load_codec(folder / "run" / "model")


def measure(codec: Codec, pictures: list[Path]) -> dict[str, float]:
    """Return the means over pictures: bits a pixel of whole files, PSNR, and the loss."""
    rates, errors = [], []
    for path in pictures:
        image = open_image(path).convert("RGB")
        content = belvedere.encode(image, codec, quality=1)
        before, after = (np.asarray(x, dtype=np.float64) for x in (image, belvedere.decode(content, codec)))
        rates.append(8 * len(content) / (image.width * image.height))
        errors.append(float(((before - after) ** 2).mean()))
    return {
        "bpp": statistics.mean(rates),
        "psnr": statistics.mean(10 * math.log10(255**2 / error) for error in errors),
        "loss": statistics.mean(rate + LAMBDA * error for rate, error in zip(rates, errors, strict=True)),
    }


def main() -> None:
    """Train, measure, print and store."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="a parquet file of photographs with region maps")
    parser.add_argument("pictures", type=Path, help="a folder of pictures to compress")
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--out", type=Path, default=Path(__file__).with_name("results") / "regions.json")
    options = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as temporary:
        plain = Path(temporary) / "without.parquet"
        pq.write_table(pq.read_table(options.data, columns=["image"]), plain)
        for seed in range(options.seeds):
            for maps, data in ((True, options.data.resolve()), (False, plain)):
                codec = train(data, options.steps, seed, Path(temporary) / f"{seed}-{maps}")
                rows.append({"seed": seed, "maps": maps, **measure(codec, pictures_in(options.pictures))})
                print(rows[-1], flush=True)
    result = {"steps": options.steps, "batch": 4, "lambda": LAMBDA, "processor": processor(), "rows": rows}
    options.out.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
