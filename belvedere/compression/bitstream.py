"""The ``.bvd`` file: a header, then independent tiles. Every length is checked before it is believed.

``docs/formats.md`` has the layout byte by byte. Reading is plain Python, no tensor is made and no network loaded, so
that a file that is cut, altered or not ours is refused at once.
"""

import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field

from belvedere.compression.tiling import Layout
from belvedere.errors import DamagedError, InputError, TruncatedError, UnsupportedError
from belvedere.limits import MAX_PIXELS

MAGIC = b"\x89BVD"
VERSION = 1
MODEL_BYTES = 8
MAX_METADATA = 4 << 20
"""Bytes of one block of metadata."""
GREY, PROFILE, EXIF = 1, 2, 4
"""Flags: the picture is grey; a colour profile, EXIF data follow."""
QUALITY_STEP = 256
"""Parts that the distance between two trained rates is divided into."""

ENTRY = 9
"""Least bytes of a tile in the table."""


@dataclass(frozen=True)
class Header:
    """What a file says of its picture."""

    model: bytes
    """The first bytes of the digest of the model it was made with."""
    width: int
    height: int
    quality: int
    """In 1 / ``QUALITY_STEP``, 0 for the lowest trained rate."""
    layout: Layout
    grid: int
    """Cells a side of the prototypes of a tile."""
    grey: bool = False
    profile: bytes = b""
    """ICC colour profile."""
    exif: bytes = b""


@dataclass(frozen=True)
class Tile:
    """One tile: the entropy coder's bytes, and a checksum of the numbers they stand for."""

    payload: bytes = field(repr=False)
    latents: int


def write(header: Header, tiles: Sequence[Tile]) -> bytes:
    """Return the file."""
    flags = GREY * header.grey | PROFILE * bool(header.profile) | EXIF * bool(header.exif)
    layout = header.layout
    parts = [MAGIC, bytes((VERSION, flags)), header.model[:MODEL_BYTES]]
    parts += map(_varint, (header.width, header.height, header.quality, layout.side, layout.overlap, header.grid))
    parts += [_varint(len(block)) + block for block in (header.profile, header.exif) if block]
    seal = zlib.crc32(b"".join(parts))
    for tile in tiles:
        parts += [_varint(len(tile.payload)), struct.pack("<II", zlib.crc32(tile.payload), tile.latents ^ seal)]
    head = b"".join(parts)
    return b"".join((head, struct.pack("<I", zlib.crc32(head)), *(tile.payload for tile in tiles)))


def read(data: bytes) -> tuple[Header, list[Tile]]:
    """Return what is in a file; a ``BitstreamError`` of the right kind for anything that is not a whole one."""
    source = _Source(data)
    header = _read_header(source)
    seal = zlib.crc32(data[: source.position])
    count = header.layout.count(header.width, header.height)
    if count * ENTRY > source.left:
        raise TruncatedError(f"the table of {count} tiles is not whole: the file is cut")
    entries = [(source.varint("a tile's length"), *struct.unpack("<II", source.take(8))) for _ in range(count)]
    head = data[: source.position]
    if zlib.crc32(head) != struct.unpack("<I", source.take(4))[0]:
        raise DamagedError("the header does not match its checksum: the file is damaged")
    if (missing := sum(length for length, _, _ in entries) - source.left) != 0:
        if missing > 0:
            raise TruncatedError(f"{missing} bytes are missing at the end: the file is cut")
        raise DamagedError(f"{-missing} bytes too many at the end: the file is damaged")
    tiles = []
    for number, (length, checksum, latents) in enumerate(entries):
        payload = source.take(length)
        if zlib.crc32(payload) != checksum:
            raise DamagedError(f"tile {number + 1} of {count} does not match its checksum: the file is damaged")
        tiles.append(Tile(payload, latents ^ seal))
    return header, tiles


def _read_header(source: "_Source") -> Header:
    if not source.left:
        raise TruncatedError("the file is empty")
    if source.take(min(len(MAGIC), source.left)) != MAGIC:
        raise UnsupportedError("not a .bvd file")
    version, flags = source.take(2)
    if version != VERSION or flags & ~(GREY | PROFILE | EXIF):
        raise UnsupportedError(f"a .bvd file of version {version}.{flags}: this version of Belvedere reads {VERSION}")
    model = source.take(MODEL_BYTES)
    width, height, quality, side, overlap, grid = (source.varint(name) for name in HEADER_FIELDS)
    if not width or not height or width * height > MAX_PIXELS:
        raise UnsupportedError(f"a picture of {width} x {height} pixels: 1 to {MAX_PIXELS} allowed")
    if quality >= 64 * QUALITY_STEP or not 1 <= grid <= 64:
        raise DamagedError(f"quality {quality} or grid {grid} out of range: the file is damaged")
    try:
        layout = Layout(side, overlap)
    except InputError as error:
        raise DamagedError(f"{error}: the file is damaged") from error
    blocks = [source.block() if flags & flag else b"" for flag in (PROFILE, EXIF)]
    return Header(model, width, height, quality, layout, grid, bool(flags & GREY), *blocks)


HEADER_FIELDS = ("width", "height", "quality", "the tile's side", "the overlap", "the grid")


def _varint(number: int) -> bytes:
    """Return a number in groups of seven bits, the low ones first, the high bit of a byte set where one follows."""
    groups = []
    while number >= 128:
        groups.append(number & 127 | 128)
        number >>= 7
    return bytes((*groups, number))


class _Source:
    """Bytes that are taken in order, never past their end."""

    def __init__(self, data: bytes):
        self.data, self.position = data, 0

    @property
    def left(self) -> int:
        return len(self.data) - self.position

    def take(self, count: int) -> bytes:
        if count > self.left:
            raise TruncatedError(f"{count - self.left} bytes are missing after byte {len(self.data)}: the file is cut")
        self.position += count
        return self.data[self.position - count : self.position]

    def varint(self, name: str) -> int:
        """Return a number of at most 32 bits, written in as few bytes as it needs."""
        number = 0
        for shift in range(0, 35, 7):
            (byte,) = self.take(1)
            number |= (byte & 127) << shift
            if byte < 128:
                if number >= 2**32 or (shift and not byte):
                    break
                return number
        raise DamagedError(f"{name} is no number: the file is damaged")

    def block(self) -> bytes:
        length = self.varint("the length of metadata")
        if not 0 < length <= MAX_METADATA:
            raise DamagedError(f"metadata of {length} bytes: 1 to {MAX_METADATA} allowed; the file is damaged")
        return self.take(length)
