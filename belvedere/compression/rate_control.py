"""Files of a wanted size, or of a wanted likeness: the quality is found by halving."""

import math
from collections.abc import Callable, Iterable
from functools import cache, partial
from typing import Any

import numpy as np
import torch
from PIL import Image

from belvedere.compression.codec import Codec, Progress, Source, decode, reported, workers
from belvedere.compression.rate_distortion import psnr
from belvedere.errors import InputError

RESOLUTION = 8
"""Levels that the search does not tell apart: a 32nd of the distance between two trained rates."""


class _Trials:
    """The files of one picture by level; what does not depend on the level is computed once.

    ``progress`` is told of every tile that is analysed, written, or decoded, of all that the longest search would
    need; ``decoded``: whether this one decodes its files.
    """

    def __init__(
        self,
        image: Image.Image,
        codec: Codec,
        jobs: int,
        progress: Progress | None,
        options: dict[str, Any],
        decoded: bool = False,
    ):
        self.source, self.top = Source(image, codec, **options), codec.level(codec.qualities[1])
        self.jobs = min(jobs, len(self.source.boxes))
        self.files: dict[int, bytes] = {}
        self.progress, self.done = progress, 0
        trials = max(len(codec.learned), 2 + math.ceil(math.log2(max(1, self.top / RESOLUTION))))
        self.total = len(self.source.boxes) * (1 + trials * (2 if decoded else 1))
        with workers(self.jobs) as run:
            self.analyses = self._counted(run(self.source.analyse, self.source.boxes))

    def _counted(self, results: Iterable) -> list:
        found = list(reported(results, self.progress, self.total, self.done))
        self.done += len(found)
        return found

    def file(self, level: int) -> bytes:
        """Return the file of a level."""
        if level not in self.files:
            with workers(self.jobs) as run:
                tiles = self._counted(run(partial(self.source.tile, level), self.source.boxes, self.analyses))
            self.files[level] = self.source.file(tiles, level)
        return self.files[level]

    def picture(self, level: int) -> Image.Image:
        """Return the picture in the file of a level."""
        data, before = self.file(level), self.done

        def told(tiles: float, _: int) -> None:
            if self.progress:
                self.progress(before + tiles, self.total)

        self.done += len(self.source.boxes)
        return decode(data, self.source.codec, jobs=self.jobs, progress=told)


def encode_to_bpp(
    image: Image.Image, codec: Codec, bpp: float, *, jobs: int = 1, progress: Progress | None = None, **options: Any
) -> bytes:
    """Return the best picture in at most ``bpp`` bits a pixel, whole file; options as for ``codec.encode``.

    Raises ``InputError`` when the lowest quality needs more.
    """
    trials, pixels = _Trials(image, codec, jobs, progress, options), image.width * image.height

    def fits(level: int) -> bool:
        return len(trials.file(level)) * 8 <= bpp * pixels

    if not fits(0):
        least = len(trials.file(0)) * 8 / pixels
        raise InputError(f"{bpp:g} bits a pixel are too few: this picture needs {least:.3f} with quality 1")
    return trials.file(trials.top if fits(trials.top) else _boundary(fits, trials.top)[0])


def encode_to_psnr(
    image: Image.Image, codec: Codec, wanted: float, *, jobs: int = 1, progress: Progress | None = None, **options: Any
) -> bytes:
    """Return a small file whose picture has a PSNR of ``wanted`` dB or more; options as for ``codec.encode``.

    Raises ``InputError`` when neither the highest quality nor another learned one reaches it.
    """
    trials = _Trials(image, codec, jobs, progress, options, decoded=True)
    before = torch.tensor(np.array(image))

    @cache
    def reached(level: int) -> float:
        return psnr(torch.tensor(np.array(trials.picture(level))), before)

    if reached(trials.top) < wanted:  # of flat pictures the highest quality is not always the nearest
        return trials.file(_first(reached, wanted, codec))
    if reached(0) >= wanted:
        return trials.file(0)
    return trials.file(_boundary(lambda level: reached(level) < wanted, trials.top)[1])


def _first(reached: Callable[[int], float], wanted: float, codec: Codec) -> int:
    """Return the level of the lowest learned quality that reaches ``wanted`` dB; ``InputError`` when none does."""
    levels = {quality: codec.level(quality) for quality in codec.learned}
    for level in levels.values():
        if reached(level) >= wanted:
            return level
    best = max(levels, key=lambda quality: reached(levels[quality]))
    most = reached(levels[best])
    raise InputError(f"{wanted:g} dB are more than this model reaches: {most:.2f} with quality {best}")


def _boundary(holds: Callable[[int], bool], top: int) -> tuple[int, int]:
    """Return two levels near each other, of which ``holds`` is true and false; it is so of 0 and of ``top``."""
    low, high = 0, top
    while high - low > RESOLUTION:
        middle = (low + high) // 2
        low, high = (middle, high) if holds(middle) else (low, middle)
    return low, high
