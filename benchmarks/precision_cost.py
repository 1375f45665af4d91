"""What storing the embedded models in fewer bits costs in pictures, beside the bytes that it saves.

    python benchmarks/precision_cost.py [--models NAME...] [--count 24] [--steps 10]
        [--out benchmarks/results/precision_cost.json]

Each model is exported in float32, float16, bfloat16 and int8, and run in float32 from the same seeds: pictures of the
generators, views of the network of scenes, files of the codec. PSNR is that of all pixels of 8 bits of what a model
makes against what its float32 weights make, null where they are the same; ``worst`` that of the farthest picture.
``recognised``: the share of pictures that show the toy that was asked for. ``truth``: PSNR against the photograph.
"""

import argparse
import json
import math
import statistics
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from belvedere.apps import work
from belvedere.apps.evaluate import evaluate_images, load_classifier
from belvedere.apps.evaluate_captions import asked_for
from belvedere.apps.evaluate_views import render_case
from belvedere.apps.models import size
from belvedere.apps.models_exchange import export
from belvedere.apps.requests import GenerateRequest
from belvedere.apps.view_cases import case_sets
from belvedere.checkpoints import store
from belvedere.checkpoints.codecs import load_codec
from belvedere.checkpoints.views import open_scene_model
from belvedere.compression.codec import decode, encode
from belvedere.data.images import to_image
from belvedere.data.toybox import Toybox
from belvedere.errors import InputError
from belvedere.seeds import derive

DTYPES = ("float32", "float16", "bfloat16", "int8")
SCENES = 4
QUALITY = 4.0
PHOTOGRAPHS, SIDE = 3, 256
Made = tuple[np.ndarray, dict[str, float]]
"""Pictures, uint8 (n, h, w, 3), and what else was measured of them."""


def toys(model: Path, count: int, steps: int) -> Made:
    """Return pictures of each kind of toy, and the share that is recognised."""
    classifier = load_classifier()
    kinds = tuple(classifier.config["classes"])
    asked = asked_for(count, 0, kinds)
    speaks = store.read_json(model / "model_index.json")["_class_name"] == "StableDiffusionPipeline"
    what: dict[str, Any] = {"prompts": tuple(one.caption for one in asked)} if speaks else {"classes": kinds}
    job = work.prepare(GenerateRequest(str(model), count=count, steps=steps, device="cpu", **what))
    pictures = np.stack([np.asarray(made.image) for made in work.run(job, range(count))])
    images = torch.from_numpy(pictures).permute(0, 3, 1, 2).float() / 127.5 - 1  # (n, 3, h, w)
    quality = evaluate_images(images, torch.arange(count) % len(kinds), classifier)
    return pictures, {"recognised": quality.recognised}


def views(model: Path) -> Made:
    """Return views of toys of which the network saw one, and how close they are to what is to be seen."""
    scene = open_scene_model(model, "cpu")
    made, error = [], []
    for case, _ in zip(case_sets(None, scene, 1)[0].cases(), range(SCENES), strict=False):
        for view, truth in zip(render_case(scene.network, case), case.pictures, strict=True):
            colour = view.colour.clamp(0, 1)  # (h, w, 3)
            made.append((colour * 255).round().to(torch.uint8).numpy())
            error.append((colour - truth.permute(1, 2, 0)).square().mean().item())
    return np.stack(made), {"truth": -10 * math.log10(statistics.mean(error))}


def files(model: Path) -> Made:
    """Return decoded pictures, their bits a pixel, and how close they are to what was compressed."""
    codec = load_codec(model, "cpu")
    world = Toybox((SIDE, SIDE), seed=derive("benchmarks", "precision"))
    decoded, length, error = [], 0, []
    for i in range(PHOTOGRAPHS):
        image: Image.Image = to_image(world[i]["image"])
        data = encode(image, codec, quality=QUALITY)
        length += len(data)
        decoded.append(np.asarray(decode(data, codec)))
        error.append(np.square(decoded[-1] - np.asarray(image, dtype=np.float64)).mean())
    bits = 8 * length / (PHOTOGRAPHS * SIDE**2)
    return np.stack(decoded), {"bits_per_pixel": bits, "truth": 10 * math.log10(255**2 / statistics.mean(error))}


def psnr(made: np.ndarray, wanted: np.ndarray) -> dict[str, float | None]:
    """Return the PSNR of all pixels, and of the picture that is farthest off."""
    errors = np.square(made.astype(np.float64) - wanted).mean((1, 2, 3))
    return {
        name: 10 * math.log10(255**2 / error) if error else None
        for name, error in (("psnr", errors.mean()), ("worst", errors.max()))
    }


def model_cost(name: str, make: Callable[[Path], Made], folder: Path) -> dict[str, Any]:
    """Return what each number format of a model costs; why, where it has none."""
    found: dict[str, Any] = {}
    wanted = None
    for dtype in DTYPES:
        out = folder / f"{name}-{dtype}"
        try:
            export(name, out, dtype=dtype)
        except InputError as error:
            found[dtype] = {"refused": str(error)}
            continue
        pictures, facts = make(out)
        wanted = pictures if wanted is None else wanted
        found[dtype] = {"bytes": size(out), "rounding": store.card(out)["rounding"], **psnr(pictures, wanted), **facts}
        print(name, dtype, json.dumps(found[dtype]), flush=True)
    return found


def main() -> None:
    """Measure every embedded model, print and, where asked to, store."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=24, help="pictures of each generator, a multiple of 12")
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--models", nargs="+", default=store.embedded(), help="others stay in --out as they are")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    makers: dict[str, Callable[[Path], Made]] = {"nvist-toybox": views, "segpic-photo": files}
    machine = {"torch": torch.__version__, "count": options.count, "steps": options.steps}
    kept = json.loads(options.out.read_text()) if options.out and options.out.is_file() else {}
    results = kept["results"] if kept.get("machine") == machine else {}
    with tempfile.TemporaryDirectory() as folder:
        for name in options.models:
            make = makers.get(name, lambda model: toys(model, options.count, options.steps))
            results[name] = model_cost(name, make, Path(folder))
            if options.out:
                options.out.write_text(json.dumps({"machine": machine, "results": results}, indent=1) + "\n")


if __name__ == "__main__":
    main()
