"""Pictures to ``.bvd`` files and back: ``encode(image, codec) -> bytes``, ``decode(data, codec) -> image``."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from belvedere.compression import bitstream
from belvedere.compression.bitstream import MAX_METADATA, MODEL_BYTES, QUALITY_STEP, Header
from belvedere.compression.exact_tables import ExactTables
from belvedere.compression.segpic import SegPIC
from belvedere.compression.segpic_config import STRIDE, usual_quality
from belvedere.compression.tile_codec import Analysis, Rate, TileCodec
from belvedere.compression.tiling import Box, Layout, Span, assemble
from belvedere.errors import InputError, WrongModelError
from belvedere.limits import MAX_PIXELS
from belvedere.threads import pool

LATENT_STRIDE = 16
"""Pixels a side that one number of the latent stands for."""

Progress = Callable[[float, int], None]
"""Called with (tiles done, tiles in all)."""


class Codec:
    """A model that is ready to compress."""

    def __init__(self, model: SegPIC, tables: ExactTables, digest: str):
        """``digest``: of the model's files, hexadecimal; it is written into every file, and decides who may read it."""
        self.model, self.tiles = model, TileCodec(model, tables)
        self.digest = bytes.fromhex(digest)[:MODEL_BYTES]

    @property
    def qualities(self) -> tuple[float, float]:
        """The lowest and the highest quality."""
        return 1.0, float(max(1, self.model.config.rates))

    @property
    def learned(self) -> range:
        """The qualities that were trained; what is between them is interpolated."""
        return range(1, int(self.qualities[1]) + 1)

    def level(self, quality: float | None) -> int:
        """Return a quality, None = the usual, as it stands in a header; ``InputError`` for one the model lacks."""
        low, high = self.qualities
        quality = usual_quality(self.model.config.rates) if quality is None else quality
        if not low <= quality <= high:
            raise InputError(f"quality {quality:g}: this model has {low:g} to {high:g}")
        return round((quality - low) * QUALITY_STEP)

    @torch.inference_mode()
    def rate(self, level: int, importance: Tensor | None = None) -> Rate:
        """Return the factors of a level and, by ``importance`` (h, w) in [0, 1], the steps of the latent.

        Where the importance is 0 the latent is as coarse as the lowest quality has it, in between in proportion of
        the logarithm.
        """
        if self.model.gain is None:
            return Rate(1.0, 1.0)
        levels = torch.tensor([level, 0], dtype=torch.float32, device=self.model.device) / QUALITY_STEP
        gains, inverses = self.model.gain(levels)
        steps = None if importance is None else (gains[:1] / gains[1:]) ** (1 - importance)  # (1, c, h, w)
        return Rate(gains[:1], inverses[:1], steps)

    def check(self, header: Header) -> None:
        """Raise ``WrongModelError`` unless a file was made with this model."""
        if header.model != self.digest:
            raise WrongModelError(
                f"the file was made with the model {header.model.hex()}, not with {self.digest.hex()}: "
                "give the model it was made with (--model NAME, or the FOLDER where it was kept)"
            )
        if header.quality > self.level(self.qualities[1]):
            raise WrongModelError(
                f"the file has a quality of {1 + header.quality / QUALITY_STEP:g}: no file of this model"
            )


class Source:
    """A picture that is to be encoded, tile by tile."""

    def __init__(
        self,
        image: Image.Image,
        codec: Codec,
        *,
        importance: np.ndarray | None = None,
        layout: Layout = Layout(),  # noqa: B008 (frozen)
        profile: bytes = b"",
        exif: bytes = b"",
    ):
        """See ``encode``."""
        if image.mode not in ("RGB", "L"):
            raise InputError(f"a picture of mode {image.mode}: convert it to RGB or 8-bit grey")
        if image.width * image.height > MAX_PIXELS:
            raise InputError(f"a picture of {image.width} x {image.height} pixels: at most {MAX_PIXELS} allowed")
        if importance is not None and importance.shape != (image.height, image.width):
            raise InputError(f"importance of {importance.shape} for a picture of {image.height, image.width}: must fit")
        if importance is not None and np.isnan(importance).any():
            raise InputError("importance has NaN: give numbers from 0 to 1")
        if importance is not None and codec.model.gain is None:
            raise InputError("this model has one rate: it cannot give parts of a picture another")
        for block, name, rest in ((profile, "a colour profile", "none"), (exif, "EXIF data", "colour")):
            if len(block) > MAX_METADATA:
                raise InputError(
                    f"{name} of {len(block)} bytes: at most {MAX_METADATA} are kept; leave it out (--metadata {rest})"
                )
        self.codec, self.importance, self.boxes = codec, importance, layout.boxes(*image.size)
        self.pixels = np.asarray(image.convert("RGB"))  # (h, w, 3)
        grid, grey = codec.model.config.grid, image.mode == "L"
        self.header = Header(codec.digest, *image.size, 0, layout, grid, grey, profile, exif)

    def analyse(self, box: Box) -> Analysis:
        """Return what the network sees in a tile."""
        rows, columns = (slice(*span) for span in box)
        return self.codec.tiles.analyse(self.pixels[rows, columns], self.header.grid)

    def tile(self, level: int, box: Box, analysis: Analysis) -> bitstream.Tile:
        """Return a tile at a level."""
        if self.importance is None:
            return self.codec.tiles.write(analysis, self.codec.rate(level))
        rows, columns = (slice(*span) for span in box)
        weight = _reduced(self.importance[rows, columns]).to(analysis.y.device)
        return self.codec.tiles.write(analysis, self.codec.rate(level, weight))

    def file(self, tiles: Sequence[bitstream.Tile], level: int) -> bytes:
        """Return the file of all tiles at a level."""
        return bitstream.write(replace(self.header, quality=level), tiles)


def encode(
    image: Image.Image,
    codec: Codec,
    *,
    quality: float | None = None,
    jobs: int = 1,
    progress: Progress | None = None,
    **options: Any,
) -> bytes:
    """Return a picture, RGB or 8-bit grey, as a ``.bvd`` file.

    ``quality``: 1 to the model's highest, fractions too; None = 4, or the highest if that is lower. ``jobs``: tiles at
    once. Options: ``importance``, float32 (h, w) from 0 to 1: where it is below 1 the picture gets fewer bits, and the
    decoder need not know; ``layout``: of the tiles; ``profile``, ``exif``: metadata to keep. Raises ``InputError`` for
    a quality the model does not have, a picture or metadata that are too large, or an ``importance`` of another size.
    """
    level, source = codec.level(quality), Source(image, codec, **options)

    def tile(box: Box) -> bitstream.Tile:
        return source.tile(level, box, source.analyse(box))

    with workers(min(jobs, len(source.boxes))) as run:
        return source.file(list(reported(run(tile, source.boxes), progress, len(source.boxes))), level)


def decode(
    data: bytes,
    codec: Codec,
    *,
    region: tuple[int, int, int, int] | None = None,
    jobs: int = 1,
    progress: Progress | None = None,
) -> Image.Image:
    """Return the picture in a ``.bvd`` file, its metadata in ``info``.

    ``region``: (x, y, width, height) in pixels; the tiles that it does not meet are not decoded. ``jobs``: tiles at
    once. Raises a ``BitstreamError`` for a file that is not whole or that another model made, ``InputError`` for a
    region outside the picture.
    """
    header, tiles = bitstream.read(data)
    codec.check(header)
    boxes, rate = header.layout.boxes(header.width, header.height), codec.rate(header.quality)
    wanted = _box(region or (0, 0, header.width, header.height), header)
    met = [box for box in boxes if box.meets(wanted)]
    across = len({box.columns for box in met})  # one row of tiles is decoded after the other

    def pixels(number: int) -> np.ndarray:
        rows, columns = boxes[number]
        size = rows.stop - rows.start, columns.stop - columns.start
        latent, codes = codec.tiles.read(tiles[number], size, header.grid)
        return codec.tiles.synthesise(latent, codes, rate, size)

    with workers(min(jobs, across)) as run:
        done = 0

        def row(numbers: Sequence[int]) -> list[np.ndarray]:
            nonlocal done
            result = list(reported(run(pixels, numbers), progress, len(met), done))
            done += len(numbers)
            return result

        image = Image.fromarray(assemble(header.layout, (header.width, header.height), wanted, row))
    image = image.convert("L") if header.grey else image
    image.info |= {key: value for key, value in (("icc_profile", header.profile), ("exif", header.exif)) if value}
    return image


def _box(region: tuple[int, int, int, int], header: Header) -> Box:
    x, y, width, height = region
    if min(x, y) < 0 or min(width, height) < 1 or x + width > header.width or y + height > header.height:
        raise InputError(
            f"region {x},{y},{width},{height} is not inside the picture of {header.width} x {header.height} pixels"
        )
    return Box(Span(y, y + height), Span(x, x + width))


def _reduced(importance: np.ndarray) -> Tensor:
    """Return the largest importance (h / 16, w / 16) among the pixels that each number of the latent stands for."""
    x = torch.from_numpy(importance)[None, None].clamp(0, 1)
    x = F.pad(x, (0, -x.shape[3] % STRIDE, 0, -x.shape[2] % STRIDE), mode="replicate")
    return F.max_pool2d(x, LATENT_STRIDE)[0, 0]


@contextmanager
def workers(jobs: int) -> Iterator[Callable]:
    """Give a ``map`` that runs ``jobs`` calls at once, which share the processor's threads."""
    if jobs < 2:
        yield map
        return
    with pool(jobs, max(1, torch.get_num_threads() // jobs)) as executor:
        yield executor.map


def reported(results: Iterable, progress: Progress | None, total: int, done: int = 0) -> Iterator:
    """Yield results, and say after each how many of all there are."""
    for number, result in enumerate(results, done + 1):
        yield result
        if progress:
            progress(number, total)
