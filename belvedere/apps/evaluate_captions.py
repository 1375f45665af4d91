"""Measuring whether pictures show what their captions say: the kind of toy, its colour and its ground.

Kinds are named by the embedded classifier, colours and grounds by ``caption_recogniser``. The same is measured of as
many fresh renders: what perfect pictures would reach.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from belvedere.apps import work
from belvedere.apps.caption_recogniser import Recogniser, recogniser_of
from belvedere.apps.evaluate import CHUNK, load_classifier
from belvedere.apps.requests import GenerateRequest
from belvedere.data.images import to_tensor
from belvedere.data.toybox.captions import CAPTION_COLORS, GROUND_WORDS, CaptionedToybox, describe
from belvedere.data.toybox.classifier import ToyClassifier
from belvedere.data.toybox.palette import Dice
from belvedere.data.toybox.scene import Look
from belvedere.errors import InputError
from belvedere.seeds import derive

MODEL = "toybox-diffusion"
REAL_SEED = derive("captions", "real")
"""Of the renders that show what can be reached; neither networks nor the recogniser know this seed."""
CERTAIN = 0.9
"""How probable it must be that a picture shows no toy before it counts as none; below that, the likeliest kind counts.
So 97 % of white or checkered renders keep their kind, and 3 % of damaged ones get any."""
NONE = "none"
MOST = 480
"""Prompts of one request."""


@dataclass(frozen=True)
class Asked:
    """What a caption says."""

    kind: str
    color: str
    ground: str

    @property
    def caption(self) -> str:
        """The sentence that says it."""
        return describe(self.kind, self.color, GROUND_WORDS[self.ground][0])


@dataclass(frozen=True)
class Followed:
    """Shares of n pictures in which what was asked for is recognised."""

    count: int
    kind: float
    color: float
    """Of all; told by what toys of the kind that was asked for look like."""
    ground: float
    all_three: float
    kind_by_kind: dict[str, float]
    color_by_color: dict[str, float]
    ground_by_ground: dict[str, float]


def asked_for(count: int, seed: int, kinds: Sequence[str]) -> list[Asked]:
    """Return ``count`` captions, each kind in turn, the rest a function of (seed, number)."""
    dice = [Dice(derive(seed, "captions asked for", i)) for i in range(count)]
    return [
        Asked(kinds[i % len(kinds)], one.pick(*CAPTION_COLORS), one.pick(*GROUND_WORDS)) for i, one in enumerate(dice)
    ]


def evaluate_captions(
    model: str = MODEL,
    *,
    count: int = 240,
    seed: int = 0,
    steps: int | None = None,
    guidance: float | None = None,
    dtype: str = "auto",
    device: str = "auto",
    classifier: ToyClassifier | None = None,
    progress: work.Progress | None = None,
) -> dict[str, Any]:
    """Make a picture of each of ``count`` captions and return how they were made, what was recognised (``Followed``)
    and, under ``real``, what is recognised in as many renders. The result is plain JSON.

    A ``count`` that is no multiple of the kinds, or a model that does not take text, raises ``InputError``.
    """
    classifier = classifier or load_classifier()
    kinds = tuple(classifier.config["classes"])
    if not len(kinds) <= count <= MOST or count % len(kinds):
        raise InputError(f"cannot evaluate {count} captions: give a multiple of {len(kinds)}, at most {MOST}")
    asked = asked_for(count, seed, kinds)
    prompts = tuple(one.caption for one in asked)
    request = GenerateRequest(model, (), count, seed, steps, guidance, dtype, device, prompts=prompts)
    job = work.prepare(request)
    pictures = [to_tensor(p.image) for p in work.run(job, range(count), progress=progress)]
    images = torch.stack(pictures).float() / 127.5 - 1  # (n, 3, h, w)
    recogniser = recogniser_of(kinds)
    toys = CaptionedToybox((images.shape[2], images.shape[3]), seed=REAL_SEED, kinds=kinds)
    made = {key: getattr(job.request, key) for key in ("model", "steps", "guidance", "seed", "dtype")}
    followed = judge(images, asked, classifier, recogniser)
    real = judge(toys.batch(range(count))["image"], _shown(toys, count), classifier, recogniser)
    return {**made, "weights": job.weights, **asdict(followed), "real": asdict(real)}


def _shown(toys: CaptionedToybox, count: int) -> list[Asked]:
    looks: list[Look] = [toys.look(i) for i in range(count)]
    return [Asked(toys.classes[i % len(toys.classes)], look.color, look.ground) for i, look in enumerate(looks)]


@torch.no_grad()
def judge(images: Tensor, asked: Sequence[Asked], classifier: ToyClassifier, recogniser: Recogniser) -> Followed:
    """Return in how many of the pictures (n, 3, h, w) in [-1, 1] what was ``asked`` for is recognised."""
    kinds = torch.tensor([recogniser.kinds.index(one.kind) for one in asked])
    logits = torch.cat([classifier(part) for part in images.split(CHUNK)])  # (n, kinds + 1)
    found = list(
        zip(_named(logits, classifier), recogniser.colors_of(images, kinds), recogniser.grounds_of(images), strict=True)
    )
    right = [(a == one.kind, b == one.color, c == one.ground) for (a, b, c), one in zip(found, asked, strict=True)]
    kind, color, ground = zip(*right, strict=True)
    return Followed(
        count=len(asked),
        kind=_share(kind),
        color=_share(color),
        ground=_share(ground),
        all_three=_share([all(row) for row in right]),
        kind_by_kind=_shares(kind, [one.kind for one in asked]),
        color_by_color=_shares(color, [one.color for one in asked]),
        ground_by_ground=_shares(ground, [one.ground for one in asked]),
    )


def _named(logits: Tensor, classifier: ToyClassifier) -> list[str]:
    """Return the kind in each picture, or ``NONE``."""
    none = logits.softmax(1)[:, classifier.reject] > CERTAIN
    likeliest = logits[:, : classifier.reject].argmax(1)
    names = classifier.config["classes"]
    return [NONE if out else names[kind] for out, kind in zip(none.tolist(), likeliest.tolist(), strict=True)]


def _share(right: Sequence[bool]) -> float:
    return sum(right) / len(right)


def _shares(right: Sequence[bool], names: Sequence[str]) -> dict[str, float]:
    return {name: _share([r for r, n in zip(right, names, strict=True) if n == name]) for name in sorted(set(names))}
