"""One tile of a picture to a stream and back: the network in floats, what both sides must agree on in exact integers.

    pixels ─► y, codes of the first prototypes ─► scaled to the rate ─► codes of the second, z, slices of y ─► stream
    stream ─► the same integers ─► scaled back ─► pixels

A stream has, in this order, the codes of the second prototypes, z, the slices of y, the codes of the first prototypes.
"""

import zlib
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from belvedere.compression.bitstream import Tile
from belvedere.compression.entropy import CodingTables, Reader, Writer
from belvedere.compression.exact import ExactPath, floats, quantise
from belvedere.compression.exact_tables import ExactTables
from belvedere.compression.regions import Grid
from belvedere.compression.segpic import SegPIC
from belvedere.compression.segpic_config import STRIDE
from belvedere.errors import DamagedError


class Analysis(NamedTuple):
    """What the network sees in a tile, whatever the rate."""

    y: Tensor
    """The latent: float32 (1, c, h / 16, w / 16)."""
    codes: Tensor
    """Of the first prototypes: int64 (1, c, side, side)."""


class Rate(NamedTuple):
    """Factors (1, c, 1, 1) of the latent before and after rounding, and the steps it is rounded to."""

    gain: Tensor | float
    inverse: Tensor | float
    steps: Tensor | None = None
    """(1, c, h / 16, w / 16), 1 or more; None for whole numbers."""


class TileCodec:
    """A model with its tables, for tiles."""

    def __init__(self, model: SegPIC, tables: ExactTables):
        self.model, self.path = model.eval(), ExactPath(model, tables)
        self.tables = {name: CodingTables(table) for name, table in tables.numbers.items()}
        self.medians = {name: floats(median)[:, None, None] for name, median in tables.medians.items()}

    @torch.inference_mode()
    def analyse(self, pixels: np.ndarray, grid: int) -> Analysis:
        """Return what the network sees in ``pixels``, uint8 (h, w, 3), whose edges it repeats to whole strides."""
        height, width = pixels.shape[:2]
        x = torch.tensor(pixels, device=self.model.device).permute(2, 0, 1)[None].float() / 255  # (1, 3, h, w)
        x = F.pad(x, (0, -width % STRIDE, 0, -height % STRIDE), mode="replicate")
        model, place = self.model, Grid(grid, [1])
        features = model.analysis1(x)
        codes = self._codes("prototypes1", model.prototypes1.encoder(place.pool(features)))
        y = model.analysis2(model.encoder_rat(features, self._first_prototypes(codes), place))
        return Analysis(y, codes)

    @torch.inference_mode()
    def write(self, analysis: Analysis, rate: Rate) -> Tile:
        """Return a tile at a rate."""
        writer, model = Writer(), self.model
        y, side = analysis.y * rate.gain, analysis.codes.shape[-1]
        place = Grid(side, [1])
        codes = self._codes("prototypes2", model.prototypes2.encoder(place.pool(y)))
        self._write(writer, "prototypes2", codes)
        prototypes = self.path.prototypes(codes)
        z = self._codes("z", model.hyper_analysis(model.hyper_rat(y, floats(prototypes), place)))
        self._write(writer, "z", z)
        parts = y.chunk(model.config.slices, 1)
        steps = [None] * len(parts) if rate.steps is None else rate.steps.chunk(len(parts), 1)

        def code(i: int, mean: Tensor, index: Tensor) -> Tensor:
            residual, step = parts[i] - floats(mean), steps[i]
            symbols = quantise(residual if step is None else torch.round(residual / step) * step)
            writer.write(_flat(symbols), _flat(index), self.tables["y"])
            return symbols

        latent = self.path.latent(*self.path.hyper(z, prototypes), code)
        self._write(writer, "prototypes1", analysis.codes)
        return Tile(writer.finish(), _checksum(codes, z, latent, analysis.codes))

    @torch.inference_mode()
    def read(self, tile: Tile, size: tuple[int, int], grid: int) -> tuple[Tensor, Tensor]:
        """Return the latent, not yet scaled back, and the codes of the first prototypes of a tile of (h, w) pixels.

        Raises a ``BitstreamError`` where the stream is not whole or says what the encoder did not.
        """
        reader = Reader(tile.payload)
        height, width = (-(-length // STRIDE) for length in size)
        codes = self._read(reader, "prototypes2", (grid, grid))
        prototypes = self.path.prototypes(codes)
        z = self._read(reader, "z", (height, width))
        reader.check()

        def code(i: int, mean: Tensor, index: Tensor) -> Tensor:
            symbols = reader.read(_flat(index), self.tables["y"])
            reader.check()
            return torch.from_numpy(symbols).view(mean.shape).to(mean.device)

        latent = self.path.latent(*self.path.hyper(z, prototypes), code)
        first = self._read(reader, "prototypes1", (grid, grid))
        reader.finish()
        if _checksum(codes, z, latent, first) != tile.latents:
            raise DamagedError(
                "a tile's numbers are not those the encoder had: the file, the model or this machine errs"
            )
        return floats(latent), first

    @torch.inference_mode()
    def synthesise(self, latent: Tensor, codes: Tensor, rate: Rate, size: tuple[int, int]) -> np.ndarray:
        """Return the pixels, uint8 (h, w, 3), of a latent and the codes of the first prototypes."""
        place = Grid(codes.shape[-1], [1])
        x = self.model.synthesise(latent * rate.inverse, self._first_prototypes(codes), place)
        pixels = (x[0, :, : size[0], : size[1]].clamp(0, 1) * 255).round().byte()  # (3, h, w)
        return pixels.permute(1, 2, 0).cpu().numpy()  # (h, w, 3)

    def _first_prototypes(self, codes: Tensor) -> Tensor:
        return self.model.prototypes1.decoder(codes + self.medians["prototypes1"].to(codes.device))

    def _codes(self, name: str, x: Tensor) -> Tensor:
        return quantise(x - self.medians[name].to(x.device))

    def _write(self, writer: Writer, name: str, symbols: Tensor) -> None:
        """Write symbols (1, c, h, w), each channel with its own table."""
        writer.write(_flat(symbols), _channels(symbols.shape[1:]), self.tables[name])

    def _read(self, reader: Reader, name: str, size: tuple[int, int]) -> Tensor:
        channels = len(self.medians[name])
        symbols = reader.read(_channels((channels, *size)), self.tables[name])
        return torch.from_numpy(symbols).view(1, channels, *size).to(self.model.device)


def _flat(x: Tensor) -> np.ndarray:
    return x.flatten().cpu().numpy()


def _channels(shape: tuple[int, ...]) -> np.ndarray:
    """Return the channel (n,) of each number of a map (c, h, w)."""
    return np.repeat(np.arange(shape[0]), shape[1] * shape[2])


def _checksum(*integers: Tensor) -> int:
    """Return a checksum of integers below 2^31, which are the same on every machine."""
    checksum = 0
    for tensor in integers:
        checksum = zlib.crc32(tensor.to("cpu", torch.int32).numpy().astype("<i4").tobytes(), checksum)
    return checksum
