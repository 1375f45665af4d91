"""The contact sheet: ``python -m belvedere.data.toybox.sheet OUT.png`` draws every kind, named."""

import sys
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from belvedere.data.toybox.dataset import HELD_OUT, KINDS, Toybox
from belvedere.errors import InputError
from belvedere.files import atomic_write

LABEL = 100


def sheet(columns: int = 8, size: int = 64, scale: int = 2) -> Image.Image:
    """Return a picture of ``columns`` samples of each of the fourteen kinds, one kind a row."""
    kinds = KINDS + HELD_OUT
    toys = Toybox(size, kinds=kinds).batch(range(columns * len(kinds)))["image"]
    pixels = ((toys + 1) * 127.5).round().byte().numpy()
    cell = size * scale
    page = Image.new("RGB", (LABEL + columns * cell, len(kinds) * cell), "white")
    for i, toy in enumerate(pixels):
        row, column = i % len(kinds), i // len(kinds)
        picture = Image.fromarray(np.ascontiguousarray(toy.transpose(1, 2, 0)))
        page.paste(picture.resize((cell, cell), Image.Resampling.NEAREST), (LABEL + column * cell, row * cell))
    pen = ImageDraw.Draw(page)
    for row, kind in enumerate(kinds):
        pen.text((10, row * cell + cell // 2 - 8), kind, fill="black", font_size=16)
    return page


def main(arguments: list[str]) -> int:
    """Write the sheet to the one path given; return the exit code."""
    if len(arguments) != 1:
        print("usage: python -m belvedere.data.toybox.sheet OUT.png", file=sys.stderr)
        return 2
    path = Path(arguments[0])
    try:
        if not path.parent.is_dir():
            raise InputError(f"no folder {path.parent}: make it first")
        with atomic_write(path) as stream:
            sheet().save(stream, format="png")
    except (InputError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
