"""What differs between a picture and the same picture made again, in words."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from belvedere.apps import record
from belvedere.apps.record import Record
from belvedere.errors import InputError

if TYPE_CHECKING:
    from PIL import Image

BACKENDS = ("BELVEDERE_ATTENTION", "BELVEDERE_KERNELS", "BELVEDERE_GRAPHS")
"""What the environment may choose, and no record holds."""


def read_pixels(path: Path) -> "Image.Image | None":
    """Return the RGB picture of a lossless file, None for a lossy one; a damaged file raises ``InputError``."""
    with record.open_picture(path) as image:
        try:
            pixels = image.convert("RGB")
        except (OSError, ValueError, SyntaxError) as error:
            raise InputError(f"{path}: damaged picture ({error}); nothing to compare with") from error
        return pixels if image.format == "PNG" else None


def differences(before: "Image.Image | None", old: Record, after: "Image.Image", new: Record) -> tuple[str, ...]:
    """Return one line for each thing that is not as it was; none when every bit is the same.

    ``before`` is the file's picture (None when it was compressed with loss: then the digests of the pixels decide),
    ``old`` its record, ``after`` and ``new`` the picture made again.
    """
    lines = []
    if before is not None and record.pixel_digest(before) != old.pixels:
        lines.append(f"the file was changed after it was made: {_change(before, after)}")
    elif old.pixels != new.pixels:
        lines.append(_change(before, after) if before else "the pixels before compression are not the same")
    if old.pixels != new.pixels:
        causes = list(_causes(old, new))
        lines += causes or [_unrecorded(old)]
    return tuple(lines)


def _unrecorded(old: Record) -> str:
    """Return what may be the cause where nothing that records hold is different."""
    if old.machine.device != "cpu":
        made = "on a GPU last bits may depend on the pictures made in the same call"
        return f"nothing recorded differs: {made}, or the record was changed"
    if chosen := [name for name in BACKENDS if os.environ.get(name)]:
        return f"nothing recorded differs: last bits may depend on {chosen[0]}, or the record was changed"
    return "model, versions and machine are the same: the record was changed"


def _change(before: "Image.Image", after: "Image.Image") -> str:
    import numpy as np

    if before.size != after.size:
        return f"size {before.width}x{before.height} became {after.width}x{after.height}"
    change = np.abs(np.asarray(before, np.int16) - np.asarray(after.convert("RGB"), np.int16))
    pixels = change.any(axis=-1)
    return f"{int(pixels.sum())} of {pixels.size} pixels differ, by at most {int(change.max())} of 255"


def _causes(old: Record, new: Record) -> Iterator[str]:
    if old.weights != new.weights:
        yield f"weights: {old.weights[:12]} then, {new.weights[:12]} now"
    if old.concepts != new.concepts:
        yield "concepts: their files are not what they were"
    for name in ("dtype", "steps", "guidance"):
        before, after = getattr(old.request, name), getattr(new.request, name)
        if before != after:
            yield f"{name}: {before} then, {after} now"
    for name, value in vars(old.machine).items():
        if value != getattr(new.machine, name):
            yield f"{name}: {value} then, {getattr(new.machine, name)} now"
