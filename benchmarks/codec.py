"""What the embedded codec does to real pictures, besides its rate: ``python benchmarks/codec.py FOLDER``.

For each picture of a folder, at qualities 1, 4 and 8:

- the bytes of the file against the bits that the float network's probabilities say: what tables, integers, header and
  coder cost;
- whether the decoder's picture is the encoder's own reconstruction, bit for bit.

And of the first picture: the PSNR near the seams of 256-pixel tiles and elsewhere, against that with one tile; what
a map costs and saves in which only the middle matters; and how large the hyper decoder's map for means becomes in
floats, which files bound to +-2048. Last, bytes and PSNR of what is no photograph: two halves, red and blue.
"""

import argparse
import json
import math
import statistics
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

import belvedere
from belvedere.apps.evaluate_compression import pictures_in
from belvedere.apps.record import processor
from belvedere.compression import bitstream
from belvedere.compression.codec import Codec
from belvedere.compression.tiling import Layout
from belvedere.data.images import open_image

QUALITIES = (1.0, 4.0, 8.0)
SEAM = 8
"""Pixels on each side of the middle of an overlap that count as near it."""


def pixels(image: Image.Image) -> np.ndarray:
    """Return the pixels, float64 (h, w, 3)."""
    return np.asarray(image, dtype=np.float64)


def psnr(a: np.ndarray, b: np.ndarray, where: np.ndarray | None = None) -> float:
    """Return the PSNR in dB, of the pixels ``where`` (h, w) alone if given."""
    error = (a - b) ** 2
    return 10 * math.log10(255**2 / (error if where is None else error[where]).mean())


@torch.no_grad()
def float_bits(codec: Codec, image: Image.Image, quality: float) -> float:
    """Return the bits that the float network gives a picture whose sides are multiples of 64."""
    x = torch.tensor(np.asarray(image)).permute(2, 0, 1)[None] / 255
    likelihoods = codec.model(x, quality=torch.tensor([quality - 1])).likelihoods
    return -sum(float(torch.log2(p).sum()) for p in likelihoods.values())


def one(codec: Codec, image: Image.Image, quality: float) -> dict[str, Any]:
    """Return what is measured of one picture at one quality."""
    data = belvedere.encode(image, codec, quality=quality)
    header, (tile,) = bitstream.read(data)
    decoded = belvedere.decode(data, codec)
    analysis, rate = codec.tiles.analyse(np.asarray(image), header.grid), codec.rate(header.quality)
    again = codec.tiles.write(analysis, rate)
    size = image.height, image.width
    latent, codes = codec.tiles.read(again, size, header.grid)
    own: Tensor | np.ndarray = codec.tiles.synthesise(latent, codes, rate, size)
    estimated = float_bits(codec, image, quality)
    return {
        "quality": quality,
        "bytes": len(data),
        "header_bytes": len(data) - len(tile.payload),
        "float_estimate_bytes": estimated / 8,
        "file_over_estimate": len(data) * 8 / estimated,
        "decoded_is_the_encoders": bool((np.asarray(decoded) == own).all()),
        "psnr": psnr(pixels(image), pixels(decoded)),
    }


def seams(codec: Codec, image: Image.Image) -> dict[str, Any]:
    """Return the PSNR near seams of small tiles and elsewhere, with these tiles and with one."""
    layout = Layout(256, 32)
    near = np.zeros((image.height, image.width), bool)
    for axis, length in ((0, image.height), (1, image.width)):
        spans = layout.spans(length)
        for left, right in pairwise(spans):
            middle = (left.stop + right.start) // 2
            near[(slice(middle - SEAM, middle + SEAM), slice(None))[:: 1 if axis == 0 else -1]] = True
    words = ("near seams", "elsewhere")
    small, large = (parts(codec, image, near, words, quality=4, layout=choice) for choice in (layout, Layout()))
    return {"tiles of 256": small, "one tile": large}


def middle(codec: Codec, image: Image.Image) -> dict[str, Any]:
    """Return bytes and PSNR with a map in which the middle ninth matters, and without one."""
    importance = np.zeros((image.height, image.width), np.float32)
    importance[image.height // 3 : 2 * image.height // 3, image.width // 3 : 2 * image.width // 3] = 1
    inside, words = importance > 0, ("inside", "outside")
    alike, marked = (parts(codec, image, inside, words, quality=6, importance=chosen) for chosen in (None, importance))
    return {"all alike": alike, "the middle matters": marked}


def parts(
    codec: Codec, image: Image.Image, where: np.ndarray, words: tuple[str, str], **options: Any
) -> dict[str, float]:
    """Return the bytes of a picture's file and the PSNR of the pixels ``where`` (h, w) and of the others."""
    data = belvedere.encode(image, codec, **options)
    before, after = pixels(image), pixels(belvedere.decode(data, codec))
    return {"bytes": len(data), words[0]: psnr(before, after, where), words[1]: psnr(before, after, ~where)}


@torch.no_grad()
def largest_mean(codec: Codec, image: Image.Image, quality: float) -> float:
    """Return the largest magnitude in the float network's map that means are made from."""
    largest = 0.0

    def look(module: torch.nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        nonlocal largest
        largest = max(largest, float(output.abs().max()))

    hook = codec.model.means_rat.register_forward_hook(look)
    float_bits(codec, image, quality)
    hook.remove()
    return largest


def halves(codec: Codec, side: int = 256) -> dict[float, dict[str, float]]:
    """Return bytes and PSNR of a square whose left half is red and whose right half is blue, by quality."""
    square = np.zeros((side, side, 3), dtype=np.uint8)
    square[:, : side // 2, 0] = square[:, side // 2 :, 2] = 255
    image, found = Image.fromarray(square), {}
    for quality in QUALITIES:
        data = belvedere.encode(image, codec, quality=quality)
        found[quality] = {"bytes": len(data), "psnr": psnr(pixels(image), pixels(belvedere.decode(data, codec)))}
    return found


def main() -> None:
    """Measure, print and store."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="pictures of at most 768 pixels a side, whole multiples of 64")
    parser.add_argument("--model", default="segpic-photo")
    parser.add_argument("--count", type=int)
    parser.add_argument("--out", type=Path, default=Path(__file__).with_name("results") / "codec.json")
    options = parser.parse_args()
    codec = belvedere.load_codec(options.model)
    rows = []
    for path in pictures_in(options.folder, options.count):
        rows += [{"picture": path.name, **one(codec, open_image(path), quality)} for quality in QUALITIES]
        print(*(f"{row['file_over_estimate']:.4f} {row['decoded_is_the_encoders']}" for row in rows[-3:]), path.name)
    first = open_image(pictures_in(options.folder)[0])
    result = {
        "model": options.model,
        "digest": codec.digest.hex(),
        "processor": processor(),
        "mean_file_over_estimate": {
            q: statistics.mean(row["file_over_estimate"] for row in rows if row["quality"] == q) for q in QUALITIES
        },
        "all_decoded_are_the_encoders": all(row["decoded_is_the_encoders"] for row in rows),
        "seams": seams(codec, first),
        "regions": middle(codec, first),
        "largest_mean": {quality: largest_mean(codec, first, quality) for quality in QUALITIES},
        "halves": halves(codec),
        "rows": rows,
    }
    print(json.dumps({key: value for key, value in result.items() if key != "rows"}, indent=2))
    options.out.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
