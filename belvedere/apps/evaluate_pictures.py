"""Measuring pictures, made by a model or already there, against a reference: FID, sFID, Inception Score, precision,
recall and KID, or the same distances in the features of the embedded classifier."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from belvedere.apps import output, work
from belvedere.apps.evaluate import gaussian_distance, how_made
from belvedere.apps.image_statistics import LEAST, kernel_distance, precision_recall
from belvedere.apps.picture_features import Extractor, Unseen, open_extractor
from belvedere.apps.picture_sources import Source, found_at, made_by
from belvedere.apps.picture_statistics import Pixels, Statistics, blocks, load, look, reference
from belvedere.apps.processes import Processes, joined_processes
from belvedere.apps.requests import GenerateRequest
from belvedere.data.picture_batches import writing_batch
from belvedere.errors import InputError

STATISTICS = ".safetensors"
"""Ending of a reference that is a file of statistics."""


@dataclass(frozen=True)
class Plan:
    """What is measured, and how; the options of ``belvedere evaluate generation``.

    ``request``: pictures to be made, or ``samples``: where they are, and ``count`` of them, see
    ``found_at``. ``reference``: the same kinds of places, or a file of statistics; None: nothing is compared.
    ``statistics``: file that keeps the reference's. ``features``: "classifier" or "inception"; ``inception``: the
    latter's weights. ``export``: file for the pictures as the ADM suite takes them. ``device`` of the features.
    """

    request: GenerateRequest | None = None
    samples: Path | None = None
    count: int | None = None
    reference: Path | None = None
    statistics: Path | None = None
    features: str | None = None
    inception: Path | None = None
    export: Path | None = None
    device: str = "auto"


def evaluate_pictures(plan: Plan, progress: work.Progress | None = None) -> dict[str, Any] | None:
    """Return how pictures were made and what they are worth, plain JSON; None in all processes but the first.

    Started by torchrun or accelerate, process r of n makes and looks at pictures r, r + n, ...; the figures are those
    of one process. Raises ``InputError`` for what cannot be measured, before pictures are made where that can be known.
    """
    _check(plan)
    with joined_processes() as processes:
        if plan.reference is None:
            return _export(plan, processes, progress)
        device = processes.device(plan.device)
        extractor = open_extractor(plan.features, plan.inception, device)
        source, facts = _samples(plan, processes)
        if source.count < LEAST:
            raise InputError(f"cannot measure {source.count} pictures: give {LEAST} or more")
        real = _reference(plan.reference, plan.statistics, source.size, extractor, processes, progress)
        with _writer(plan.export, source, processes) as pixels:
            made = look(source, extractor, processes, pixels=pixels, done=_counted(progress, source.count))
        if made is None or real is None:
            return None
        told = {"reference": str(plan.reference), "reference_count": real.origin.count}
        used = {"features": extractor.name, "feature_weights": extractor.digest}
        return {**facts, **told, **used, **figures(made, real, device)}


def figures(made: Statistics, real: Statistics, device: torch.device | str = "cpu") -> dict[str, float]:
    """Return the figures by the names under which they are published, or other ones for the classifier's features."""
    features = made.features.to(device), real.features.to(device)
    kernel, shares = kernel_distance(*features), precision_recall(*features)
    distance = gaussian_distance(*made.pool, *real.pool)
    common = {"precision": shares.precision, "recall": shares.recall}
    if made.score is None or made.spatial is None or real.spatial is None:
        kernels = {"kernel_distance": kernel.value, "kernel_distance_error": kernel.error}
        return {"frechet": distance, **common, **kernels}
    score, deviation = made.score
    spatial = gaussian_distance(*made.spatial, *real.spatial)
    scores = {"inception_score": score, "inception_score_deviation": deviation}
    return {"fid": distance, "sfid": spatial, **scores, **common, "kid": kernel.value, "kid_error": kernel.error}


def _check(plan: Plan) -> None:
    if plan.reference is None and plan.export is None:
        raise InputError("nothing to compare with: give --reference, or --export to only write the pictures")
    if plan.reference is None and any((plan.statistics, plan.features, plan.inception)):
        raise InputError("--statistics, --features and --inception belong to --reference: give one")
    if plan.statistics is not None and plan.reference is not None and plan.reference.suffix == STATISTICS:
        raise InputError(f"--reference {plan.reference} is a file of statistics already: leave out --statistics")
    for name, path, ending in (("export", plan.export, ".npz"), ("statistics", plan.statistics, STATISTICS)):
        if path is None:
            continue
        if path.suffix != ending:
            raise InputError(f"--{name} {path}: end the name with {ending}")
        if not path.parent.is_dir():
            raise InputError(f"--{name} {path}: there is no folder {path.parent}; make it first")
        output.check_folder(path.parent)
    if plan.export is not None and plan.export.exists():
        raise InputError(f"--export {plan.export} exists; choose another name, or move it away")


def _samples(plan: Plan, processes: Processes) -> tuple[Source, dict[str, Any]]:
    """Return the pictures to be measured, and what is told of them."""
    facts: dict[str, Any] = {"samples": str(plan.samples)}
    if plan.samples is not None:
        source = found_at(plan.samples, count=plan.count)
    elif plan.request is not None:
        request = plan.request
        if request.device == "auto" and processes.world > 1:
            request = replace(request, device=str(processes.device("auto")))
        job = work.prepare(request)
        source = made_by(job)
        facts = how_made(job)
    else:
        raise InputError("nothing to measure: give a model or --samples")
    height, width = source.size
    return source, {**facts, "size": f"{width}x{height}", "count": source.count}


def _reference(
    path: Path,
    cache: Path | None,
    size: tuple[int, int],
    extractor: Extractor,
    processes: Processes,
    progress: work.Progress | None,
) -> Statistics | None:
    """Return the statistics of a reference of pictures of ``size`` (height, width) to the first process."""
    if path.suffix != STATISTICS:
        real = found_at(path, size)
        if real.count < LEAST:
            raise InputError(f"{path}: cannot compare with {real.count} pictures: give {LEAST} or more")
        return reference(real, extractor, processes, cache, _counted(progress, real.count))
    found = load(path, extractor)
    if found.origin.size != f"{size[1]}x{size[0]}":
        raise InputError(
            f"{path}: statistics of pictures of {found.origin.size}, not {size[1]}x{size[0]}: "
            "what is compared must be of one size"
        )
    return found if processes.first else None


def _export(plan: Plan, processes: Processes, progress: work.Progress | None) -> dict[str, Any] | None:
    """Only write the pictures."""
    source, facts = _samples(plan, processes)
    done, count = _counted(progress, source.count), 0
    with _writer(plan.export, source, processes) as pixels:
        for pictures, _ in blocks(source, Unseen(), processes, pictures=True):
            if pixels is not None:
                pixels(pictures)
            count += len(pictures)
            done(count)
    return {**facts, "export": str(plan.export)} if processes.first else None


@contextmanager
def _writer(path: Path | None, source: Source, processes: Processes) -> Iterator[Pixels | None]:
    """Yield what takes pictures in their order, to be written to ``path`` by the first process; None without a path."""
    if path is None:
        yield None
    elif not processes.first:
        yield lambda pictures: None
    else:
        with output.writing(path), writing_batch(path, source.count, source.size) as writer:
            yield writer.add


def _counted(progress: work.Progress | None, total: int) -> Callable[[int], None]:
    def report(count: int) -> None:
        if progress:
            progress(count, total)

    return report
