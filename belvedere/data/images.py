"""Opening pictures from anywhere safely, and cutting them to size."""

import io
import math
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple, cast

import numpy as np
import torch
from PIL import Image, ImageChops, ImageCms, ImageOps
from torch import Tensor

from belvedere.errors import CommonError, InputError
from belvedere.limits import MAX_PIXELS

FORMATS = ("PNG", "JPEG", "WEBP")
WIDEST_ASPECT = 8
"""What is longer is cut before it is scaled to a square, which its ends cannot get into."""


class Photograph(NamedTuple):
    """A picture and what its file says of it."""

    image: Image.Image
    """Upright, RGB or 8-bit grey ("L")."""
    profile: bytes
    """ICC colour profile; empty without one that fits the picture."""
    exif: bytes
    """EXIF data, the orientation taken out; empty without any that can be written again."""


def open_image(
    source: Path | str | bytes,
    *,
    name: str = "",
    max_pixels: int = MAX_PIXELS,
    upright: bool = True,
    least: tuple[int, int] | None = None,
) -> Image.Image:
    """Return the picture in a file, or in its encoded bytes, upright and as RGB.

    PNG, JPEG and WebP only; the EXIF orientation is applied, transparency is laid over white, 16-bit grey is
    brought to 8 bits, of an animation the first frame is taken. Without ``upright`` pixels are as they are stored,
    whatever EXIF says. ``least`` (width, height): a JPEG may come at a half, a quarter or an eighth of its size, not
    below this, which is sooner decoded. Anything unreadable, and a picture of more than ``max_pixels`` (known before
    it is decoded), raises ``InputError`` naming ``name``, by default the path.
    """
    with _opened(source, name, max_pixels, upright, least) as image:
        return _to_rgb(image)


def open_photograph(
    source: Path | str | bytes, *, background: str | None = None, name: str = "", max_pixels: int = MAX_PIXELS
) -> Photograph:
    """Return the picture in a file, or in its encoded bytes, and its metadata; see ``open_image``.

    Transparency is laid over ``background``, the name or #hex of a colour; without one a picture that has some raises
    ``InputError``, and so does an animation.
    """
    name = _called(source, name)
    with _opened(source, name, max_pixels, still=True) as image:
        profile, exif = image.info.get("icc_profile") or b"", _written(image.getexif())
        image = _eight_bits(image)
        if image.has_transparency_data:
            image = _flatten(image, background, name)
        image = image if image.mode == "L" else _grey(image) or _to_rgb(image)
        if profile[16:20] != {"L": b"GRAY", "RGB": b"RGB "}[image.mode]:
            profile = b""
        return Photograph(image, profile, exif)


def to_srgb(photograph: Photograph) -> Image.Image:
    """Return a photograph's picture as RGB without a profile, its colours brought from its profile to sRGB.

    Pixels stay as they are where the profile is damaged, or is sRGB: conversion changes no level by more than one.
    """
    plain = photograph.image.convert("RGB")
    plain.info.pop("icc_profile", None)
    if not photograph.profile:
        return plain
    try:
        profile, target = ImageCms.ImageCmsProfile(io.BytesIO(photograph.profile)), ImageCms.createProfile("sRGB")
        converted = cast(Image.Image, ImageCms.profileToProfile(photograph.image, profile, target, outputMode="RGB"))
    except Exception:  # damaged profiles make their readers raise anything; such a one is as good as none
        return plain
    converted.info.pop("icc_profile", None)
    return converted if np.asarray(ImageChops.difference(plain, converted)).max() > 1 else plain


def open_labels(source: Path | str | bytes, *, name: str = "", max_pixels: int = MAX_PIXELS) -> Image.Image:
    """Return a map of regions as an RGB picture in which what differed in the file differs; see ``open_image``.

    A grey level of 16 bits is told by two channels, and a transparent colour is a colour like others.
    """
    with _opened(source, name, max_pixels) as image:
        if not image.mode.startswith("I"):
            return image.convert("RGB")
        levels = np.asarray(image)
        high, low = levels // 256, levels % 256
        return Image.fromarray(np.stack((low, high, np.zeros_like(low)), -1).astype(np.uint8))


@contextmanager
def _opened(
    source: Path | str | bytes,
    name: str,
    max_pixels: int,
    upright: bool = True,
    least: tuple[int, int] | None = None,
    still: bool = False,
) -> Iterator[Image.Image]:
    """Open a picture, by default upright and whole, see ``open_image``; what goes wrong becomes an ``InputError``.

    ``still``: an animation is refused.
    """
    name = _called(source, name)
    try:
        with warnings.catch_warnings(action="ignore", category=Image.DecompressionBombWarning):
            image = Image.open(io.BytesIO(source) if isinstance(source, bytes) else source, formats=FORMATS)
        with image:
            if image.width * image.height > max_pixels:
                raise InputError(f"{name} has {image.width} x {image.height} pixels: at most {max_pixels} allowed")
            if least is not None:
                _reduce(image, least)
            if still and image.format != "MPO" and getattr(image, "is_animated", False):  # MPO: a JPEG and its previews
                raise InputError(f"{name} is an animation, of which one frame would be kept: save that as a picture")
            yield _upright(image) if upright else image
    except InputError:
        raise
    except Image.DecompressionBombError as error:
        raise InputError(f"{name} has too many pixels: at most {max_pixels} allowed") from error
    except Exception as error:  # damaged bytes make decoders and EXIF readers raise anything, TypeError included
        if isinstance(error, OSError) and error.errno:
            raise InputError(f"cannot read {name}: {error.strerror}") from error
        raise InputError(f"{name} is not a whole PNG, JPEG or WebP picture: replace or remove it") from error


def _called(source: Path | str | bytes, name: str) -> str:
    return name or ("image" if isinstance(source, bytes) else str(source))


def _upright(image: Image.Image) -> Image.Image:
    """Return a picture turned as its EXIF says, and without EXIF where that has odd values besides."""
    image.load()
    image.getexif()  # is known from now on
    try:
        return ImageOps.exif_transpose(image)
    except Exception:  # values of another type than their tag's make Pillow raise anything where it writes them
        for key in ("exif", "Raw profile type exif"):
            image.info.pop(key, None)
        return ImageOps.exif_transpose(image)


def _written(exif: Image.Exif) -> bytes:
    """Return EXIF data as bytes; empty where it is, or where a value is of another type than its tag's."""
    try:
        return exif.tobytes() if exif else b""
    except Exception:  # Pillow's, of any kind
        return b""


def _reduce(image: Image.Image, least: tuple[int, int]) -> None:
    """Have a JPEG decoded at an eighth, a quarter or a half, where that leaves whole pixels, ``least`` or more."""
    for factor in (8, 4, 2):
        fits = all(side % factor == 0 and side // factor >= low for side, low in zip(image.size, least, strict=True))
        if fits:
            image.draft(None, (image.width // factor, image.height // factor))  # other formats take no notice
            return


def _flatten(image: Image.Image, background: str | None, name: str) -> Image.Image:
    """Return a picture with transparency as RGB over a colour, or as grey where it is grey and opaque everywhere."""
    colours = image.convert("RGBA")
    if colours.getchannel("A").getextrema()[0] == 255:
        return image.getchannel(0) if image.mode in ("L", "LA", "La") else colours.convert("RGB")
    if background is None:
        raise InputError(f"{name} has transparent parts, which are not kept: lay it over a colour (--background white)")
    try:
        below = Image.new("RGBA", colours.size, background)
    except ValueError as error:
        raise CommonError(f"background {background!r} is no colour: give a name or #hex") from error
    return Image.alpha_composite(below, colours).convert("RGB")


def _grey(image: Image.Image) -> Image.Image | None:
    """Return a picture of a grey mode as 8-bit grey; None for one of colours."""
    if image.mode in ("1", "LA", "La"):
        return _to_rgb(image).getchannel(0)
    return None


def _eight_bits(image: Image.Image) -> Image.Image:
    """Return 16-bit grey as 8-bit grey, with alpha where one of its levels is transparent; others as they are."""
    if not image.mode.startswith("I"):
        return image
    levels, clear = np.asarray(image), image.info.get("transparency")
    grey = Image.fromarray((levels // 256).astype(np.uint8))
    if clear is None:
        return grey
    return Image.merge("LA", (grey, Image.fromarray(np.where(levels == clear, 0, 255).astype(np.uint8))))


def _to_rgb(image: Image.Image) -> Image.Image:
    image = _eight_bits(image)
    if not image.has_transparency_data:
        return image.convert("RGB")
    colours = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", colours.size, "white"), colours).convert("RGB")


def centre_crop(image: Image.Image, size: int) -> Image.Image:
    """Return the middle square of the picture as ``size`` x ``size`` pixels, by the crop of ADM.

    Halve by a box filter while both sides are at least ``2 * size``, bring the shorter side to ``size`` by a
    bicubic filter, cut the middle (Dhariwal and Nichol 2021, arXiv 2105.05233, as in its released code).
    """
    most = WIDEST_ASPECT * min(image.size)
    if max(image.size) > most:
        image = _middle(image, min(image.width, most), min(image.height, most))
    while min(image.size) >= 2 * size:
        image = image.resize((image.width // 2, image.height // 2), Image.Resampling.BOX)
    scale = size / min(image.size)
    image = image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.BICUBIC)
    return _middle(image, size, size)


def _middle(image: Image.Image, width: int, height: int) -> Image.Image:
    left, top = (image.width - width) // 2, (image.height - height) // 2
    return image.crop((left, top, left + width, top + height))


def fit_size(width: int, height: int, side: int, unit: int) -> tuple[int, int]:
    """Return the (width, height) that a picture of any aspect is brought to: whole units, ``side**2`` pixels at most.

    A picture of more pixels than that is scaled down to them; a side below ``unit`` is scaled up to it; others keep
    their size (the rule of FiT, Lu et al. 2024, arXiv 2402.12376). What remains beyond whole units is left out, a
    strip too thin for one unit gets one.
    """
    if width * height >= side * side:
        wide, high = math.isqrt(width * side * side // height), math.isqrt(height * side * side // width)
    elif width < unit:
        wide, high = unit, unit * height // width
    elif height < unit:
        wide, high = unit * width // height, unit
    else:
        wide, high = width, height
    wide, high = (max(unit, length // unit * unit) for length in (wide, high))
    longest = side * side // min(wide, high) // unit * unit
    return min(wide, longest), min(high, longest)


def fit(image: Image.Image, side: int, unit: int) -> Image.Image:
    """Return the whole picture, its aspect kept to a unit, in the size of ``fit_size``, by a bicubic filter."""
    return image.resize(fit_size(*image.size, side, unit), Image.Resampling.BICUBIC)


def to_image(pixels: Tensor) -> Image.Image:
    """Return the RGB picture of pixels (3 or 1, h, w) in [-1, 1]; what is outside is clipped."""
    levels = (pixels.float() * 127.5 + 127.5).round().clamp(0, 255).byte()
    return Image.fromarray(levels.expand(3, -1, -1).permute(1, 2, 0).cpu().numpy())  # (h, w, 3)


def to_tensor(image: Image.Image) -> Tensor:
    """Return an RGB picture as uint8 (3, h, w)."""
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous()  # (3, h, w)
