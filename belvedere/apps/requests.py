"""What can be asked for: frozen requests, built alike by the command line, the batch runner and the web page.

A request is checked when it is made, so one that exists is within its limits.
"""

import json
import re
from dataclasses import asdict, dataclass, fields
from typing import Any

from belvedere.checkpoints.store import DTYPES
from belvedere.errors import InputError

DEFAULT_MODEL = "dimr-toybox"
DEFAULT_CODEC = "segpic-photo"
DEFAULT_SCENES = "nvist-toybox"
MAX_COUNT = 1_000_000
MAX_STEPS = 1000
MAX_SEED = 2**63 - 1
MAX_GUIDANCE = 100.0
MIN_POWER = 0.01
MAX_CHANNELS = 1024
MAX_SIDE = 8192
MAX_TEXT = 1000
MAX_JSON = 32 << 10
"""Bytes of a request as JSON: it has to fit into the pictures it makes."""
MAX_CONCEPTS = 8
MAX_VIEW_SIDE = 2048
MAX_FRAMES = 10_000
SAMPLING = ("solver", "guidance_power", "guidance_channels", "guidance_interval")
"""Fields of a request that are written only where they are given: requests without them stay what they always were."""
OWN_STEPS = ("dopri5",)
"""Solvers that choose their own steps: a default of steps is not meant for them."""


@dataclass(frozen=True)
class GenerateRequest:
    """Pictures of classes, or of prompts, by a generator. Image i depends on (seed, i) and has class
    ``classes[i % len(classes)]``, or prompt ``prompts[i % len(prompts)]``.

    ``model``: embedded name, folder or hub id. ``classes``: names or ids; empty = all classes in turn. ``count``:
    pictures, 1 to 1,000,000. ``seed``: 0 to 2^63 - 1. ``steps``: of the sampler, 1 to 1000, and ``guidance``:
    0 to 100; None = the model's own. ``sizes``: (width, height) in pixels, 1 to 8192 each; image i has
    ``sizes[i % len(sizes)]``; empty = the model's own. ``extrapolation``: positions for sizes beyond training, a name
    that the model knows; None = the model's own.

    ``solver``: a name that the model knows. ``guidance_power``, 0.01 to 100: guidance changes over time by the cosine
    rule. ``guidance_channels``: only the first so many are guided. ``guidance_interval``: only between these shares of
    the way from noise, 0, to the picture, 1. None of these = the model's own.

    ``prompts``: text, for models of text, and with them only: ``negative``, a prompt to lean away from; ``concepts``,
    files of the concepts that prompts hold; ``editability`` of these, 0 to 1. ``dtype``: auto, float32, bfloat16 or
    float16. ``device``: auto, cpu, cuda or cuda:N. A value outside these raises ``InputError``.
    """

    model: str = DEFAULT_MODEL
    classes: tuple[str | int, ...] = ()
    count: int = 1
    seed: int = 0
    steps: int | None = None
    guidance: float | None = None
    dtype: str = "auto"
    device: str = "auto"
    sizes: tuple[tuple[int, int], ...] = ()
    extrapolation: str | None = None
    prompts: tuple[str, ...] = ()
    negative: str = ""
    concepts: tuple[str, ...] = ()
    editability: float = 0.0
    solver: str | None = None
    guidance_power: float | None = None
    guidance_channels: int | None = None
    guidance_interval: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        _text("model", self.model)
        if not isinstance(self.classes, tuple):
            raise InputError("classes must be a list of names or ids, like ['car', 3]")
        for item in self.classes:
            _whole("classes", item, 0, 10**6) if isinstance(item, int) else _text("classes", item)
        _whole("count", self.count, 1, MAX_COUNT)
        _whole("seed", self.seed, 0, MAX_SEED)
        self._check_sampling()
        _check_sizes(self.sizes)
        if self.extrapolation is not None:
            _text("extrapolation", self.extrapolation)
        self._check_text()
        _check_dtype(self.dtype)
        _check_device(self.device)
        if len(self.to_json()) > MAX_JSON:
            many = f"{len(self.classes)} classes, {len(self.prompts)} prompts and {len(self.sizes)} sizes"
            raise InputError(f"classes, prompts or sizes: {many} are too many for one request; split it")

    def _check_sampling(self) -> None:
        if self.steps is not None:
            _whole("steps", self.steps, 1, MAX_STEPS)
        if self.guidance is not None:
            _number("guidance", self.guidance, 0.0, MAX_GUIDANCE)
        if self.solver is not None:
            _text("solver", self.solver)
        if self.guidance_power is not None:
            _number("guidance_power", self.guidance_power, MIN_POWER, MAX_GUIDANCE)
        if self.guidance_channels is not None:
            _whole("guidance_channels", self.guidance_channels, 1, MAX_CHANNELS)
        if self.guidance_interval is not None:
            object.__setattr__(self, "guidance_interval", _interval(self.guidance_interval))

    def _check_text(self) -> None:
        for name in ("prompts", "concepts"):
            if not isinstance(values := getattr(self, name), tuple):
                raise InputError(f"{name} must be a list of text, like ['a red car']")
            for item in values:
                _text(name, item)
        if self.negative != "":
            _text("negative", self.negative)
        if len(self.concepts) > MAX_CONCEPTS:
            raise InputError(f"concepts: {len(self.concepts)} are too many for one prompt, give at most {MAX_CONCEPTS}")
        _number("editability", self.editability, 0.0, 1.0)
        if self.prompts and self.classes:
            raise InputError("classes and prompts: a model takes one or the other, leave one out")
        if not self.prompts and (self.negative or self.concepts or self.editability):
            raise InputError("negative, concepts and editability belong to prompts: give one, or leave them out")
        if self.editability and not self.concepts:
            raise InputError("editability belongs to concepts: give one, or leave it out")

    @property
    def sampling(self) -> dict[str, Any]:
        """Those of ``SAMPLING`` that are given."""
        return {name: value for name in SAMPLING if (value := getattr(self, name)) is not None}

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as they are written; ``from_dict`` is its inverse."""
        return {name: value for name, value in asdict(self).items() if name not in SAMPLING or value is not None}

    def to_json(self) -> str:
        """Return the request as one line of ASCII JSON; ``from_json`` is its inverse."""
        return json.dumps(self.to_dict())

    @classmethod
    def from_json(cls, text: str) -> "GenerateRequest":
        """Return the request in ``text``; unknown keys and wrong values raise ``InputError``."""
        try:
            return cls.from_dict(json.loads(text))
        except (ValueError, RecursionError) as error:
            if isinstance(error, InputError):
                raise
            raise InputError(f"request is not valid JSON: {error}") from error

    @classmethod
    def from_dict(cls, values: Any) -> "GenerateRequest":
        """Return the request with these fields; missing ones take their defaults, unknown ones raise ``InputError``."""
        if not isinstance(values, dict):
            raise InputError('a request must be a JSON object, like {"classes": ["car"]}')
        known = [field.name for field in fields(cls)]
        unknown = [key for key in values if key not in known]
        if unknown:
            raise InputError(f"request has no field {str(unknown[0])[:80]!r}; its fields are {', '.join(known)}")
        listed = {key: tuple(value) for key, value in values.items() if isinstance(value, list)}
        if "sizes" in listed:
            listed["sizes"] = tuple(tuple(size) if isinstance(size, list) else size for size in listed["sizes"])
        return cls(**{**values, **listed})


METADATA = ("colour", "all", "none")


@dataclass(frozen=True)
class CompressRequest:
    """Pictures as small files by a codec.

    ``model``: embedded name, folder or hub id. One of ``quality``, 1 to the model's highest; ``bpp``, the most bits a
    pixel; ``psnr``, the least dB. ``metadata``: what is kept, "colour" (the profile), "all" (EXIF too) or "none" (the
    colours of a profile become sRGB). ``background``: colour that transparency is laid over; None = such a picture is
    refused. ``jobs``: tiles at once, 1 to 64. ``device``: auto, cpu, cuda or cuda:N. A value outside these raises
    ``InputError``.
    """

    model: str = DEFAULT_CODEC
    quality: float | None = None
    bpp: float | None = None
    psnr: float | None = None
    metadata: str = "colour"
    background: str | None = None
    jobs: int = 1
    device: str = "auto"

    def __post_init__(self) -> None:
        _text("model", self.model)
        if sum(value is not None for value in (self.quality, self.bpp, self.psnr)) > 1:
            raise InputError("give one of quality, target bpp and target PSNR, not several")
        for name, value, high in (("quality", self.quality, 64), ("bpp", self.bpp, 64), ("psnr", self.psnr, 100)):
            if value is not None:
                _number(name, value, 1.0 if name == "quality" else 0.0, high)
        if self.metadata not in METADATA:
            raise InputError(f"metadata must be one of {', '.join(METADATA)}, not {self.metadata!r}")
        if self.background is not None:
            _text("background", self.background)
        _whole("jobs", self.jobs, 1, 64)
        _check_device(self.device)


PATHS = ("orbit", "spiral")
SHOWN = ("colour", "depth", "opacity", "unseen")


@dataclass(frozen=True)
class ViewRequest:
    """Views of a scene that a network makes of one picture, or that was made before.

    ``model``: embedded name, folder or hub id. ``path`` of the camera: "orbit", "spiral" or a JSON file of cameras;
    ``frames`` of it, 1 to 10,000, None = 48, or those of the file, which are else interpolated. ``arc``: degrees of the
    orbit, 1 to 360; below, it swings from one side to the other. ``elevation`` of the orbit, -89 to 89 degrees, and
    ``angle`` of a single view, -360 to 360, positive to the right. ``fps``: frames a second, 1 to 120. ``what`` is
    shown: "colour", "depth", "opacity" or "unseen", what the picture did not show. ``size``: (width, height) of a view,
    16 to 2048 each, None = the shape of the model's pictures, 256 pixels along the longer side.

    ``distance`` from the camera of the picture to the middle of the scene, in the scene's unit of length, and ``fov``,
    its vertical field of view in degrees: None = what the picture tells, else the model's own; a model that is told no
    focal length has its own alone, and takes no other ``fov`` of a picture. ``pitch``: how far that
    camera looks down, -89 to 89 degrees, None = found by the scene's ground, without one as in the model's pictures;
    orbits go around the scene's vertical.
    ``near``, ``far``: where rays begin and end, None = the model's own. ``density`` of a mesh's surface, None = where
    four texels are half opaque. ``dtype`` of the network: auto, float32, bfloat16 or float16 (GPU only); fields are
    float32. ``device``: auto, cpu, cuda or cuda:N. A value outside these raises ``InputError``.
    """

    model: str = DEFAULT_SCENES
    path: str = "orbit"
    frames: int | None = None
    arc: float = 360.0
    elevation: float = 0.0
    angle: float = 0.0
    fps: int = 24
    what: str = "colour"
    size: tuple[int, int] | None = None
    distance: float | None = None
    fov: float | None = None
    pitch: float | None = None
    near: float | None = None
    far: float | None = None
    density: float | None = None
    dtype: str = "auto"
    device: str = "auto"

    def __post_init__(self) -> None:
        _text("model", self.model)
        _text("path", self.path)
        if self.frames is not None:
            _whole("frames", self.frames, 1, MAX_FRAMES)
        _whole("fps", self.fps, 1, 120)
        for name, low, high in (("arc", 1.0, 360.0), ("elevation", -89.0, 89.0), ("angle", -360.0, 360.0)):
            _number(name, getattr(self, name), low, high)
        if self.what not in SHOWN:
            raise InputError(f"what is shown must be one of {', '.join(SHOWN)}, not {self.what!r}")
        if self.size is not None:
            if not isinstance(self.size, tuple) or len(self.size) != 2:
                raise InputError(f"size must be (width, height) in pixels, not {repr(self.size)[:80]}")
            for side in self.size:
                _whole("a side of the size", side, 16, MAX_VIEW_SIDE)
        angles = {"fov": (1.0, 170.0), "pitch": (-89.0, 89.0)}
        lengths = {"distance": (1e-3, 1e3), "near": (0.0, 1e3), "far": (1e-3, 1e3)}
        for name, (low, high) in {**lengths, **angles, "density": (1e-6, 1e6)}.items():
            if getattr(self, name) is not None:
                _number(name, getattr(self, name), low, high)
        if self.near is not None and self.far is not None and self.near >= self.far:
            raise InputError(f"near {self.near:g} and far {self.far:g}: near must be below far")
        _check_dtype(self.dtype)
        _check_device(self.device)


def parse_qualities(text: str) -> tuple[float, ...]:
    """Return the numbers in text like "1,2.5,4", rising, each once."""
    try:
        found = sorted({float(item) for item in text.split(",")})
    except ValueError as error:
        raise InputError(f"qualities {text[:80]!r}: write numbers separated by commas, like 1,2.5,4") from error
    return tuple(found)


def parse_region(text: str) -> tuple[int, int, int, int]:
    """Return (x, y, width, height) of text like "100,50,640,480"."""
    if not (match := re.fullmatch(r"\s*" + r"\s*,\s*".join([r"([0-9]{1,9})"] * 4) + r"\s*", text)):
        raise InputError(f"region {text[:80]!r}: write X,Y,WIDTH,HEIGHT in pixels, like 100,50,640,480")
    x, y, width, height = map(int, match.groups())
    return x, y, width, height


def parse_sizes(text: str) -> tuple[tuple[int, int], ...]:
    """Return the (width, height) pairs in text like "48x96,64x64"; nothing in empty text."""
    sizes = []
    for item in filter(None, (part.strip() for part in text.split(","))):
        if not (match := re.fullmatch(r"([0-9]{1,9})[xX]([0-9]{1,9})", item)):
            raise InputError(f"size {item[:80]!r}: write WIDTHxHEIGHT in pixels, like 48x96")
        sizes.append((int(match[1]), int(match[2])))
    if text.strip() and not sizes:
        raise InputError(f"size {text[:80]!r} names none: write WIDTHxHEIGHT in pixels, like 48x96")
    return tuple(sizes)


def _check_sizes(sizes: object) -> None:
    pairs = isinstance(sizes, tuple) and all(isinstance(size, tuple) and len(size) == 2 for size in sizes)
    if not isinstance(sizes, tuple) or not pairs:
        raise InputError("sizes must be a list of [width, height], like [[48, 96]]")
    if len(sizes) > MAX_JSON // 8:
        raise InputError(f"sizes: {len(sizes)} are too many for one request; split it")
    for size in sizes:
        for side in size:
            _whole(f"sizes: a side of {'x'.join(repr(part)[:20] for part in size)}", side, 1, MAX_SIDE)


def _interval(interval: object) -> tuple[float, float] | None:
    """Return an interval in the one way in which it is written; None for the whole way, which is none."""
    if not isinstance(interval, tuple) or len(interval) != 2:
        raise InputError(f"guidance_interval must be two numbers like [0.2, 0.8], not {repr(interval)[:80]}")
    for share in interval:
        _number("guidance_interval: each", share, 0.0, 1.0)
    if interval[0] > interval[1]:
        raise InputError(f"guidance_interval {interval[0]:g} to {interval[1]:g}: give the lower one first")
    return None if interval == (0, 1) else (float(interval[0]), float(interval[1]))


def parse_interval(text: str | None) -> tuple[float, float] | None:
    """Return the two numbers in text like "0.2,0.8"; None for None or empty text."""
    if not text:
        return None
    try:
        low, high = (float(item) for item in text.split(","))
    except ValueError as error:
        raise InputError(f"guidance interval {text[:80]!r}: write two numbers, like 0.2,0.8") from error
    return low, high


def _check_dtype(dtype: object) -> None:
    if dtype not in DTYPES:
        raise InputError(f"dtype must be one of {', '.join(DTYPES)}, not {dtype!r}")


def _check_device(device: object) -> None:
    if not isinstance(device, str) or not re.fullmatch(r"auto|cpu|cuda(:\d{1,2})?", device):
        raise InputError(f"device must be auto, cpu, cuda or cuda:N, not {device!r}")


def _text(name: str, value: object) -> None:
    if not isinstance(value, str) or not value.strip() or len(value) > MAX_TEXT or not value.isprintable():
        raise InputError(f"{name} must be plain text of 1 to {MAX_TEXT} characters, not {str(value)[:80]!r}")


def _whole(name: str, value: object, low: int, high: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
        raise InputError(f"{name} must be a whole number from {low} to {high}, not {repr(value)[:80]}")


def _number(name: str, value: object, low: float, high: float) -> None:
    known = isinstance(value, int | float) and not isinstance(value, bool)
    if not known or not low <= value <= high:  # type: ignore[operator]
        raise InputError(f"{name} must be a number from {low:g} to {high:g}, not {repr(value)[:80]}")
