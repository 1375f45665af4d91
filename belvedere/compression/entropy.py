"""Integers as bytes and back: an ANS coder (constriction's) on fixed tables of counts.

A stream holds everything of a tile in the order it is read. Nothing here depends on a machine: a probability is a
count / 65536, exact in float64, so what the coder makes of it, a product and its whole part, is the same everywhere.
"""

import constriction
import numpy as np

from belvedere.compression.official_tables import PRECISION, Tables
from belvedere.errors import DamagedError, TruncatedError

MAX_VALUE = 2**21 - 1
"""Numbers that can be sent are within +- this."""

WORD = np.dtype("<u4")
FIRST_STATE = 2**16 + 1
"""The coder's before the first number and after the last; one that has run dry ends below this."""
OUTSIDE = constriction.stream.model.Uniform(2 * MAX_VALUE + 1)
"""The code of numbers outside their table, all equally probable."""


class CodingTables:
    """Tables made ready for the coder, to be made once; the last symbol of each is the escape."""

    def __init__(self, tables: Tables):
        """``tables``: of each the cumulative counts, 0 to 65536, rising, of at least two symbols."""
        categorical = constriction.stream.model.Categorical
        self._tables = tables
        self.models = [categorical(np.diff(cdf) / 2**PRECISION, perfect=False) for cdf in tables.cdf]
        self.offset = np.array(tables.offset, dtype=np.int64)
        self.escape = np.array([len(cdf) - 2 for cdf in tables.cdf], dtype=np.int64)
        self.key = np.min_scalar_type(max(0, len(self.models) - 1))

    def __reduce__(self) -> tuple[type["CodingTables"], tuple[Tables]]:
        """Copy and pickle as the tables: the coder's own cannot be."""
        return CodingTables, (self._tables,)


class Writer:
    """Collects numbers in the order they will be read, and codes them backwards at the end: the coder is a stack."""

    def __init__(self) -> None:
        self._pieces: list[tuple[np.ndarray, object]] = []

    def write(self, values: np.ndarray, indices: np.ndarray, tables: CodingTables) -> None:
        """Add ``values``, int64 (n,), within +-``MAX_VALUE``; ``indices`` (n,): the table of each."""
        if values.size and max(-int(values.min()), int(values.max())) > MAX_VALUE:
            raise ValueError(f"numbers from {values.min()} to {values.max()}: must be within +-{MAX_VALUE}")
        order, used, counts = _groups(indices, tables)
        values = values[order]
        symbols, escape = values - np.repeat(tables.offset[used], counts), np.repeat(tables.escape[used], counts)
        outside = (symbols < 0) | (symbols >= escape)
        parts = np.split(np.where(outside, escape, symbols).astype(np.int32), np.cumsum(counts))
        self._pieces += [(part, tables.models[table]) for table, part in zip(used, parts, strict=False)]
        if outside.any():
            self._pieces.append(((values[outside] + MAX_VALUE).astype(np.int32), OUTSIDE))

    def finish(self) -> bytes:
        """Return the stream: whole little-endian words of 4 bytes, one for nothing."""
        coder = constriction.stream.stack.AnsCoder(np.array([FIRST_STATE], dtype=np.uint32))
        for symbols, model in reversed(self._pieces):
            coder.encode_reverse(symbols, model)
        return coder.get_compressed()[::-1].astype(WORD).tobytes()


class Reader:
    """Reads a stream. Hostile bytes yield some numbers within +-``MAX_VALUE`` or a ``BitstreamError``."""

    def __init__(self, data: bytes):
        if len(data) % WORD.itemsize:
            raise TruncatedError(f"a stream of {len(data)} bytes is cut: streams are whole words of {WORD.itemsize}")
        self._size, words = len(data), np.frombuffer(data, dtype=WORD)
        if len(words) and not words[0]:
            raise DamagedError("a stream begins with a word of zeros: no stream does")
        self._coder = constriction.stream.stack.AnsCoder(words[::-1].astype(np.uint32))

    def read(self, indices: np.ndarray, tables: CodingTables) -> np.ndarray:
        """Return the next numbers, int64 (n,); ``indices`` (n,): the table of each, grouped as they were written.

        Beyond the end there are numbers too: ``check`` and ``finish`` tell.
        """
        order, used, counts = _groups(indices, tables)
        parts = [self._coder.decode(tables.models[table], int(n)) for table, n in zip(used, counts, strict=True)]
        symbols = np.concatenate([np.empty(0, np.int32), *parts])
        values = symbols + np.repeat(tables.offset[used], counts)
        outside = np.flatnonzero(symbols == np.repeat(tables.escape[used], counts))
        if outside.size:
            values[outside] = self._coder.decode(OUTSIDE, outside.size).astype(np.int64) - MAX_VALUE
        result = np.empty_like(values)
        result[order] = values
        return result

    def check(self) -> None:
        """Raise if the stream has run dry: the state of a whole one never falls below its last."""
        words, state = self._coder.pos()
        if not words and state < FIRST_STATE:
            raise TruncatedError("a stream ends before its last number does: it is cut or altered")

    def finish(self) -> None:
        """Raise unless the stream ends here: some that are altered in their last numbers do."""
        if self._coder.num_words() > 1:
            raise DamagedError(f"a stream of {self._size} bytes goes on after its last number")
        if self._coder.pos() != (0, FIRST_STATE):
            raise TruncatedError("a stream does not end where its last number does: it is cut or altered")


def _groups(indices: np.ndarray, tables: CodingTables) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the order (n,) that brings numbers of one table together, the tables used, and how often each is."""
    order = np.argsort(indices.astype(tables.key), kind="stable")
    counts = np.bincount(indices)
    used = np.flatnonzero(counts)
    return order, used, counts[used]
