"""Latents computed beforehand: what an autoencoder made of every picture, read at random from safetensors shards."""

import bisect
import json
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import accumulate
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from belvedere.data.ragged import pack_images, unpack_images
from belvedere.errors import InputError

SCALE = 0.18215
"""The scaling factor of Stable Diffusion's KL autoencoder."""

CLASSES, MANIFEST = "classes.json", "prepare.json"
"""The list of class names, which a complete folder has, and what ``belvedere train prepare`` writes first."""

_FLOATS = ("F16", "BF16", "F32", "F64")
_INTEGERS = ("I64", "I32", "I16", "I8", "U8")
_MAX_SIDE = 1 << 16


class _Shards:
    """A ``belvedere.data.Dataset`` over the safetensors files of a folder, in the order of their names."""

    classes: tuple[str, ...]

    def __init__(self, path: Path | str):
        root = Path(path)
        files = sorted(root.glob("*.safetensors"))
        if (root / MANIFEST).is_file() and not (root / CLASSES).is_file():
            raise InputError(f"latents in {root} are not complete: continue 'belvedere train prepare'")
        if not files or not (root / CLASSES).is_file():
            raise InputError(f"no latents in {root}: it needs {CLASSES} and safetensors of moments and label")
        with _reading(root / CLASSES):
            self.classes = _names(root / CLASSES)
        self._moments: list[Any] = []
        labels = []
        for file in files:
            with _reading(file):
                shard = safe_open(file, "pt")
                moments = shard.get_slice("moments")
                if moments.get_dtype() not in _FLOATS:
                    raise ValueError(f"moments are {moments.get_dtype()}, not of a float type")
                labels.append(self._add(shard, moments.get_shape()))
                self._moments.append(moments)
        self._labels = torch.cat(labels)
        self._ends = list(accumulate(len(part) for part in labels))
        if not len(self._labels):
            raise InputError(f"latents in {root}: not one item; prepare them anew")
        if not 0 <= int(self._labels.min()) <= int(self._labels.max()) < max(1, len(self.classes)):
            raise InputError(f"latents in {root}: labels go beyond the {len(self.classes)} names of {CLASSES}")

    def _add(self, shard: Any, shape: Sequence[int]) -> Tensor:
        """Check the next shard, whose moments are of ``shape``; return its labels int64 (n,)."""
        raise NotImplementedError

    def _read(self, shard: int, place: int) -> Tensor:
        """Return the moments of item ``place`` of a shard, (2 c, h, w)."""
        raise NotImplementedError

    def __len__(self) -> int:
        return len(self._labels)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Return ``moments`` float32 (2 c, h, w) and ``label``."""
        if not 0 <= index < len(self):
            raise IndexError(index)
        shard = bisect.bisect_right(self._ends, index)
        place = index - (self._ends[shard - 1] if shard else 0)
        return {"moments": self._read(shard, place).float(), "label": int(self._labels[index])}


class Latents(_Shards):
    """The moments of a KL autoencoder's posterior for each item, in ``path``: *.safetensors and classes.json.

    A shard holds ``moments`` (n, 2 c, h, w), any float type, mean then log-variance, and ``label`` (n,), integers;
    ``classes.json`` is the list of class names. Mirror images are items of their own. Shards are read in the order
    of their names, items one by one where they lie. A folder of another form raises ``InputError``.
    """

    def _add(self, shard: Any, shape: Sequence[int]) -> Tensor:
        if len(shape) != 4 or (self._moments and shape[1:] != self._moments[0].get_shape()[1:]):
            raise ValueError(f"moments are of shape {shape}, not (n, 2 c, h, w) of one size")
        return _integers(shard, "label", (shape[0],))

    def _read(self, shard: int, place: int) -> Tensor:
        return self._moments[shard][place : place + 1][0]

    def batch(self, indices: Sequence[int]) -> dict[str, Tensor]:
        """Return ``moments`` float32 (b, 2 c, h, w) and ``label`` int64 (b,)."""
        moments = torch.stack([self[index]["moments"] for index in indices])
        return {"moments": moments, "label": self._labels[list(indices)]}


class MixedLatents(_Shards):
    """``Latents`` of any size and aspect: the moments of a shard lie behind one another.

    A shard holds ``moments`` (m,), any float type, the (2 c, h, w) of each item; and of integers ``size`` (n, 2),
    the (h, w) of each, ``offset`` (n + 1,), where each begins and the last ends, ``label`` (n,), and, where it is
    there, ``weight`` (n,), 1 for one item and 2 for two alike. The rest is as in ``Latents``. A batch is ragged
    (``belvedere.data.ragged``).
    """

    channels = 0
    """c, the channels of a latent."""

    def __init__(self, path: Path | str):
        self._sizes: list[Tensor] = []
        self._offsets: list[Tensor] = []
        self._rows: list[Tensor] = []
        super().__init__(path)

    def _add(self, shard: Any, shape: Sequence[int]) -> Tensor:
        if len(shape) != 1:
            raise ValueError(f"moments are of shape {shape}, not flat with size and offset")
        count = math.prod(shard.get_slice("label").get_shape())
        size, offset = _integers(shard, "size", (count, 2)), _integers(shard, "offset", (count + 1,))
        self._check(size, offset, shape[0])
        self._sizes.append(size)
        self._offsets.append(offset)
        weighed = "weight" in shard.keys()  # noqa: SIM118
        weight = _integers(shard, "weight", (count,)) if weighed else torch.ones(count, dtype=torch.int64)
        if ((weight < 1) | (weight > 2)).any():
            raise ValueError("weight has numbers other than 1 and 2")
        self._rows.append(torch.arange(count).repeat_interleave(weight))
        return _integers(shard, "label", (count,))[self._rows[-1]]

    def _check(self, size: Tensor, offset: Tensor, end: int) -> None:
        """Raise ``ValueError`` unless items of these sizes, behind one another, fill ``end`` moments."""
        if ((size < 1) | (size > _MAX_SIDE)).any():
            raise ValueError(f"size has sides outside 1..{_MAX_SIDE}")
        if int(offset[0]) != 0 or int(offset[-1]) != end or ((offset < 0) | (offset > end)).any():
            raise ValueError(f"offset does not run from 0 to {end}, the end of the moments")
        lengths, areas = offset.diff(), size.prod(1)
        if len(size) and not self.channels:
            self.channels = max(1, int(lengths[0] // areas[0]) // 2)
        if (lengths % areas).any() or (lengths // areas != 2 * self.channels).any():
            raise ValueError("offset does not leave 2 c moments for each pixel of size")

    def latent_sizes(self) -> set[tuple[int, int]]:
        """Return the (h, w) that occur."""
        return {(h, w) for sizes in self._sizes for h, w in sizes.tolist()}

    def _read(self, shard: int, place: int) -> Tensor:
        row = int(self._rows[shard][place])
        begin, end = self._offsets[shard][row : row + 2].tolist()
        return self._moments[shard][begin:end].view(-1, *self._sizes[shard][row].tolist())  # (2 c, h, w)

    def batch(self, indices: Sequence[int]) -> dict[str, Tensor]:
        """Return ``moments`` float32, flat, ``size`` int64 (b, 2), the (h, w) of each, and ``label`` int64 (b,)."""
        moments, size = pack_images([self[index]["moments"] for index in indices])
        return {"moments": moments, "size": size, "label": self._labels[list(indices)]}


def check_scale(vae: Any) -> None:
    """Raise ``InputError`` for an autoencoder that decodes latents of another scale than those that are drawn here."""
    scale, shift = vae.config.scaling_factor, vae.config.shift_factor
    if scale != SCALE or shift:
        raise InputError(f"the autoencoder scales latents by {scale}, training by {SCALE}: use Stable Diffusion's")


def mixed_shard(moments: Sequence[Tensor], labels: Tensor, weights: Tensor | None = None) -> dict[str, Tensor]:
    """Return the tensors of a shard of ``MixedLatents`` with ``moments``, (2 c, h_i, w_i) each; float16."""
    flat, size = pack_images(moments)
    offset = torch.tensor([0, *accumulate(item.numel() for item in moments)])
    weighed = {} if weights is None else {"weight": weights}
    return {"moments": flat.half(), "size": size, "offset": offset, "label": labels, **weighed}


def sample_latents(moments: Tensor, noise: Tensor) -> Tensor:
    """Return latents (b, c, h, w) of unit scale drawn from ``moments`` (b, 2 c, h, w) with standard ``noise``."""
    mean, log_variance = moments.chunk(2, 1)
    return SCALE * (mean + (0.5 * log_variance.clamp(-30, 20)).exp() * noise)


def sample_mixed_latents(moments: Tensor, size: Tensor, noise: Sequence[Tensor]) -> Tensor:
    """Return latents of unit scale, flat, drawn from flat ``moments`` with standard ``noise``, (c, h_i, w_i) each.

    ``size`` (b, 2) has the (h, w) of each; ``unpack_images(latents, size, c)`` gives them one by one.
    """
    items = unpack_images(moments, size, 2 * len(noise[0]))
    drawn = [sample_latents(item[None], one[None]) for item, one in zip(items, noise, strict=True)]
    return torch.cat([latent.flatten() for latent in drawn])


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Turn what a damaged file makes its readers raise into an ``InputError`` that names it."""
    try:
        yield
    except (OSError, ValueError, TypeError, RecursionError, SafetensorError) as error:
        raise InputError(f"latents in {path} cannot be read: {' '.join(str(error).split())}") from None


def _names(path: Path) -> tuple[str, ...]:
    names = json.loads(path.read_text())
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ValueError("not a list of names")
    return tuple(names)


def _integers(shard: Any, name: str, shape: tuple[int, ...]) -> Tensor:
    """Return a tensor of a shard as int64; its header is compared with what is expected before it is read."""
    found = shard.get_slice(name)
    if tuple(found.get_shape()) != shape or found.get_dtype() not in _INTEGERS:
        raise ValueError(f"{name} is {found.get_dtype()} {found.get_shape()}, not integers of shape {list(shape)}")
    return shard.get_tensor(name).long()
