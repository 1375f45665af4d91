"""``belvedere generate --jobs``: the options of batches, what is shown of them, and how Ctrl-C ends them.

Exit codes: 0 every picture of every line is there; 1 some lines or pictures are not, the others are; 2 bad input,
nothing of it could be begun, or the disk is full; 130 or 143 stopped by Ctrl-C or SIGTERM. After all but the first the
same command goes on.
"""

import json
import os
import re
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from belvedere.apps.cli_options import steps_of, written
from belvedere.errors import InputError

if TYPE_CHECKING:
    from belvedere.apps.batch import State, Summary, Watch
    from belvedere.apps.batch_begin import Batch

Jobs = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE",
        help="Batch: a request a line (.jsonl) or row (.csv, .parquet); what it lacks is as the options say, but "
        "without -n it is one picture.",
    ),
]
Pack = Annotated[str, typer.Option(help="Batch: none, tar (WebDataset) or parquet.")]
PackSize = Annotated[int, typer.Option(help="Batch: pictures a tar or parquet file.")]
Shard = Annotated[str, typer.Option(metavar="I/N", help="Batch: only the I-th of N parts; one a machine.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Batch: only say what it would take.")]
Verify = Annotated[bool, typer.Option("--verify", help="Batch: read what is done, make again what has changed.")]

LINES_SHOWN = 20
NEWS = 30.0
"""Seconds between lines of progress where there is no terminal."""
_PASSING = ("loading ", "planned ", "calibrating")
"""Beginnings of notes that a later one takes the place of."""
_OPTIONS = ("pack", "pack_size", "shard", "dry_run", "verify")
_DEFAULTS = {
    "model": "model",
    "classes": "classes",
    "count": "count",
    "seed": "seed",
    "steps": "steps",
    "guidance": "guidance",
    "sizes": "sizes",
    "extrapolation": "extrapolation",
    "solver": "solver",
    "guidance_power": "guidance_power",
    "guidance_channels": "guidance_channels",
    "guidance_interval": "guidance_interval",
    "prompt": "prompts",
    "negative": "negative",
    "concept": "concepts",
    "editability": "editability",
    "dtype": "dtype",
    "device": "device",
}
"""Options of the command that jobs may leave to it, and the fields of a request."""


def given(context: typer.Context, name: str) -> bool:
    """Return whether an option has a value of the user's: written, or a default of their own."""
    source = context.get_parameter_source(name)
    return source is not None and source.name != "DEFAULT"


def check_single(context: typer.Context) -> None:
    """Raise ``InputError`` when an option of batches is given without a job file."""
    if wrong := [name for name in _OPTIONS if written(context, name)]:
        raise InputError(f"--{wrong[0].replace('_', '-')} belongs to batches: give --jobs FILE too, or leave it out")


def generate_jobs(context: typer.Context) -> int:
    """Run the batch that the options of ``belvedere generate`` ask for; return the exit code."""
    from belvedere.apps.batch_begin import Batch

    options = {**context.params, "steps": steps_of(context)}
    if written(context, "grid"):
        raise InputError("--grid shows the pictures of one request: leave it out with --jobs")
    batch = Batch(
        jobs=options["jobs"],
        out=options["out"],
        defaults={field: _plain(options[name]) for name, field in _DEFAULTS.items() if given(context, name)},
        kind=options["kind"],
        pack=options["pack"],
        pack_size=options["pack_size"],
        shard=parse_shard(options["shard"]),
        verify=options["verify"],
    )
    return _dry(batch, options["as_json"]) if options["dry_run"] else _run(batch, options["as_json"])


def _plain(value: Any) -> Any:
    return [str(item) for item in value] if isinstance(value, list | tuple) else value


def parse_shard(text: str) -> tuple[int, int]:
    """Return (i, n) of text like "2/8"; (1, 1) of empty text."""
    if not text:
        return 1, 1
    if not (match := re.fullmatch(r"(\d{1,5})/(\d{1,5})", text)):
        raise InputError(f"--shard {text[:80]!r}: write I/N, like 2/8")
    return int(match[1]), int(match[2])


def _run(batch: "Batch", as_json: bool) -> int:
    from belvedere.apps.batch import run_batch

    with _watch() as (watch, signals):
        done = run_batch(batch, watch)
    speaker = os.environ.get("RANK", "0") == "0"
    if speaker:
        _tell(batch, done, as_json)
    if done.stopped:
        return 128 + (signals or [signal.SIGINT])[0]
    return 1 if done.faults or done.counts.done < done.counts.total else 0


def _tell(batch: "Batch", done: "Summary", as_json: bool) -> None:
    counts = done.counts
    for fault in done.faults[:LINES_SHOWN]:
        _say(f"{batch.jobs} line {fault.number}: {fault.reason}")
    if len(done.faults) > LINES_SHOWN:
        _say(f"{batch.jobs}: {len(done.faults) - LINES_SHOWN} more lines are wrong; they are in {batch.manifest}")
    for piece, pictures, reason in done.failures:
        _say(f"piece {piece} of {pictures} pictures failed: {reason}")
    if as_json:
        facts = asdict(done) | {"counts": counts._asdict(), "faults": [fault._asdict() for fault in done.faults]}
        keys = ("piece", "pictures", "reason")
        facts["failures"] = [dict(zip(keys, failure, strict=True)) for failure in done.failures]
        print(json.dumps({"out": str(batch.out), "manifest": str(batch.manifest), **facts}))
        return
    rate = f", {done.made / done.seconds:.1f}/s" if done.made and done.seconds else ""
    wrong = f", {len(done.faults)} lines wrong" if done.faults else ""
    failed = f", {counts.failed} failed" if counts.failed else ""
    print(
        f"{counts.done} of {counts.total} pictures in {batch.out}{failed}{wrong} "
        f"({done.made} made in {done.seconds} s{rate})"
    )
    if done.stopped:
        _say(f"stopped with {counts.left} pictures left; the same command goes on")


def _dry(batch: "Batch", as_json: bool) -> int:
    from belvedere.apps.batch_estimate import estimate

    with _shown() as (note, _):
        found = estimate(batch, note)
    for fault in found.faults[:LINES_SHOWN]:
        _say(f"{batch.jobs} line {fault.number}: {fault.reason}")
    if as_json:
        print(json.dumps(asdict(found) | {"faults": [fault._asdict() for fault in found.faults]}))
    else:
        evaluations = "unknown" if found.evaluations is None else found.evaluations
        lines = {
            "pictures": f"{found.pictures}" + (f" ({found.done} are there already)" if found.done else ""),
            "network": f"{evaluations} evaluations of a picture, {found.calls} calls of many",
            "time": f"about {_span(found.seconds)} by one process, from a calibration on this machine",
            "memory": f"{found.memory / 1e6:.0f} MB at most in the calibration",
            "disk": f"at most {found.disk / 1e6:.1f} MB",
            "wrong lines": f"{len(found.faults)}",
        }
        print("\n".join(f"{key:12} {value}" for key, value in lines.items()))
    return 1 if found.faults else 0


@contextmanager
def _watch() -> "Iterator[tuple[Watch, list[int]]]":
    """Yield what shows progress and is stopped by the first Ctrl-C or SIGTERM (a second one ends at once)."""
    from belvedere.apps.batch import Watch

    signals: list[int] = []
    with _shown() as (note, progress):
        watch = Watch(note=note, progress=progress)

        def stop(number: int, _frame: object) -> None:
            if signals:
                raise KeyboardInterrupt
            signals.append(number)
            watch.stop.set()
            note("finishing what is in hand; once more ends at once")

        before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield watch, signals
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


@contextmanager
def _shown() -> Iterator[tuple[Any, Any]]:
    """Yield what shows notes and progress on stderr: a bar in a terminal, else a line now and then."""
    if os.environ.get("RANK", "0") != "0":
        yield lambda line: None, lambda state: None
        return
    if not sys.stderr.isatty():
        yield _Lines().note, _Lines().progress
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn

    console = Console(stderr=True)
    with Progress(TextColumn("{task.description}"), BarColumn(), console=console, transient=True) as bar:
        task = bar.add_task("reading the jobs", total=None)

        def note(line: str) -> None:
            if line.startswith(_PASSING):
                bar.update(task, description=line)
            else:
                console.print(line, markup=False, highlight=False)

        def progress(state: "State") -> None:
            bar.update(task, description=_news(state), completed=state.counts.done, total=state.counts.total)

        yield note, progress


class _Lines:
    """Progress where there is no terminal: errors and stops at once, how far it is every half a minute."""

    def __init__(self) -> None:
        self.last = time.monotonic()

    def note(self, line: str) -> None:
        if line.startswith("planned "):
            self._now_and_then(line)
        elif not line.startswith(_PASSING):
            _say(line)

    def progress(self, state: "State") -> None:
        self._now_and_then(_news(state))

    def _now_and_then(self, line: str) -> None:
        if time.monotonic() - self.last >= NEWS:
            self.last = time.monotonic()
            _say(line)


def _news(state: "State") -> str:
    counts = state.counts
    left = f", {_span(state.left)} left" if state.left else ""
    failed = f", {counts.failed} failed" if counts.failed else ""
    return f"{counts.done} of {counts.total} pictures, {state.rate:.1f}/s{left}{failed}"


def _span(seconds: float) -> str:
    return str(timedelta(seconds=round(seconds)))


def _say(line: str) -> None:
    print(f"belvedere: {line}", file=sys.stderr, flush=True)
