"""From jobs to network calls: what shares one, in which order, and which pieces of the work are claimed as a whole.

A plan depends on the jobs and the models alone. It is made once and kept in the manifest, so a batch that is continued,
or shared among processes, composes the very calls that an uninterrupted one would. (On a CPU a picture does not depend
on its neighbours at all; on a GPU its last bits may.)
"""

import time
from collections import defaultdict, deque
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from itertools import groupby
from typing import Any, NamedTuple

from belvedere import seeds
from belvedere.apps import work
from belvedere.apps.batch_jobs import Fault, Line
from belvedere.apps.requests import GenerateRequest
from belvedere.errors import InputError

OWN = ("classes", "prompts", "count", "seed", "sizes")
"""Fields of a request that may differ between the pictures of one call."""

NEWS = 5.0
"""Seconds between two words on how far the planning is."""

Place = tuple[int, int]
"""A picture: (number of its job in the plan, index in the job)."""


class Planned(NamedTuple):
    """A job of a plan. ``weights``: digests of its model, and of its concepts; ``used``: the request with the values
    that the model gives it; ``default``: (height, width) of pictures whose size it does not name; ``evaluations``: see
    ``work.Job``."""

    line: Line
    weights: str
    used: GenerateRequest
    default: tuple[int, int]
    evaluations: int | None


class Piece(NamedTuple):
    """What one process claims and hands in as a whole: calls of one model."""

    model: str
    calls: list[list[Place]]


@dataclass
class Plan:
    """Jobs, the lines that are none, and the pieces that the pictures of the jobs are made in.

    ``digest``: of the job file (``JobFile.digest``), where the plan is of a whole one. ``place_is_free``: that no file
    is in its way has been seen.
    """

    jobs: list[Planned] = field(default_factory=list)
    faults: list[Fault] = field(default_factory=list)
    pieces: list[Piece] = field(default_factory=list)
    digest: str = ""
    place_is_free: bool = False

    @property
    def pictures(self) -> int:
        """How many pictures it has."""
        return sum(len(call) for piece in self.pieces for call in piece.calls)


class Shelf:
    """The one model that is loaded, and the jobs lately prepared for it."""

    KEPT = 64

    def __init__(self, loading: Callable[[str], None] = lambda name: None):
        self._loading = loading
        self.name = ""
        """Of the model that was asked for last."""
        self._model: work.Model | None = None
        self._jobs: dict[GenerateRequest, work.Job] = {}

    @property
    def empty(self) -> bool:
        """Whether the last model that was asked for could not be loaded."""
        return self._model is None

    def forget(self) -> None:
        """Prepare jobs anew: what they say of the machine has changed."""
        self._jobs.clear()

    def job(self, request: GenerateRequest) -> work.Job:
        """Return the prepared job of a request, whose model takes the place of another; all are of one device."""
        if self._model is None or self.name != request.model:
            self._jobs.clear()
            self._model, self.name = None, request.model  # first let go of the one, then load the other
            self._loading(request.model)
            self._model = work.load(request)
        if request not in self._jobs:
            if len(self._jobs) >= self.KEPT:
                self._jobs.clear()
            self._jobs[request] = work.prepare(request, model=self._model)
        return self._jobs[request]


def make_plan(
    lines: Iterable[Line],
    shelf: Shelf,
    shard: tuple[int, int] = (1, 1),
    piece_size: int | None = None,
    there: Mapping[str, Collection[int]] | None = None,
    note: Callable[[str], None] = lambda line: None,
) -> Plan:
    """Return the plan of jobs, a model after the other; a job that its model cannot do becomes a fault.

    ``shard`` (i, n): only the i-th of n parts; a picture's name decides, so no other job moves it. ``piece_size``:
    pictures to hand in together, at least; None = a piece is a call. ``there``: numbers of pictures that need no plan,
    by the names of their jobs. ``note`` is told how far it is.
    """
    plan = Plan()
    ordered = sorted(lines, key=lambda line: (line.request.model, line.number))
    for model, group in groupby(_told(ordered, note), lambda line: line.request.model):
        calls = _calls_of_model(group, shelf, shard, there or {}, plan)
        plan.pieces += [Piece(model, part) for part in _pieces(calls, piece_size)]
    plan.faults.sort()
    return plan


def _told(lines: Sequence[Line], note: Callable[[str], None]) -> Iterator[Line]:
    """Yield the lines and say now and then how many of them are planned."""
    last = time.monotonic()
    for done, line in enumerate(lines):
        if time.monotonic() - last >= NEWS:
            last = time.monotonic()
            note(f"planned {done} of {len(lines)} lines")
        yield line


def _calls_of_model(
    lines: Iterable[Line], shelf: Shelf, shard: tuple[int, int], there: Mapping[str, Collection[int]], plan: Plan
) -> list[list[Place]]:
    """Add the jobs of one model, and its faults, to ``plan``; return the calls that make their pictures."""
    alike: dict[tuple[Any, ...], list[tuple[tuple[int, int], Place]]] = defaultdict(list)
    pipelines: dict[tuple[Any, ...], Any] = {}
    evaluations: dict[tuple[Any, ...], int | None] = {}
    refused = ""
    for line in lines:
        try:
            if refused:
                raise InputError(refused)
            job = shelf.job(line.request)
        except InputError as error:
            refused = str(error) if shelf.empty else ""
            plan.faults.append(Fault(line.number, str(error)))
            continue
        others = there.get(line.name, ())
        if mine := [index for index in in_part(line, shard) if index not in others]:
            key = shared(job.request)
            pipelines[key] = job.pipeline
            if key not in evaluations:
                evaluations[key] = job.evaluations
            alike[key] += [(job.size(index), (len(plan.jobs), index)) for index in mine]
            plan.jobs.append(Planned(line, weights(job), job.request, job.pipeline.default_size, evaluations[key]))
    return [call for key, pictures in alike.items() for call in arrange(pipelines[key], pictures)]


def weights(job: work.Job) -> str:
    """Return the digests of what makes a job's pictures: the model, and concepts."""
    return f"{job.weights} {job.concepts}".strip()


def shared(request: GenerateRequest) -> tuple[Any, ...]:
    """Return what all pictures of a call have in common."""
    return tuple(getattr(request, entry.name) for entry in fields(request) if entry.name not in OWN)


def in_shard(name: str, shard: tuple[int, int]) -> bool:
    """Return whether a picture belongs to shard i of n, counted from 1."""
    return seeds.derive("shard", name) % shard[1] == shard[0] - 1


def in_part(line: Line, shard: tuple[int, int]) -> Sequence[int]:
    """Return the numbers of a job's pictures that belong to shard i of n."""
    every = range(line.request.count)
    return every if shard[1] == 1 else [index for index in every if in_shard(line.picture(index), shard)]


def _pieces(calls: list[list[Place]], size: int | None) -> Iterator[list[list[Place]]]:
    """Cut calls into pieces of at least ``size`` pictures, the last one aside."""
    part: list[list[Place]] = []
    filled = 0
    for call in calls:
        part.append(call)
        filled += len(call)
        if size is None or filled >= size:
            yield part
            part, filled = [], 0
    if part:
        yield part


def arrange(pipeline: Any, pictures: Sequence[tuple[tuple[int, int], Place]]) -> Iterator[list[Place]]:
    """Yield the pictures that share a call, given the (height, width) of each; large ones come first.

    Where a pipeline packs sizes into calls of a fixed number of tokens, they are packed first fit decreasing; else
    those of one size share calls.
    """
    if hasattr(pipeline, "capacity"):
        tokens = [high * wide for high, wide in (pipeline.grid(size) for size, _ in pictures)]
        order = list(first_fit(tokens, pipeline.capacity()))
    else:
        order = sorted(range(len(pictures)), key=lambda i: (-pictures[i][0][0] * pictures[i][0][1], pictures[i][0]))
    for part in pipeline.split([pictures[i][0] for i in order]):
        yield sorted(pictures[order[i]][1] for i in part)


def first_fit(lengths: Sequence[int], capacity: int) -> Iterator[int]:
    """Yield the numbers of ``lengths`` bin by bin: into each of ``capacity`` the longest that still fits, and so on.

    Which is first fit decreasing. What leaves no room for another of its kind has, as ``packed_sampling.alone`` says, a
    bin for itself. A greedy cut into neighbours, as ``packed_sampling.split`` does, finds the bins again.
    """
    from belvedere.generation.packed_sampling import alone

    waiting: dict[int, deque[int]] = defaultdict(deque)
    for i in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        if alone(lengths[i], capacity):
            yield i
        else:
            waiting[lengths[i]].append(i)
    while waiting:
        room = capacity
        for length in list(waiting):
            while room >= length and waiting[length]:
                yield waiting[length].popleft()
                room -= length
            if not waiting[length]:
                del waiting[length]
