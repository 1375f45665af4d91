"""What sizes and extrapolation do to the pictures of fitv2-toybox: ``python benchmarks/extrapolation.py``.

For every size the share of pictures that the Toybox classifier recognises, what it recognises of real renders of that
size (its own ceiling), and the Frechet distance as a multiple of that of two real sets; at 128 x 128, beyond the
trained number of tokens, with and without extrapolation, of fewer pictures. Also writes two pictures for docs/fitv2.md.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import torch

from belvedere.apps import output, work
from belvedere.apps.evaluate import REAL_SEED, evaluate_generation, evaluate_images, load_classifier
from belvedere.apps.requests import GenerateRequest
from belvedere.data.toybox import KINDS, Toybox

ROOT = Path(__file__).parents[1]
TRAINED = ("64x64", "48x96", "96x48", "96x96")
BEYOND = "128x128"


def judge_renders(size: str, count: int) -> float:
    """Return the share of real renders of a size that the classifier recognises."""
    width, height = map(int, size.split("x"))
    toys = Toybox((height, width), seed=REAL_SEED + 1)
    parts = [toys.batch(range(start, start + 60)) for start in range(0, count, 60)]
    images, labels = (torch.cat([part[key] for part in parts]) for key in ("image", "label"))
    return evaluate_images(images, labels, load_classifier()).recognised


def measure(model: str, size: str, extrapolation: str, count: int) -> dict[str, Any]:
    """Return the figures of one size and extrapolation."""
    found = evaluate_generation(model, count=count, size=size, extrapolation=extrapolation)
    keys = ("weights", "size", "extrapolation", "count", "recognised", "recognised_by_kind", "ratio")
    row = {key: found[key] for key in keys}
    print(f"{size:>6} {extrapolation:12} recognised {row['recognised']:.1%}  Frechet {row['ratio']:.1f}x", flush=True)
    return row


def draw(model: str, path: Path, rows: list[tuple[str, str]], columns: int) -> None:
    """Write a sheet: a row for each (size, extrapolation), one kind a column, the same seed everywhere."""
    images, captions = [], []
    for size, extrapolation in rows:
        width, height = map(int, size.split("x"))
        request = GenerateRequest(model, KINDS, columns, 0, sizes=((width, height),), extrapolation=extrapolation)
        images += [picture.image for picture in work.generate(request)]
        captions += [f"{size} {'' if extrapolation == 'none' else extrapolation}"] * columns
    path.parent.mkdir(parents=True, exist_ok=True)
    output.sheet(images, captions, columns).save(path)


def main() -> None:
    """Print the table, write the JSON and the pictures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="fitv2-toybox")
    parser.add_argument("--count", type=int, default=60, help="pictures of each trained size")
    parser.add_argument("--beyond", type=int, default=24, help=f"pictures of {BEYOND}")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results" / "extrapolation.json")
    parser.add_argument("--pictures", type=Path, default=ROOT / "docs" / "images")
    options = parser.parse_args()
    rows = [measure(options.model, size, "none", options.count) for size in TRAINED]
    rows += [measure(options.model, BEYOND, name, options.beyond) for name in ("none", "vision-ntk")]
    real = {size: judge_renders(size, options.count) for size in (*TRAINED, BEYOND)}
    print("real renders:", {size: f"{share:.1%}" for size, share in real.items()})
    options.out.parent.mkdir(exist_ok=True)
    options.out.write_text(json.dumps({"model": options.model, "rows": rows, "real_recognised": real}, indent=1) + "\n")
    shapes = [(size, "none") for size in (*TRAINED, "32x32", "96x32")]
    draw(options.model, options.pictures / "fitv2-toybox.png", shapes, 12)
    beyond = [("96x96", "none"), (BEYOND, "none"), (BEYOND, "vision-ntk")]
    draw(options.model, options.pictures / "fitv2-extrapolation.png", beyond, 12)


if __name__ == "__main__":
    main()
