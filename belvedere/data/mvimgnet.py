"""MVImgNet: scenes of one object each, filmed all around, with COLMAP's cameras (Yu et al. 2023, arXiv 2303.06042).

DATA/category/scene/images/001.jpg ...       pictures; or another folder of smaller ones
DATA/category/scene/sparse/0/cameras.bin ... the model
"""

import fcntl
import hashlib
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from belvedere.data.cameras import Camera
from belvedere.data.captures import MODEL, TRANSFORMS, UNDISTORTED, Capture, open_capture
from belvedere.data.colmap import read_points
from belvedere.data.normalisation import normalise_scene
from belvedere.errors import InputError
from belvedere.files import atomic_write

TEST_EVERY = 100
"""Inside each category, in the order of the names, the first of so many scenes is for testing."""
VERSION = 2
"""Of the cache."""
TOLD_EVERY = 500
"""Scenes, while their cameras are read."""
LENS = 6
"""Numbers of a camera beside its pose: focal, principal, size."""


class Scene(NamedTuple):
    """One scene, in the coordinates of ``Normalisation``: inside a unit cube around the origin.

    Lenses are taken to have no distortion, as NViST is trained and measured.
    """

    capture: Capture
    label: int
    near: float
    far: float


@dataclass(frozen=True)
class _Table:
    """What the cache holds: all scenes behind one another."""

    scenes: list[str]
    skipped: dict[str, str]
    names: list[list[str]]
    poses: Tensor  # (views, 4, 4)
    lenses: Tensor  # (views, LENS)
    near_far: Tensor  # (scenes, 2)


class MVImgNet:
    """The scenes below ``data_dir`` that have a COLMAP model and pictures of the aspect of ``size`` (height, width).

    ``split``: "train" or "test", which is every 100th scene of each category, counted over all that have a model.
    ``images``: the subfolder of the pictures. Their cameras are read and normalised once and kept in a file of the
    folder ``cache``, by default ``data_dir``, which is made again when models or lists of pictures change. A scene that
    cannot be read is left out, and ``skipped`` says why. ``progress(done, total)`` is called while the cache is made,
    by default stderr is told. Of several processes one makes it and the others wait. Raises ``InputError`` when no
    scene is left, which leaves the cache as it was, or the cache cannot be written.
    """

    def __init__(
        self,
        data_dir: Path | str,
        split: str = "train",
        size: tuple[int, int] = (160, 90),
        images: str = "images",
        cache: Path | str | None = None,
        progress: Callable[[int, int], None] | None = None,
    ):
        progress = progress or _tell
        if split not in ("train", "test"):
            raise InputError(f"MVImgNet split {split!r}: choose train or test")
        self.data_dir, self.size, self.images = Path(data_dir), (size[0], size[1]), images
        folders = _listed(self.data_dir, split)
        self.classes = tuple(sorted({folder.parent.name for folder in folders}))
        path = Path(self.data_dir if cache is None else cache) / f"belvedere-{split}.safetensors"
        digest = _digest(folders, self.size, images)
        known = {_name(folder) for folder in folders}
        table = _load(path, digest, known)
        if table is None:
            with _alone(path):
                table = _load(path, digest, known) or _make(path, digest, folders, images, self.size, progress)
        if not table.scenes:
            scene, reason = next(iter(table.skipped.items()))
            raise InputError(f"no {split} scene of {self.data_dir} can be used, such as {scene}: {reason}")
        self.scenes: tuple[str, ...] = tuple(table.scenes)
        """Each as category/scene."""
        self.skipped = table.skipped
        self._table = table
        self._starts = [0]
        for names in table.names:
            self._starts.append(self._starts[-1] + len(names))

    @property
    def near_far(self) -> tuple[float, float]:
        """The nearest near and the farthest far of all scenes; NViST uses those of the test split for both splits."""
        return float(self._table.near_far[:, 0].min()), float(self._table.near_far[:, 1].max())

    def __len__(self) -> int:
        """Return the number of scenes."""
        return len(self.scenes)

    def __getitem__(self, index: int) -> Scene:
        """Return a scene; no picture is opened."""
        if not 0 <= index < len(self):
            raise IndexError(index)
        views = range(self._starts[index], self._starts[index + 1])
        cameras = tuple(_camera(self._table.poses[view], self._table.lenses[view].tolist()) for view in views)
        capture = Capture(self.data_dir / self.scenes[index], tuple(self._table.names[index]), cameras, self.images)
        near, far = self._table.near_far[index].tolist()
        return Scene(capture, self.classes.index(self.scenes[index].split("/")[0]), near, far)

    def sample(self, index: int, views: Sequence[int]) -> dict[str, Any]:
        """Return views of a scene: ``image`` float32 (v, 3, h, w) in [-1, 1], ``cameras`` and ``label``."""
        scene = self[index]
        seen = [scene.capture.view(view, self.size) for view in views]
        image = torch.stack([view["image"] for view in seen])
        return {"image": image, "cameras": [view["camera"] for view in seen], "label": scene.label}


@contextmanager
def _alone(path: Path) -> Iterator[None]:
    """Wait until no other process makes the cache ``path``, and keep others from it."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = path.with_name(f".{path.name}.lock").open("w")
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror}; give cache a folder that can be written") from error
    with lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _make(
    path: Path,
    digest: str,
    folders: Sequence[Path],
    images: str,
    size: tuple[int, int],
    progress: Callable[[int, int], None],
) -> _Table:
    """Return the table of the scenes in ``folders``, written to the cache where there are any.

    stderr is told of what is left out.
    """
    table = _read(folders, images, size, progress)
    if table.scenes:
        _save(path, digest, table)
    if table.skipped:
        scene, reason = next(iter(table.skipped.items()))
        left_out = f"{len(table.skipped)} of {len(folders)} scenes are left out, such as {scene}: {reason}"
        print(left_out, file=sys.stderr, flush=True)
    return table


def _tell(done: int, total: int) -> None:
    if done % TOLD_EVERY == 0:
        print(f"cameras of {done} of {total} scenes are read", file=sys.stderr, flush=True)


def _read(folders: Sequence[Path], images: str, size: tuple[int, int], progress: Callable[[int, int], None]) -> _Table:
    """Return the table of the scenes in ``folders``."""
    scenes, skipped, names = [], {}, []
    poses, lenses = [torch.empty(0, 4, 4, dtype=torch.float64)], [torch.empty(0, LENS, dtype=torch.float64)]
    near_far = []
    for done, folder in enumerate(folders):
        scene = _name(folder)
        try:
            capture, depths = _normalised(folder, images, size)
        except InputError as error:
            skipped[scene] = str(error)
        else:
            scenes.append(scene)
            names.append(list(capture.names))
            poses.append(torch.stack([camera.pose for camera in capture.cameras]))
            lenses.append(torch.tensor([_lens(camera) for camera in capture.cameras], dtype=torch.float64))
            near_far.append(depths)
        progress(done + 1, len(folders))
    depths_of_all = torch.tensor(near_far, dtype=torch.float64).view(-1, 2)
    return _Table(scenes, skipped, names, torch.cat(poses), torch.cat(lenses), depths_of_all)


def _listed(data_dir: Path, split: str) -> list[Path]:
    """Return the folders of the scenes of a split that have a model, category by category; there are some."""
    if not data_dir.is_dir():
        raise InputError(f"no folder {data_dir}: give one with category/scene/{MODEL}")
    chosen = []
    for category in sorted(path for path in data_dir.iterdir() if path.is_dir()):
        scenes = sorted(path for path in category.iterdir() if (path / MODEL).is_dir())
        chosen += [scene for number, scene in enumerate(scenes) if (number % TEST_EVERY == 0) == (split == "test")]
    if not chosen:
        raise InputError(
            f"no {split} scene in {data_dir}: MVImgNet has category/scene/{MODEL}, a capture {TRANSFORMS} or "
            f"{UNDISTORTED}"
        )
    return chosen


def _name(folder: Path) -> str:
    """Return a scene's name, category/scene."""
    return f"{folder.parent.name}/{folder.name}"


def _normalised(folder: Path, images: str, size: tuple[int, int]) -> tuple[Capture, tuple[float, float]]:
    """Return the capture of a scene in normalised coordinates, and its near and far."""
    capture = open_capture(folder, images)
    for camera in capture.cameras:
        if abs(camera.size[1] * size[0] / camera.size[0] - size[1]) > 1:
            raise InputError(
                f"pictures of {camera.size[1]} x {camera.size[0]}, not of the aspect {size[1]} x {size[0]}"
            )
    normal = normalise_scene(*read_points(folder / MODEL), capture.cameras)
    cameras = tuple(replace(normal.apply(camera), distortion=()) for camera in capture.cameras)
    return replace(capture, cameras=cameras), (normal.near, normal.far)


def _lens(camera: Camera) -> list[float]:
    return [*camera.focal, *camera.principal, *camera.size]


def _camera(pose: Tensor, lens: Sequence[float]) -> Camera:
    fx, fy, cx, cy, height, width = lens
    return Camera(pose, (fx, fy), (cx, cy), (int(height), int(width)))


def _digest(folders: Sequence[Path], size: tuple[int, int], images: str) -> str:
    """Return what a cache must have been made from: what was asked, the scenes, their models, their folders."""
    digest = hashlib.blake2b(json.dumps([VERSION, size, images]).encode(), digest_size=16)
    for folder in folders:
        paths = [folder / images, *sorted((folder / MODEL).iterdir())]
        state = [(path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in paths if path.exists()]
        digest.update(json.dumps([_name(folder), state]).encode())
    return digest.hexdigest()


def _save(path: Path, digest: str, table: _Table) -> None:
    names = json.dumps({"scenes": table.scenes, "skipped": table.skipped, "names": table.names}).encode()
    tensors = {"poses": table.poses, "lenses": table.lenses, "near_far": table.near_far}
    tensors["listing"] = torch.frombuffer(bytearray(names), dtype=torch.uint8)
    try:
        with atomic_write(path) as stream:
            stream.write(save(tensors, {"digest": digest}))
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror}; give cache a folder that can be written") from error


def _load(path: Path, digest: str, scenes: set[str]) -> _Table | None:
    """Return the table in a cache; None where there is none yet, or one of other scenes.

    Raises ``InputError`` for any other file: it is not ours to replace.
    """
    if not path.exists():
        return None
    try:
        with safe_open(path, "pt") as file:
            if (file.metadata() or {})["digest"] != digest:
                return None
            tensors = {name: file.get_tensor(name) for name in ("poses", "lenses", "near_far", "listing")}
        table = _Table(**json.loads(bytes(tensors.pop("listing").numpy())), **tensors)
        _check(table, scenes)
    except (OSError, ValueError, TypeError, KeyError, RecursionError, SafetensorError) as error:
        raise InputError(
            f"{path} is no cache of MVImgNet, or damaged: remove it or give cache another folder"
        ) from error
    return table


def _check(table: _Table, scenes: set[str]) -> None:
    """Raise ``ValueError`` for what a cache cannot hold: it lies among the data, which others may have written."""
    if not (isinstance(table.scenes, list) and isinstance(table.names, list) and isinstance(table.skipped, dict)):
        raise ValueError("it must list names")
    if not table.scenes:
        raise ValueError("it must hold scenes")
    views = [name for names in table.names for name in names]
    if not scenes.issuperset(table.scenes) or not all(
        isinstance(text, str) for text in [*views, *table.skipped.values()]
    ):
        raise ValueError("it must name scenes that are there")
    shapes = [
        (table.poses, (len(views), 4, 4)),
        (table.lenses, (len(views), LENS)),
        (table.near_far, (len(table.scenes), 2)),
    ]
    if len(table.scenes) != len(table.names) or any(x.shape != s or x.dtype != torch.float64 for x, s in shapes):
        raise ValueError("its tensors must fit the names")
    if not all(bool(tensor.isfinite().all()) for tensor, _ in shapes):
        raise ValueError("its numbers must be finite")
