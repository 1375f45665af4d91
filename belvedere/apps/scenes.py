"""Scenes to look at: made of one picture by a network, or read from a file."""

import hashlib
import math
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from belvedere.apps.record import pixel_digest
from belvedere.apps.requests import ViewRequest
from belvedere.checkpoints.store import choose_device
from belvedere.checkpoints.views import SceneModel, open_scene_model
from belvedere.data.captures import fit_view
from belvedere.data.images import Photograph, open_photograph, to_srgb, to_tensor
from belvedere.errors import InputError
from belvedere.synthesis.cameras import Camera, conditions, input_camera
from belvedere.synthesis.field import Field
from belvedere.synthesis.ground import find_pitch

SUFFIX = ".safetensors"
SMALLEST = 16
"""Pixels a side of a picture that a scene can be made of."""
DIAGONAL = math.hypot(36, 24)
"""Of a 35 mm film's picture, in millimetres."""
FACTS: dict[str, tuple[float, float]] = {
    **dict.fromkeys(("height", "width", "samples"), (1, 4096)),
    **dict.fromkeys(("near", "far"), (0, 1e6)),
    "distance": (1e-6, 1e6),
    "fov": (0.1, 179.9),
    "pitch": (-90, 90),
}
"""What a scene's file tells beside the field, and its limits."""

_EXIF, _FOCAL_35 = 0x8769, 0xA405


@dataclass(frozen=True, eq=False)
class Scene:
    """A field and how to look at it."""

    field: Field
    camera: Camera
    """That of the picture, at (0, 0, -distance), with the size of the model's pictures."""
    near: float
    far: float
    samples: int
    pitch: float
    """Degrees by which that camera looks down."""
    origin: Mapping[str, str]
    """What it was made of: digests of the picture's pixels and of the model, or of the scene's file."""

    @property
    def camera_facts(self) -> dict[str, float]:
        """Distance, vertical field of view and pitch, in degrees, of the picture's camera; near and far."""
        fov = 2 * math.degrees(math.atan(self.camera.size[0] / 2 / self.camera.focal[1]))
        seen = {"distance": float(self.camera.position.norm()), "fov": fov, "pitch": self.pitch}
        return {**seen, "near": self.near, "far": self.far}

    def save(self, path: Path, record: str) -> None:
        """Write the scene to a safetensors file, whole or not at all; ``record`` is kept with it."""
        height, width = self.camera.size
        facts = {**self.camera_facts, "samples": self.samples, "height": height, "width": width, "record": record}
        replace(self.field, facts=facts).save(path)


def open_scene(source: Path, request: ViewRequest) -> Scene:
    """Return the scene in a ``.safetensors`` file, or the one that the request's model makes of a picture.

    Raises ``InputError`` for a file that is neither, and whatever the model does not take.
    """
    return read_scene(source, request) if source.suffix.lower() == SUFFIX else build_scene(source, request)


def build_scene(source: Path, request: ViewRequest) -> Scene:
    """Return the scene that the request's model makes of a PNG, JPEG or WebP picture, in one pass.

    The picture is turned upright, laid over white where it is transparent, brought to sRGB; its middle is cut to the
    aspect of the model's pictures and resized. How far the camera looked down is found by the ground of the scene;
    without a ground it is as in the model's pictures.
    """
    photograph = open_photograph(source, background="white")
    width, height = photograph.image.size
    if min(width, height) < SMALLEST:
        raise InputError(f"{source} has {width} x {height} pixels: give a picture of {SMALLEST} a side or more")
    model = open_scene_model(request.model, request.device, request.dtype)
    config: Any = model.network.config
    fov = _picture_fov(request, model, photograph)
    distance = request.distance or model.distance
    image, camera = fit_picture(to_srgb(photograph), tuple(config.image), distance, fov, model.fov)
    near = config.near if request.near is None else request.near
    far = config.far if request.far is None else request.far
    _check_range(near, far)
    origin = {"picture": pixel_digest(image), "weights": model.digest}
    device = model.network.device
    with torch.no_grad():
        pixels = to_tensor(image)[None].to(device).float() / 255  # (1, 3, h, w)
        field = model.network(pixels, conditions([camera]).to(device))
    pitch = request.pitch
    if pitch is None:
        found = find_pitch(field, camera, near=near, far=far, samples=config.samples)
        pitch = model.pitch if found is None else found
    return Scene(field, camera, near, far, config.samples, pitch, origin)


def _picture_fov(request: ViewRequest, model: SceneModel, photograph: Photograph) -> float | None:
    """Return the vertical field of view in degrees of the whole picture; None = what is left has the model's own.

    That is so of a network that is not told the focal length: it makes the same scene whatever the camera, which shows
    the picture again only to a camera like those of its training. Raises ``InputError`` where another is asked for.
    """
    config: Any = model.network.config
    if config.focal:
        return request.fov or exif_fov(photograph.exif, photograph.image.size)
    if request.fov is not None:
        raise InputError(f"--fov: {request.model} takes every picture for one of {model.fov:.3g} degrees; leave it out")
    return None


def fit_picture(
    image: Image.Image, size: tuple[int, int], distance: float, fov: float | None, default: float
) -> tuple[Image.Image, Camera]:
    """Return the middle of a picture in ``size`` (height, width) and the camera that took it.

    ``fov``: vertical field of view in degrees of the whole picture; None = what is left of it has the ``default``.
    """
    whole = input_camera((image.height, image.width), distance=distance, fov=fov or default)
    image, camera = fit_view(image, whole, size)
    return image, camera if fov else input_camera(size, distance=distance, fov=default)


def exif_fov(exif: bytes, size: tuple[int, int]) -> float | None:
    """Return the vertical field of view in degrees of a picture of ``size`` (width, height); None if EXIF has none.

    It is told as the focal length that sees as much on 35 mm film, from corner to corner.
    """
    data = Image.Exif()
    try:
        with warnings.catch_warnings(action="ignore"):
            data.load(exif)
            focal = float(data.get_ifd(_EXIF).get(_FOCAL_35, 0))
    except Exception:  # damaged EXIF makes its readers raise anything; it is as good as none
        return None
    if not 5 <= focal <= 2000:  # 0 means unknown
        return None
    pixels = focal / DIAGONAL * math.hypot(*size)
    return 2 * math.degrees(math.atan(size[1] / 2 / pixels))


def read_scene(source: Path, request: ViewRequest) -> Scene:
    """Return the scene that ``Scene.save`` wrote to a file; what the request says of its camera replaces its own.

    Raises ``InputError`` for another file, and one whose facts do not say how to look at it.
    """
    field = Field.load(source)
    if field.scenes != 1:
        raise InputError(f"{source} holds {field.scenes} scenes: save one alone")
    asked = {name: getattr(request, name) for name in ("distance", "fov", "pitch", "near", "far")}
    told = {**field.facts, **{name: value for name, value in asked.items() if value is not None}}
    facts = {name: _fact(told, name, source) for name in FACTS}
    _check_range(facts["near"], facts["far"])
    size = int(facts["height"]), int(facts["width"])
    camera = input_camera(size, distance=facts["distance"], fov=facts["fov"])
    with source.open("rb") as file:
        origin = {"scene": hashlib.file_digest(file, "sha256").hexdigest()}
    return Scene(
        field.to(choose_device(request.device)),
        camera,
        facts["near"],
        facts["far"],
        int(facts["samples"]),
        facts["pitch"],
        origin,
    )


def _check_range(near: float, far: float) -> None:
    if not near < far:
        raise InputError(f"near {near:g} and far {far:g}: near must be below far; give --near and --far")


def _fact(facts: Mapping[str, Any], name: str, source: Path) -> float:
    value, (low, high) = facts.get(name), FACTS[name]
    if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
        raise InputError(f"{source} does not tell {name}, from {low:g} to {high:g}: make it with 'belvedere view'")
    return value
