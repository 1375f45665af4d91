"""The Toybox at many sizes and aspects: one network that draws them all learns from these."""

from collections.abc import Sequence

import torch
from torch import Tensor

from belvedere.data.ragged import pack_images
from belvedere.data.toybox.dataset import KINDS, Toybox
from belvedere.errors import InputError
from belvedere.seeds import derive


class MixedToybox:
    """Toys in pictures of the given ``sizes``, (height, width) each: item i has one of them by (seed, i) alone.

    A size named twice comes twice as often. The other arguments are those of ``Toybox``; item i shows the toy that
    ``Toybox(size, seed=seed)[i]`` shows.
    """

    def __init__(
        self,
        sizes: Sequence[Sequence[int]],
        *,
        seed: int = 0,
        length: int = 1_000_000,
        kinds: Sequence[str] = KINDS,
        samples: int = 4,
        device: torch.device | str = "cpu",
    ):
        if not (isinstance(sizes, list | tuple) and sizes and all(isinstance(size, list | tuple) for size in sizes)):
            raise InputError(f"toybox sizes must be a list of [height, width], not {sizes!r}")
        self.sizes = [tuple(size) for size in sizes]
        options = {"seed": seed, "length": length, "kinds": kinds, "samples": samples, "device": device}
        self.toys = {size: Toybox(size, **options) for size in self.sizes}  # type: ignore[arg-type]
        first = next(iter(self.toys.values()))
        self.seed, self.length, self.classes = first.seed, first.length, first.classes

    def size_of(self, index: int) -> tuple[int, ...]:
        """Return the (height, width) of item ``index``."""
        return self.sizes[derive(self.seed, "toybox size", int(index)) % len(self.sizes)]

    def __len__(self) -> int:
        """Return the number of items."""
        return self.length

    def __getitem__(self, index: int) -> dict:
        """Return ``image`` (3, h, w) in [-1, 1], ``label`` (int) and ``caption``."""
        return self.toys[self.size_of(index)][index]

    def batch(self, indices: Sequence[int]) -> dict[str, Tensor]:
        """Return ``image`` float32, flat (``unpack_images``), in [-1, 1]; ``size`` (b, 2); ``label`` (b,), int64."""
        sizes = [self.size_of(index) for index in indices]
        images: list[Tensor] = [torch.empty(0)] * len(indices)
        for size in dict.fromkeys(sizes):
            places = [place for place, other in enumerate(sizes) if other == size]
            drawn = self.toys[size].batch([indices[place] for place in places])["image"]
            for place, image in zip(places, drawn, strict=True):
                images[place] = image
        flat, packed = pack_images(images)
        label = torch.tensor([int(index) % len(self.classes) for index in indices], dtype=torch.int64)
        return {"image": flat, "size": packed, "label": label}
