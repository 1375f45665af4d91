"""Views of a scene: from a request to cameras, from cameras to frames, and from frames to a file of any kind.

What made a file is told in it or beside it: a PNG of colours and a scene carry their record, every other FILE, and a
folder of frames, has it in FILE.json.
"""

import itertools
import json
import math
import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor

from belvedere.apps import output, record
from belvedere.apps.requests import PATHS, ViewRequest
from belvedere.apps.scenes import SUFFIX, Scene, open_scene
from belvedere.apps.work import Progress
from belvedere.errors import InputError
from belvedere.files import atomic_write
from belvedere.synthesis import export
from belvedere.synthesis.camera_paths import interpolate, orbit, read_path, spiral
from belvedere.synthesis.cameras import Camera
from belvedere.synthesis.mesh import extract_mesh
from belvedere.synthesis.render import Rendered, occupancy_for_views, render_view
from belvedere.synthesis.unseen import surface_depth, unseen

FRAMES = 48
"""Of a path, where nothing else is asked for."""
LONGER_SIDE = 256
"""Pixels of a view, where no size is asked for."""
KINDS = {
    **dict.fromkeys((".mp4", ".gif", ".webp"), "film"),
    ".png": "picture",
    **dict.fromkeys((".glb", ".ply"), "mesh"),
    SUFFIX: "scene",
    "": "frames",
}
"""What is written, by the ending of its name."""
USED = {
    "film": ("path", "frames", "fps", "what", "size"),
    "frames": ("path", "frames", "what", "size"),
    "picture": ("angle", "elevation", "what", "size"),
    "mesh": ("density",),
    "scene": (),
}
"""Options that a kind takes, of those that some take and others do not; orbits have ``ORBITING`` too."""
ORBITING = ("arc", "elevation")


def view(
    source: Path, out: Path, request: ViewRequest, *, force: bool = False, progress: Progress | None = None
) -> dict[str, Any]:
    """Write what the request asks for of a picture or of a scene's file; return what was done, as plain JSON.

    The ending of ``out`` says what it becomes: see ``KINDS``. It is written whole or not at all. ``progress`` is called
    with frames done and frames in all. Raises ``InputError`` for bad input, an option that ``out`` has no use for, and
    when ``out`` is there and not ``force``.
    """
    check_target(source, out, request, force)
    kind = kind_of(out)
    began = time.monotonic()
    scene = open_scene(source, request)
    opened = time.monotonic()
    text = record_text(scene, request)
    with output.writing(out):
        write(scene, request, out, text, progress)
        if not carries_record(kind, request):
            with atomic_write(record_path(out)) as file:
                file.write(text.encode())
    seconds = {"scene_seconds": round(opened - began, 2), "seconds": round(time.monotonic() - began, 2)}
    return {"file": str(out), "kind": kind, "source": str(source), **seconds, **scene.camera_facts}


def kind_of(out: Path) -> str:
    """Return what ``out`` becomes; raises ``InputError`` for another ending."""
    kind = KINDS.get(out.suffix.lower())
    if kind is None or not out.name:
        endings = ", ".join(filter(None, KINDS))
        raise InputError(f"{out}: cannot tell what to make; end the name with {endings}, or none for a folder")
    return kind


def unused(out: Path, request: ViewRequest) -> list[str]:
    """Return the options of the request, those that are not as they are by default, that ``out`` has no use for."""
    used = USED[kind_of(out)]
    if "path" in used and request.path == "orbit":
        used = (*used, *ORBITING)
    every = dict.fromkeys((*itertools.chain(*USED.values()), *ORBITING))
    return [name for name in every if name not in used and getattr(request, name) != getattr(ViewRequest, name)]


def check_target(source: Path, out: Path, request: ViewRequest, force: bool) -> None:
    """Raise ``InputError`` unless ``out`` can be written, and replaces nothing that is not to be replaced.

    What its kind of film does not allow is refused too, as far as the request tells it.
    """
    kind = kind_of(out)
    if wrong := unused(out, request):
        form = f"{kind}, --path {request.path}" if "path" in USED[kind] else kind
        raise InputError(f"--{wrong[0]} is not used for {out} ({form}): leave it out")
    if kind == "film":
        _check_film(out, request)
    if kind == "frames" and out.is_symlink():
        raise InputError(f"{out} is a link: name the folder itself, or choose another --out")
    if kind == "frames" and out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise InputError(f"{out} exists and is no empty folder: choose another --out, or empty it")
    if kind != "frames" and out.is_dir():
        raise InputError(f"{out} is a folder: name a file in it")
    written = [out] if kind != "frames" else []
    written += [] if carries_record(kind, request) else [record_path(out)]
    read = [os.path.realpath(path) for path in (source, request.path)]
    for path in written:
        if os.path.realpath(path) in read:
            raise InputError(f"{path} is what the views are made of: choose another --out")
        if path.exists() and not force:
            raise InputError(f"{path} exists: choose another --out, or --force to replace it")
    output.check_folder(out.parent)


def _check_film(out: Path, request: ViewRequest) -> None:
    ending = out.suffix.lower()
    if request.fps > (most := export.MAX_FPS[ending]):
        raise InputError(f"{request.fps} frames a second: at most {most} allowed in a {ending} file")
    if request.size and (request.frames or request.path in PATHS):
        _check_pixels(out, request.frames or FRAMES, request.size)


def _check_pixels(out: Path, count: int, size: tuple[int, int]) -> None:
    """Raise ``InputError`` where so many frames of a size are too large a film for its kind."""
    most = export.MAX_ANIMATION
    if out.suffix.lower() != ".mp4" and count * math.prod(size) > most:
        raise InputError(f"{out}: {count} frames have more than {most} pixels: make an .mp4, or fewer or smaller ones")


def record_path(out: Path) -> Path:
    """Return where the record of what cannot carry it stands."""
    return out.with_name(f"{out.name}.json")


def carries_record(kind: str, request: ViewRequest) -> bool:
    """Return whether the record is in the file itself."""
    return kind == "scene" or (kind == "picture" and request.what == "colour")


def record_text(scene: Scene, request: ViewRequest) -> str:
    """Return the record as one line of ASCII JSON: the request, what the scene was made of, camera, versions."""
    machine = asdict(record.this_machine(scene.field.device))
    made = {"request": asdict(request), **scene.origin, "camera": scene.camera_facts, "machine": machine}
    return json.dumps({"format": record.FORMAT, "view": made})


def view_camera(camera: Camera, size: tuple[int, int] | None) -> Camera:
    """Return the camera of the picture with views of ``size`` (width, height), of the same vertical field of view.

    None = the shape of the picture, ``LONGER_SIDE`` pixels along its longer side.
    """
    high, wide = camera.size
    scale = LONGER_SIDE / max(high, wide)
    width, height = size or (max(1, round(wide * scale)), max(1, round(high * scale)))
    focal = camera.focal[1] * height / high
    return replace(camera, focal=(focal, focal), principal=(width / 2, height / 2), size=(height, width))


def turned(camera: Camera, angle: float, elevation: float = 0.0, pitch: float = 0.0) -> Camera:
    """Return the camera carried around the scene by these angles in degrees; see ``camera_paths.orbit``."""
    return orbit(camera, 1, start=angle, stop=angle, elevation=elevation, pitch=pitch)[0]


def cameras(camera: Camera, request: ViewRequest, pitch: float = 0.0) -> list[Camera]:
    """Return the cameras of the request's path from ``camera``, which looks down by ``pitch`` degrees.

    Raises ``InputError`` for a file that holds none.
    """
    frames = request.frames or FRAMES
    if request.path == "spiral":
        return spiral(camera, frames)
    if request.path not in PATHS:
        file = Path(request.path)
        if not file.is_file():
            raise InputError(f"no path {request.path!r}: give {', '.join(PATHS)} or a JSON file of cameras")
        found = read_path(file, camera)
        return found if request.frames is None else interpolate(found, request.frames)
    if request.arc == 360:
        return orbit(camera, frames, elevation=request.elevation, pitch=pitch)
    swing = [request.arc / 2 * math.sin(2 * math.pi * i / frames) for i in range(frames)]
    return [turned(camera, angle, request.elevation, pitch) for angle in swing]


class Viewer:
    """A scene and what all views of it share."""

    def __init__(self, scene: Scene):
        self.scene = scene
        self.occupancy = occupancy_for_views(scene.field)

    def render(self, camera: Camera) -> Rendered:
        """Return what a camera sees of the scene."""
        near, far, samples = self.scene.near, self.scene.far, self.scene.samples
        return render_view(self.scene.field, camera, near=near, far=far, samples=samples, occupancy=self.occupancy)

    @cached_property
    def _input(self) -> tuple[Tensor, Camera]:
        """The surface that the camera of the picture sees, (h, w), and that camera."""
        camera = view_camera(self.scene.camera, None)
        return surface_depth(self.render(camera)), camera

    def values(self, camera: Camera, what: str) -> Tensor:
        """Return what a camera sees: colour (h, w, 3), depth (h, w), opacity (h, w) or what is unseen (h, w)."""
        return self._values(self.render(camera), camera, what)

    def frame(self, camera: Camera, what: str) -> np.ndarray:
        """Return what a camera sees, uint8 (h, w, 3); depths in colours, from the scene's near to its far."""
        return self.shown(camera, (what,))[0]

    def shown(self, camera: Camera, ways: Sequence[str]) -> list[np.ndarray]:
        """Return what a camera sees, as of ``frame``, in several ways, rendered once."""
        rendered = self.render(camera)
        return [self._frame(self._values(rendered, camera, what), what) for what in ways]

    def _values(self, rendered: Rendered, camera: Camera, what: str) -> Tensor:
        if what == "unseen":
            return unseen(rendered, camera, *self._input)
        return {"colour": rendered.colour, "depth": surface_depth(rendered), "opacity": rendered.opacity}[what]

    def _frame(self, values: Tensor, what: str) -> np.ndarray:
        if what == "depth":
            return export.colour_depth(values, self.scene.near, self.scene.far)
        return export.to_frame(values if values.ndim == 3 else values[..., None].expand(-1, -1, 3))


def frames(scene: Scene, path: Sequence[Camera], what: str, progress: Progress | None = None) -> Iterator[np.ndarray]:
    """Yield what each camera of a path sees, uint8 (h, w, 3)."""
    viewer = Viewer(scene)
    for i, camera in enumerate(path, 1):
        yield viewer.frame(camera, what)
        if progress:
            progress(i, len(path))


def write(scene: Scene, request: ViewRequest, out: Path, record: str, progress: Progress | None = None) -> None:
    """Write what the request asks for of a scene to ``out``, whole or not at all; see ``view``."""
    kind, path = kind_of(out), cameras(view_camera(scene.camera, request.size), request, scene.pitch)
    out.parent.mkdir(parents=True, exist_ok=True)
    if kind == "film":
        _check_pixels(out, len(path), path[0].size)
        export.write_video(out, frames(scene, path, request.what, progress), request.fps)
    elif kind == "frames":
        export.write_frames(out, frames(scene, path, request.what, progress))
    elif kind == "mesh":
        extract_mesh(scene.field, density=request.density).upright(scene.pitch).save(out)
    elif kind == "scene":
        scene.save(out, record)
    else:
        _write_picture(scene, request, out, record)


def _write_picture(scene: Scene, request: ViewRequest, out: Path, record: str) -> None:
    camera = turned(view_camera(scene.camera, request.size), request.angle, request.elevation, scene.pitch)
    values = Viewer(scene).values(camera, request.what)
    if request.what == "colour":
        output.save(Image.fromarray(export.to_frame(values)), out, record)
    elif request.what == "depth":
        export.write_depth(out, values)
    else:
        export.write_map(out, values)
