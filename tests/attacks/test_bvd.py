"""Hostile .bvd files, made by code: always a typed error, soon, in little memory; never another picture."""

import struct
import time
import zlib
from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest

from belvedere.compression import bitstream
from belvedere.compression.bitstream import Tile
from belvedere.compression.codec import decode, encode
from belvedere.compression.entropy import FIRST_STATE
from belvedere.compression.tiling import SIDES, Layout
from belvedere.errors import BitstreamError
from tests.compression.test_bitstream import varint
from tests.compression.test_codec import SMALL_TILES, codec, photograph

SECONDS = 2.0
MEGABYTES = 64


@cache
def files() -> list[bytes]:
    """A file of one tile, one of six, one of a single pixel."""
    large = encode(photograph(500, 300), codec(), quality=4, layout=SMALL_TILES, profile=b"icc" * 50)
    return [encode(photograph(), codec(), quality=4), large, encode(photograph(1, 1), codec(), quality=1)]


def mutations(count: int) -> Iterator[bytes]:
    """Yield files altered at random: bits, bytes, runs, parts cut out, doubled, put in, two files joined."""
    draw = np.random.default_rng(1)
    for i in range(count):
        data = bytearray(files()[i % len(files())])
        start, stop = sorted(draw.integers(0, len(data) + 1, 2).tolist())
        match draw.integers(0, 7):
            case 0:
                data[start % len(data)] ^= 1 << int(draw.integers(0, 8))
            case 1:
                for position in draw.integers(0, len(data), draw.integers(1, 9)):
                    data[position] = draw.integers(0, 256)
            case 2:
                data[start:stop] = bytes(stop - start)
            case 3:
                del data[start:stop]
            case 4:
                data[start:start] = data[start:stop]
            case 5:
                data[start:start] = draw.bytes(draw.integers(1, 40))
            case _:
                data[start:] = files()[(i + 1) % len(files())][start:]
        yield bytes(data)


def resealed(count: int) -> Iterator[bytes]:
    """Yield files whose streams are altered but whose checksums, but for that of the numbers, are right."""
    draw = np.random.default_rng(2)
    for i in range(count):
        header, tiles = bitstream.read(files()[i % len(files())])
        number = int(draw.integers(0, len(tiles)))
        payload = bytearray(tiles[number].payload)
        if draw.integers(0, 2) and len(payload) > 4:
            payload = payload[: 4 * int(draw.integers(0, len(payload) // 4))]
        else:
            payload[int(draw.integers(0, len(payload)))] ^= int(draw.integers(1, 256))
        tiles[number] = Tile(bytes(payload), tiles[number].latents)
        yield bitstream.write(header, tiles)


def attack(hostile: Iterator[bytes]) -> int:
    """Decode files that are not the right ones; return how many there were."""
    for data in files():
        decode(data, codec())
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    before, count = peak(), 0
    for data in hostile:
        if data in files():
            continue
        began = time.thread_time()
        with pytest.raises(BitstreamError) as caught:
            decode(data, codec())
        assert time.thread_time() - began < SECONDS  # of work, whatever else the machine does
        assert "\n" not in str(caught.value)
        count += 1
    assert peak() - before < MEGABYTES
    return count


def peak() -> float:
    """Return the most MB this process has held."""
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) / 1024


def test_a_file_cut_anywhere() -> None:
    attack(data[:length] for data in files() for length in range(len(data)))


def test_files_altered_at_random() -> None:
    assert attack(mutations(3000)) > 2500


def test_streams_altered_under_right_checksums() -> None:
    assert attack(resealed(30)) == 30


@pytest.mark.slow
def test_files_altered_at_random_100_000_times() -> None:
    assert attack(mutations(100_000)) > 90_000
    assert attack(resealed(1000)) > 990


def test_large_tiles_whose_streams_hold_nothing() -> None:
    """Headers of the largest tile there is, and of larger ones, over streams that run dry at once or a little later."""

    def dry() -> Iterator[bytes]:
        header, tiles = bitstream.read(files()[0])
        large = replace(header, width=SIDES[1], height=SIDES[1], layout=Layout(SIDES[1], 0))
        for stream in (b"", struct.pack("<I", 1), struct.pack("<I", FIRST_STATE), tiles[0].payload[:8]):
            data = bitstream.write(large, [Tile(stream, 0)])
            yield data
            yield resized(data, SIDES[1], 4096)

    assert attack(dry()) == 8


def resized(data: bytes, side: int, other: int) -> bytes:
    """Return a file of one tile with ``other`` for ``side`` in its header, and a right checksum."""
    payload = bitstream.read(data)[1][0].payload
    head = data[: len(data) - len(payload) - 4].replace(varint(side), varint(other))
    return head + struct.pack("<I", zlib.crc32(head)) + payload


def test_header_bytes_altered_under_right_checksums() -> None:
    def altered() -> Iterator[bytes]:
        original = files()[0]
        end = len(original) - len(bitstream.read(original)[1][0].payload) - 4
        for position in range(4, end):
            for value in (0, 1, 127, 128, 255):
                head = bytearray(original[:end])
                head[position] = value
                yield bytes(head) + struct.pack("<I", zlib.crc32(head)) + original[end + 4 :]

    assert attack(altered()) > 100
