"""What views are measured on: scenes with many views of which a network sees one, and how they are split."""

import hashlib
import json
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from belvedere.checkpoints.views import SceneModel
from belvedere.data.captures import Capture, is_capture, open_capture
from belvedere.data.mvimgnet import MVImgNet
from belvedere.data.normalisation import Normalisation
from belvedere.data.toybox import HELD_OUT, KINDS
from belvedere.data.toybox.views import ToyboxViews
from belvedere.errors import InputError
from belvedere.seeds import derive
from belvedere.synthesis.cameras import Camera, relative_cameras

EVERY = 8
"""Of a capture's views, every so many-th is held out."""
TOYS_SEED, MEAN_SEED = derive("evaluation", "views"), derive("evaluation", "mean picture")
"""Of worlds of toys; no network is trained on either."""
EACH = 4
"""Toys of a kind."""
VIEWS, WIDEST = 5, 45.0
"""Of a toy that are held out, and how far they may be from the one that the network sees, in degrees around it."""
MEAN_OF = 120
"""Pictures of toys, as many of each kind, whose mean is the guess of who has not looked."""


class Case(NamedTuple):
    """One scene to be measured."""

    scene: str
    kind: str
    pictures: Tensor
    """(v, 3, h, w) in [0, 1], of the size that the network takes."""
    cameras: tuple[Camera, ...]
    """Of the pictures, in the frame of the one that the network sees."""
    source: int
    """Which one that is."""
    held_out: tuple[int, ...]
    """Which ones are compared with strictly: never the one that the network sees."""
    mean: Tensor
    """(3, h, w), what one would guess without looking."""
    distance: Tensor | None = None
    """(v, h, w), the true distance along each ray, infinity where there is nothing; None where it is not known."""


@dataclass(frozen=True)
class CaseSet:
    """Scenes that are measured together. ``cases`` makes them one after another."""

    name: str
    count: int
    split: dict[str, Any]
    """What decides which scenes and views these are, as plain JSON."""
    cases: Callable[[], Iterator[Case]]

    @property
    def digest(self) -> str:
        """Of the split, 16 hexadecimal digits: two results are comparable when theirs agree."""
        return hashlib.blake2b(json.dumps(self.split, sort_keys=True).encode(), digest_size=8).hexdigest()


def case_sets(
    data: Path | None,
    model: SceneModel,
    count: int | None = None,
    *,
    images: str = "images",
    cache: Path | None = None,
) -> list[CaseSet]:
    """Return what a model is measured on: a capture's folder, MVImgNet's test split, or toys when ``data`` is None.

    ``count``: of toys of each kind, by default ``EACH``, or at most so many scenes of MVImgNet. ``images``: the
    subfolder of the pictures of COLMAP's models; ``cache``: see ``MVImgNet``. Raises ``InputError`` for a folder that
    is neither.
    """
    if count is not None and count < 1:
        raise InputError(f"cannot measure {count} scenes: give 1 or more")
    config: Any = model.network.config
    size = config.image[0], config.image[1]
    if data is None:
        kinds = {"toys": KINDS, "toys of unseen kinds": HELD_OUT}
        return [toybox_cases(name, size, model.distance, part, count or EACH) for name, part in kinds.items()]
    if is_capture(data):
        fov = None if config.focal else model.fov
        return [capture_cases(open_capture(data, images), size, model.distance, fov=fov)]
    return [mvimgnet_cases(MVImgNet(data, "test", size, images, cache), count)]


def capture_cases(
    capture: Capture, size: tuple[int, int], distance: float, every: int = EVERY, fov: float | None = None
) -> CaseSet:
    """Return a capture as the only case: the network sees the middle one of the views that are not held out.

    The scale of a capture is unknown. Its origin is put where its cameras look, its scale is such that the camera of
    the network's view is ``distance`` away, as the network expects. ``fov``: the vertical field of view in degrees
    that all pictures are cut to, for a network that knows no other. The mean is that of the views not held out.
    """
    split = capture.split(every)
    source = split.train[len(split.train) // 2]

    def cases() -> Iterator[Case]:
        normal = normalise_cameras(capture.cameras, source, distance)
        pictures, cameras = _views(capture, size, fov)
        relative = relative_cameras([normal.apply(camera) for camera in cameras], source)
        mean = pictures[list(split.train)].mean(0)
        yield Case(capture.folder.name, "capture", pictures, tuple(relative), source, split.held_out, mean)

    told = {"capture": capture.folder.name, "every": every, "views": split.digest, "input": capture.names[source]}
    return CaseSet("capture", 1, {**told, "size": list(size), "fov": fov}, cases)


def mvimgnet_cases(data: MVImgNet, count: int | None = None) -> CaseSet:
    """Return MVImgNet's scenes, at most ``count``, in the coordinates that NViST is trained in.

    The network sees the middle view of each; all others are held out. The mean is that of the views it sees.
    """
    chosen = range(len(data) if count is None else min(count, len(data)))
    middle = [len(data[i].capture) // 2 for i in chosen]

    def cases() -> Iterator[Case]:
        mean = torch.stack([_unit(data.sample(i, [middle[i]])["image"][0]) for i in chosen]).mean(0)
        for i in chosen:
            scene = data[i]
            pictures, cameras = _views(scene.capture, data.size)
            others = tuple(view for view in range(len(cameras)) if view != middle[i])
            relative = tuple(relative_cameras(cameras, middle[i]))
            yield Case(data.scenes[i], data.classes[scene.label], pictures, relative, middle[i], others, mean)

    names = {data.scenes[i]: list(data[i].capture.names) for i in chosen}
    return CaseSet("mvimgnet", len(chosen), {"mvimgnet": "test", "views": names, "size": list(data.size)}, cases)


def _views(capture: Capture, size: tuple[int, int], fov: float | None = None) -> tuple[Tensor, list[Camera]]:
    """Return all pictures of a capture (v, 3, h, w) in [0, 1] and their cameras; see ``Capture.view``."""
    views = [capture.view(i, size, fov) for i in range(len(capture))]
    return torch.stack([_unit(view["image"]) for view in views]), [view["camera"] for view in views]


def _unit(image: Tensor) -> Tensor:
    return (image + 1) / 2


def toybox_cases(name: str, size: tuple[int, int], distance: float, kinds: Sequence[str], each: int) -> CaseSet:
    """Return toys of a world that no network is trained on, ``each`` of every kind, as ``ToyboxViews`` shows them.

    The network sees a toy from any side, ``distance`` away; held out are ``VIEWS`` views of at most ``WIDEST`` degrees
    to either side of that one. The mean is that of pictures of another world.
    """
    toys = ToyboxViews(size, spread=[WIDEST] * VIEWS, distance=distance, distances=True, seed=TOYS_SEED, kinds=kinds)
    indices = range(each * len(kinds))

    def cases() -> Iterator[Case]:
        mean = _unit(ToyboxViews(size, spread=[0.0], seed=MEAN_SEED).batch(range(MEAN_OF))["image"]).mean(0)
        for index in indices:
            yield _toy(toys, index, mean)

    told = {"seed": TOYS_SEED, "kinds": list(kinds), "each": each, "views": VIEWS, "degrees": WIDEST}
    return CaseSet(name, len(indices), {"toybox": told, "size": list(size)}, cases)


def _toy(toys: ToyboxViews, index: int, mean: Tensor) -> Case:
    item = toys[index]
    poses = item["poses"].double()
    lenses = [((fx, fy), (cx, cy)) for fx, fy, cx, cy in item["intrinsics"].tolist()]
    cameras = [Camera(pose, *lens, toys.size) for pose, lens in zip(poses, lenses, strict=True)]
    pictures = _unit(torch.cat([item["image"][None], item["views"]]))
    kind, held_out = toys.classes[item["label"]], tuple(range(1, len(cameras)))
    relative = tuple(relative_cameras(cameras))
    return Case(f"{kind} {index}", kind, pictures, relative, 0, held_out, mean, item["distances"])


def degrees_between(a: Camera, b: Camera) -> float:
    """Return the angle at the origin between two cameras, in degrees."""
    cross, dot = torch.linalg.cross(a.position, b.position), a.position @ b.position
    return math.degrees(torch.atan2(cross.norm(), dot).item())


def normalise_cameras(cameras: Sequence[Camera], source: int, distance: float) -> Normalisation:
    """Return how a capture comes to a network's scale, without a reconstruction of its points.

    The centre is the point nearest to all optical axes, in the sense of least squares; camera ``source`` is
    ``distance`` away from it. Near and far are 0: they are the network's. Raises ``InputError`` when the axes are
    parallel, or the centre is at that camera.
    """
    positions = torch.stack([camera.position for camera in cameras])  # (v, 3)
    axes = torch.stack([camera.pose[:3, 2] for camera in cameras])  # (v, 3)
    across = torch.eye(3, dtype=axes.dtype) - axes.unsqueeze(2) * axes.unsqueeze(1)  # (v, 3, 3)
    system, right = across.sum(0), (across @ positions.unsqueeze(2)).sum(0)
    if torch.linalg.cond(system) > 1e6:
        raise InputError("the cameras of the capture all look the same way: there is no point that they look at")
    centre = torch.linalg.solve(system, right).squeeze(1)
    away = float((positions[source] - centre).norm())
    if not away > 0:
        raise InputError("a camera of the capture is where all of them look: its scene has no scale")
    return Normalisation(tuple(centre.tolist()), distance / away, 0.0, 0.0)
