"""The entropy coder: round trips, sizes, a frozen stream, and hostile bytes."""

import itertools
from bisect import bisect_right
from collections.abc import Sequence
from contextlib import suppress

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from belvedere.compression.entropy import MAX_VALUE, CodingTables, Reader, Writer
from belvedere.compression.official_tables import Tables, gaussian_tables, quantised_cdf
from belvedere.errors import BitstreamError, DamagedError, TruncatedError

SOME = Tables([quantised_cdf(p) for p in ([0.2, 0.5, 0.2, 0.1], [0.9, 0.1], [1e-6, 1.0, 0.0, 1e-9])], [-1, 7, -2])
TABLES = CodingTables(SOME)
GAUSSIAN = gaussian_tables()

CALLS = st.lists(
    st.lists(
        st.tuples(st.integers(-3, 9) | st.integers(-MAX_VALUE, MAX_VALUE), st.integers(0, 2)), max_size=40
    ).map(lambda pairs: np.array(pairs, dtype=np.int64).reshape(-1, 2).T),
    max_size=4,
)  # fmt: skip
"""Values and tables (2, n) of some calls."""


def written(calls: list[np.ndarray]) -> bytes:
    writer = Writer()
    for values, indices in calls:
        writer.write(values, indices, TABLES)
    return writer.finish()


def read_all(data: bytes, calls: list[np.ndarray]) -> list[np.ndarray]:
    reader = Reader(data)
    results = [reader.read(indices, TABLES) for _, indices in calls]
    reader.finish()
    return results


def usual(count: int) -> list[np.ndarray]:
    """One call with numbers inside their tables."""
    rng = np.random.default_rng(0)
    indices = rng.integers(0, 3, count)
    return [np.stack((np.array([0, 7, -1])[indices] + (indices == 0) * rng.integers(-1, 2, count), indices))]


@settings(max_examples=100, deadline=None)
@given(CALLS)
def test_what_is_written_is_read(calls: list[np.ndarray]) -> None:
    results = read_all(written(calls), calls)
    assert all(np.array_equal(result, values) for result, (values, _) in zip(results, calls, strict=True))
    assert all(result.dtype == np.int64 for result in results)


def test_size_is_that_of_the_probabilities() -> None:
    rng = np.random.default_rng(0)
    indices = rng.integers(0, 64, 20000)
    values = np.round(rng.normal(size=20000) * 0.11 * (256 / 0.11) ** (indices / 63)).astype(np.int64)
    writer = Writer()
    writer.write(values, indices, CodingTables(GAUSSIAN))
    places = values - np.array(GAUSSIAN.offset)[indices]
    counts = [GAUSSIAN.cdf[i][p + 1] - GAUSSIAN.cdf[i][p] for i, p in zip(indices, places, strict=True)]
    assert 8 * len(writer.finish()) == pytest.approx((16 - np.log2(counts)).sum(), rel=1e-3)


def test_a_number_outside_its_table_costs_22_bits_more() -> None:
    always = CodingTables(Tables([[0, 1, 65536]], [0]))
    writer = Writer()
    writer.write(np.full(3200, -MAX_VALUE), np.zeros(3200, dtype=np.int64), always)
    assert 8 * len(writer.finish()) == pytest.approx(3200 * 22, abs=40)


def test_the_stream_is_frozen() -> None:
    calls = [np.array([[0, 1, 7, -1, 9, 0], [0, 0, 1, 0, 1, 2]]), np.array([[-2, MAX_VALUE, -MAX_VALUE], [2, 0, 1]])]
    assert written(calls).hex() == "010000004e3956b01652b93f7f80e7c3f9ffff00"


def plainly(data: bytes, calls: list[np.ndarray], tables: Tables) -> list[np.ndarray]:
    """Read a stream as docs/formats.md says, in plain Python."""
    words = [int.from_bytes(data[i : i + 4], "little") for i in range(0, len(data), 4)]
    state = words.pop(0)
    state = state << 32 | words.pop(0) if words else state

    def symbol(edges: Sequence[int]) -> int:
        nonlocal state
        part = state % 2**24
        found = bisect_right(edges, part) - 1
        end = edges[found + 1] if found + 1 < len(edges) else 2**24
        state = (state >> 24) * (end - edges[found]) + part - edges[found]
        if state < 2**32 and words:
            state = state << 32 | words.pop(0)
        return found

    results = []
    for _, indices in calls:
        values, outside = np.zeros(len(indices), np.int64), []
        for table in sorted(set(indices.tolist())):
            counts = tables.cdf[table][:-1]
            edges = [count * (2**24 - len(counts)) // 2**16 + i for i, count in enumerate(counts)]
            for place in np.flatnonzero(indices == table):
                found = symbol(edges)
                values[place] = tables.offset[table] + found
                if found == len(counts) - 1:
                    outside.append(place)
        for place in outside:
            values[place] = symbol(range(0, 4 * (2**22 - 1), 4)) - (2**21 - 1)
        results.append(values)
    assert (state, words) == (65537, [])
    return results


def test_the_page_on_formats_is_enough_to_decode_a_stream() -> None:
    calls = [np.array([[0, 1, 7, -1, 9, 0], [0, 0, 1, 0, 1, 2]]), np.array([[-2, MAX_VALUE, -MAX_VALUE], [2, 0, 1]])]
    rng = np.random.default_rng(0)
    widest = len(GAUSSIAN.cdf) - 1
    assert len(GAUSSIAN.cdf[widest]) == max(map(len, GAUSSIAN.cdf)) == 3133
    indices = np.array([0, 20, widest] * 40)
    values = np.round(rng.normal(size=120) * np.array([0.11, 1.3, 256] * 40)).astype(np.int64)
    values[:6] = 5, -MAX_VALUE, MAX_VALUE, 0, 0, GAUSSIAN.offset[widest]
    wide = [np.stack((values, indices)), np.stack((values[::-1], indices[::-1]))]
    for both, tables in ((calls, SOME), (wide, GAUSSIAN)):
        writer, ready = Writer(), CodingTables(tables)
        for numbers, places in both:
            writer.write(numbers, places, ready)
        found = plainly(writer.finish(), both, tables)
        assert all((a == b[0]).all() for a, b in zip(found, both, strict=True))


def test_a_stream_that_has_run_dry_is_noticed_and_a_whole_one_never_is() -> None:
    calls = [usual(4000)[0][:, start : start + 100] for start in range(0, 4000, 100)]
    data = written(calls)
    whole, half = Reader(data), Reader(data[: len(data) // 8 * 4])
    for _, indices in calls:
        whole.read(indices, TABLES)
        whole.check()
    read = 0
    with pytest.raises(TruncatedError, match="ends before its last number"):
        for _, indices in calls:
            half.read(indices, TABLES)
            half.check()
            read += 1
    assert 18 < read < 26
    likely = [np.stack((np.full(5000, 7), np.ones(5000, np.int64)))]  # the first of its table: the state stays
    for data, numbers in ((Writer().finish(), []), (written(likely), likely)):
        reader = Reader(data)
        for _, indices in numbers:
            reader.read(indices, TABLES)
        reader.check()


def test_a_beginning_holds_the_first_numbers() -> None:
    calls = usual(4000)
    data = written(calls)
    half = Reader(data[: len(data) // 8 * 4]).read(calls[0][1], TABLES)
    order = np.argsort(calls[0][1], kind="stable")[:500]
    assert np.array_equal(half[order], calls[0][0][order])


def test_nothing_is_one_word() -> None:
    data = Writer().finish()
    assert len(data) == 4
    reader = Reader(data)
    assert reader.read(np.zeros(0, dtype=np.int64), TABLES).shape == (0,)
    reader.finish()


@pytest.mark.parametrize("value", [MAX_VALUE + 1, -MAX_VALUE - 1, np.iinfo(np.int64).min])
def test_numbers_too_large_are_refused(value: int) -> None:
    with pytest.raises(ValueError, match="must be within"):
        Writer().write(np.array([0, value]), np.zeros(2, dtype=np.int64), TABLES)


@settings(max_examples=150, deadline=None)
@given(st.binary(max_size=64) | st.lists(st.sampled_from([0, 1, 255]), max_size=40).map(bytes))
def test_hostile_bytes_are_numbers_in_range_or_an_error(data: bytes) -> None:
    tables = CodingTables(Tables(SOME.cdf + GAUSSIAN.cdf[::9], SOME.offset + GAUSSIAN.offset[::9]))
    with suppress(BitstreamError):
        reader = Reader(data)
        for _ in range(3):
            values = reader.read(np.arange(200) % len(tables.models), tables)
            assert values.dtype == np.int64 and np.abs(values).max() <= MAX_VALUE
        reader.finish()


@pytest.mark.parametrize(
    ("data", "error"),
    [(b"", TruncatedError), (b"abcde", TruncatedError), (bytes(8), DamagedError), (bytes(4) + b"abcd", DamagedError)],
)
def test_no_stream(data: bytes, error: type[Exception]) -> None:
    with pytest.raises(error):
        Reader(data).finish()


def test_more_than_was_written() -> None:
    calls = usual(100)
    with pytest.raises(DamagedError, match="goes on after its last number"):
        read_all(written(calls) + bytes(range(100)), calls)


def test_most_cuts_and_flipped_bits_are_noticed() -> None:
    calls = usual(400)
    data = written(calls)
    wrong = [data[:length] for length in range(len(data))]
    for bit in range(8 * len(data)):
        place = bit // 8
        wrong.append(data[:place] + bytes([data[place] ^ 1 << bit % 8]) + data[place + 1 :])
    unnoticed = 0
    for changed in wrong:
        with suppress(BitstreamError):
            read_all(changed, calls)
            unnoticed += 1
    print(unnoticed, len(wrong))
    assert unnoticed < 0.01 * len(wrong)


def test_every_symbol_of_every_table_has_the_count_of_its_table() -> None:
    # A state below 2^24 is its own place among the counts, which the coder holds as parts of 2^24.
    for (cdf, offset), model in zip(zip(*SOME, strict=True), range(3), strict=True):
        for symbol, (low, high) in enumerate(itertools.pairwise(cdf[:-1])):
            for place in (low, high - 1):
                data = (max(1, place * 256 + 128)).to_bytes(4, "little")
                assert Reader(data).read(np.array([model]), TABLES) == offset + symbol
