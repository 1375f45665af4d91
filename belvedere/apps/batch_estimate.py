"""What a batch will take, before it is begun: pictures, network evaluations, and time and memory from a calibration.

For each kind of call (one model, one set of options, one number of pixels) a real call of the plan runs with one step
and with three; from the difference comes what an evaluation of the network costs, the rest is what every call does. A
call whose solver chooses its steps runs as it is. Beyond ``MOST`` kinds, the time of the others follows from their
pixels and evaluations.
"""

import math
import resource
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from belvedere.apps import batch_jobs, work
from belvedere.apps.batch_begin import Batch, Change, agree, changed, check_place, placed, planned, settings
from belvedere.apps.batch_manifest import Manifest
from belvedere.apps.batch_plan import Place, Plan, Planned, Shelf, shared

MOST = 8
"""Kinds of calls that are timed."""
STEPS = (1, 3)
"""Of the sampler, in a calibration."""


class Kind(NamedTuple):
    """Calls that cost the same."""

    options: tuple[Any, ...]
    evaluations: int | None
    """For one picture, guidance aside; None: nobody counts them."""
    pixels: int
    """Of a call: where many pictures share it, of a full one."""


@dataclass(frozen=True)
class Estimate:
    """What is left to make, and what it will take one process on this machine."""

    pictures: int
    done: int
    calls: int
    evaluations: int | None
    """Of the network, for one picture each: a guided one is two. None: nobody counts them."""
    seconds: float
    memory: int
    """Bytes at the height of the calibration: of the GPU, or of the process."""
    disk: int
    """Bytes at most: of the pixels, which no picture file exceeds by much."""
    faults: list[batch_jobs.Fault]


def estimate(batch: Batch, note: Callable[[str], None] = lambda line: None) -> Estimate:
    """Return what is left of a batch and what it will take; nothing is written. Raises ``InputError`` as a run does."""
    batch = placed(batch)
    shelf = Shelf(lambda name: note(f"loading {name}"))
    found = batch_jobs.read_jobs(batch.jobs, batch.defaults)
    with _manifest(batch) as manifest:
        if begun := manifest.settings():
            agree(batch, begun, settings(batch), note)
        change = changed(batch, manifest, found, note)
        finished = _finished(manifest, change)
        lines = [line for line in change.lines if line.name not in finished]
        plan = planned(batch, lines, change.faults, shelf, note=note)
        check_place(batch, _new(plan, change), shelf, manifest)
        left = plan.pictures - _done(manifest, plan)
    kinds, examples, pixels = _kinds(plan)
    evaluations = _evaluations(plan)
    share = left / plan.pictures if plan.pictures else 0.0
    seconds = _seconds(kinds, examples, plan, shelf, note)
    return Estimate(
        pictures=left,
        done=plan.pictures - left + sum(finished.values()),
        calls=round(share * kinds.total()),
        evaluations=None if evaluations is None else round(share * evaluations),
        seconds=round(share * seconds, 1),
        memory=_memory(),
        disk=round(share * 3 * pixels),
        faults=plan.faults,
    )


@contextmanager
def _manifest(batch: Batch) -> Iterator[Manifest]:
    """Yield the manifest of a batch; one in memory where there is none yet."""
    there = batch.manifest.exists() and batch.manifest.stat().st_size
    manifest = Manifest(batch.manifest if there else Path(":memory:"))
    try:
        yield manifest
    finally:
        manifest.close()


def _new(plan: Plan, change: Change) -> Plan:
    """Return the plan without the pieces that the batch has already."""
    pieces = [
        piece
        for piece in plan.pieces
        if any(change.adds(plan.jobs[job].line, index) for call in piece.calls for job, index in call)
    ]
    return replace(plan, pieces=pieces)


def _finished(manifest: Manifest, change: Change) -> dict[str, int]:
    """Return the pictures of each job of which nothing is left to do; the others alone are planned."""
    known = manifest.jobs()
    whole = (line.name for line in change.lines if line.name not in change.fresh)
    return {name: known[name].done for name in whole if known[name].done == known[name].pictures}


def _done(manifest: Manifest, plan: Plan) -> int:
    """Return how many pictures of a plan are made already."""
    made = {(name, job.request): job.done for name, job in manifest.jobs().items()}
    return sum(made.get((job.line.name, job.line.request.to_json()), 0) for job in plan.jobs)


def _kinds(plan: Plan) -> tuple[Counter[Kind], dict[Kind, list[Place]], int]:
    """Return how many calls there are of each kind, an example of each, and the pixels of all pictures."""
    kinds: Counter[Kind] = Counter()
    examples: dict[Kind, list[Place]] = {}
    pixels = 0
    for piece in plan.pieces:
        for call in piece.calls:
            covered = sum(_pixels(plan.jobs[number], index) for number, index in call)
            first = plan.jobs[call[0][0]]
            kind = Kind(shared(first.used), _asked(first), covered if len(call) == 1 else 0)
            kinds[kind] += 1
            if len(call) > len(examples.get(kind, ())):
                examples[kind] = call
            pixels += covered
    return kinds, examples, pixels


def _evaluations(plan: Plan) -> int | None:
    """Return how often the network is asked for a picture, the guided and the unguided answer counted as two."""
    total = 0
    for piece in plan.pieces:
        for call in piece.calls:
            first = plan.jobs[call[0][0]]
            if (asked := _asked(first)) is None:
                return None
            total += len(call) * asked * (1 if first.used.guidance == 1 else 2)
    return total


def _asked(job: Planned) -> int | None:
    """Return how often the network is asked for a picture; None where how many of them are guided depends on times."""
    return job.evaluations if job.used.guidance_interval is None else None


def _pixels(job: Planned, index: int) -> int:
    sizes = job.used.sizes or (job.default,)
    return math.prod(sizes[index % len(sizes)])


def _seconds(
    kinds: Counter[Kind], examples: dict[Kind, list[Place]], plan: Plan, shelf: Shelf, note: Callable[[str], None]
) -> float:
    """Return the seconds that all calls take, by calls of the most frequent kinds."""
    timed: dict[Kind, tuple[float, float]] = {}
    for kind, _ in sorted(kinds.most_common(MOST), key=lambda item: str(item[0].options)):
        note("calibrating")
        timed[kind] = _time(kind, examples[kind], plan, shelf)
    total = 0.0
    for kind, count in kinds.items():
        known = kind if kind in timed else min(timed, key=lambda other: _unlike(kind, other))
        fixed, evaluation = timed[known]
        scale = kind.pixels / known.pixels if kind.pixels and known.pixels else 1.0
        total += count * scale * (fixed + (kind.evaluations or 0) * evaluation)
    return total


def _unlike(kind: Kind, other: Kind) -> tuple[bool, int]:
    return (kind.evaluations is None) != (other.evaluations is None), abs(other.pixels - kind.pixels)


def _time(kind: Kind, call: list[Place], plan: Plan, shelf: Shelf) -> tuple[float, float]:
    """Return the seconds that a call takes whatever its evaluations, and those of an evaluation."""
    if kind.evaluations is None:
        return _spent(call, plan, shelf, None)[0], 0.0
    _spent(call, plan, shelf, STEPS[0])  # to warm up
    (short, few), (long, many) = (_spent(call, plan, shelf, steps) for steps in STEPS)
    evaluation = max(0.0, (long - short) / (many - few))
    return max(0.0, short - few * evaluation), evaluation


def _spent(call: list[Place], plan: Plan, shelf: Shelf, steps: int | None) -> tuple[float, int]:
    """Return the seconds of a call with so many steps, and the evaluations that it is known to make for a picture."""
    requests = [replace(plan.jobs[number].line.request, steps=steps) for number, _ in call]
    jobs = work.joined([shelf.job(request) for request in requests])
    began = time.perf_counter()
    work.run_call([(job, index) for job, (_, index) in zip(jobs, call, strict=True)])
    return time.perf_counter() - began, jobs[0].evaluations or 0


def _memory() -> int:
    import torch

    if torch.cuda.is_available() and torch.cuda.max_memory_allocated():
        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
