"""Toys seen from several sides: a picture to look at, others to compare with, and where each was taken from."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from belvedere.data.toybox.dataset import CHUNK_PIXELS, KINDS, NoItem, Toybox, _side_by_side, _whole, named_kinds
from belvedere.data.toybox.kinds import ALL
from belvedere.data.toybox.palette import Dice
from belvedere.data.toybox.render import geometry, image, intrinsics
from belvedere.data.toybox.scene import Array, Scenes, build, cameras
from belvedere.errors import InputError
from belvedere.seeds import derive

RISE = (-6.0, 12.0)
"""Degrees between which a camera is higher than where the toy is best seen from, as in ``Toybox.sample``."""
MAX_VIEWS = 64
NEAR, FAR = 0.58, 1.42
"""Shares of the distance between which toys, and the ground that is near them, lie."""


class ToyboxViews:
    """Toys from unknown sides: item i is toy i of a ``Toybox``, an input view and some target views of it.

    ``kinds``: item i shows ``kinds[i % len(kinds)]``; one that is named more than once is shown as often.
    ``turn``: the input is taken from up to so many degrees to either side of where the toy is best seen from; 180 is
    from anywhere. ``spread``: target k is taken from up to ``spread[k]`` degrees to either side of the input. Each view
    depends on (seed, i, its number) alone, a target on the input's besides. The origin of a scene is the point that its
    cameras look at, and all are ``distance`` away from it, whatever the toy: pictures do not tell how large it is.
    ``distances``: items tell those too. The other arguments are those of ``Toybox``. Raises ``InputError`` for anything
    else.
    """

    def __init__(
        self,
        size: int | tuple[int, int] = 64,
        *,
        spread: Sequence[float] = (45.0, 90.0),
        turn: float = 180.0,
        distance: float = 2.0,
        distances: bool = False,
        seed: int = 0,
        length: int = 1_000_000,
        kinds: Sequence[str] = KINDS,
        samples: int = 4,
        device: torch.device | str = "cpu",
    ):
        self.shown = named_kinds(kinds)
        once = tuple(dict.fromkeys(self.shown))
        self.toys = Toybox(size, seed=seed, length=length, kinds=once, samples=samples, device=device)
        self.size, self.classes = self.toys.size, self.toys.classes
        if not isinstance(spread, list | tuple) or not 1 <= len(spread) <= MAX_VIEWS:
            raise InputError(f"toybox spread must be a list of 1 to {MAX_VIEWS} angles, one a target, not {spread!r}")
        self.spread = tuple(_number("spread", angle, 180) for angle in spread)
        self.turn, self.distance = _number("turn", turn, 180), _number("distance", distance, 1e3)
        if not self.distance:
            raise InputError("toybox distance is 0: must be above it")
        if not isinstance(distances, bool):
            raise InputError(f"toybox distances {distances!r}: must be true or false")
        self.distances = distances

    @property
    def near_far(self) -> tuple[float, float]:
        """Distances between which what is to be seen lies; the sky is taken to begin at the second."""
        return NEAR * self.distance, FAR * self.distance

    @property
    def pitch(self) -> float:
        """Degrees by which cameras look down, on average."""
        usual = [sum(ALL[kind].elevation) / 2 for kind in self.classes]
        return sum(usual) / len(usual) + sum(RISE) / 2

    def __len__(self) -> int:
        """Return the number of items."""
        return len(self.toys)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Return what ``batch`` tells of one scene, without the first axis; ``label`` is an int."""
        item = {name: rows[0] for name, rows in self.batch([index]).items()}
        return item | {"label": int(item["label"])}

    def batch(self, indices: Sequence[int]) -> dict[str, Tensor]:
        """Return pictures and cameras of scenes, each with an input and v target views.

        ``image`` (b, 3, h, w), the inputs, and ``views`` (b, v, 3, h, w), the targets, in [-1, 1]. ``poses``
        (b, 1 + v, 4, 4): camera to world, OpenCV axes, the input's first. ``intrinsics`` (b, 1 + v, 4): focal lengths
        x, y and principal point x, y in pixels, pixel centres at half-integers. All float32. ``label`` int64 (b,). With
        ``distances``, ``distances`` (b, 1 + v, h, w): how far what is seen is along the ray of each pixel's centre,
        infinity in the sky.
        """
        indices = [_whole("index", index, 0, len(self) - 1, NoItem) for index in indices]
        threads = torch.get_num_threads() if self.toys.device.type == "cpu" else 1
        step = max(1, min(CHUNK_PIXELS // (self.size[0] * self.size[1]), -(-len(indices) // threads)))
        chunks = [indices[start : start + step] for start in range(0, len(indices), step)]
        pictures = torch.cat([self._empty(3), *_side_by_side(self._pictures, chunks, threads)])
        scenes = self._scenes(indices)
        poses = self._cameras(scenes, indices)
        scale = self.distance / scenes.distance
        poses[..., :3, 3] = (poses[..., :3, 3] - scenes.target[:, None]) * scale[:, None, None]
        matrix = intrinsics(self.size)
        lens = torch.tensor([matrix[0, 0], matrix[1, 1], matrix[0, 2], matrix[1, 2]], dtype=torch.float32)
        batch = {
            "image": pictures[:, 0],
            "views": pictures[:, 1:],
            "poses": torch.from_numpy(poses).float(),  # (b, 1 + v, 4, 4)
            "intrinsics": lens.repeat(*poses.shape[:2], 1),  # (b, 1 + v, 4)
            "label": torch.tensor([self._label(index) for index in indices], dtype=torch.int64),
        }
        if self.distances:
            depths = torch.cat([self._empty(), *_side_by_side(self._depths, chunks, threads)])
            batch["distances"] = (
                depths * self._along(lens) * torch.from_numpy(scale).float().view(-1, 1, 1, 1).to(depths)
            )
        return {name: tensor.to(self.toys.device) for name, tensor in batch.items()}

    def _label(self, index: int) -> int:
        return self.classes.index(self.shown[index % len(self.shown)])

    def _empty(self, *channels: int) -> Tensor:
        return torch.zeros(0, 1 + len(self.spread), *channels, *self.size, device=self.toys.device)

    def _pictures(self, indices: list[int]) -> Tensor:
        """Return the pictures (b, 1 + v, 3, h, w) of scenes."""
        scenes = self._scenes(indices)
        poses = self._cameras(scenes, indices)
        views = [
            image(scenes, poses[:, view], self.size, self.toys.samples, self.toys.device)
            for view in range(poses.shape[1])
        ]
        return torch.stack(views, 1)

    def _depths(self, indices: list[int]) -> Tensor:
        """Return the depths (b, 1 + v, h, w) of scenes along the optical axis, in the world of ``Toybox``."""
        scenes = self._scenes(indices)
        poses = self._cameras(scenes, indices)
        views = [geometry(scenes, poses[:, view], self.size, self.toys.device)[1] for view in range(poses.shape[1])]
        return torch.stack(views, 1)

    def _along(self, lens: Tensor) -> Tensor:
        """Return how much farther (h, w) along the ray of a pixel than along the optical axis something is."""
        fx, fy, cx, cy = lens.tolist()
        x, y = (
            (torch.arange(side) + 0.5 - middle) / focal
            for side, middle, focal in zip(self.size[::-1], (cx, cy), (fx, fy), strict=True)
        )
        return (x**2 + y[:, None] ** 2 + 1).sqrt().to(self.toys.device)

    def _scenes(self, indices: Sequence[int]) -> Scenes:
        return build(self.toys.seed, indices, self.shown)

    def _cameras(self, scenes: Scenes, indices: Sequence[int]) -> Array:
        """Return the cameras (b, 1 + v, 4, 4) of scenes in the world of ``Toybox``."""
        angles = np.radians([self._angles(index) for index in indices]).reshape(-1, 1 + len(self.spread), 2)
        views = [cameras(scenes, *angles[:, view].T) for view in range(angles.shape[1])]
        return np.stack(views, 1)

    def _angles(self, index: int) -> list[tuple[float, float]]:
        """Return by how many degrees each view is turned, and raised, from where the toy is best seen from."""
        first, *others = (Dice(derive(self.toys.seed, "toybox views", index, k)) for k in range(1 + len(self.spread)))
        turn = first.between(-self.turn, self.turn)
        turns = [turn, *(turn + dice.between(-s, s) for dice, s in zip(others, self.spread, strict=True))]
        return [(turn, dice.between(*RISE)) for turn, dice in zip(turns, (first, *others), strict=True)]


def _number(name: str, value: float, most: float) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= most:
        raise InputError(f"toybox {name} must be a number from 0 to {most:g}, not {value!r}")
    return float(value)
