"""Toys described in words: pictures and the captions that go with them, every colour and ground on every kind."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from belvedere.data.toybox.dataset import KINDS, Toybox
from belvedere.data.toybox.palette import Dice
from belvedere.data.toybox.scene import Look, Scenes, build
from belvedere.seeds import derive

CAPTION_COLORS = ("red", "orange", "yellow", "green", "teal", "blue", "purple", "pink", "white", "brown")
"""Colours of ``COLORS`` that are told apart on every kind."""
GROUND_WORDS: dict[str, tuple[str, ...]] = {
    "grass": ("on green grass", "on grass", "in the garden"),
    "water": ("on blue water", "on water", "on the sea"),
    "cream": ("on a cream floor",),
    "grey": ("on a grey floor",),
    "sand": ("on sand", "on the beach"),
    "mint": ("on a mint floor",),
    "lilac": ("on a lilac floor",),
    "peach": ("on a peach floor",),
    "checkered": ("on a checkered floor",),
}
"""Ways to say what a toy stands on, by the ground's name in ``GROUNDS``; the first is the usual one."""
PLAIN_TEMPLATES = ("a {}", "the {}", "a photo of a {}", "a photo of a {}", "a picture of a {}")
CLIP_TEMPLATES = (
    "a photo of a {}",
    "a rendering of a {}",
    "a cropped photo of the {}",
    "the photo of a {}",
    "a photo of a clean {}",
    "a photo of a dirty {}",
    "a dark photo of the {}",
    "a photo of my {}",
    "a photo of the cool {}",
    "a close-up photo of a {}",
    "a bright photo of the {}",
    "a cropped photo of a {}",
    "a photo of the {}",
    "a good photo of the {}",
    "a photo of one {}",
    "a close-up photo of the {}",
    "a rendition of the {}",
    "a photo of the clean {}",
    "a rendition of a {}",
    "a photo of a nice {}",
    "a good photo of a {}",
    "a photo of the nice {}",
    "a photo of the small {}",
    "a photo of the weird {}",
    "a photo of the large {}",
    "a photo of a cool {}",
    "a photo of a small {}",
)
"""The templates that personalization is trained with: of CLIP's for ImageNet, those about objects."""
PLAIN_SHARE, COLOR_SHARE, GROUND_SHARE = 0.5, 0.85, 0.85
"""Shares of the captions that have a plain template, say the colour, say the ground."""
CAPTION_BYTES = 96


class CaptionedToybox:
    """Toys of any colour on any ground, and what they are called: item i depends on (seed, i) alone.

    Item i shows ``kinds[i % len(kinds)]``, shaped as in ``Toybox(seed=seed)[i]``; its colour and ground are drawn from
    ``CAPTION_COLORS`` and ``GROUND_WORDS``. Some captions leave the colour out, or the ground. The arguments are those
    of ``Toybox``; raises ``InputError`` for anything else.
    """

    def __init__(
        self,
        size: int | tuple[int, int] = 64,
        *,
        seed: int = 0,
        length: int = 1_000_000,
        kinds: Sequence[str] = KINDS,
        samples: int = 4,
        device: torch.device | str = "cpu",
    ):
        self.toys = _Looked(size, seed=seed, length=length, kinds=kinds, samples=samples, device=device)
        self.size, self.seed, self.classes = self.toys.size, self.toys.seed, self.toys.classes

    def __len__(self) -> int:
        """Return the number of items."""
        return len(self.toys)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Return ``image`` (3, h, w) in [-1, 1], ``label`` (int), ``caption``, ``color`` and ``ground``."""
        look = self.look(index)
        item = self.toys[index]
        return item | {"caption": self.caption(index), "color": look.color, "ground": look.ground}

    def batch(self, indices: Sequence[int]) -> dict[str, Tensor]:
        """Return ``image`` float32 (b, 3, h, w) in [-1, 1], ``label`` int64 (b,) and ``caption`` uint8 (b, n), UTF-8
        that ends in zeros (see ``caption_texts``)."""
        return self.toys.batch(indices) | {"caption": caption_bytes([self.caption(i) for i in indices])}

    def look(self, index: int) -> Look:
        """Return the colour and the ground of a toy."""
        return _look(self.seed, index)

    def caption(self, index: int) -> str:
        """Return the caption of a toy."""
        look, kind = self.look(index), self.classes[index % len(self.classes)]
        dice = Dice(derive(self.seed, "toybox caption", index))
        template = dice.pick(*(PLAIN_TEMPLATES if dice.chance(PLAIN_SHARE) else CLIP_TEMPLATES))
        color = look.color if dice.chance(COLOR_SHARE) else None
        ground = dice.pick(*GROUND_WORDS[look.ground]) if dice.chance(GROUND_SHARE) else None
        return describe(kind, color, ground, template)


class _Looked(Toybox):
    """The toys, painted and placed as ``_look`` says."""

    def _scenes(self, indices: Sequence[int]) -> Scenes:
        indices = [self._index(i) for i in indices]
        return build(self.seed, indices, self.classes, [_look(self.seed, i) for i in indices])


def _look(seed: int, index: int) -> Look:
    dice = Dice(derive(seed, "toybox look", int(index)))
    return Look(dice.pick(*CAPTION_COLORS), dice.pick(*GROUND_WORDS))


def describe(kind: str, color: str | None = None, ground: str | None = None, template: str = "a photo of a {}") -> str:
    """Return a caption: ``template`` filled with colour and kind, and the words for the ground; the article fits."""
    thing = f"{color} {kind}" if color else kind
    if thing[0] in "aeiou":
        template = template.replace("a {}", "an {}")
    return template.format(thing) + (f" {ground}" if ground else "")


def words() -> list[str]:
    """Return every word that a caption can hold, sorted; hyphens are words too."""
    sentences = [
        *PLAIN_TEMPLATES,
        *CLIP_TEMPLATES,
        *CAPTION_COLORS,
        *(w for ways in GROUND_WORDS.values() for w in ways),
    ]
    text = " ".join(sentences).replace("{}", " ").replace("-", " - ")
    return sorted({*text.split(), *KINDS, "an"})


def caption_bytes(captions: Sequence[str]) -> Tensor:
    """Return captions as uint8 (b, ``CAPTION_BYTES``): UTF-8, cut off there, that ends in zeros."""
    rows = [list(caption.encode()[:CAPTION_BYTES].ljust(CAPTION_BYTES, b"\0")) for caption in captions]
    return torch.tensor(rows, dtype=torch.uint8).view(-1, CAPTION_BYTES)


def caption_texts(rows: Tensor) -> list[str]:
    """Return the captions in uint8 (b, n), as ``caption_bytes`` makes them."""
    return [bytes(row).rstrip(b"\0").decode(errors="ignore") for row in rows.tolist()]
