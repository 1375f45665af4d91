import io
import struct
import warnings
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from belvedere.data.images import (
    centre_crop,
    fit,
    fit_size,
    open_image,
    open_labels,
    open_photograph,
    to_srgb,
    to_tensor,
)
from belvedere.errors import InputError


def encoded(image: Image.Image, form: str = "PNG", **options: object) -> bytes:
    stream = io.BytesIO()
    image.save(stream, form, **options)
    return stream.getvalue()


@pytest.mark.parametrize("form", ["PNG", "JPEG", "WEBP"])
def test_the_three_formats_open_from_path_and_bytes(form: str, tmp_path: Path) -> None:
    data = encoded(Image.new("RGB", (7, 5), (200, 40, 90)), form)
    path = tmp_path / "picture"
    path.write_bytes(data)
    for source in (data, path, str(path)):
        image = open_image(source)
        assert image.mode == "RGB" and image.size == (7, 5)
        np.testing.assert_allclose(np.asarray(image)[2, 3], (200, 40, 90), atol=6)


@pytest.mark.parametrize(
    ("image", "want"),
    [
        (Image.new("L", (2, 2), 120), (120, 120, 120)),
        (Image.new("1", (2, 2), 1), (255, 255, 255)),
        (Image.new("RGBA", (2, 2), (10, 20, 30, 0)), (255, 255, 255)),
        (Image.new("RGBA", (2, 2), (10, 20, 30, 255)), (10, 20, 30)),
        (Image.new("LA", (2, 2), (50, 255)), (50, 50, 50)),
        (Image.new("RGB", (2, 2), (9, 99, 199)).convert("P", palette=Image.Palette.ADAPTIVE), (9, 99, 199)),
        (Image.fromarray(np.full((2, 2), 0x8040, np.uint16)), (128, 128, 128)),
    ],
    ids=lambda v: getattr(v, "mode", ""),
)
def test_any_mode_becomes_rgb(image: Image.Image, want: tuple[int, int, int]) -> None:
    assert open_image(encoded(image)).getpixel((1, 1)) == want


def test_cmyk_becomes_rgb() -> None:
    pixel = open_image(encoded(Image.new("CMYK", (8, 8), (0, 255, 255, 0)), "JPEG")).getpixel((4, 4))
    assert isinstance(pixel, tuple) and pixel[0] > 200 and max(pixel[1:]) < 60


def test_exif_orientation_is_applied() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    image = Image.new("RGB", (4, 2), "black")
    image.putpixel((0, 0), (255, 255, 255))
    upright = open_image(encoded(image, exif=exif))
    assert upright.size == (2, 4) and upright.getpixel((1, 0)) == (255, 255, 255)
    stored = open_image(encoded(image, exif=exif), upright=False)
    assert stored.size == (4, 2) and stored.getpixel((0, 0)) == (255, 255, 255)


@pytest.mark.parametrize(
    ("size", "form", "want"),
    [
        ((160, 96), "JPEG", (20, 12)),
        ((80, 48), "JPEG", (20, 12)),
        ((60, 48), "JPEG", (30, 24)),  # a quarter would be too narrow
        ((162, 96), "JPEG", (81, 48)),  # a quarter would not be whole pixels
        ((161, 96), "JPEG", (161, 96)),
        ((38, 96), "JPEG", (38, 96)),
        ((160, 96), "PNG", (160, 96)),
    ],
)
def test_a_far_larger_jpeg_may_come_smaller(size: tuple[int, int], form: str, want: tuple[int, int]) -> None:
    ramp = np.linspace(0, 255, size[0]).astype(np.uint8)
    data = encoded(Image.fromarray(np.broadcast_to(ramp[None, :, None], (*size[::-1], 3)).copy()), form)
    small = open_image(data, least=(20, 12))
    assert small.size == want and open_image(data).size == size
    boxed = open_image(data).resize(want, Image.Resampling.BOX)
    np.testing.assert_allclose(np.asarray(small, float), np.asarray(boxed, float), atol=4)


ADOBE = ((0.60974, 0.31111, 0.01947), (0.20528, 0.62567, 0.06087), (0.14919, 0.06322, 0.74457))
SRGB = ((0.43607, 0.22249, 0.01392), (0.38515, 0.71687, 0.09708), (0.14307, 0.06061, 0.71410))
"""Red, green and blue as XYZ under D50, the white of profiles."""


def profile(primaries: tuple[tuple[float, ...], ...], curve: list[int]) -> bytes:
    """An ICC profile, version 2, of three primaries and a ``curv`` of these numbers."""

    def xyz(values: tuple[float, ...]) -> bytes:
        return b"XYZ " + bytes(4) + struct.pack(">3i", *(round(value * 65536) for value in values))

    tags = {b"desc": b"desc" + bytes(4) + struct.pack(">I", 2) + b"x\0" + bytes(78), b"cprt": b"text" + bytes(5)}
    tags |= {b"wtpt": xyz((0.9642, 1.0, 0.8249))}
    tags |= {name: xyz(values) for name, values in zip((b"rXYZ", b"gXYZ", b"bXYZ"), primaries, strict=True)}
    curv = b"curv" + bytes(4) + struct.pack(f">I{len(curve)}H", len(curve), *curve)
    tags |= dict.fromkeys((b"rTRC", b"gTRC", b"bTRC"), curv)
    table, body = struct.pack(">I", len(tags)), b""
    for name, content in tags.items():
        table += struct.pack(">4s2I", name, 132 + 12 * len(tags) + len(body), len(content))
        body += content + bytes(-len(content) % 4)
    head = bytes(4) + struct.pack(">I4s4s4s", 0x02100000, b"mntr", b"RGB ", b"XYZ ") + bytes(12) + b"acsp" + bytes(28)
    head += struct.pack(">3i", 63190, 65536, 54061) + bytes(48)
    return struct.pack(">I", 4 + len(head + table + body)) + head + table + body


def decoded(levels: np.ndarray) -> np.ndarray:
    """Light of sRGB's levels from 0 to 1."""
    return np.where(levels <= 0.04045, levels / 12.92, ((levels + 0.055) / 1.055) ** 2.4)


def test_colours_of_a_profile_become_those_of_srgb() -> None:
    pixels = np.random.default_rng(0).integers(60, 200, (8, 9, 3), np.uint8)
    told = open_photograph(encoded(Image.fromarray(pixels), icc_profile=profile(ADOBE, [563])))  # 2.2 in 256ths
    light = (pixels / 255) ** (563 / 256) @ np.array(ADOBE) @ np.linalg.inv(np.array(SRGB))
    image = to_srgb(told)
    inside = (light > 0) & (light < 1)
    assert inside.mean() > 0.7 and "icc_profile" not in image.info
    found = decoded(np.asarray(image) / 255.0)
    np.testing.assert_allclose(found[inside], light[inside], atol=0.006)
    assert np.abs(np.asarray(image).astype(int) - pixels).max() > 10
    np.testing.assert_array_equal(np.asarray(told.image), pixels)  # what is kept with its profile stays as it is


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
def test_pixels_without_another_profile_stay_as_they_are() -> None:
    """sRGB's curve of 1,024 steps, as cameras write it, would change some levels by one."""
    curve = (decoded(np.linspace(0, 1, 1024)) * 65535).round().astype(int).tolist()
    pixels = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    grey = Image.fromarray(pixels[..., 0])
    whole = profile(ADOBE, [563])
    for told in (b"", profile(SRGB, curve), whole[:200], whole[:128] + bytes(400), whole.replace(b"rXYZ", b"rxyz")):
        image = to_srgb(open_photograph(encoded(Image.fromarray(pixels), icc_profile=told)))
        np.testing.assert_array_equal(np.asarray(image), pixels)
    assert to_srgb(open_photograph(encoded(grey))).tobytes() == grey.convert("RGB").tobytes()


def test_the_pixel_limit_is_known_before_decoding() -> None:
    header = struct.pack(">IIBBBBB", 30000, 30000, 8, 2, 0, 0, 0)
    chunk = struct.pack(">I", 13) + b"IHDR" + header + struct.pack(">I", zlib.crc32(b"IHDR" + header))
    with pytest.raises(InputError, match=r"^huge\.png"):
        open_image(b"\x89PNG\r\n\x1a\n" + chunk + struct.pack(">I", 0) + b"IDAT", name="huge.png")
    with pytest.raises(InputError, match="has 3 x 4 pixels: at most 11"):
        open_image(encoded(Image.new("RGB", (3, 4))), max_pixels=11)


@pytest.mark.parametrize("side", [9_000, 9_500, 20_000])
def test_a_picture_too_large_for_pillow_is_told_so_without_a_warning(side: int) -> None:
    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    chunk = struct.pack(">I", 13) + b"IHDR" + header + struct.pack(">I", zlib.crc32(b"IHDR" + header))
    with warnings.catch_warnings(action="error"), pytest.raises(InputError, match="pixels: at most 64000000 allowed"):
        open_image(b"\x89PNG\r\n\x1a\n" + chunk + struct.pack(">I", 0) + b"IDAT")


@pytest.mark.parametrize("form", ["PNG", "JPEG", "WEBP"])
@pytest.mark.parametrize(
    ("tag", "value", "turned"),
    [(0x011A, b"72 dpi\0", False), (0x0112, b"6 of 8\0", False), (0x011A, b"72 dpi\0", True)],
)
def test_odd_exif_is_left_out_of_a_whole_picture(form: str, tag: int, value: bytes, turned: bool) -> None:
    entries = [struct.pack("<HHIHH", 0x0112, 3, 1, 6, 0)] if turned else []
    entries.append(struct.pack("<HHII", tag, 2, len(value), 10 + 12 * (1 + len(entries)) + 4))
    exif = b"Exif\0\0II*\0" + struct.pack("<IH", 8, len(entries)) + b"".join(entries) + bytes(4) + value
    data = encoded(Image.new("RGB", (8, 6), (10, 200, 30)), form, exif=exif)
    size = (6, 8) if turned else (8, 6)
    assert open_image(data).size == size
    told = open_photograph(data)
    assert told.image.size == size and told.exif == b""


@pytest.mark.parametrize("form", ["PNG", "WEBP"])
def test_a_photograph_is_no_animation(form: str) -> None:
    frames = [Image.new("RGB", (8, 6), colour) for colour in ("red", "blue")]
    data = encoded(frames[0], form, save_all=True, append_images=frames[1:])
    with pytest.raises(InputError, match=r"row 3 is an animation"):
        open_photograph(data, name="row 3")
    assert open_image(data).size == (8, 6)


def test_a_jpeg_with_its_preview_is_a_photograph() -> None:
    data = encoded(Image.new("RGB", (8, 6), "red"), "MPO", save_all=True, append_images=[Image.new("RGB", (4, 3))])
    assert open_photograph(data).image.size == (8, 6)


def test_opaque_grey_stays_grey() -> None:
    grey = Image.fromarray(np.arange(48, dtype=np.uint8).reshape(6, 8))
    opaque = Image.merge("LA", (grey, Image.new("L", grey.size, 255)))
    for data in (encoded(opaque), encoded(grey, transparency=200)):
        told = open_photograph(data)
        assert told.image.mode == "L" and (np.asarray(told.image) == np.asarray(grey)).all()


def test_a_transparent_level_of_16_bit_grey() -> None:
    grey = np.arange(48, dtype=np.uint16).reshape(6, 8)
    data = encoded(Image.fromarray(grey * 257), transparency=100)  # none of its levels
    told = open_photograph(data)
    assert told.image.mode == "L" and (np.asarray(told.image) == grey).all()
    data = encoded(Image.fromarray(grey * 257), transparency=2 * 257)
    with pytest.raises(InputError, match=r"^image has transparent parts"):
        open_photograph(data)
    grey[0, 2] = 255
    for image in (open_photograph(data, background="white").image, open_image(data)):
        assert image.mode == "RGB" and (np.asarray(image)[..., 1] == grey).all()


@pytest.mark.parametrize("keep", [0, 8, 20, 60, -60])
def test_broken_bytes_are_named(keep: int) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (16, 16, 3), np.uint8)
    for form in ("PNG", "JPEG", "WEBP"):
        with pytest.raises(InputError, match="row 3 is not a whole PNG"):
            open_image(encoded(Image.fromarray(noise), form)[:keep], name="row 3")


def test_other_formats_and_missing_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="not a whole PNG"):
        open_image(encoded(Image.new("RGB", (4, 4)), "BMP"))
    with pytest.raises(InputError, match=r"cannot read .*none\.png: No such file"):
        open_image(tmp_path / "none.png")


def test_centre_crop_takes_the_middle_of_the_longer_side() -> None:
    ramp = np.repeat(np.arange(256, dtype=np.uint8)[None, :, None], 64, 0).repeat(3, 2)
    crop = np.asarray(centre_crop(Image.fromarray(ramp), 16))
    assert crop.shape == (16, 16, 3)
    np.testing.assert_allclose(crop[8, :, 0], 96 + 4 * np.arange(16) + 1.5, atol=1)


def test_centre_crop_is_the_crop_of_adm() -> None:
    """Two box halvings of 4 x 4 cells, then a bicubic step of scale 1, by hand."""
    pixels = np.random.default_rng(1).integers(0, 256, (32, 32, 3), np.uint8)
    halved = pixels.reshape(16, 2, 16, 2, 3).mean((1, 3)).round()
    want = halved.reshape(8, 2, 8, 2, 3).mean((1, 3))
    np.testing.assert_allclose(np.asarray(centre_crop(Image.fromarray(pixels), 8)), want, atol=2)


@pytest.mark.parametrize("shape", [(5, 9), (64, 33), (200, 31), (8, 8)])
def test_centre_crop_has_the_size_asked_for(shape: tuple[int, int]) -> None:
    assert centre_crop(Image.new("RGB", shape), 8).size == (8, 8)


@pytest.mark.parametrize(
    ("size", "want"),
    [
        ((256, 256), (256, 256)),
        ((500, 375), (288, 208)),  # sqrt(4 / 3) * 256 = 295.6 by 221.7
        ((375, 500), (208, 288)),
        ((4000, 1000), (512, 128)),
        ((200, 100), (192, 96)),
        ((300, 200), (288, 192)),
        ((10, 40), (16, 64)),
        ((40, 10), (64, 16)),
        ((10, 5), (16, 16)),
        ((1, 60_000), (16, 4096)),
        ((60_000, 2), (4096, 16)),
    ],
)
def test_fit_size(size: tuple[int, int], want: tuple[int, int]) -> None:
    assert fit_size(*size, 256, 16) == want


def test_fit_size_keeps_pixels_and_aspect_within_bounds() -> None:
    rng = np.random.default_rng(0)
    for width, height in np.exp(rng.uniform(0, 9, (5000, 2))).astype(int).tolist():
        wide, high = fit_size(width, height, 512, 16)
        assert wide % 16 == high % 16 == 0 and min(wide, high) >= 16 and wide * high <= 512 * 512
        scale = min(1, 512 / (width * height) ** 0.5)
        if min(width, height) * scale >= 16:
            assert wide <= width * scale + 1e-6 < wide + 16 and high <= height * scale + 1e-6 < high + 16


def test_fit_shows_the_whole_picture() -> None:
    ramp = np.repeat(np.arange(0, 200, dtype=np.uint8)[None, :, None], 50, 0).repeat(3, 2)
    small = np.asarray(fit(Image.fromarray(ramp), 64, 8))
    assert small.shape == (32, 128, 3)
    np.testing.assert_allclose(small[16, :, 0], (np.arange(128) + 0.5) * 200 / 128 - 0.5, atol=1)


def test_to_tensor_puts_colours_first() -> None:
    image = Image.new("RGB", (3, 2), (1, 2, 3))
    assert to_tensor(image).shape == (3, 2, 3) and to_tensor(image)[:, 0, 0].tolist() == [1, 2, 3]


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
def test_damaged_bytes_open_or_raise_input_error() -> None:
    rng = np.random.default_rng(3)
    picture = Image.fromarray(rng.integers(0, 256, (20, 24, 3), np.uint8))
    exif = Image.Exif()
    exif[0x0112], exif[0x010F] = 6, "camera"
    refused = 0
    for i in range(600):
        data = bytearray(encoded(picture, ("PNG", "JPEG", "WEBP")[i % 3], exif=exif))
        for place in rng.integers(0, min(len(data), 200), 4):
            data[place] = rng.integers(0, 256)
        try:
            assert open_image(bytes(data)).mode == "RGB"
        except InputError:
            refused += 1
    assert 100 < refused < 600


def test_a_strip_is_cut_before_it_is_scaled(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[tuple[int, int]] = []
    resize = Image.Image.resize

    def noted(image: Image.Image, size: tuple[int, int], *arguments: Any) -> Image.Image:
        sizes.append(size)
        return resize(image, size, *arguments)

    monkeypatch.setattr(Image.Image, "resize", noted)
    strip = Image.new("RGB", (1, 20_000))
    strip.paste("white", (0, 9_999, 1, 10_001))
    crop = centre_crop(strip, 16)
    assert sizes == [(16, 8 * 16)]
    assert crop.size == (16, 16) and crop.getpixel((8, 8)) == (255, 255, 255) == crop.getpixel((0, 7))


def test_labels_of_a_map_stay_apart() -> None:
    levels = np.array([[3, 200, 259, 3 + 65280]], np.uint16)
    assert len(np.unique(open_labels(encoded(Image.fromarray(levels))), axis=1)[0]) == 4
    clear = Image.new("RGBA", (2, 1), (9, 9, 9, 0))
    clear.putpixel((1, 0), (255, 255, 255, 255))
    assert np.array(open_labels(encoded(clear))).tolist() == [[[9] * 3, [255] * 3]]
