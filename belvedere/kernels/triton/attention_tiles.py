"""How attention is cut: a tile of one sequence and head for each program, heads in one or two widths, block sizes."""

import math
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from belvedere.kernels.triton.launch import capability_of, helper, launch

LOG2_E = math.log2(math.e)


class Tile(NamedTuple):
    """Rows that a program keeps, rows of the other side that it takes at a time, and Triton's options."""

    own: int
    other: int
    warps: int
    stages: int
    registers: int | None = None
    """Most that a thread may have; None: as the compiler likes."""

    @property
    def options(self) -> dict[str, int]:
        """What a launch is given."""
        bound = {} if self.registers is None else {"maxnreg": self.registers}
        return {"num_warps": self.warps, "num_stages": self.stages} | bound


# By the padded width of a head, up to which an entry holds. Sizes depend on nothing else, above all not on the batch,
# so that a row is always summed in the same order. A program's sums, (own, width) and (own, other) in float32, must
# stay in the registers of its warps: about 100 numbers a thread.
TILES: dict[str, dict[int, Tile]] = {
    "forward": {48: Tile(64, 64, 4, 3), 96: Tile(128, 64, 8, 3), 128: Tile(128, 64, 8, 2)},
    "queries": {128: Tile(64, 64, 4, 2)},
    "keys": {80: Tile(64, 64, 4, 2), 128: Tile(64, 32, 4, 2)},
}
# On Hopper small programs, of which four fit on a multiprocessor, are fastest: while one waits for its products, others
# take powers (benchmarks/results/tuned.json, an H200).
TILES_HOPPER: dict[str, dict[int, Tile]] = TILES | {
    "forward": {128: Tile(64, 32, 4, 3)},
}
# Before Hopper the operands of a product are in registers too.
TILES_AMPERE: dict[str, dict[int, Tile]] = TILES | {
    "queries": {128: Tile(64, 32, 4, 2)},
    "keys": {64: Tile(64, 32, 4, 2), 128: Tile(64, 16, 4, 2)},
}
# So they are on Blackwell's GPUs of capability 12 (RTX), which have no memory of tensor cores; 72 channels leave no
# registers to load ahead.
TILES_RTX: dict[str, dict[int, Tile]] = {
    "forward": TILES_HOPPER["forward"],
    "queries": {64: Tile(64, 32, 4, 2), 80: Tile(64, 32, 4, 1), 128: Tile(64, 32, 4, 2)},
    "keys": {128: Tile(64, 16, 4, 2)},
}
# float32 is multiplied without tensor cores, both operands in registers: few rows, and few channels at a time.
CHUNK_FLOAT32 = 16
TILES_FLOAT32: dict[str, dict[int, Tile]] = {
    "forward": {128: Tile(32, 32, 4, 1)},
    "queries": {128: Tile(32, 16, 4, 1)},
    "keys": {128: Tile(32, 16, 4, 1)},
}


def widths(d: int) -> tuple[int, int]:
    """Return the two powers of two, the second may be 0, that a head of ``d`` channels is multiplied in.

    72 = 64 + 8 is 64 and 16 (the least that a tensor core takes), not 128; 60 is 64. None is wider than 64, for what is
    multiplied at a time must fit in registers.
    """
    whole = max(16, triton.next_power_of_2(d))
    first = whole // 2
    second = max(16, triton.next_power_of_2(d - first))
    return (first, second) if first + second < whole or whole > 64 else (whole, 0)


def chunk_of(x: Tensor) -> int:
    """Return how many channels are multiplied at a time, 0 for all of them."""
    return CHUNK_FLOAT32 if x.dtype == torch.float32 else 0


def _generation_of(x: Tensor) -> dict[str, dict[int, Tile]]:
    """Return the tables for 16-bit numbers on the device of ``x``."""
    capability = capability_of(x)
    if capability < 100:
        return TILES_AMPERE if capability < 90 else TILES_HOPPER
    return TILES if capability < 120 else TILES_RTX


def tile_of(kind: str, x: Tensor) -> Tile:
    """Return the block sizes of the kernel ``kind`` for ``x`` (..., d)."""
    if x.dtype == torch.float32:
        table = TILES_FLOAT32[kind]
    else:
        table = _generation_of(x)[kind]
    width = sum(widths(x.shape[-1]))
    return next(table[widest] for widest in sorted(table) if width <= widest)


class Strides(NamedTuple):
    """Steps of q, k and v, in units of ``unit`` elements, along batch, tokens and heads: nine numbers.

    With the unit a constant, the compiler knows how far rows are aligned and loads as many bytes at once.
    """

    unit: int
    steps: tuple[int, ...]


def strides_of(*tensors: Tensor) -> Strides:
    """Return the strides of tensors (b, n, h, d) or (n, h, d), without that of the channels, which must be 1."""
    steps = [step for x in tensors for step in ((0,) * (4 - x.ndim) + x.stride()[:-1])]
    unit = math.gcd(16, *steps)
    return Strides(unit, tuple(step // unit for step in steps))


def readable(q: Tensor, k: Tensor, v: Tensor, offsets: Tensor | None) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """Return the tensors, copied where channels or offsets do not lie side by side."""
    q, k, v = (x if x.stride(-1) == 1 else x.contiguous() for x in (q, k, v))
    return q, k, v, None if offsets is None else offsets.contiguous()


@triton.jit
def _slots_kernel(offsets_ptr, slots_ptr, OWN: tl.constexpr, SPAN: tl.constexpr):
    sequence = tl.program_id(0)
    first = tl.load(offsets_ptr + sequence) // OWN + sequence
    last = tl.load(offsets_ptr + sequence + 1) // OWN + sequence + 1
    for start in range(first, last, SPAN):
        slot = start + tl.arange(0, SPAN)
        tl.store(slots_ptr + slot, sequence, slot < last)


def slots_of(offsets: Tensor | None, b: int, n: int, own: int) -> tuple[Tensor | None, int]:
    """Return the table of sequences by program, int32, and the number of programs, for ``n`` rows in tiles of ``own``.

    Packed sequence i has the programs from offsets[i] // own + i on: as many as its tiles need, or one more, and their
    number is known without reading ``offsets``. A dense batch of ``b`` needs no table.
    """
    if offsets is None:
        return None, b * triton.cdiv(n, own)
    count = n // own + len(offsets) - 1
    slots = torch.empty(count, dtype=torch.int32, device=offsets.device)
    launch(_slots_kernel, (len(offsets) - 1,), offsets, slots, OWN=own, SPAN=64)
    return slots, count


@helper
def place(offsets_ptr, slots_ptr, own_n, other_n, OWN: tl.constexpr, PACKED: tl.constexpr):
    """Return (row of the batch, first token of its sequence, first row of this tile, own tokens, other tokens).

    Dense: ``own_n`` and ``other_n`` are the lengths; packed, both are that of the sequence.
    """
    slot = tl.program_id(0)
    if PACKED:
        sequence = tl.load(slots_ptr + slot)
        first = tl.load(offsets_ptr + sequence)
        length = (tl.load(offsets_ptr + sequence + 1) - first).to(tl.int32)
        start = (slot - (first // OWN + sequence)).to(tl.int32) * OWN
        return tl.full((), 0, tl.int64), first.to(tl.int64), start, length, length
    else:
        tiles = (own_n + OWN - 1) // OWN
        return (slot // tiles).to(tl.int64), tl.full((), 0, tl.int64), slot % tiles * OWN, own_n, other_n


@helper
def load(ptr, step, left, START: tl.constexpr, WIDTH: tl.constexpr, D: tl.constexpr, ROWS: tl.constexpr,
         MASKED: tl.constexpr):  # fmt: skip
    """Return channels from ``START`` on of ``ROWS`` rows that lie ``step`` apart; zeros from row ``left`` on."""
    row = tl.arange(0, ROWS)[:, None]
    column = START + tl.arange(0, WIDTH)[None, :]
    at = ptr + row * step + column
    if MASKED and START + WIDTH > D:
        return tl.load(at, (row < left) & (column < D), other=0.0)
    elif MASKED:
        return tl.load(at, row < left, other=0.0)
    elif START + WIDTH > D:
        return tl.load(at, column < D, other=0.0)
    else:
        return tl.load(at)


@helper
def load_both(ptr, step, left, D0: tl.constexpr, D1: tl.constexpr, D: tl.constexpr, ROWS: tl.constexpr,
              MASKED: tl.constexpr):  # fmt: skip
    """Return both parts of the channels of such rows; where there is one, it twice."""
    x0 = load(ptr, step, left, 0, D0, D, ROWS, MASKED)
    x1 = x0
    if D1:
        x1 = load(ptr, step, left, D0, D1, D, ROWS, MASKED)
    return x0, x1


@helper
def zeros_both(D0: tl.constexpr, D1: tl.constexpr, ROWS: tl.constexpr):
    """Return sums for both parts, that begin as zero."""
    sums0 = tl.full((ROWS, D0), 0, tl.float32)
    sums1 = sums0
    if D1:
        sums1 = tl.full((ROWS, D1), 0, tl.float32)
    return sums0, sums1


@helper
def store(ptr, step, left, x, START: tl.constexpr, WIDTH: tl.constexpr, D: tl.constexpr, ROWS: tl.constexpr):
    """Write ``x`` (ROWS, WIDTH) to where ``load`` would read it."""
    row = tl.arange(0, ROWS)[:, None]
    column = START + tl.arange(0, WIDTH)[None, :]
    tl.store(ptr + row * step + column, x.to(ptr.dtype.element_ty), (row < left) & (column < D))


@helper
def store_both(ptr, step, left, x0, x1, D0: tl.constexpr, D1: tl.constexpr, D: tl.constexpr, ROWS: tl.constexpr):
    """Write both parts to where ``load_both`` would read them."""
    store(ptr, step, left, x0, 0, D0, D, ROWS)
    if D1:
        store(ptr, step, left, x1, D0, D1, D, ROWS)


@helper
def product(a_ptr, a_step, a_left, b_ptr, b_step, b_left, D: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
            CHUNK: tl.constexpr):  # fmt: skip
    """Return a @ b^T (ROWS, COLUMNS) of float32 rows, ``CHUNK`` channels at a time."""
    row = tl.arange(0, ROWS)[:, None]
    column = tl.arange(0, COLUMNS)[:, None]
    sums = tl.full((ROWS, COLUMNS), 0, tl.float32)
    for start in range(0, D, CHUNK):
        channel = start + tl.arange(0, CHUNK)[None, :]
        a = tl.load(a_ptr + row * a_step + channel, (row < a_left) & (channel < D), other=0.0)
        b = tl.load(b_ptr + column * b_step + channel, (column < b_left) & (channel < D), other=0.0)
        sums = tl.dot(a, tl.trans(b), sums, input_precision="ieee")
    return sums


@helper
def dot(a, b, sums, WIDE: tl.constexpr):
    """Return ``sums + a @ b`` in float32; ``WIDE`` in the interpreter, which multiplies bfloat16 wrongly."""
    if WIDE:
        a = a.to(tl.float32)
        b = b.to(tl.float32)
    return tl.dot(a, b, sums, input_precision="ieee")
