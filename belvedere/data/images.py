"""Opening pictures from anywhere safely, and cutting them to size."""

import io
import math
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from belvedere.errors import InputError

FORMATS = ("PNG", "JPEG", "WEBP")
MAX_PIXELS = 64_000_000
"""Below the 89 million at which Pillow itself begins to warn."""


def open_image(source: Path | str | bytes, *, name: str = "", max_pixels: int = MAX_PIXELS) -> Image.Image:
    """Return the picture in a file, or in its encoded bytes, upright and as RGB.

    PNG, JPEG and WebP only; the EXIF orientation is applied, transparency is laid over white, 16-bit grey is
    brought to 8 bits, of an animation the first frame is taken. Anything unreadable, and a picture of more than
    ``max_pixels`` (known before it is decoded), raises ``InputError`` naming ``name``, by default the path.
    """
    name = name or ("image" if isinstance(source, bytes) else str(source))
    try:
        with Image.open(io.BytesIO(source) if isinstance(source, bytes) else source, formats=FORMATS) as image:
            if image.width * image.height > max_pixels:
                raise InputError(f"{name} has {image.width} x {image.height} pixels: at most {max_pixels} allowed")
            return _to_rgb(ImageOps.exif_transpose(image))
    except InputError:
        raise
    except Exception as error:  # damaged bytes make decoders and EXIF readers raise anything, TypeError included
        if isinstance(error, OSError) and error.errno:
            raise InputError(f"cannot read {name}: {error.strerror}") from error
        raise InputError(f"{name} is not a whole PNG, JPEG or WebP picture: replace or remove it") from error


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):
        return Image.fromarray((np.asarray(image) // 256).astype(np.uint8)).convert("RGB")
    if not image.has_transparency_data:
        return image.convert("RGB")
    colours = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", colours.size, "white"), colours).convert("RGB")


def centre_crop(image: Image.Image, size: int) -> Image.Image:
    """Return the middle square of the picture as ``size`` x ``size`` pixels, by the crop of ADM.

    Halve by a box filter while both sides are at least ``2 * size``, bring the shorter side to ``size`` by a
    bicubic filter, cut the middle (Dhariwal and Nichol 2021, arXiv 2105.05233, as in its released code).
    """
    while min(image.size) >= 2 * size:
        image = image.resize((image.width // 2, image.height // 2), Image.Resampling.BOX)
    scale = size / min(image.size)
    image = image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.BICUBIC)
    left, top = (image.width - size) // 2, (image.height - size) // 2
    return image.crop((left, top, left + size, top + size))


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


def to_tensor(image: Image.Image) -> Tensor:
    """Return an RGB picture as uint8 (3, h, w)."""
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous()  # (3, h, w)
