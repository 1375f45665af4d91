"""What the embedded models draw, as stored pictures: ``python -m tests.drawn [MODEL ...]`` writes them.

Without names: those of models that have none yet. A name writes its picture anew, which is right only where the
model's weights are others; look at the picture before it is kept.
"""

import sys
from pathlib import Path
from typing import Any

from PIL import Image

from belvedere.apps.requests import GenerateRequest
from belvedere.apps.work import generate
from belvedere.checkpoints import store

PICTURES = Path(__file__).parent / "golden" / "pictures"
NO_PICTURES = ("NViSTModel", "SegPICCodec")
"""Classes of models that make no pictures of their own; ``tests/golden/bvd`` holds what the codec makes."""


def index(name: str) -> dict[str, Any]:
    """Return ``model_index.json`` of a model."""
    return store.read_json(store.resolve(name) / "model_index.json")


def models() -> list[str]:
    """Return the names of the embedded models that make pictures."""
    return [name for name in store.embedded() if index(name)["_class_name"] not in NO_PICTURES]


def draw(name: str) -> Image.Image:
    """Return the picture of a car that a model makes in 8 steps."""
    classes, prompts = (("car",), ()) if "id2label" in index(name) else ((), ("a red car",))
    request = GenerateRequest(name, classes, prompts=prompts, steps=8, seed=7, device="cpu", dtype="float32")
    (picture,) = generate(request)
    return picture.image


def main(names: list[str]) -> None:
    """Write the pictures of ``names``, or of the models without one."""
    for name in names or [name for name in models() if not (PICTURES / f"{name}.png").exists()]:
        draw(name).save(PICTURES / f"{name}.png")
        print(PICTURES / f"{name}.png")


if __name__ == "__main__":
    main(sys.argv[1:])
