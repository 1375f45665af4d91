"""Latents computed beforehand: `belvedere train prepare` takes every picture through a KL autoencoder, once.

    pictures ─► fit, crop or both ─► encode, also mirrored ─► moments, shard by shard ─► classes.json when all are there

Shard k holds the pictures from k * shard_size on and is made by process k % WORLD_SIZE alone, so its content does not
depend on the number of processes, nor on how often the work was stopped: the same command makes what is missing.
"""

import hashlib
import json
import os
import sys
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import nullcontext
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from belvedere.apps.config import call
from belvedere.apps.locks import only_run
from belvedere.apps.output import check_folder, writing
from belvedere.apps.task import check_classes
from belvedere.apps.work import Progress
from belvedere.apps.written import check_keys
from belvedere.checkpoints import store
from belvedere.checkpoints.autoencoder import find_autoencoder, load_autoencoder
from belvedere.checkpoints.components import read_json
from belvedere.data.folders import EncodedPictures, ImageFolder, Parquet
from belvedere.data.images import centre_crop, to_tensor
from belvedere.data.latents import CLASSES, MANIFEST, check_scale, mixed_shard
from belvedere.data.webdataset import WebDataset
from belvedere.errors import InputError
from belvedere.files import atomic_write

SOURCES: dict[str, Callable[..., EncodedPictures]] = {
    "folder": ImageFolder,
    "parquet": Parquet,
    "webdataset": WebDataset,
}
"""The kinds of data that are pictures on disk, by the name that a config's ``data.kind`` gives."""


CROPS = "crops"
"""In the manifest of a folder of mixed sizes: the squares of larger pictures are there too."""

Key = tuple[int, int]
"""The number of a picture, and 0, or 1 for the square cut out of one that is also kept whole."""


class Shards:
    """The files of a prepared folder: shard k holds pictures k * size to (k + 1) * size of ``count``."""

    def __init__(self, out: Path, count: int, size: int):
        self.out = out
        self.ranges = [range(start, min(start + size, count)) for start in range(0, count, size)]
        self._skipped: dict[int, int] = {}

    def path(self, shard: int) -> Path:
        """Return the file of a shard; in the order of their names they are in the order of the pictures."""
        return self.out / f"{shard:05d}-of-{len(self.ranges):05d}.safetensors"

    def missing(self) -> list[int]:
        """Return the shards that are not there."""
        return [shard for shard in range(len(self.ranges)) if not self.path(shard).exists()]

    def skipped(self) -> int:
        """Return how many pictures the shards that are there have left out, whichever process made them."""
        for shard in range(len(self.ranges)):
            if shard not in self._skipped and self.path(shard).exists():
                self._skipped[shard] = len(_skipped_in(self.path(shard)))
        return sum(self._skipped.values())

    def write(self, shard: int, tensors: dict[str, Tensor], skipped: Sequence[int]) -> None:
        """Write a shard whole or not at all, with the numbers of the pictures it lacks; remove what a kill left."""
        path = self.path(shard)
        with writing(path):
            for stale in self.out.glob(f".{path.name}.*.tmp"):
                stale.unlink()
            with atomic_write(path) as stream:
                stream.write(save(tensors, {"skipped": json.dumps(skipped)}))  # two keys would come in any order


def _skipped_in(path: Path) -> list[int]:
    try:
        with safe_open(path, "pt") as shard:
            return json.loads(shard.metadata()["skipped"])
    except (OSError, ValueError, TypeError, KeyError, SafetensorError) as error:
        raise InputError(f"{path} is damaged: remove it and give the same command again") from error


class Encoder:
    """A KL autoencoder that gives the moments of pictures and, with ``flip``, of their mirror images."""

    def __init__(self, vae: Any, flip: bool):
        check_scale(vae)
        self.vae, self.views = vae, 2 if flip else 1
        self.factor = 2 ** (len(vae.config.block_out_channels) - 1)
        """Pixels along the side of one latent."""

    def check_step(self, pixels: int) -> None:
        """Raise ``InputError`` unless sides that are multiples of ``pixels`` are whole latents."""
        if pixels % self.factor:
            raise InputError(f"sides of {pixels} pixels are not whole latents: use a multiple of {self.factor}")

    def shape(self, side: int) -> tuple[int, int, int]:
        """Return the shape (2 c, h, w) of the moments of a square picture."""
        return 2 * self.vae.config.latent_channels, side // self.factor, side // self.factor

    @torch.inference_mode()
    def encode(self, pictures: Mapping[Key, Tensor]) -> dict[Key, Tensor]:
        """Return the moments float16 (v, 2 c, h, w), by the same keys, of pictures uint8 (3, H, W) of one size."""
        pixels = torch.stack(list(pictures.values())).to(self.vae.device)  # (b, 3, h, w)
        views = (pixels.float() / 127.5 - 1).to(self.vae.dtype)
        if self.views == 2:
            views = torch.stack((views, views.flip(3)), 1).flatten(0, 1)  # (b v, 3, h, w)
        moments = self.vae.encode(views).latent_dist.parameters.half().cpu()
        moments = moments.unflatten(0, (len(pictures), self.views))  # (b, v, 2 c, h, w)
        finite = moments.isfinite().flatten(1).all(1)
        if not finite.all():
            number, _ = list(pictures)[int(finite.int().argmin())]
            raise InputError(f"the moments of picture {number} are not finite in half precision: use --dtype float32")
        return dict(zip(pictures, moments, strict=True))

    def encode_all(self, pictures: Iterable[tuple[Key, Tensor]], batch: int) -> dict[Key, Tensor]:
        """Return the moments of pictures of any size by their keys; ``batch`` of one size go through at once."""
        waiting: dict[torch.Size, dict[Key, Tensor]] = {}
        moments: dict[Key, Tensor] = {}
        for key, pixels in pictures:
            group = waiting.setdefault(pixels.shape, {})
            group[key] = pixels
            if len(group) == batch:
                moments |= self.encode(waiting.pop(pixels.shape))
        for group in waiting.values():
            moments |= self.encode(group)
        return moments


class Work:
    """Makes shards: opens pictures ahead in threads, names those that cannot be decoded, tells how far it is."""

    def __init__(self, pictures: EncodedPictures, encoder: Encoder, shards: Shards, max_skipped: int):
        self.pictures, self.encoder, self.shards, self.max_skipped = pictures, encoder, shards, max_skipped

    def run(self, mine: Sequence[int], batch: int, workers: int, progress: Progress | None) -> None:
        """Make the shards ``mine``; without ``progress`` each is a line."""
        total, began = sum(len(self.shards.ranges[shard]) for shard in mine), time.perf_counter()
        done = 0
        with ThreadPoolExecutor(workers) as pool:
            for shard in mine:
                numbers = self.shards.ranges[shard]
                skipped: list[int] = []
                opened = _ahead(pool, self._open, numbers, batch + workers)
                if progress is not None:
                    opened = _watched(opened, progress, done, total)
                moments = self.encoder.encode_all(self._good(zip(numbers, opened, strict=True), skipped), batch)
                self.shards.write(shard, self._tensors(moments), skipped)
                done += len(numbers)
                if progress is None:
                    rate = done / (time.perf_counter() - began)
                    left = timedelta(seconds=round((total - done) / rate))
                    print(f"{self.shards.path(shard)}: {rate:.1f} pictures/s, {left} left", flush=True)

    def _open(self, number: int) -> list[Tensor] | InputError:
        """Return a picture's forms, or why it is none; a disk that cannot be read ends the work."""
        try:
            return self._forms(self.pictures.image(number))
        except InputError as error:
            if isinstance(error.__cause__, OSError) and error.__cause__.errno:
                raise
            return error

    def _forms(self, image: Image.Image) -> list[Tensor]:
        """Return a picture cut to size, uint8 (3, h, w), and, of one that is scaled down whole, the square too."""
        pictures = self.pictures
        forms = [pictures.cut(image)]
        if pictures.unit is not None and image.width * image.height > pictures.size**2:
            forms.append(to_tensor(centre_crop(image, pictures.size // pictures.unit * pictures.unit)))
        return forms

    def _good(
        self, opened: Iterable[tuple[int, list[Tensor] | InputError]], skipped: list[int]
    ) -> Iterator[tuple[Key, Tensor]]:
        """Yield the forms of what is a picture; name the others and put their numbers into ``skipped``."""
        before = self.shards.skipped()
        for number, forms in opened:
            if not isinstance(forms, InputError):
                yield from (((number, form), pixels) for form, pixels in enumerate(forms))
                continue
            print(f"skipped: {forms}", file=sys.stderr, flush=True)
            skipped.append(number)
            check_skipped(before + len(skipped), self.max_skipped)

    def _tensors(self, moments: Mapping[Key, Tensor]) -> dict[str, Tensor]:
        """Return a shard of the moments (v, 2 c, h, w) of its pictures, by their keys.

        All pictures weigh the same: of one that has a square the two forms weigh 1 each, the one form of others 2.
        """
        keys, views = sorted(moments), self.encoder.views
        labels = self.pictures.labels[[number for number, _ in keys]].repeat_interleave(views)
        if self.pictures.unit is not None:
            weights = torch.tensor([1 if (number, 1) in moments else 2 for number, _ in keys], dtype=torch.int64)
            return mixed_shard([v for key in keys for v in moments[key]], labels, weights.repeat_interleave(views))
        none = torch.empty(0, *self.encoder.shape(self.pictures.size), dtype=torch.float16)
        return {"moments": torch.cat([none, *(moments[key] for key in keys)]), "label": labels}


def check_skipped(skipped: int, most: int) -> None:
    """Raise ``InputError`` when more than ``most`` pictures were skipped."""
    if skipped > most:
        raise InputError(f"more than {most} pictures cannot be decoded: replace them, or allow more (--max-skipped)")


def _ahead(pool: Executor, function: Callable[[int], Any], items: Iterable[int], most: int) -> Iterator[Any]:
    """Yield ``function(item)`` for each item in order; the pool works on up to ``most`` in advance."""
    waiting: deque[Any] = deque()
    for item in items:
        waiting.append(pool.submit(function, item))
        if len(waiting) > most:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()


def _watched(items: Iterable[Any], progress: Progress, done: int, total: int) -> Iterator[Any]:
    for count, item in enumerate(items, done + 1):
        yield item
        progress(count, total)


def prepare(
    data: Mapping[str, Any],
    out: Path,
    vae: str | Path,
    *,
    side: int = 256,
    unit: int = 16,
    square: bool = False,
    flip: bool = True,
    shard_size: int = 1024,
    max_skipped: int = 10,
    batch: int = 16,
    workers: int = 2,
    dtype: str = "float32",
    device: str = "auto",
    progress: Progress | None = None,
) -> int:
    """Write the moments of pictures, and of their mirror images (``flip``), as a folder of latents; return 0, or 130.

    ``data`` is a config's section: ``kind``, folder, parquet or webdataset, and ``path``. Pictures keep their aspect,
    in whole ``unit`` and at most ``side**2`` pixels, of those with more the square in the middle is an item as well,
    and ``out`` becomes a folder of ``MixedLatents``; with ``square`` they are cropped to ``side`` and it becomes one of
    ``Latents``. ``vae`` as in ``find_autoencoder``.

    A command that was stopped (130: by Ctrl-C) or killed continues when it is given again; other parameters are
    refused. ``batch`` pictures are encoded at once, ``workers`` threads open them: these and ``device`` may change,
    they touch no more than rounding. Up to ``max_skipped`` pictures that cannot be decoded are named and left out.
    Without ``progress`` every shard is a line. Launched by torchrun or accelerate, each process makes its shards.
    Raises ``InputError`` for bad input, for data without classes, since no task trains on such latents, and for a full
    disk; nothing is ever half-written.
    """
    _check_least(1, shard_size=shard_size, batch=batch, workers=workers)
    _check_least(0, max_skipped=max_skipped)
    rank, world = _process()
    pictures = open_pictures(data, side, None if square else unit)
    check_classes(data, pictures)
    if out.resolve().is_relative_to(Path(data["path"]).resolve()):
        raise InputError(f"{out} lies within the pictures: choose another --out")
    check_folder(out)
    folder, target = find_autoencoder(vae), _choose_device(device)
    precision = store.choose_dtype(dtype, target)
    encoder = Encoder(load_autoencoder(folder, precision, target), flip)
    encoder.check_step(side if square else unit)
    shards = Shards(out, len(pictures), shard_size)
    manifest = {
        "source": fingerprint(Path(data["path"]), pictures),
        "side": side,
        "unit": pictures.unit,
        "flip": flip,
        "shard_size": shard_size,
        "vae": store.digest(folder),
        "dtype": str(precision).removeprefix("torch."),
        **({} if square else {CROPS: True}),
    }
    with writing(out):
        out.mkdir(parents=True, exist_ok=True)
    with only_run(out) if rank == 0 else nullcontext():
        _agree(out, manifest)
        try:
            mine = [shard for shard in shards.missing() if shard % world == rank]
            Work(pictures, encoder, shards, max_skipped).run(mine, batch, workers, progress)
        except KeyboardInterrupt:
            print("stopped; the same command continues", file=sys.stderr)
            return 130
        check_skipped(shards.skipped(), max_skipped)
        _finish(shards, pictures.classes)
    return 0


def pictures_at(path: Path) -> dict[str, Any]:
    """Return the ``data`` of a path: parquet or WebDataset where it is, or holds, a file of them, else a folder."""
    kinds = {"parquet": "parquet", "tar": "webdataset"}
    found = (kind for ending, kind in kinds.items() if path.suffix == f".{ending}" or any(path.glob(f"*.{ending}")))
    return {"kind": next(found, "folder"), "path": path}


def open_pictures(data: Mapping[str, Any], side: int, unit: int | None) -> EncodedPictures:
    """Return the pictures of a config's ``data``, of any aspect in whole ``unit``, or squares of ``side``."""
    check_keys(data, ("kind", "path"), "data.")
    if data.get("kind") not in SOURCES:
        raise InputError(f"data kind {data.get('kind')!r} holds no pictures: choose from {', '.join(SOURCES)}")
    options = {key: value for key, value in data.items() if key != "kind"} | {"size": side, "unit": unit}
    return call(SOURCES[data["kind"]], options, "data")


def fingerprint(root: Path, pictures: EncodedPictures) -> str:
    """Return a digest of the class names, and of the files' names below ``root`` and sizes; no content is read."""
    digest, base = hashlib.sha256(json.dumps(pictures.classes).encode()), root if root.is_dir() else root.parent
    for file in pictures.files:
        digest.update(f"{file.relative_to(base).as_posix()} {file.stat().st_size}\n".encode())
    return digest.hexdigest()


def _check_least(least: int, **values: int) -> None:
    for name, value in values.items():
        if value < least:
            raise InputError(f"{name.replace('_', '-')} must be at least {least}, not {value}")


def _process() -> tuple[int, int]:
    """Return the number of this process and how many there are, as torchrun and accelerate say it."""
    names = ("RANK", "WORLD_SIZE")
    rank, world = (os.environ.get(name, default) for name, default in zip(names, "01", strict=True))
    if not (rank.isdecimal() and world.isdecimal() and int(rank) < int(world)):
        raise InputError(f"environment RANK {rank!r} of WORLD_SIZE {world!r}: unset both, or start with torchrun")
    return int(rank), int(world)


def _choose_device(name: str) -> torch.device:
    """Return the device asked for; ``auto`` gives every process of a machine a GPU of its own."""
    if name == "auto" and torch.cuda.is_available():
        name = f"cuda:{int(os.environ.get('LOCAL_RANK', '0')) % torch.cuda.device_count()}"
    return store.choose_device(name)


def _agree(out: Path, manifest: Mapping[str, Any]) -> None:
    """Write what is being made into ``out``, or raise ``InputError`` unless it is what was begun there."""
    path = out / MANIFEST
    others = sorted(entry.name for entry in out.iterdir() if not entry.name.startswith("."))
    if path.is_file():
        begun = read_json(path)
        for key, value in manifest.items():
            if key == CROPS and key not in begun:
                raise InputError(f"{out} was made without the squares of larger pictures: choose another --out")
            if begun.get(key) != value:
                then, now = (str(v)[:12] for v in (begun.get(key), value))
                raise InputError(f"{out} was begun with another {key} ({then}, now {now}): choose another --out")
    elif others:
        raise InputError(f"{out} holds {others[0]} and was not begun by this command: choose another --out")
    else:
        with writing(path), atomic_write(path) as stream:
            stream.write(json.dumps(manifest, indent=1).encode() + b"\n")


def _finish(shards: Shards, classes: Sequence[str]) -> None:
    """Mark the folder as complete, if all processes have made theirs."""
    if missing := shards.missing():
        print(f"{len(missing)} of {len(shards.ranges)} shards are left to other processes")
        return
    path, skipped = shards.out / CLASSES, shards.skipped()
    with writing(path), atomic_write(path) as stream:
        stream.write(json.dumps(classes, ensure_ascii=False, indent=0).encode() + b"\n")
    count = shards.ranges[-1].stop - skipped
    print(f"{shards.out}: latents of {count} pictures, {skipped} skipped")
