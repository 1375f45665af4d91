"""Picture files made to mislead, and odd ones that are right."""

import io
import struct
import zlib
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, PngImagePlugin

from belvedere.apps import record
from belvedere.data.images import centre_crop, open_image, open_photograph
from tests.attacks.corpus import Attack, written

WHOLE = "is not a whole PNG, JPEG or WebP picture"
SIDE = 24


def pictures(folder: Path) -> list[Attack]:
    """Write the files below ``folder``; return the attacks."""
    return [*_bombs(folder), *_broken(folder), *_odd(folder), *_metadata(folder)]


def _square(mode: str = "RGB") -> Image.Image:
    pixels = np.arange(SIDE * SIDE * 3, dtype=np.uint8).reshape(SIDE, SIDE, 3)
    return Image.fromarray(pixels).convert(mode)


def _encoded(image: Image.Image, form: str, **options: Any) -> bytes:
    stream = io.BytesIO()
    image.save(stream, form, **options)
    return stream.getvalue()


def _chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def _png(width: int, height: int, *chunks: bytes, colour: int = 2, depth: int = 8, data: bytes = b"") -> bytes:
    size = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    parts = [_chunk(b"IHDR", size), *chunks, _chunk(b"IDAT", data or zlib.compress(b"")), _chunk(b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def _opened(folder: Path, name: str, content: bytes, message: str) -> Iterator[Attack]:
    path = written(folder / name, content)
    yield Attack(name, partial(open_image, path), message)
    yield Attack(f"{name} as a photograph", partial(open_photograph, path), message)


def _bombs(folder: Path) -> Iterator[Attack]:
    """Few bytes that claim, or unfold to, very many pixels or very long texts."""
    deflated = zlib.compress(bytes(200 << 20), 9)  # 200 KB
    jpeg = bytearray(_encoded(_square(), "JPEG"))
    frame = jpeg.index(b"\xff\xc0")
    jpeg[frame + 5 : frame + 9] = struct.pack(">HH", 65_500, 65_500)
    webp = b"VP8X" + struct.pack("<I", 10) + b"\x02\0\0\0" + b"\xff\x3f\x00" * 2
    anim = b"ANIM" + struct.pack("<IIH", 6, 0, 0)
    canvas = b"RIFF" + struct.pack("<I", 4 + len(webp) + len(anim)) + b"WEBP" + webp + anim
    for name, content in {
        "bomb-400-megapixels.png": _png(20_000, 20_000, data=deflated),
        "bomb-2-31-wide.png": _png(2**31 - 1, 1),
        "bomb-claims.jpg": bytes(jpeg),
        "bomb-canvas.webp": canvas,
    }.items():
        yield from _opened(folder, name, content, f"pixels: at most|{WHOLE}")
    text = _chunk(b"zTXt", b"Comment\0\0" + deflated)
    yield from _opened(folder, "bomb-text.png", _png(4, 4, text), WHOLE)
    profile = _chunk(b"iCCP", b"icc\0\0" + deflated)
    yield from _opened(folder, "bomb-profile.png", _png(4, 4, profile), WHOLE)
    rows = written(folder / "bomb-rows.png", _png(4, 4, data=deflated))
    yield Attack("rows without end", partial(open_image, rows), "", lambda x: x.size == (4, 4))  # type: ignore[attr-defined]


def _broken(folder: Path) -> Iterator[Attack]:
    """Files cut off, damaged or of another kind."""
    for form in ("PNG", "JPEG", "WEBP"):
        whole = _encoded(_square().resize((64, 64)), form)
        yield from _opened(folder, f"cut.{form.lower()}", whole[: len(whole) * 2 // 3], WHOLE)
    yield from _opened(folder, "empty.png", b"", WHOLE)
    yield from _opened(folder, "no-size.png", _png(0, 0), WHOLE)
    yield from _opened(folder, "gif.png", _encoded(_square(), "GIF"), WHOLE)
    yield from _opened(folder, "tiff.jpg", _encoded(_square(), "TIFF"), WHOLE)
    yield from _opened(folder, "bmp.webp", _encoded(_square(), "BMP"), WHOLE)
    yield from _opened(
        folder, "postscript.png", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(/tmp/x) (w) file", WHOLE
    )
    yield from _opened(folder, "text.jpg", b"#!/bin/sh\ntouch mark\n", WHOLE)
    noise = np.random.default_rng(0).bytes(4000)
    yield from _opened(folder, "noise.jpg", b"\xff\xd8\xff\xe0" + noise, WHOLE)
    yield from _opened(folder, "noise.webp", b"RIFF" + struct.pack("<I", 4000) + b"WEBPVP8 " + noise, WHOLE)


def _near(result: object, mode: str = "RGB") -> bool:
    """Whether a picture is about the test picture: the right place for every colour, lossy or not."""
    assert isinstance(result, Image.Image)
    want = np.asarray(_square(mode).convert("RGB"), np.int16)
    return bool(result.size == (SIDE, SIDE) and np.abs(np.asarray(result, np.int16) - want).mean() < 40)


def _odd(folder: Path) -> Iterator[Attack]:
    """Right files of rare kinds."""
    frames = [_square(), Image.new("RGB", (SIDE, SIDE), "red")]
    animation = {"save_all": True, "append_images": frames[1:], "duration": 100}
    grey = Image.fromarray(np.full((SIDE, SIDE), 0x8040, np.uint16))
    wide = Image.new("RGB", (20_000, 1), "red")
    files = {
        "animated.png": _encoded(frames[0], "PNG", **animation),
        "animated.webp": _encoded(frames[0], "WEBP", lossless=True, **animation),
        "cmyk.jpg": _encoded(_square("CMYK"), "JPEG", quality=95),
        "palette.png": _encoded(_square("P"), "PNG"),
        "progressive.jpg": _encoded(_square(), "JPEG", progressive=True, quality=95),
    }
    for name, content in files.items():
        mode = "P" if name.startswith("palette") else "CMYK" if name.startswith("cmyk") else "RGB"
        yield Attack(name, partial(open_image, written(folder / name, content)), "", partial(_near, mode=mode))
    path = written(folder / "grey16.png", _encoded(grey, "PNG"))
    yield Attack("grey of 16 bits", partial(open_image, path), "", lambda x: x.getpixel((3, 3)) == (128, 128, 128))  # type: ignore[attr-defined]
    path = written(folder / "colour16.png", _colour16())
    yield Attack("colour of 16 bits", partial(open_image, path), "", lambda x: x.getpixel((0, 0)) == (255, 128, 0))  # type: ignore[attr-defined]
    path = written(folder / "line.png", _encoded(wide, "PNG"))
    yield Attack("20000 x 1", partial(open_image, path), "", lambda x: x.size == (20_000, 1))  # type: ignore[attr-defined]
    for name, size in (("line", (20_000, 1)), ("column", (1, 20_000))):
        path = written(folder / f"crop-{name}.png", _encoded(Image.new("RGB", size, "red"), "PNG"))
        crop = partial(_cropped, path)
        yield Attack(f"the middle of a {name}", crop, "", lambda x: x.size == (512, 512))  # type: ignore[attr-defined]
    path = written(folder / "dot.jpg", _encoded(Image.new("RGB", (1, 1), "red"), "JPEG"))
    yield Attack("1 x 1", partial(open_image, path), "", lambda x: x.size == (1, 1))  # type: ignore[attr-defined]


def _cropped(path: Path) -> Image.Image:
    return centre_crop(open_image(path), 512)


def _colour16() -> bytes:
    row = b"\0" + struct.pack(">HHH", 0xFFFF, 0x8000, 0) * 2
    return _png(2, 2, depth=16, data=zlib.compress(row * 2))


def _metadata(folder: Path) -> Iterator[Attack]:
    """Metadata that are garbage, huge or in circles, and records that lie."""
    garbage = bytes(range(256)) * 200
    loop = b"II*\0\x08\0\0\0" + struct.pack("<HHHIII", 1, 0x8769, 4, 1, 8, 8)  # an IFD that is its own child
    huge = b"II*\0\x08\0\0\0" + struct.pack("<HHHIII", 1, 0x010E, 2, 2**31 - 1, 26, 0)
    yield from _opened(folder, "exif-garbage.png", _encoded(_square(), "PNG", exif=garbage[:20_000]), WHOLE)
    for name, exif in {"loop": loop, "huge": huge, "8 MB": huge + bytes(8 << 20)}.items():
        path = written(folder / f"exif-{name}.png", _encoded(_square(), "PNG", exif=exif))
        yield Attack(f"EXIF: {name}", partial(open_image, path), "", _near)
        photograph = partial(open_photograph, path)
        yield Attack(f"EXIF in a photograph: {name}", photograph, "", lambda x: _near(x.image))  # type: ignore[attr-defined]
    for form in ("PNG", "JPEG", "WEBP"):
        path = written(
            folder / f"icc.{form.lower()}", _encoded(_square(), form, icc_profile=garbage[:60_000], quality=95)
        )
        right = lambda x: x.profile == b"" and _near(x.image)  # noqa: E731
        yield Attack(f"ICC garbage in {form}", partial(open_photograph, path), "", right)
    for name, text, message in (
        ("record of 100 KB", '{"format": 1, "x": "' + "x" * 100_000 + '"}', "larger than 64 KB"),
        ("record nested without end", "[" * 60_000, "not JSON"),
        ("record of another format", '{"format": 2}', "not of format 1"),
        ("record of a list", "[1]", "not of format 1"),
        ("record with a class", '{"format": 1, "request": {"__class__": "os.system"}, "machine": {}}', "has no field"),
        ("record of a billion", '{"format": 1, "request": {"count": 1e400}, "machine": {}}', "count must be"),
    ):
        info = PngImagePlugin.PngInfo()
        info.add_text(record.KEY, text)
        path = written(folder / f"{name}.png", _encoded(_square(), "PNG", pnginfo=info))
        yield Attack(name, partial(record.read, path), message)
