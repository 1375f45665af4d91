"""What made a picture, written into the picture: enough to make it again and to say what differs if it cannot be.

PNG files carry the record as JSON in a text chunk named ``belvedere``; JPEG and WebP files, in the EXIF user comment.
"""

import functools
import hashlib
import json
import platform
import struct
import warnings
from dataclasses import MISSING, asdict, dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from belvedere.apps.requests import MAX_TEXT, GenerateRequest
from belvedere.errors import InputError

if TYPE_CHECKING:
    import torch
    from PIL import Image

FORMAT = 1
KEY = "belvedere"
READABLE = ("PNG", "JPEG", "WEBP")
MAX_RECORD = 64 << 10
MAX_PIXELS = 64 << 20

_SHEET = "sheet"
_EXIF, _USER_COMMENT, _ASCII = 0x8769, 0x9286, b"ASCII\0\0\0"


@dataclass(frozen=True)
class Machine:
    """Where a picture was made, as far as its last bit may depend on it."""

    device: str
    name: str
    instructions: str
    threads: int
    torch: str
    diffusers: str
    belvedere: str


@dataclass(frozen=True)
class Record:
    """One picture's origin. ``request`` has the steps, guidance, dtype and device that were used, not None or auto, and
    for a model of any size the sizes and the extrapolation. Steps are None where the solver chooses them.

    ``index``: number of the picture in the request. ``label``, ``kind``: id and name of its class, or number and text
    of its prompt. ``weights``: SHA-256 of the model (``checkpoints.store.digest``). ``pixels``: SHA-256 of the
    generated pixels, before any lossy compression. ``concepts``: SHA-256 of each concept's file, one after the other.
    ``room``: of the network call that made it (``generation.rooms``), on which its last bits depend on a GPU; 0, which
    is not written: that of a full one.
    """

    request: GenerateRequest
    index: int
    label: int
    kind: str
    weights: str
    pixels: str
    machine: Machine
    concepts: str = ""
    room: int = 0

    @property
    def origin(self) -> tuple[object, ...]:
        """What decides the picture: two records with one origin are of the same picture."""
        sizes = self.request.sizes
        own = sizes and (sizes[self.index % len(sizes)],)
        shown = self.kind if self.request.prompts else self.label
        prompts = self.request.prompts and (self.kind,)
        asked = replace(self.request, classes=(), prompts=prompts, count=1, sizes=own)
        return asked, self.index, shown, self.weights, self.concepts

    def to_json(self) -> str:
        """Return the record as one line of ASCII JSON; ``from_json`` is its inverse."""
        values = {"format": FORMAT, **asdict(self), "request": self.request.to_dict()}
        return json.dumps({name: value for name, value in values.items() if name != "room" or value})

    @classmethod
    def from_json(cls, text: str) -> "Record":
        """Return the record in ``text``; anything unknown, missing or of the wrong type raises ``InputError``."""
        try:
            values = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise InputError("the record in this picture is damaged: not JSON") from error
        if isinstance(values, dict) and _SHEET in values:
            raise InputError("this is a sheet of many pictures; give one of the pictures themselves")
        if isinstance(values, dict) and "view" in values:
            raise InputError("this is a view of a scene; make it again with belvedere view")
        if not isinstance(values, dict) or values.pop("format", None) != FORMAT:
            raise InputError(f"the record in this picture is not of format {FORMAT}; use the Belvedere that made it")
        values["request"] = GenerateRequest.from_dict(values.get("request"))
        values["machine"] = _typed(Machine, values.get("machine"))
        return _typed(cls, values)


def _typed(cls: Any, values: Any) -> Any:
    """Return ``cls(**values)`` when the keys are its fields, defaults aside, each of the annotated type."""
    known = {field.name: field for field in fields(cls)}
    needed = {name for name, field in known.items() if field.default is MISSING}
    if not isinstance(values, dict) or not needed <= values.keys() <= known.keys():
        raise InputError(f"the record in this picture is damaged: wrong fields of {cls.__name__.lower()}")
    for name, value in values.items():
        field = known[name]
        good = type(value) is field.type
        if isinstance(value, str):
            good = good and value.isprintable() and len(value) <= MAX_TEXT
        if isinstance(value, int):
            good = good and 0 <= value < 2**31
        if not good:
            raise InputError(f"the record in this picture is damaged: field {field.name}")
    return cls(**values)


def pixel_digest(image: "Image.Image") -> str:
    """Return the SHA-256 of a picture's size and RGB bytes."""
    content = hashlib.sha256(f"{image.width}x{image.height} RGB\n".encode())
    content.update(image.convert("RGB").tobytes())
    return content.hexdigest()


def save_options(text: str, kind: str) -> dict[str, Any]:
    """Return the keywords for ``Image.save`` that put ``text`` into a png, jpeg or webp file."""
    from PIL import Image
    from PIL.PngImagePlugin import PngInfo

    if kind == "png":
        chunks = PngInfo()
        chunks.add_text(KEY, text)
        return {"pnginfo": chunks}
    exif = Image.Exif()
    exif[_EXIF] = {_USER_COMMENT: _ASCII + text.encode("ascii")}
    return {"exif": exif}


def open_picture(path: Path) -> "Image.Image":
    """Return a PNG, JPEG or WebP file's picture with its header read; nothing is decoded until it is used.

    Raises ``InputError`` for another kind of file, a damaged one, or more than 64 megapixels.
    """
    from PIL import Image

    if not path.is_file():
        raise InputError(f"no picture at {path}; check the path")
    try:
        with warnings.catch_warnings(action="ignore", category=Image.DecompressionBombWarning):
            image = Image.open(path, formats=READABLE)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise InputError(f"{path}: not a readable PNG, JPEG or WebP picture") from error
    if image.width * image.height > MAX_PIXELS:
        raise InputError(f"{path}: {image.width}x{image.height} pixels are more than Belvedere opens")
    return image


def text_of(image: "Image.Image") -> str | None:
    """Return the record's JSON in an opened picture, None when it has none; more than 64 KB raise ``InputError``."""
    found = image.info.get(KEY)
    if found is None and image.format != "PNG":
        try:
            comment = image.getexif().get_ifd(_EXIF).get(_USER_COMMENT)
        except (OSError, ValueError, SyntaxError, TypeError, KeyError, struct.error):
            return None
        if isinstance(comment, bytes) and comment.startswith(_ASCII + b"{"):
            found = comment.removeprefix(_ASCII).decode("ascii", "replace")
    if not isinstance(found, str):
        return None
    if len(found) > MAX_RECORD:
        raise InputError(f"the record in this picture is larger than {MAX_RECORD >> 10} KB; refused")
    return found


def sheet_text(request: GenerateRequest) -> str:
    """Return the JSON that a sheet of a request's pictures carries."""
    return json.dumps({"format": FORMAT, _SHEET: request.to_dict()})


def is_sheet(path: Path) -> bool:
    """Return whether a file is a sheet that Belvedere made."""
    try:
        with open_picture(path) as image:
            return _SHEET in json.loads(text_of(image) or "{}")
    except (InputError, ValueError, TypeError, RecursionError):
        return False


def read(path: Path) -> Record:
    """Return the record of a picture file; a picture without one raises ``InputError``."""
    with open_picture(path) as image:
        text = text_of(image)
    if text is None:
        raise InputError(f"{path}: carries no Belvedere record; only pictures made by 'belvedere generate' do")
    return Record.from_json(text)


def this_machine(device: "torch.device") -> Machine:
    """Return what a picture made on ``device`` of this machine depends on."""
    import diffusers
    import torch

    from belvedere import __version__

    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
        instructions = "sm_{}{}".format(*torch.cuda.get_device_capability(device))
    else:
        name, instructions = processor(), torch.backends.cpu.get_cpu_capability()
    return Machine(
        device=device.type,
        name=name,
        instructions=instructions,
        threads=torch.get_num_threads(),
        torch=torch.__version__,
        diffusers=diffusers.__version__,
        belvedere=__version__,
    )


@functools.cache
def processor() -> str:
    """Return the processor's name."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
