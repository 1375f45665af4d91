"""What comes from outside: known by its first bytes, capped before it is decoded, never trusted for its name.

An upload is the path at which Gradio put it: what an event gets of a ``picture_input``, or of a ``gr.File`` with
``type="filepath"``. Only its bytes are used.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import gradio as gr

from belvedere.apps.web.limits import Limits
from belvedere.errors import InputError

if TYPE_CHECKING:
    from PIL import Image

    from belvedere.apps.record import Record
    from belvedere.data.images import Photograph

Upload = str | Path | None
PICTURES = ("PNG", "JPEG", "WebP")
BVD = "bvd"


def picture_input(**options: Any) -> gr.Image:
    """Return a ``gr.Image`` that gives events the path of what was dropped on it: else Gradio decodes it before we do.

    Of a class of our own Gradio would write a stub beside this file.
    """
    image: Any = gr.Image(type="filepath", image_mode=None, **options)
    image.preprocess = lambda payload: payload and payload.path
    return image


def kind_of(data: bytes) -> str | None:
    """Return "PNG", "JPEG", "WebP" or "bvd" by a file's first bytes; None for anything else."""
    from belvedere.compression.bitstream import MAGIC

    starts = {"PNG": b"\x89PNG\r\n\x1a\n", "JPEG": b"\xff\xd8\xff", BVD: MAGIC}
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "WebP"
    return next((kind for kind, start in starts.items() if data.startswith(start)), None)


def read(upload: Upload, limits: Limits, kinds: tuple[str, ...] = PICTURES) -> bytes:
    """Return an upload's bytes; ``InputError`` for none, too many, or a kind that is not among ``kinds``."""
    if upload is None:
        raise InputError("no file yet: drop one on the page first")
    try:
        if Path(upload).stat().st_size > limits.upload_bytes:
            raise InputError(f"the file has more than {limits.upload_bytes >> 20} MB: give a smaller one")
        data = Path(upload).read_bytes()
    except OSError as error:
        raise InputError("the uploaded file is gone: drop it on the page again") from error
    if kind_of(data) not in kinds:
        raise InputError(f"this is no {_listed(kinds)} file: give one of these")
    return data


def photograph(upload: Upload, limits: Limits) -> "Photograph":
    """Return an uploaded picture, upright, over white where it is transparent, with its colour profile and EXIF."""
    from belvedere.data.images import open_photograph

    data = read(upload, limits)
    return open_photograph(data, background="white", name="the picture", max_pixels=limits.upload_pixels)


def picture(upload: Upload, limits: Limits) -> "Image.Image":
    """Return an uploaded picture's pixels alone: as of ``photograph``, its colours brought to sRGB."""
    from belvedere.data.images import to_srgb

    return to_srgb(photograph(upload, limits))


def record(upload: Upload, limits: Limits) -> "Record":
    """Return the record in an uploaded picture that Belvedere made; no pixel is decoded."""
    import io

    from PIL import Image, UnidentifiedImageError

    from belvedere.apps.record import READABLE, Record, text_of

    try:
        with Image.open(io.BytesIO(read(upload, limits)), formats=READABLE) as image:
            text = text_of(image)
    except (UnidentifiedImageError, OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise InputError("the picture is damaged: replace it") from error
    if text is None:
        raise InputError("this picture carries no settings: only pictures made by Belvedere do")
    return Record.from_json(text)


def _listed(kinds: tuple[str, ...]) -> str:
    names = [f".{kind}" if kind == BVD else kind for kind in kinds]
    return " or ".join(filter(None, [", ".join(names[:-1]), names[-1]]))
