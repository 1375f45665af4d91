"""The Toybox as a dataset: every item a pure function of (seed, index)."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from belvedere.data.toybox.kinds import ALL, TOYS
from belvedere.data.toybox.palette import Dice
from belvedere.data.toybox.render import geometry, image, intrinsics
from belvedere.data.toybox.scene import Scenes, build, cameras
from belvedere.errors import InputError
from belvedere.seeds import derive
from belvedere.threads import pool

KINDS: tuple[str, ...] = tuple(TOYS)[:12]
"""The twelve kinds that networks are trained on."""
HELD_OUT: tuple[str, ...] = tuple(TOYS)[12:]
"""The two kinds kept out of all training, to test unseen categories."""

GOLDEN_ANGLE = math.pi * (3 - math.sqrt(5))
CHUNK_PIXELS = 32 * 64 * 64
MAX_SAMPLES = 64


class NoItem(InputError, IndexError):
    """An index that a dataset has no item for; iteration ends at the first."""


class Toybox:
    """A procedural world of toys, stateless: item i depends on (seed, i, size, kinds, samples) alone.

    ``size`` is one number or (height, width), 8 to 1024; ``samples`` the rays a pixel, 1 to 64; ``kinds``
    names the classes, and item i shows ``kinds[i % len(kinds)]``. ``device`` is where pictures are drawn.
    Raises ``InputError`` for anything else.
    """

    def __init__(
        self,
        size: int | tuple[int, int] = 64,
        *,
        seed: int = 0,
        length: int = 1_000_000,
        kinds: Sequence[str] = KINDS,
        samples: int = 4,
        device: torch.device | str = "cpu",
    ):
        self.size = _checked_size(size)
        self.seed = _whole("seed", seed, -(2**63), 2**63 - 1)
        self.length = _whole("length", length, 1, 2**62)
        self.samples = _whole("samples", samples, 1, MAX_SAMPLES)
        self.classes = _each_once(named_kinds(kinds))
        self.device = _checked_device(device)

    def __len__(self) -> int:
        """Return the number of items."""
        return self.length

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Return ``image`` (3, h, w) in [-1, 1], ``label`` (int) and ``caption``."""
        scenes = self._scenes([index])
        picture = image(scenes, cameras(scenes), self.size, self.samples, self.device)[0]
        return {"image": picture, "label": int(index) % len(self.classes), "caption": scenes.captions[0]}

    def batch(self, indices: Sequence[int]) -> dict[str, Tensor]:
        """Return ``image`` float32 (b, 3, h, w) in [-1, 1] and ``label`` int64 (b,)."""
        indices = [self._index(i) for i in indices]
        threads = torch.get_num_threads() if self.device.type == "cpu" else 1
        most = max(1, CHUNK_PIXELS // (self.size[0] * self.size[1]))
        step = max(1, min(most, -(-len(indices) // threads)))
        chunks = [indices[start : start + step] for start in range(0, len(indices), step)]
        pictures = _side_by_side(self._drawn, chunks, threads)
        label = torch.tensor([i % len(self.classes) for i in indices], dtype=torch.int64, device=self.device)
        empty = torch.zeros(0, 3, *self.size, device=self.device)
        return {"image": torch.cat([empty, *pictures]), "label": label}

    def sample(self, index: int, *, size: int | tuple[int, int] | None = None, views: int = 1) -> dict[str, Any]:
        """Return one scene with everything known about it, from ``views`` cameras (1 to 256).

        ``image`` (v, 3, h, w) in [-1, 1]; ``regions`` int64 (v, h, w): 0 sky, 1 ground, from 2 on the parts of
        the toy, the same part having the same number in every view; ``depth`` float32 (v, h, w): distance
        along the optical axis at the pixel's centre, world units, inf in the sky; ``intrinsics`` (3, 3) in
        pixels, pixel centres at half-integers; ``camera_to_world`` (v, 4, 4), OpenCV axes (x right, y down,
        z forward), float64; ``label`` and ``caption``. View 0 is the picture that ``[index]`` shows; view k is
        the same for any number of views.
        """
        height_width = self.size if size is None else _checked_size(size)
        _whole("views", views, 1, 256)
        scenes = self._scenes([index])
        poses = [self._pose(scenes, index, view) for view in range(views)]
        pictures = [image(scenes, pose, height_width, self.samples, self.device) for pose in poses]
        shapes = [geometry(scenes, pose, height_width, self.device) for pose in poses]
        return {
            "image": torch.cat(pictures),
            "regions": torch.cat([regions for regions, _ in shapes]),
            "depth": torch.cat([depth for _, depth in shapes]),
            "intrinsics": torch.from_numpy(intrinsics(height_width)),
            "camera_to_world": torch.from_numpy(np.concatenate(poses)),
            "label": int(index) % len(self.classes),
            "caption": scenes.captions[0],
        }

    def _drawn(self, indices: Sequence[int]) -> Tensor:
        scenes = self._scenes(indices)
        return image(scenes, cameras(scenes), self.size, self.samples, self.device)

    def _pose(self, scenes: Scenes, index: int, view: int) -> np.ndarray:
        """Return the camera (1, 4, 4) of a view: view 0 the default one, the others around it."""
        if view == 0:
            return cameras(scenes)
        rise = math.radians(Dice(derive(self.seed, "toybox view", index, view)).between(-6, 12))
        return cameras(scenes, GOLDEN_ANGLE * view, rise)

    def _scenes(self, indices: Sequence[int]) -> Scenes:
        return build(self.seed, [self._index(i) for i in indices], self.classes)

    def _index(self, index: int) -> int:
        return _whole("index", index, 0, self.length - 1, NoItem)


def _side_by_side(draw: Callable[[list[int]], Tensor], chunks: list[list[int]], threads: int) -> list[Tensor]:
    """Return ``draw`` of every chunk, on as many threads of one core each.

    Drawing is thousands of short operations: split each over the cores, and every one of them waits for the
    slowest; on a shared machine that is a hundred times slower than one chunk a core.
    """
    if threads == 1 or len(chunks) < 2:
        return [draw(chunk) for chunk in chunks]
    with pool(threads, 1) as executor:
        return list(executor.map(draw, chunks))


def _whole(name: str, value: int, low: int, high: int, outside: type[InputError] = InputError) -> int:
    if isinstance(value, bool) or not isinstance(value, int | np.integer):
        raise InputError(f"toybox {name} must be a whole number, not {value!r}")
    if not low <= value <= high:
        raise outside(f"toybox {name} must be from {low} to {high}, not {value}")
    return int(value)


def _checked_size(size: int | tuple[int, int]) -> tuple[int, int]:
    pair = tuple(size) if isinstance(size, tuple | list) else (size, size)
    if len(pair) != 2:
        raise InputError(f"toybox size must be one number or (height, width), not {size!r}")
    return (_whole("size", pair[0], 8, 1024), _whole("size", pair[1], 8, 1024))


def _checked_device(device: torch.device | str) -> torch.device:
    try:
        return torch.device(device)
    except RuntimeError:
        raise InputError(f"toybox device {device!r} is none: say cpu, or cuda where there is one") from None


def named_kinds(kinds: str | Sequence[str]) -> tuple[str, ...]:
    """Return the kinds that one name or a list of them says. Raises ``InputError`` for none, and for others."""
    names = (kinds,) if isinstance(kinds, str) else kinds
    if not isinstance(names, list | tuple) or not all(isinstance(name, str) for name in names):
        raise InputError(f"toybox kinds {kinds!r}: must be a list of names")
    unknown = [name for name in names if name not in ALL]
    if unknown:
        raise InputError(f"unknown toybox kind {unknown[0]!r}: choose from {', '.join(ALL)}")
    if not names:
        raise InputError("toybox kinds is empty: name at least one")
    return tuple(names)


def _each_once(kinds: tuple[str, ...]) -> tuple[str, ...]:
    if len(set(kinds)) != len(kinds):
        raise InputError("toybox kinds names a kind twice: name each once")
    return kinds
