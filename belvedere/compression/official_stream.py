"""The official SegPIC streams, read for parity and import: 64-bit rANS, the float path, one picture at a time.

Four strings and three numbers beside them (the shape of z and the grid) are a picture. The format has no header and
no checksum; what is checked is that a string ends where its last number does, with the coder in its first state, which
a change in the last numbers, or in one outside its table, can pass. A machine whose floats differ from the encoder's
may read something else.
"""

from bisect import bisect_right
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from belvedere.compression.official_tables import PRECISION, Tables, bottleneck_tables, gaussian_tables, scale_index
from belvedere.compression.probabilities import Bottleneck
from belvedere.compression.regions import Grid
from belvedere.compression.segpic import SegPIC
from belvedere.errors import InputError

FIRST_STATE = 2**31
DIGIT = 4
"""Bits of the digits that numbers outside their table are sent in."""
MOST_DIGITS = 8


class Strings(NamedTuple):
    """The strings of one picture."""

    y: bytes
    z: bytes
    prototypes1: bytes
    prototypes2: bytes


class Decoded(NamedTuple):
    """What the strings of one picture say, all (1, c, h, w)."""

    prototypes1: Tensor
    prototypes2: Tensor
    z: Tensor
    latent: Tensor
    """y, with the predicted residual of its rounding."""
    picture: Tensor
    """Not clamped: (1, 3, h, w)."""


class Reader:
    """A string of the official coder; ``name`` is for errors. Raises ``InputError`` where it is cut or altered."""

    def __init__(self, data: bytes, name: str):
        self.name = name
        if len(data) < 8 or len(data) % 4:
            raise InputError(
                f"official string {name} has {len(data)} bytes: whole words of 4, and two of them at least"
            )
        low, high, *words = np.frombuffer(data, dtype="<u4").tolist()
        self.state, self.words = high << 32 | low, iter(words)

    def read(self, tables: Tables, indices: Iterable[int]) -> list[int]:
        """Return the next numbers, one for each of ``indices``, the table it is coded with."""
        return [self._value(tables.cdf[index], tables.offset[index]) for index in indices]

    def finish(self) -> None:
        """Raise ``InputError`` unless the string ends here."""
        if self.state != FIRST_STATE or next(self.words, None) is not None:
            raise InputError(f"official string {self.name} does not end where its last number does: it is altered, or "
                             "made with other weights, shape or grid")  # fmt: skip

    def _value(self, cdf: list[int], offset: int) -> int:
        slot = self.state & (2**PRECISION - 1)
        symbol = bisect_right(cdf, slot) - 1
        self._drop((cdf[symbol + 1] - cdf[symbol]) * (self.state >> PRECISION) + slot - cdf[symbol])
        escape = len(cdf) - 2
        return offset + (symbol if symbol < escape else self._outside(escape))

    def _outside(self, escape: int) -> int:
        """Return a number outside its table: odd ones are below it, even ones above."""
        count = digit = self._digit()
        while digit == 2**DIGIT - 1:
            digit = self._digit()
            count += digit
        if count > MOST_DIGITS:
            raise InputError(f"official string {self.name} has a number of more than 32 bits: it is damaged")
        number = sum(self._digit() << DIGIT * i for i in range(count))
        return -(number >> 1) - 1 if number & 1 else escape + (number >> 1)

    def _digit(self) -> int:
        digit = self.state & (2**DIGIT - 1)
        self._drop(self.state >> DIGIT)
        return digit

    def _drop(self, state: int) -> None:
        """Go on to ``state``, filled from the string where it is low."""
        if state < FIRST_STATE:
            word = next(self.words, None)
            if word is None:
                raise InputError(f"official string {self.name} ends too early: it is cut, or made with other weights")
            state = state << 32 | word
        self.state = state


@torch.no_grad()
def decode(model: SegPIC, strings: Strings, shape: tuple[int, int], grid: int = 4) -> Decoded:
    """Return the picture in ``strings``.

    ``shape``: (h, w) of z, a 64th of the padded picture's. ``grid``: that of the encoder.
    """
    place = Grid(grid, [1])
    code1 = _bottleneck(strings.prototypes1, "prototypes1", model.prototypes1.bottleneck, (grid, grid))
    code2 = _bottleneck(strings.prototypes2, "prototypes2", model.prototypes2.bottleneck, (grid, grid))
    z = _bottleneck(strings.z, "z", model.bottleneck, shape)
    means, scales = model.hyper_synthesis(z, model.prototypes2.decoder(code2), place)
    reader, tables = Reader(strings.y, "y"), gaussian_tables()

    def read(i: int, mean: Tensor, scale: Tensor) -> Tensor:
        values = reader.read(tables, scale_index(scale).flatten().tolist())
        return mean.new_tensor(values).view(mean.shape) + mean

    latent = model.channel_context(means, scales, read)
    reader.finish()
    picture = model.synthesise(latent, model.prototypes1.decoder(code1), place)
    return Decoded(code1, code2, z, latent, picture)


def _bottleneck(data: bytes, name: str, bottleneck: Bottleneck, size: tuple[int, int]) -> Tensor:
    """Return the numbers (1, c, h, w) of a string that is coded about the medians of a bottleneck."""
    channels, area = len(bottleneck.quantiles), size[0] * size[1]
    reader = Reader(data, name)
    values = reader.read(bottleneck_tables(bottleneck), (c for c in range(channels) for _ in range(area)))
    reader.finish()
    return bottleneck.quantiles.new_tensor(values).view(1, channels, *size) + bottleneck.medians
