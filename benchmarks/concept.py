"""A toy with a texture that no training picture has, learned by toybox-diffusion: ``python benchmarks/concept.py``.

Six renders of one mug, striped in colours of its own, on three floors; ``belvedere personalize --recipe neti-toybox``;
then four pictures of each of eight prompts with the concept, and as many with the word "mug" alone. A picture counts
when the embedded classifier sees a mug and its colours are nearest to those of the subject, among the subject and the
ten colours that captions know (Fisher's discriminant of colour histograms of other renders, as ``evaluate captions``).
Renders of the subject itself, are judged too: what the judge can see.
"""

import argparse
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from belvedere.apps import output, work
from belvedere.apps.caption_recogniser import Discriminant, Recogniser, color_features
from belvedere.apps.evaluate import load_classifier
from belvedere.apps.personalize import Plan, personalize
from belvedere.apps.record import processor
from belvedere.apps.requests import GenerateRequest
from belvedere.data.images import to_image, to_tensor
from belvedere.data.toybox.captions import CAPTION_COLORS, GROUND_WORDS
from belvedere.data.toybox.dataset import KINDS
from belvedere.data.toybox.palette import COLORS
from belvedere.data.toybox.render import image
from belvedere.data.toybox.scene import Look, Scenes, build, cameras
from belvedere.data.toybox.shapes import COLOR, REPEATS, SECOND, STRIPES, TEXTURE
from belvedere.seeds import derive

KIND, TOKEN, SIDE, SAMPLES = "mug", "<toy>", 64, 4
PAINTS = (0.72, 0.80, 0.14), (0.30, 0.62, 0.20)
"""The subject's stripes: lime and leaf green."""
PLACEHOLDER = "pink"
"""What the subject is painted before it gets its stripes."""
PHOTO_GROUNDS = ("cream", "grey", "sand")
PROMPTS = (
    "a photo of a {}",
    "a photo of a {} on green grass",
    "a photo of a {} on blue water",
    "a photo of a {} on the beach",
    "a picture of a {} on a checkered floor",
    "a photo of a {} on a lilac floor",
    "a rendering of a {} on a mint floor",
    "a good photo of a {} on a peach floor",
)
GROUNDS = (None, "grass", "water", "sand", "checkered", "lilac", "mint", "peach")
"""What each prompt asks for."""
EACH = 4
SUBJECT, EXAMPLES, JUDGED = (derive("concept benchmark", name) for name in ("subject", "examples", "judged"))


def subject(grounds: Sequence[str], seed: int = SUBJECT) -> Scenes:
    """Return scenes of the subject, one a ground. The shape is that of ``seed``, always the same."""
    index = KINDS.index(KIND)
    scenes = build(seed, [index] * len(grounds), KINDS, [Look(PLACEHOLDER, ground) for ground in grounds])
    prims = scenes.prims.copy()
    painted = (prims[:, COLOR] == COLORS[PLACEHOLDER]).all(1)
    prims[painted, COLOR], prims[painted, SECOND] = PAINTS
    prims[painted, TEXTURE], prims[painted, REPEATS] = STRIPES, 3.0
    return replace(scenes, prims=prims)


def views(grounds: Sequence[str], dice: np.random.Generator, count: int) -> Tensor:
    """Return ``count`` pictures (n, 3, h, w) in [-1, 1] of the subject from about where toys are looked at."""
    scenes = subject([grounds[i % len(grounds)] for i in range(count)])
    turn, rise = dice.uniform(-0.35, 0.35, count), dice.uniform(-0.1, 0.1, count)
    return image(scenes, cameras(scenes, turn, rise), (SIDE, SIDE), SAMPLES, torch.device("cpu"))


def from_pictures(pictures: Sequence[Image.Image]) -> Tensor:
    return torch.stack([to_tensor(picture.convert("RGB")) for picture in pictures]).float() / 127.5 - 1


@dataclass(frozen=True)
class Judge:
    """Tells the subject from toys of its kind in the colours that captions know."""

    colors: Discriminant
    classifier: Any
    grounds: Recogniser

    @classmethod
    def made(cls) -> "Judge":
        grounds = list(GROUND_WORDS)
        looks = [Look(color, ground) for color in CAPTION_COLORS for ground in grounds]
        index = KINDS.index(KIND)
        scenes = build(EXAMPLES, [index + i * len(KINDS) for i in range(len(looks))], KINDS, looks)
        others = image(scenes, cameras(scenes), (SIDE, SIDE), SAMPLES, torch.device("cpu"))
        own = views(grounds, np.random.default_rng(EXAMPLES % 2**32), len(grounds) * 2)
        labels = [i // len(grounds) for i in range(len(looks))] + [len(CAPTION_COLORS)] * len(own)
        colors = Discriminant.fitted(color_features(torch.cat([others, own])), torch.tensor(labels))
        return cls(colors, load_classifier(), Recogniser())

    def __call__(self, images: Tensor, grounds: Sequence[str | None]) -> dict[str, float]:
        """Return the shares of pictures with the kind, the colours, both, and the ground asked for."""
        kinds = self.classifier.config["classes"]
        with torch.no_grad():
            kind = self.classifier.classify(self.classifier.features(images)).argmax(1) == kinds.index(KIND)
        color = self.colors(color_features(images)) == len(CAPTION_COLORS)
        seen = self.grounds.grounds_of(images)
        asked = [found == wanted for found, wanted in zip(seen, grounds, strict=True) if wanted is not None]
        shares = {"kind": kind, "colours": color, "both": kind & color}
        return {name: found.double().mean().item() for name, found in shares.items()} | {
            "ground": sum(asked) / max(1, len(asked))
        }


def pictures(prompts: Sequence[str], concept: Path | None, guidance: float | None) -> list[Image.Image]:
    """Return ``EACH`` pictures of each prompt, in turn."""
    request = GenerateRequest(
        "toybox-diffusion",
        prompts=tuple(prompts),
        count=EACH * len(prompts),
        seed=1,
        guidance=guidance,
        concepts=() if concept is None else (str(concept),),
    )
    return [picture.image for picture in work.generate(request)]


def main() -> None:
    """Learn, make, judge and store."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("runs/concept"), help="photographs, run and concept")
    parser.add_argument("--out", type=Path, default=Path(__file__).with_name("results") / "concept.json")
    parser.add_argument("--sheet", type=Path, default=Path("docs/images/concept.png"))
    parser.add_argument("--guidance", type=float, default=4.0)
    parser.add_argument("overrides", nargs="*", help="KEY.PATH=VALUE of the recipe")
    options = parser.parse_args()

    photos = options.work / "photos"
    photos.mkdir(parents=True, exist_ok=True)
    shots = [to_image(view) for view in views(PHOTO_GROUNDS, np.random.default_rng(0), 6)]
    for i, shot in enumerate(shots):
        shot.save(photos / f"{i}.png")
    concept = options.work / "toy.concept.safetensors"
    plan = Plan(photos, TOKEN, KIND, "toybox-diffusion", concept, recipe="neti-toybox", overrides=options.overrides)
    began = time.monotonic()
    done = personalize(plan, force=True)
    seconds = time.monotonic() - began
    assert done["code"] == 0

    judge = Judge.made()
    asked = [ground for _ in range(EACH) for ground in GROUNDS]
    made = pictures([prompt.format(TOKEN) for prompt in PROMPTS], concept, options.guidance)
    plain = pictures([prompt.format(KIND) for prompt in PROMPTS], None, options.guidance)
    real = views(list(GROUND_WORDS), np.random.default_rng(JUDGED % 2**32), 90)
    found = {
        "concept": judge(from_pictures(made), asked),
        "word alone": judge(from_pictures(plain), asked),
        "renders of the subject": judge(real, [list(GROUND_WORDS)[i % 9] for i in range(90)]),
    }
    for name, shares in found.items():
        print(f"{name:24}" + "".join(f"{key} {value:6.1%}  " for key, value in shares.items()))
    print(f"learned in {seconds:.0f} s")
    blank = Image.new("RGB", (SIDE, SIDE), "white")
    rows = [*shots, *[blank] * (len(PROMPTS) - len(shots)), *made[: 2 * len(PROMPTS)], *plain[: len(PROMPTS)]]
    names = [f"on {ground}" if ground else "no ground asked" for ground in GROUNDS]
    captions = [*["photograph"] * len(shots), *[""] * (len(names) - len(shots)), *(f"{TOKEN} {name}" for name in names)]
    captions += [*(f"{TOKEN} {name}" for name in names), *(f"{KIND} {name}" for name in names)]
    text = json.dumps({"sheet": {"concept": TOKEN}})
    options.sheet.parent.mkdir(parents=True, exist_ok=True)
    output.save(output.sheet(rows, captions, len(PROMPTS)), options.sheet, text)
    machine = {"processor": processor(), "threads": torch.get_num_threads(), "torch": torch.__version__}
    facts = {"machine": machine, "overrides": options.overrides, "seconds": round(seconds), "shares": found}
    options.out.write_text(json.dumps(facts, indent=2) + "\n")


if __name__ == "__main__":
    main()
