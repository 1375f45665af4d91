"""The official streams: tables by hand, numbers through a writer made for this test, damage named. Golden: parity."""

import itertools
from collections.abc import Sequence
from contextlib import suppress

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from belvedere.compression.official_stream import Reader, Strings, decode
from belvedere.compression.official_tables import (
    Tables,
    bottleneck_tables,
    gaussian_tables,
    quantised_cdf,
    scale_index,
    scale_table,
)
from belvedere.compression.probabilities import Bottleneck
from belvedere.errors import InputError
from tests.compression.test_segpic import small

TABLES = Tables([quantised_cdf(p) for p in ([0.2, 0.5, 0.2, 0.1], [0.9, 0.1], [1e-6, 1.0, 0.0, 1e-9])], [-1, 7, -2])
NUMBERS = st.lists(st.tuples(st.integers(0, 2), st.integers(-(2**30), 2**30) | st.integers(-3, 9)), max_size=60)


def digits(number: int, escape: int) -> list[int]:
    """Return the 4-bit digits of a number outside its table: how many there are, then they themselves."""
    raw = -2 * number - 1 if number < 0 else 2 * (number - escape)
    groups = [raw >> shift & 15 for shift in range(0, raw.bit_length(), 4)]
    return [15] * (len(groups) // 15) + [len(groups) % 15] + groups


def write(numbers: Sequence[tuple[int, int]], tables: Tables = TABLES) -> bytes:
    """Return the string of (table, number): 64-bit rANS, last number first, words of 32 bits."""
    spans: list[tuple[int, int, int]] = []  # start, width and bits of each step
    for table, number in numbers:
        cdf, value = tables.cdf[table], number - tables.offset[table]
        escape = len(cdf) - 2
        symbol = value if 0 <= value < escape else escape
        spans.append((cdf[symbol], cdf[symbol + 1] - cdf[symbol], 16))
        if symbol == escape:
            spans += [(digit, 1, 4) for digit in digits(value, escape)]
    state, words = 2**31, []
    for start, width, bits in reversed(spans):
        if state >= (2**31 >> bits << 32) * width:
            words.append(state & 0xFFFFFFFF)
            state >>= 32
        state = (state // width << bits) + state % width + start
    return b"".join(word.to_bytes(4, "little") for word in (state & 0xFFFFFFFF, state >> 32, *reversed(words)))


@settings(max_examples=100, deadline=None)
@given(NUMBERS)
def test_what_is_written_is_read(numbers: list[tuple[int, int]]) -> None:
    reader = Reader(write(numbers), "y")
    assert reader.read(TABLES, [table for table, _ in numbers]) == [number for _, number in numbers]
    reader.finish()


def test_every_cut_is_noticed() -> None:
    numbers = [(i % 3, i % 4 - 1) for i in range(400)]
    data = write(numbers)
    for length in range(len(data)):
        with pytest.raises(InputError, match="official string y"):
            read_all(data[:length], numbers)


def test_most_flipped_bits_are_noticed() -> None:
    numbers = [(i % 3, i % 4 - 1) for i in range(100)]
    data = write(numbers)
    unnoticed = 0
    for place, bit in itertools.product(range(len(data)), range(8)):
        changed = bytearray(data)
        changed[place] ^= 1 << bit
        with suppress(InputError):
            read_all(bytes(changed), numbers)
            unnoticed += 1
    assert unnoticed < 0.25 * 8 * len(data)  # digits outside the tables, the last numbers: the format has no checksum


def read_all(data: bytes, numbers: Sequence[tuple[int, int]]) -> None:
    reader = Reader(data, "y")
    reader.read(TABLES, [table for table, _ in numbers])
    reader.finish()


def test_a_number_of_too_many_digits_is_refused() -> None:
    always_outside = Tables([[0, 65536]], [0])
    data = (2**40 + 9).to_bytes(8, "little")  # the first digit says that nine follow
    with pytest.raises(InputError, match="more than 32 bits"):
        Reader(data, "y").read(always_outside, [0])


def test_counts_by_hand() -> None:
    # 0.5, 0.25, 0.25 of 65536 are whole. With a symbol of none, the narrowest of more than one gives it one.
    assert quantised_cdf([0.5, 0.25, 0.25]) == [0, 32768, 49152, 65536]
    assert quantised_cdf([0.5, 0.0, 0.25, 0.25]) == [0, 32768, 32769, 49152, 65536]
    # Rounded to 65536, 3 and 0; brought to a sum of 65536: 65533, 2 and, the last, what is left, 1.
    assert quantised_cdf([1.0, 3 / 65536, 0.0]) == [0, 65533, 65535, 65536]


@given(st.lists(st.floats(0, 1, width=32), min_size=1, max_size=300).filter(lambda p: sum(p) > 1e-3))
def test_every_symbol_has_a_count(pmf: list[float]) -> None:
    cdf = quantised_cdf(pmf)
    assert (cdf[0], cdf[-1], len(cdf)) == (0, 65536, len(pmf) + 1)
    assert all(a < b for a, b in itertools.pairwise(cdf))


def test_gaussian_tables_reach_as_far_as_their_scale() -> None:
    tables = gaussian_tables()
    scales = scale_table()
    assert len(tables.cdf) == 64 and scales[0].item() == pytest.approx(0.11) and scales[-1].item() == pytest.approx(256)
    assert [len(cdf) for cdf in (tables.cdf[0], tables.cdf[-1])] == [5, 3133]  # half widths 1 and 1565
    assert tables.offset == [-(len(cdf) - 3) // 2 for cdf in tables.cdf]


def test_scale_index_counts_the_scales_below() -> None:
    scales = scale_table()
    assert scale_index(scales).tolist() == list(range(64))
    assert scale_index(torch.tensor([-1.0, 0.0, 0.1101, 300.0])).tolist() == [0, 0, 1, 63]
    assert scale_index(scales * 1.0001).tolist() == [*range(1, 64), 63]


def test_bottleneck_tables_span_the_quantiles() -> None:
    torch.manual_seed(0)
    bottleneck = Bottleneck(2)
    with torch.no_grad():
        bottleneck.quantiles[1, 0] = torch.tensor([-2.5, 0.2, 3.0])
    tables = bottleneck_tables(bottleneck)
    assert tables.offset == [-10, -3] and [len(cdf) for cdf in tables.cdf] == [23, 9]  # below, itself, above, escape


def test_strings_of_another_shape_are_noticed() -> None:
    model = small()

    def zeros(bottleneck: Bottleneck, area: int) -> bytes:
        channels = range(len(bottleneck.quantiles))
        return write([(c, 0) for c in channels for _ in range(area)], bottleneck_tables(bottleneck))

    codes = [zeros(coder.bottleneck, 4) for coder in (model.prototypes1, model.prototypes2)]
    z = zeros(model.bottleneck, 1)
    with pytest.raises(InputError, match="string z does not end where its last number does"):
        decode(model, Strings(z, z + bytes(4), *codes), (1, 1), 2)
    with pytest.raises(InputError, match="string prototypes1"):
        decode(model, Strings(z, z, *codes), (1, 1), 3)
