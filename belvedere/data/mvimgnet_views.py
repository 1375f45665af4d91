"""MVImgNet as NViST is trained on it: a view of a scene to look at, others to compare with, drawn anew every time."""

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from belvedere.data.mvimgnet import MVImgNet
from belvedere.errors import InputError
from belvedere.seeds import derive

MAX_VIEWS = 64


class MVImgNetViews:
    """Item i is scene i % n of the n of a split: an input view and ``views`` targets, any of its pictures.

    That is as published. A target may be a picture twice, or the input. The draw depends on (``seed``, i) alone, that
    of the input not on ``views``, which is 0 for pre-training; there are ``draws`` of each scene. The other arguments
    are those of ``MVImgNet``. Raises ``InputError`` for anything else.
    """

    def __init__(
        self,
        path: str,
        *,
        split: str = "train",
        size: tuple[int, int] = (160, 90),
        views: int = 4,
        images: str = "images",
        cache: str | None = None,
        seed: int = 0,
        draws: int = 1000,
    ):
        for name, value, low, high in (("views", views, 0, MAX_VIEWS), ("draws", draws, 1, 1_000_000)):
            if type(value) is not int or not low <= value <= high:
                raise InputError(f"mvimgnet {name} {value!r}: must be a whole number from {low} to {high}")
        self.path, self.images, self.cache = Path(path), images, cache
        self.scenes = MVImgNet(self.path, split, size, images, cache)
        self.classes, self.size = self.scenes.classes, self.scenes.size
        self.views, self.seed, self.draws = views, seed, draws

    @cached_property
    def near_far(self) -> tuple[float, float]:
        """The nearest near and farthest far of the test split, for both splits, as published."""
        return MVImgNet(self.path, "test", self.size, self.images, self.cache).near_far

    def __len__(self) -> int:
        """Return the number of items."""
        return len(self.scenes) * self.draws

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Return what ``batch`` tells of one item, without the first axis; ``label`` is an int."""
        if not 0 <= index < len(self):
            raise IndexError(index)
        scene = index % len(self.scenes)
        draw = np.random.default_rng(derive(self.seed, "mvimgnet views", index))
        chosen = draw.integers(len(self.scenes[scene].capture), size=1 + self.views)
        seen = self.scenes.sample(scene, chosen.tolist())
        lenses = [(*camera.focal, *camera.principal) for camera in seen["cameras"]]
        return {
            "image": seen["image"][0],
            "views": seen["image"][1:],
            "poses": torch.stack([camera.pose for camera in seen["cameras"]]).float(),
            "intrinsics": torch.tensor(lenses, dtype=torch.float32),
            "label": seen["label"],
        }

    def batch(self, indices: Sequence[int]) -> dict[str, Tensor]:
        """Return pictures and cameras of items, as ``ToyboxViews.batch`` has them."""
        items = [self[index] for index in indices]
        batch = {name: torch.stack([item[name] for item in items]) for name in items[0] if name != "label"}
        return batch | {"label": torch.tensor([item["label"] for item in items])}
