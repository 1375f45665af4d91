"""Pictures into files: encoded, written whole or not at all, never over something that is not the same picture."""

import errno
import io
import json
import math
import re
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from belvedere.apps import record, work
from belvedere.errors import CommonError, InputError
from belvedere.files import atomic_write
from belvedere.limits import WEBP_SIDE

if TYPE_CHECKING:
    from PIL import Image

    from belvedere.apps.work import Job, Progress

FORMATS = {"png": "png", "jpeg": "jpg", "webp": "webp"}
"""Formats of a picture file and their endings."""

_OPTIONS = {"png": {}, "jpeg": {"quality": 95, "subsampling": 0}, "webp": {"quality": 95, "method": 4}}
_FULL = (errno.ENOSPC, errno.EDQUOT)
_COMMON = (*_FULL, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO)
"""What other files in the same place would meet too."""
_TILE = 128
_MARGIN = 4
_CAPTION = 16
_MAX_ROWS = 64


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn what the system says against writing ``path`` into an ``InputError``.

    It is a ``CommonError`` where other files there would meet it too: a full disk, no permission.
    """
    try:
        yield
    except OSError as error:
        reason = error.strerror or type(error).__name__
        if error.errno in _COMMON:
            room = "make room or " if error.errno in _FULL else ""
            raise CommonError(f"cannot write {path}: {reason}; {room}choose another place") from error
        raise InputError(f"cannot write {path}: {reason}; choose another name or place") from error


def check_folder(folder: Path) -> None:
    """Raise ``InputError`` unless files can be written to ``folder``; it is tried where it, or what is to hold it, is.

    The folder itself is made with the first file, so that a request which fails leaves nothing behind.
    """
    with writing(folder):
        there = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
        with tempfile.TemporaryFile(dir=there) as file:
            file.write(b"\0")
            file.flush()


def picture_path(folder: Path, model: str, seed: int, index: int, kind: str) -> Path:
    """Return ``folder/MODEL-SEED-INDEX.ending`` with the model's last name, in plain characters."""
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", Path(model).name).strip(".-") or "model"
    return folder / f"{name}-{seed}-{index:05d}.{FORMATS[kind]}"


def check_target(path: Path, origin: tuple[object, ...]) -> None:
    """Raise ``InputError`` when ``path`` holds anything but a picture with this ``Record.origin``."""
    if not path.exists() and not path.is_symlink():
        return
    try:
        same = record.read(path).origin == origin
    except InputError:
        same = False
    if not same:
        raise InputError(f"{path} exists and is another picture; choose another --out, or move it away")


def encode(image: "Image.Image", kind: str, text: str) -> bytes:
    """Return a png, jpeg or webp file of ``image`` that carries ``text``."""
    stream = io.BytesIO()
    image.convert("RGB").save(stream, kind, **_OPTIONS[kind], **record.save_options(text, kind))
    return stream.getvalue()


def save(image: "Image.Image", path: Path, text: str) -> None:
    """Write ``image`` with its record ``text`` to ``path``, whole or not at all; the format is by the ending."""
    content = encode(image, kind_of(path), text)
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(path) as file:
            file.write(content)


def save_figures(figures: Mapping[str, Any], path: Path) -> None:
    """Write ``figures``, plain JSON, to ``path``, whole or not at all; its folder is made."""
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(path) as file:
            file.write(json.dumps(figures, indent=1).encode() + b"\n")


def kind_of(path: Path) -> str:
    """Return the format a path's ending asks for; another ending raises ``InputError``."""
    endings = {".png": "png", ".jpg": "jpeg", ".jpeg": "jpeg", ".webp": "webp"}
    if path.suffix.lower() not in endings:
        raise InputError(f"{path}: cannot tell the format; end the name with {', '.join(endings)}")
    return endings[path.suffix.lower()]


def check_sheet(path: Path, count: int) -> None:
    """Raise ``InputError`` unless a sheet of ``count`` pictures can be written to ``path``.

    An older sheet there is replaced; a file that Belvedere did not make is not.
    """
    kind_of(path)
    if count > 10_000:
        raise InputError(f"--grid: {count} pictures do not fit on one sheet; ask for at most 10000")
    if path.is_dir():
        raise InputError(f"--grid {path}: is a folder; name a file in it, like {path / 'sheet.png'}")
    check_folder(path.parent)
    if path.exists() and not record.is_sheet(path):
        raise InputError(f"--grid {path}: exists and is not a sheet of Belvedere's; choose another name")


def columns(count: int, kinds: int) -> int:
    """Return how many pictures to put in a row: one column a kind when that makes 2 to 64 rows, else about a square."""
    return kinds if 1 < kinds <= 16 and 2 * kinds <= count <= _MAX_ROWS * kinds else math.ceil(math.sqrt(count))


def sheet(images: "Sequence[Image.Image]", captions: Sequence[str], across: int) -> "Image.Image":
    """Return one picture of all ``images``, ``across`` in a row, each above its caption in a cell of one size.

    All are scaled alike: by a whole factor that brings the largest to at least 128 pixels, where the sheet has no more
    than WebP allows a side.
    """
    from PIL import Image, ImageDraw, ImageFont

    down = math.ceil(len(images) / across)
    width, height = (max(sides) for sides in zip(*(image.size for image in images), strict=True))
    room = WEBP_SIDE - _MARGIN
    fits = min(room // across - _MARGIN, room // down - _MARGIN - _CAPTION)
    if fits < 8:
        raise InputError(f"--grid: {len(images)} pictures do not fit on one sheet; ask for fewer")
    scale = max(1, math.ceil(_TILE / max(width, height)))
    ratio = min(scale, fits / max(width, height))
    cell = max(1, int(width * ratio)), max(1, int(height * ratio))
    step = cell[0] + _MARGIN, cell[1] + _MARGIN + _CAPTION
    page = Image.new("RGB", (across * step[0] + _MARGIN, down * step[1] + _MARGIN), "white")
    draw, font = ImageDraw.Draw(page), ImageFont.load_default(11)
    for i, (image, caption) in enumerate(zip(images, captions, strict=True)):
        corner = _MARGIN + i % across * step[0], _MARGIN + i // across * step[1]
        size = max(1, int(image.width * ratio)), max(1, int(image.height * ratio))
        place = corner[0] + (cell[0] - size[0]) // 2, corner[1] + cell[1] - size[1]
        page.paste(image.convert("RGB").resize(size, Image.Resampling.BICUBIC), place)
        middle = corner[0] + cell[0] // 2, corner[1] + cell[1] + 1
        draw.text(middle, caption[: cell[0] // 6], fill="black", font=font, anchor="ma")
    return page


def write_pictures(
    job: "Job", folder: Path, kind: str, grid: Path | None = None, progress: "Progress | None" = None
) -> list[dict[str, Any]]:
    """Make a job's pictures, write each as soon as it is there, then the sheet; return file, index, class, pixels.

    Every target is checked before the first is made. Raises ``InputError`` when one holds another picture, or the
    disk is full; what is written by then is whole.
    """
    indices = range(job.request.count)
    paths = [picture_path(folder, job.request.model, job.request.seed, i, kind) for i in indices]
    for path, index in zip(paths, indices, strict=True):
        check_target(path, job.record(index).origin)
    made: list[dict[str, Any]] = []
    images = []
    for path, (image, origin) in zip(paths, work.run(job, indices, progress=progress), strict=True):
        save(image, path, origin.to_json())
        made.append({"file": str(path), "index": origin.index, "class": origin.kind, "pixels": origin.pixels})
        if grid:
            images.append(image)
    if grid:
        across = columns(len(images), len(set(job.labels)))
        save(sheet(images, [entry["class"] for entry in made], across), grid, record.sheet_text(job.request))
    return made
