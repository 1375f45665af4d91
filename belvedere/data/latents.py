"""Latents computed beforehand: what an autoencoder made of every picture, read at random from safetensors shards."""

import bisect
import json
from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from belvedere.errors import InputError

SCALE = 0.18215
"""The scaling factor of Stable Diffusion's KL autoencoder."""


class Latents:
    """The moments of a KL autoencoder's posterior for each item, in ``path``: *.safetensors and classes.json.

    A shard holds ``moments`` (n, 2 c, h, w), any float type, mean then log-variance, and ``label`` (n,), integers;
    ``classes.json`` is the list of class names. Mirror images are items of their own. Shards are read in the order
    of their names, items one by one where they lie. A folder of another form raises ``InputError``.
    """

    def __init__(self, path: Path | str):
        root = Path(path)
        files = sorted(root.glob("*.safetensors"))
        if not files or not (root / "classes.json").is_file():
            raise InputError(f"no latents in {root}: it needs classes.json and safetensors of moments and label")
        try:
            self.classes = tuple(json.loads((root / "classes.json").read_text()))
            shards = [safe_open(file, "pt") for file in files]
            self._moments = [shard.get_slice("moments") for shard in shards]
            self._labels = torch.cat([shard.get_tensor("label") for shard in shards]).long()
        except (OSError, ValueError, TypeError, SafetensorError) as error:
            raise InputError(f"latents in {root} cannot be read: {' '.join(str(error).split())}") from None
        self._ends = list(accumulate(moments.get_shape()[0] for moments in self._moments))
        if self._ends[-1] != len(self._labels):
            raise InputError(f"latents in {root}: {self._ends[-1]} moments but {len(self._labels)} labels")
        if len(self._labels) and not 0 <= int(self._labels.min()) <= int(self._labels.max()) < len(self.classes):
            raise InputError(f"latents in {root}: labels go beyond the {len(self.classes)} names of classes.json")

    def __len__(self) -> int:
        return len(self._labels)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Return ``moments`` float32 (2 c, h, w) and ``label``."""
        if not 0 <= index < len(self):
            raise IndexError(index)
        shard = bisect.bisect_right(self._ends, index)
        place = index - (self._ends[shard - 1] if shard else 0)
        moments = self._moments[shard][place : place + 1][0]
        return {"moments": moments.float(), "label": int(self._labels[index])}

    def batch(self, indices: Sequence[int]) -> dict[str, Tensor]:
        """Return ``moments`` float32 (b, 2 c, h, w) and ``label`` int64 (b,)."""
        moments = torch.stack([self[index]["moments"] for index in indices])
        return {"moments": moments, "label": self._labels[list(indices)]}


def sample_latents(moments: Tensor, noise: Tensor) -> Tensor:
    """Return latents (b, c, h, w) of unit scale drawn from ``moments`` (b, 2 c, h, w) with standard ``noise``."""
    mean, log_variance = moments.chunk(2, 1)
    return SCALE * (mean + (0.5 * log_variance.clamp(-30, 20)).exp() * noise)
