"""What is kept of many pictures to compare them with others: gathered from all processes, and stored in a file."""

import json
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, fields, replace
from itertools import islice
from pathlib import Path

import torch
from safetensors.torch import save
from torch import Tensor

from belvedere.apps.image_statistics import LEAST, Gaussian, InceptionScore, Moments
from belvedere.apps.output import writing
from belvedere.apps.picture_features import Extractor
from belvedere.apps.picture_sources import PREPARED, Source
from belvedere.apps.processes import Processes
from belvedere.checkpoints import tensors
from belvedere.data.picture_batches import PictureBatch
from belvedere.errors import InputError
from belvedere.files import atomic_write

KEPT = 50_000
"""Pictures whose features are kept one by one, at most: spread evenly, for precision, recall and kernel distance."""
FORM = "belvedere picture statistics 1"
"""Key of what a file tells of its numbers."""


@dataclass(frozen=True)
class Origin:
    """What statistics are of. Two of them can be compared where all but ``data`` and ``count`` are the same."""

    features: str
    weights: str
    """Digest of the network's."""
    preprocessing: str
    size: str
    """WIDTHxHEIGHT of the pictures."""
    count: int
    data: str = ""
    """Digest of the files they were read from."""

    @classmethod
    def of(cls, source: Source, extractor: Extractor) -> "Origin":
        """Return that of the pictures of a source; ``data`` is left out."""
        height, width = source.size
        preprocessing = f"{PREPARED}; {extractor.preprocessing}"
        return cls(extractor.name, extractor.digest, preprocessing, f"{width}x{height}", source.count)


@dataclass(frozen=True)
class Statistics:
    """What is kept of pictures."""

    origin: Origin
    pool: Gaussian
    spatial: Gaussian | None
    """None of a network without spatial features."""
    features: Tensor
    """Of up to ``KEPT`` pictures: (n, d), float32."""
    score: tuple[float, float] | None = None
    """The Inception Score and its deviation; None of a network without classes, and of what was read from a file."""


Pixels = Callable[[Tensor], object]
"""Called with the next pictures (n, 3, h, w), uint8, in their order."""


def look(
    source: Source,
    extractor: Extractor,
    processes: Processes,
    *,
    pixels: Pixels | None = None,
    done: Callable[[int], object] = lambda count: None,
) -> Statistics | None:
    """Look at all pictures of a source, each process at its share; return their statistics to the first process.

    ``pixels`` gets the pictures there, ``done`` their number after each block; the other processes have to give a
    ``pixels``, too, when the first does. The result does not depend on the number of processes.
    """
    widths = extractor.widths
    pool, spatial = Moments(widths.pool), Moments(widths.spatial)
    score = InceptionScore(source.count, widths.logits, source.by_class)
    few = min(KEPT, source.count)
    kept = torch.empty(few if processes.first else 0, widths.pool)
    seen = 0
    for block, features in blocks(source, extractor, processes, pictures=pixels is not None):
        numbers = torch.arange(seen, seen + len(features))
        place = numbers * few // source.count  # (n,)
        chosen = place != (numbers - 1) * few // source.count
        first, second, third = features.split(widths, 1)  # (n, d) each
        pool.add(first)
        kept[place[chosen]] = first[chosen]
        if widths.spatial:
            spatial.add(second)
        if widths.logits:
            score.add(third)
        if pixels is not None:
            pixels(block)
        seen += len(features)
        done(seen)
    if not processes.first:
        return None
    return Statistics(
        Origin.of(source, extractor),
        pool.gaussian(),
        spatial.gaussian() if widths.spatial else None,
        kept,
        score.score() if widths.logits else None,
    )


def blocks(
    source: Source, extractor: Extractor, processes: Processes, *, pictures: bool
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield pixels, where they are wanted, and features, both in order and a chunk at once, in the first process.

    Process r makes pictures r, r + world, ...; after each chunk the first one is told. What a last chunk lacks is
    filled with black pictures, which nobody sees.
    """
    chunk = extractor.chunk
    mine = iter(source.pictures(range(processes.rank, source.count, processes.world)))
    for start in range(0, source.count, chunk * processes.world):
        batch = torch.zeros(chunk, 3, *source.size, dtype=torch.uint8)
        for i, picture in enumerate(islice(mine, chunk)):
            batch[i] = picture
        features = processes.gather(extractor(batch))
        whole = processes.gather(batch) if pictures else batch[:0]
        if features is None or whole is None:
            continue
        there = min(len(features), source.count - start)
        for i in range(0, there, chunk):
            part = slice(i, min(i + chunk, there))
            yield whole[part], features[part]


def reference(
    source: Source,
    extractor: Extractor,
    processes: Processes,
    cache: Path | None = None,
    done: Callable[[int], object] = lambda count: None,
) -> Statistics | None:
    """Return the statistics of a reference to the first process, from the file ``cache``, or into it.

    A reference of the ADM suite brings the moments of Inception's features, which count. Raises ``InputError`` when the
    file is there and is of anything else than these pictures, this network and this preprocessing.
    """
    known = cache is not None and processes.first and cache.exists()
    origin = Origin.of(source, extractor)
    if processes.first and cache is not None:
        origin = replace(origin, data=source.digest())
    if processes.agree(known):
        return load(cache, extractor, origin) if processes.first and cache is not None else None
    found = look(source, extractor, processes, done=done)
    if found is None:
        return None
    pool, spatial = _given_moments(source, extractor)
    found = Statistics(origin, pool or found.pool, spatial or found.spatial, found.features)
    if cache is not None:
        _save(found, cache)
    return found


def _given_moments(source: Source, extractor: Extractor) -> tuple[Gaussian | None, Gaussian | None]:
    """Return the moments that a reference brings; None where there are none, or not of this network."""
    if source.batch is None or extractor.name != "inception":
        return None, None
    return _given(source.batch, "", extractor.widths.pool), _given(source.batch, "_s", extractor.widths.spatial)


def _given(batch: PictureBatch, ending: str, width: int) -> Gaussian | None:
    mean = batch.array(f"mu{ending}", (width,))
    covariance = batch.array(f"sigma{ending}", (width, width))
    return None if mean is None or covariance is None else Gaussian(mean, covariance)


def _save(found: Statistics, path: Path) -> None:
    content = {"features": found.features, "pool_mean": found.pool.mean, "pool_covariance": found.pool.covariance}
    if found.spatial is not None:
        content |= {"spatial_mean": found.spatial.mean, "spatial_covariance": found.spatial.covariance}
    with writing(path), atomic_write(path) as stream:
        stream.write(save(content, {FORM: json.dumps(asdict(found.origin))}))  # two keys would come in any order


def load(path: Path, extractor: Extractor, wanted: Origin | None = None) -> Statistics:
    """Return the statistics in a file, of this network; with ``wanted``, they must be of that.

    Raises ``InputError`` for a file of another form or origin, before its numbers are read.
    """
    origin = _origin(path)
    expected: dict[str, str | int] = {"features": extractor.name, "weights": extractor.digest}
    expected["preprocessing"] = f"{PREPARED}; {extractor.preprocessing}"
    if wanted is not None:
        expected |= asdict(wanted)
    for key, value in expected.items():
        if (then := getattr(origin, key)) != value:
            raise InputError(
                f"{path}: statistics of other {key} ({str(then)[:60]}, now {str(value)[:60]}): "
                "name another file, or remove it to have it made again"
            )
    _check_shapes(path, extractor)
    found = dict(tensors.read_each(path))
    tensors.check_finite(found, path.name)
    spatial = Gaussian(found["spatial_mean"], found["spatial_covariance"]) if extractor.widths.spatial else None
    return Statistics(origin, Gaussian(found["pool_mean"], found["pool_covariance"]), spatial, found["features"])


def _origin(path: Path) -> Origin:
    if not path.is_file():
        raise InputError(f"no statistics at {path}; check the path")
    try:
        facts = json.loads(tensors.metadata(path)[FORM])
        kinds = {name: type(value) for name, value in facts.items()}
    except (KeyError, AttributeError, ValueError, RecursionError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{path} holds no statistics of pictures: give a file that --statistics wrote") from error
    if kinds != {field.name: field.type for field in fields(Origin)}:
        raise InputError(f"{path}: does not say what it has statistics of; remove it to have it made again")
    return Origin(**facts)


def _check_shapes(path: Path, extractor: Extractor) -> None:
    entries = tensors.entries(path)
    pool, spatial, _ = extractor.widths
    wanted = {"pool_mean": ("F64", (pool,)), "pool_covariance": ("F64", (pool, pool))}
    if spatial:
        wanted |= {"spatial_mean": ("F64", (spatial,)), "spatial_covariance": ("F64", (spatial, spatial))}
    rows = entries["features"].shape[:1] if "features" in entries else ()
    if rows and LEAST <= rows[0] <= KEPT:
        wanted["features"] = ("F32", (rows[0], pool))
    if {name: (entry.dtype, entry.shape) for name, entry in entries.items()} != wanted:
        raise InputError(f"{path}: its tensors are not those of statistics; remove it to have it made again")
