"""Captures: a folder of pictures of one scene and the cameras they were taken with."""

import hashlib
import json
import math
from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PureWindowsPath
from typing import Any, NamedTuple

from PIL import Image

from belvedere.data.cameras import Camera
from belvedere.data.colmap import read_cameras
from belvedere.data.folders import SUFFIXES
from belvedere.data.images import open_image, to_tensor
from belvedere.data.reading import naming
from belvedere.data.transforms import read_transforms
from belvedere.errors import InputError

TRANSFORMS = "transforms.json"
MODEL, UNDISTORTED = "sparse/0", "sparse"
"""Where COLMAP's mapper and its image_undistorter leave a model."""


class Split(NamedTuple):
    """Which views are learned from and which are only compared with."""

    train: tuple[int, ...]
    held_out: tuple[int, ...]
    digest: str
    """Of the names of both, 16 hexadecimal digits: two results are comparable when theirs agree."""


@dataclass(frozen=True)
class Capture:
    """The views of a scene, in the order of their names."""

    folder: Path
    names: tuple[str, ...]
    """Paths of the pictures inside the folder, with ``/``."""
    cameras: tuple[Camera, ...]
    images: str = ""
    """The subfolder that all pictures lie in, whatever links there are; "" for the whole folder."""

    def __post_init__(self) -> None:
        for name in self.names:
            check_name(name)

    def __len__(self) -> int:
        return len(self.names)

    def view(self, index: int, size: tuple[int, int] | None = None, fov: float | None = None) -> dict[str, Any]:
        """Return ``image`` float32 (3, h, w) in [-1, 1] and the ``camera`` that took it.

        Pixels are taken as they are stored, which cameras describe, whatever EXIF says of turning them. ``size``
        (height, width): the picture's middle is cut to that aspect and, with ``fov``, to that vertical field of view
        in degrees, and resized. Raises ``InputError`` for an unreadable picture, one whose aspect is not the camera's,
        or one that shows less than ``fov``.
        """
        if not 0 <= index < len(self):
            raise IndexError(index)
        path, camera = self.folder / self.names[index], self.cameras[index]
        check_inside(self.folder / self.images, path)
        least = None if size is None or fov is not None else (2 * size[1], 2 * size[0])
        image = open_image(path, upright=False, least=least)
        if abs(image.width * camera.size[0] / camera.size[1] - image.height) > 1:
            raise InputError(
                f"{path} has {image.width} x {image.height} pixels, its camera "
                f"{camera.size[1]} x {camera.size[0]}: give the pictures that the cameras were computed from"
            )
        camera = camera.scaled((image.height, image.width))
        if size is not None:
            with naming(path):
                image, camera = fit_view(image, camera, size, fov)
        return {"image": to_tensor(image).float() / 127.5 - 1, "camera": camera}

    def split(self, every: int = 8) -> Split:
        """Return the views, every ``every``-th held out from the first on.

        Raises ``InputError`` when that leaves none of either.
        """
        if every < 2 or len(self) < 2:
            raise InputError(f"every {every} of {len(self)} views held out: give every 2 or more, and 2 views or more")
        held_out = tuple(range(0, len(self), every))
        train = tuple(index for index in range(len(self)) if index % every)
        names = [[self.names[index] for index in part] for part in (train, held_out)]
        digest = hashlib.blake2b(json.dumps(names).encode(), digest_size=8).hexdigest()
        return Split(train, held_out, digest)


def open_capture(path: Path | str, images: str = "images") -> Capture:
    """Return the capture in a folder: pictures and ``transforms.json`` or a COLMAP model, ``sparse/0`` or ``sparse``.

    ``path`` is the folder, or a file in it of the form of ``transforms.json`` under another name. A picture is found by
    the name that the cameras' file gives it, or, of another kind, by the name without its suffix; COLMAP's names are
    looked for in the subfolder ``images``, "." for the folder itself. Pictures without a camera are left out. Raises
    ``InputError`` for cameras without a picture, names that lead out of the folder, and whatever the readers of the
    formats refuse.
    """
    path, images = Path(path), "" if images == "." else images
    if images:
        with naming("images"):
            check_name(images)
    folder = path.parent if path.is_file() else path
    transforms = path if path.is_file() else folder / TRANSFORMS
    if transforms.is_file():
        source, images = transforms, ""
        pictures = _Pictures(folder)
        cameras = read_transforms(source, partial(_size, pictures))
    elif (model := _model(folder)) is not None:
        source, pictures = model, _Pictures(folder / images)
        cameras = read_cameras(source)
    else:
        raise InputError(
            f"{folder} is no capture: give a folder with {TRANSFORMS} or a COLMAP model in {MODEL} or {UNDISTORTED}"
        )
    files = _files(pictures, cameras, source)
    order = sorted(files, key=lambda name: files[name])
    names = tuple(files[name].relative_to(folder).as_posix() for name in order)
    return Capture(folder, names, tuple(cameras[name] for name in order), images)


def is_capture(path: Path) -> bool:
    """Return whether ``open_capture`` finds cameras there: a file, or a folder that has some."""
    return path.is_file() or (path / TRANSFORMS).is_file() or _model(path) is not None


def _model(folder: Path) -> Path | None:
    """Return the folder of a capture's COLMAP model; None without one."""
    undistorted = folder / UNDISTORTED
    if (folder / MODEL).is_dir():
        return folder / MODEL
    return undistorted if any((undistorted / f"cameras.{form}").is_file() for form in ("bin", "txt")) else None


def fit_view(
    image: Image.Image, camera: Camera, size: tuple[int, int], fov: float | None = None
) -> tuple[Image.Image, Camera]:
    """Return the middle of a picture cut to the aspect of ``size`` (height, width) and resized, and its camera.

    ``fov``: what is left has this vertical field of view in degrees; raises ``InputError`` where a picture shows less.
    """
    high = image.height if fov is None else max(1, round(2 * camera.focal[1] * math.tan(math.radians(fov) / 2)))
    width = min(image.width, max(1, round(high * size[1] / size[0])))
    height = min(image.height, high, max(1, round(image.width * size[0] / size[1])))
    if fov is not None and height < high - 1:  # a pixel is lost to rounding
        seen = math.degrees(2 * math.atan(height / 2 / camera.focal[1]))
        raise InputError(f"a field of view of {seen:.3g} degrees, less than the {fov:.3g} needed: give wider pictures")
    left, upper = (image.width - width) // 2, (image.height - height) // 2
    box = (left, upper, left + width, upper + height)
    camera = camera.cropped(box).scaled(size)
    return image.resize((size[1], size[0]), Image.Resampling.LANCZOS, box), camera


def check_name(name: str) -> None:
    """Raise ``InputError`` unless a name, of a picture or a folder of them, is a relative path that stays below."""
    path = PureWindowsPath(name)  # splits at either slash
    if path.anchor or ".." in path.parts or not path.parts or min(name) < " ":
        raise InputError(f"name {name[:200]!r}: must be a relative path of printed letters, without '..'")


def check_inside(folder: Path, path: Path) -> None:
    """Raise ``InputError`` when a file below ``folder`` is a link out of it; the folder itself may be a link."""
    if not path.resolve().is_relative_to(folder.resolve()):
        raise InputError(f"picture {path.name[:200]!r} is a link out of {folder}: copy it there")


def _size(pictures: "_Pictures", name: str) -> tuple[int, int]:
    file = pictures.find(name)
    if file is None:
        raise InputError(f"no w and h, and no picture {name[:200]!r} to take them from: add one or the other")
    image = open_image(file, upright=False)
    return image.height, image.width


def _files(pictures: "_Pictures", names: Iterable[str], source: Path) -> dict[str, Path]:
    """Return the picture of each name; raises ``InputError`` that names one that is missing or meant twice."""
    found = {name: pictures.find(name) for name in names}
    files = {name: file for name, file in found.items() if file is not None}
    if missing := found.keys() - files.keys():
        raise InputError(
            f"{len(missing)} pictures that {source} names are missing in {pictures.folder}, such as "
            f"{min(missing)[:200]!r}: add them, or take them out of the file"
        )
    owners = {file: name for name, file in files.items()}
    for name, file in files.items():
        if owners[file] != name:
            raise InputError(f"{source} names {file} twice, as {name!r} and {owners[file]!r}: a picture has one camera")
    return files


class _Pictures:
    """The pictures below a folder by the names that others give them."""

    def __init__(self, folder: Path):
        self.folder = folder
        self._stems: dict[Path, dict[str, list[Path]]] = {}

    def find(self, name: str) -> Path | None:
        """Return the file ``name``, or the only picture whose name differs in its suffix alone; None for neither.

        Raises ``InputError`` for a name that leads out of the folder or fits many.
        """
        check_name(name)
        exact = self.folder / name
        try:
            path = exact if exact.is_file() else self._by_stem(exact)
        except OSError:  # a name that is none, such as a very long one
            return None
        if path is not None:
            check_inside(self.folder, path)
        return path

    def _by_stem(self, path: Path) -> Path | None:
        folder = path.parent
        if folder not in self._stems:
            stems = self._stems[folder] = {}
            for file in sorted(folder.iterdir()) if folder.is_dir() else ():
                if file.suffix.lower() in SUFFIXES and file.is_file():
                    stems.setdefault(file.stem, []).append(file)
        fitting = self._stems[folder].get(path.stem if path.suffix.lower() in SUFFIXES else path.name, [])
        if len(fitting) > 1:
            raise InputError(f"{path} is missing and may be {' or '.join(f.name for f in fitting)}: keep one of them")
        return fitting[0] if fitting else None
