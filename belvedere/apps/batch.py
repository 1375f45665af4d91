"""Batches: every picture of a job file, each exactly once, however often and by how many processes it is made.

    job file ─► plan ─► manifest ─► claim a piece ─► network ─► threads that write ─► done
                            ▲                                                           │
                            └──────────── any number of processes, one manifest ◄───────┘

Killed at any moment, the same command goes on where the work stood, and the folder comes out as if nothing had
happened: a plan is made once, pictures depend on (seed, index) alone, files are whole or absent, and what a dead
process had claimed is taken over by the living. Machines share a batch by ``shard``, processes by the manifest.
"""

import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from belvedere.apps import output, work
from belvedere.apps.batch_begin import Batch, Note, first_plan, opened, placed
from belvedere.apps.batch_jobs import Fault
from belvedere.apps.batch_manifest import Claim, Counts, Manifest
from belvedere.apps.batch_manifest import Picture as Wanted
from belvedere.apps.batch_output import Writer
from belvedere.apps.batch_plan import Shelf, weights
from belvedere.apps.batch_workers import Worker
from belvedere.errors import InputError

POLL = 0.3
"""Seconds between looks at what other processes still have in hand."""
REPORT_EVERY = 0.5
"""Seconds between reports of progress, at least."""
FAILURES_IN_A_ROW = 3
"""Pieces after which the fault is not theirs: no more of their model is tried."""


@dataclass(frozen=True)
class State:
    """How a batch stands: what a progress bar shows."""

    counts: Counts
    rate: float
    """Pictures a second, of all processes, since this one began."""

    @property
    def left(self) -> float | None:
        """Seconds to the end at this rate."""
        return self.counts.left / self.rate if self.rate else None


@dataclass(frozen=True)
class Summary:
    """What a process leaves: ``made`` by itself, ``counts`` of the whole batch, lines that cannot be done, failures."""

    counts: Counts
    made: int
    seconds: float
    network: float
    """Of ``seconds``, those in the network."""
    waited: float
    """Of ``seconds``, those in which the network waited for pictures to be written."""
    faults: list[Fault]
    failures: list[tuple[int, int, str]]
    stopped: bool


@dataclass
class Watch:
    """How the caller follows a run, and stops it: ``stop`` is asked between pieces."""

    note: Note = lambda line: None
    progress: Callable[[State], None] = lambda state: None
    stop: threading.Event = field(default_factory=threading.Event)


def run_batch(batch: Batch, watch: Watch | None = None) -> Summary:
    """Make what is not yet made of a batch, together with whatever other processes do so.

    Returns when every picture is made or has failed, or when ``watch.stop`` is set and what was in hand is done. Raises
    ``InputError`` for a job file without a single good job, for a folder that cannot be written or is another batch's,
    a full disk, and, when the other models are done, after failures in a row; what is made by then is safe and the same
    call goes on.
    """
    watch = watch or Watch()
    batch = placed(batch)
    output.check_folder(batch.out)
    shelf = Shelf(lambda name: watch.note(f"loading {name}"))
    plan = None if batch.manifest.exists() else first_plan(batch, shelf, watch.note)
    with output.writing(batch.out):
        batch.out.mkdir(parents=True, exist_ok=True)
        worker = Worker(batch.out, batch.part)
    try:
        with worker.alone():
            with output.writing(batch.out):
                worker.enter()
            manifest = opened(batch, plan, shelf, worker.others(), watch.note)
        del plan
        try:
            return _Run(batch, manifest, worker, shelf, watch).run()
        finally:
            manifest.close()
    finally:
        worker.leave()


class _Run:
    """One process at work on a batch."""

    def __init__(self, batch: Batch, manifest: Manifest, worker: Worker, shelf: Shelf, watch: Watch):
        self.batch, self.manifest, self.worker, self.shelf, self.watch = batch, manifest, worker, shelf, watch
        self.writer = Writer(batch.out, worker.folder, batch.kind, batch.pack, batch.part)
        self.began, self.shown, self.network = time.perf_counter(), 0.0, 0.0
        self.done_before = manifest.counts().done
        self.made = 0
        self.failed: Counter[str] = Counter()
        """Calls in a row that failed, by model, without those that have failed before."""
        self.given_up: dict[str, str] = {}
        """Models of which no more is tried, and why."""
        self.model = shelf.name

    def run(self) -> Summary:
        """Claim and make pieces until none is left, or a stop is asked for."""
        try:
            while True:
                self._settle()
                if self.watch.stop.is_set():
                    break
                claim = self.manifest.claim(self.worker.token, self.model, self.given_up)
                if claim is not None:
                    self._make(claim)
                elif not self._await_others():
                    break
            self._settle(wait=True)
        finally:
            self.writer.close()
        if self.given_up and not self.watch.stop.is_set():
            raise InputError("; ".join(self.given_up.values()))
        return self._summary()

    def _make(self, claim: Claim) -> None:
        for number, wanted in enumerate(claim.calls, 1):
            began = time.perf_counter()
            try:
                pictures = self._call(wanted)
            except Exception as error:
                self._failed(claim, wanted, error)
                return
            spent = time.perf_counter() - began
            self.network += spent
            self.writer.put(claim.piece, wanted, pictures, spent, number == len(claim.calls))
            self._show()
        self.failed[self.model] = 0

    def _call(self, wanted: Sequence[Wanted]) -> list[work.Picture]:
        jobs = []
        for one in wanted:
            job = self.shelf.job(one.request)
            self.model = one.request.model
            if weights(job) != one.weights:
                raise InputError(f"model {self.model} or a concept is not what the batch was begun with; bring it back")
            jobs.append(job)
        return work.run_call(list(zip(work.joined(jobs), (one.number for one in wanted), strict=True)))

    def _failed(self, claim: Claim, wanted: Sequence[Wanted], error: Exception) -> None:
        self.writer.abandon()
        reason = " ".join(f"{'' if isinstance(error, InputError) else type(error).__name__ + ': '}{error}".split())
        self.manifest.fail(claim.piece, f"{wanted[0].name}: {reason[:500]}")
        self.watch.note(f"{wanted[0].name}: {reason[:200]}")
        model = wanted[0].request.model
        self.failed[model] += not claim.failed_before
        if self.failed[model] >= FAILURES_IN_A_ROW:
            self.given_up[model] = f"{model}: {FAILURES_IN_A_ROW} calls in a row failed, the last with: {reason[:200]}"

    def _settle(self, wait: bool = False) -> None:
        """Enter what the threads have written into the manifest."""
        for done in self.writer.finished(wait):
            self.manifest.finish(done.piece, done.pictures, done.file)
            self.made += len(done.pictures)
        self._show()

    def _await_others(self) -> bool:
        """Return whether there may be something to do; take over what dead processes had, or wait a moment."""
        self._settle(wait=True)
        if not self.manifest.busy(self.given_up):
            return False
        with self.worker.alone():
            taken_over = self.manifest.release({self.worker.token, *self.worker.others()})
        if not taken_over:
            self.watch.stop.wait(POLL)
        return True

    def _show(self) -> None:
        now = time.perf_counter()
        if now - self.shown >= REPORT_EVERY:
            counts, self.shown = self.manifest.counts(), now
            self.watch.progress(State(counts, (counts.done - self.done_before) / (now - self.began)))

    def _summary(self) -> Summary:
        counts = self.manifest.counts()
        return Summary(
            counts=counts,
            made=self.made,
            seconds=round(time.perf_counter() - self.began, 2),
            network=round(self.network, 2),
            waited=round(self.writer.waited, 2),
            faults=self.manifest.faults(),
            failures=self.manifest.failures(),
            stopped=self.watch.stop.is_set() and counts.left > 0,
        )
