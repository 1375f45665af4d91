"""The file format: round trips, every cut, altered bytes, fields at their extremes with a right checksum."""

import struct
import zlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from belvedere.compression.bitstream import MAX_METADATA, Header, Tile, read, write
from belvedere.compression.tiling import Layout
from belvedere.errors import BitstreamError, DamagedError, TruncatedError, UnsupportedError
from belvedere.limits import MAX_PIXELS

HEADER = Header(b"12345678", 1000, 600, 700, Layout(512, 32), 4, True, b"profile", b"exif")
TILES = [Tile(bytes(range(4 * i)), 2**32 - 1 - i) for i in range(len(HEADER.layout.boxes(1000, 600)))]
FILE = write(HEADER, TILES)


@settings(max_examples=50, deadline=None)
@given(
    st.builds(
        Header, st.binary(min_size=8, max_size=8), st.integers(1, 3000), st.integers(1, 3000), st.integers(0, 1792),
        st.builds(Layout, st.integers(256, 1024), st.integers(0, 64)), st.integers(1, 64), st.booleans(),
        st.binary(max_size=300), st.binary(max_size=300),
    ),
    st.randoms(use_true_random=False),
)  # fmt: skip
def test_what_is_written_is_read(header: Header, random: object) -> None:
    count = len(header.layout.boxes(header.width, header.height))
    tiles = [Tile(bytes(random.randrange(5)), random.randrange(2**32)) for _ in range(count)]  # type: ignore[attr-defined]
    assert read(write(header, tiles)) == (header, tiles)


def test_a_file_of_one_tile_costs_few_bytes_beside_it() -> None:
    header = Header(b"12345678", 768, 512, 700, Layout(), 4)
    assert len(write(header, [Tile(bytes(5000), 0)])) - 5000 <= 40


def test_every_cut_is_noticed() -> None:
    for length in range(len(FILE)):
        with pytest.raises(BitstreamError):
            read(FILE[:length])
    with pytest.raises(TruncatedError, match="empty"):
        read(b"")
    with pytest.raises(DamagedError, match="too many"):
        read(FILE + b"\0")


def test_every_altered_byte_is_noticed() -> None:
    for position in range(len(FILE)):
        for change in (1, 128, 255):
            altered = bytearray(FILE)
            altered[position] ^= change
            with pytest.raises(BitstreamError):
                read(bytes(altered))


@pytest.mark.parametrize("data", [b"\x89PNG\r\n\x1a\n" + bytes(100), b"\xff\xd8\xff\xe0" + bytes(100), b"B", b"BVD1"])
def test_other_files_are_named(data: bytes) -> None:
    with pytest.raises(UnsupportedError, match=r"not a \.bvd file"):
        read(data)


def sealed(*fields: int, flags: int = 0, version: int = 1, rest: bytes = b"") -> bytes:
    """Return a file with these numbers in its header and a right checksum."""
    head = b"\x89BVD" + bytes((version, flags)) + b"12345678" + b"".join(map(varint, fields)) + rest
    return head + struct.pack("<I", zlib.crc32(head))


def varint(number: int) -> bytes:
    groups = [number >> shift & 127 for shift in range(0, max(1, number.bit_length()), 7)]
    return bytes([*(group | 128 for group in groups[:-1]), groups[-1]])


BIG = 2**32 - 1


@pytest.mark.parametrize(
    ("data", "error"),
    [
        (sealed(0, 5, 0, 768, 32, 4), UnsupportedError),
        (sealed(BIG, BIG, 0, 768, 32, 4), UnsupportedError),
        (sealed(BIG, 1, 0, 768, 32, 4), UnsupportedError),
        (sealed(MAX_PIXELS, 1, 0, 256, 64, 4), TruncatedError),
        (sealed(8000, 8000, 0, 256, 64, 4), TruncatedError),
        (sealed(64, 64, BIG, 768, 32, 4), DamagedError),
        (sealed(64, 64, 0, 255, 32, 4), DamagedError),
        (sealed(64, 64, 0, 1025, 32, 4), DamagedError),
        (sealed(64, 64, 0, BIG, 32, 4), DamagedError),
        (sealed(64, 64, 0, 768, 65, 4), DamagedError),
        (sealed(64, 64, 0, 768, 32, 0), DamagedError),
        (sealed(64, 64, 0, 768, 32, 65), DamagedError),
        (sealed(2**35, 64, 0, 768, 32, 4), DamagedError),
        (sealed(64, 64, 0, 768, 32, 4, flags=8), UnsupportedError),
        (sealed(64, 64, 0, 768, 32, 4, version=2), UnsupportedError),
        (sealed(64, 64, 0, 768, 32, 4, flags=2, rest=varint(MAX_METADATA + 1)), DamagedError),
        (sealed(64, 64, 0, 768, 32, 4, flags=2, rest=varint(0)), DamagedError),
        (sealed(64, 64, 0, 768, 32, 4, flags=2, rest=varint(MAX_METADATA)), TruncatedError),
        (sealed(64, 64, 0, 768, 32, 4, rest=varint(BIG) + bytes(8)), TruncatedError),
        (sealed(64, 64, 0, 768, 32, 4, rest=b"\x80\x00" + bytes(8)), DamagedError),
    ],
)
def test_fields_at_their_extremes(data: bytes, error: type[BitstreamError]) -> None:
    with pytest.raises(error):
        read(data)
