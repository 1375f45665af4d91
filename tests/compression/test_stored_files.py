"""Files as they were once written by ``segpic-photo``: still read, to the last number, and written the same again.

They belong to its weights. Where these change, make others, of parts of ``skimage.data.chelsea()``:

    encode(cat.crop((140, 60, 240, 130)), codec, quality=3.5)
    encode(cat.crop((60, 40, 360, 180)).convert("L"), codec, quality=2, layout=Layout(256, 32), profile=..., exif=...)

Beside each lies what ``decode`` made of it.
"""

from functools import cache
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from belvedere.checkpoints.codecs import load_codec
from belvedere.compression import bitstream
from belvedere.compression.bitstream import Header
from belvedere.compression.codec import Codec, decode
from belvedere.compression.tiling import Layout

STORED = Path(__file__).parents[1] / "golden" / "bvd"
MODEL = bytes.fromhex("f5c7cc2448a42535")
PROFILE, EXIF = b"a colour profile", b"Exif\0\0of a camera"
FILES = {
    "one-tile": (Header(MODEL, 100, 70, 640, Layout(), 4), [1824150304]),
    "grey-tiles": (
        Header(MODEL, 300, 140, 256, Layout(256, 32), 4, True, PROFILE, EXIF),
        [281414270, 2955944097],
    ),
}
"""The header of each file, and the checksums of the numbers in its tiles."""


@cache
def codec() -> Codec:
    return load_codec("segpic-photo", device="cpu")


@pytest.mark.parametrize("name", FILES)
def test_the_format_is_what_it_was(name: str) -> None:
    data = (STORED / f"{name}.bvd").read_bytes()
    header, tiles = bitstream.read(data)
    assert (header, [tile.latents for tile in tiles]) == FILES[name]
    assert bitstream.write(header, tiles) == data


@pytest.mark.parametrize("name", FILES)
def test_a_stored_file_is_the_picture_that_it_was(name: str) -> None:
    """``decode`` compares the checksums: it refuses a file whose numbers come out as others."""
    decoded, (header, _) = decode((STORED / f"{name}.bvd").read_bytes(), codec()), FILES[name]
    assert (decoded.info.get("icc_profile", b""), decoded.info.get("exif", b"")) == (header.profile, header.exif)
    with Image.open(STORED / f"{name}.png") as stored:
        assert (decoded.mode, decoded.size) == (stored.mode, stored.size)
        apart = np.asarray(decoded, dtype=int) - np.asarray(stored, dtype=int)
    assert np.abs(apart).max() <= 1
