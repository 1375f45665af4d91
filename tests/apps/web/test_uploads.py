"""Files from outside: known by their bytes, capped before they are decoded, their names of no account."""

import io
import struct
import tracemalloc
import zlib
from pathlib import Path

import pytest
from PIL import Image

from belvedere.apps import output, work
from belvedere.apps.requests import GenerateRequest
from belvedere.apps.web import uploads
from belvedere.apps.web.limits import Limits
from belvedere.data.images import to_srgb
from belvedere.errors import InputError
from tests.data.test_images import ADOBE, profile

LIMITS = Limits()


def encoded(kind: str, size: tuple[int, int] = (20, 12)) -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", size, "orange").save(stream, kind)
    return stream.getvalue()


def bomb(width: int, height: int) -> bytes:
    """A small PNG whose header tells of very many pixels."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    data = zlib.compress(bytes(1 << 20), 9)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "anything.svg"  # names are of no account


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
def test_pictures_are_known_by_their_bytes(kind: str, file: Path) -> None:
    file.write_bytes(encoded(kind) + b"<script>alert(1)</script>")
    assert uploads.picture(str(file), LIMITS).size == (20, 12)


def test_colours_are_those_of_the_profile(file: Path) -> None:
    """Pixels alone tell no profile: what is learned from, or painted on, is sRGB."""
    Image.new("RGB", (20, 12), "orange").save(file, "PNG", icc_profile=profile(ADOBE, [563]))
    shown = uploads.picture(file, LIMITS)
    assert "icc_profile" not in shown.info
    assert shown.tobytes() == to_srgb(uploads.photograph(file, LIMITS)).tobytes() != Image.open(file).tobytes()


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"<svg xmlns='http://www.w3.org/2000/svg'><script>alert(1)</script></svg>",
        b"<!doctype html><script>alert(1)</script>",
        b"GIF89a" + bytes(100),
        b"BM" + bytes(100),
        b"II*\0" + bytes(100),
        b"%!PS-Adobe-3.0 EPSF-3.0",
        b"PK\x03\x04" + bytes(100),
        b"\x89BVD" + bytes(100),
    ],
)
def test_other_kinds_are_refused(data: bytes, file: Path) -> None:
    file.write_bytes(data)
    with pytest.raises(InputError, match="no PNG, JPEG or WebP file"):
        uploads.picture(file, LIMITS)


def test_a_compressed_picture_is_taken_where_one_is_asked_for(file: Path) -> None:
    file.write_bytes(b"\x89BVD" + bytes(10))
    assert len(uploads.read(file, LIMITS, (uploads.BVD,))) == 14
    file.write_bytes(encoded("PNG"))
    with pytest.raises(InputError, match=r"no \.bvd file"):
        uploads.read(file, LIMITS, (uploads.BVD,))


@pytest.mark.parametrize("size", [(50_000, 50_000), (2**31 - 1, 2**31 - 1), (6000, 4001)])
def test_a_decompression_bomb_is_refused_before_it_takes_memory(size: tuple[int, int], file: Path) -> None:
    file.write_bytes(bomb(*size))
    assert size[0] * size[1] > LIMITS.upload_pixels
    tracemalloc.start()
    with pytest.raises(InputError):
        uploads.picture(file, LIMITS)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 8 << 20


def test_too_many_bytes_are_refused_and_not_read(file: Path) -> None:
    limits = Limits(upload_bytes=1 << 20)
    with file.open("wb") as stream:
        stream.write(encoded("PNG"))
        stream.truncate(1 << 34)  # takes no room on the disk
    with pytest.raises(InputError, match="more than 1 MB"):
        uploads.read(file, limits)


def test_nothing_or_a_file_that_is_gone(file: Path) -> None:
    with pytest.raises(InputError, match="no file yet"):
        uploads.read(None, LIMITS)
    with pytest.raises(InputError, match="drop it on the page again") as refused:
        uploads.read(file, LIMITS)
    assert str(file) not in str(refused.value), "paths of the server are told to nobody"


def test_errors_do_not_tell_paths(file: Path) -> None:
    file.write_bytes(encoded("PNG")[:60])
    for read in (uploads.picture, uploads.record):
        with pytest.raises(InputError) as refused:
            read(file, LIMITS)
        assert str(file.parent) not in str(refused.value)


def test_the_record_comes_back(file: Path, tiny_model: Path) -> None:
    asked = GenerateRequest(str(tiny_model), ("boat",), seed=11, steps=2, device="cpu")
    picture = next(work.generate(asked))
    file.write_bytes(output.encode(picture.image, "png", picture.record.to_json()))
    assert uploads.record(file, LIMITS) == picture.record
    file.write_bytes(encoded("PNG"))
    with pytest.raises(InputError, match="carries no settings"):
        uploads.record(file, LIMITS)
