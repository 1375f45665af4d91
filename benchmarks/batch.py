"""What it costs to keep the pictures of a batch: ``python benchmarks/batch.py``.

The same pictures of the embedded DiMR, rounds interleaved:

- network: the calls of the plan alone, nothing is kept;
- files, tar, parquet: ``belvedere generate --jobs`` in this process, with its manifest, its flushes and its threads;
- inline: each picture encoded and flushed by the thread that runs the network, as a single request does.

The table gives pictures a second (median, slowest and fastest) and, of a batch, the share of its time in the network
and the seconds for which the network waited for the threads.
"""

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch

from belvedere.apps import output, work
from belvedere.apps.batch import run_batch
from belvedere.apps.batch_begin import Batch
from belvedere.apps.batch_jobs import read_jobs
from belvedere.apps.batch_plan import Shelf, make_plan
from belvedere.apps.record import processor

OPTIONS = {"model": "dimr-toybox", "device": "cpu"}


def calls_of(jobs: Path, shelf: Shelf) -> list[list[tuple[work.Job, int]]]:
    """Return the network calls of a job file."""
    plan = make_plan(read_jobs(jobs, OPTIONS).lines, shelf)
    places = (call for piece in plan.pieces for call in piece.calls)
    return [[(shelf.job(plan.jobs[job].line.request), index) for job, index in call] for call in places]


def runs(jobs: Path, folder: Path, pack_size: int) -> dict[str, Callable[[], dict[str, float]]]:
    """Return the ways to make the pictures of a job file, each of which says what it measured besides its time."""
    calls = calls_of(jobs, Shelf())

    def network() -> dict[str, float]:
        for call in calls:
            work.run_call(call)
        return {}

    def inline() -> dict[str, float]:
        with tempfile.TemporaryDirectory(dir=folder) as out:
            for i, call in enumerate(calls):
                for picture, (_, index) in zip(work.run_call(call), call, strict=True):
                    output.save(picture.image, Path(out) / f"{i}-{index}.png", picture.record.to_json())
        return {}

    def batch(pack: str) -> dict[str, float]:
        with tempfile.TemporaryDirectory(dir=folder) as out:
            done = run_batch(Batch(jobs, Path(out), OPTIONS, pack=pack, pack_size=pack_size))
        return {"seconds": done.seconds, "network_share": done.network / done.seconds, "waited": done.waited}

    packs = {"files": "none", "tar": "tar", "parquet": "parquet"}
    batches = {name: partial(batch, pack) for name, pack in packs.items()}
    return {"network": network, **batches, "inline": inline}


def measure(count: int, steps: int, repeats: int, folder: Path) -> dict[str, Any]:
    """Return pictures a second of each way, in rounds, and what the batches said of themselves.

    A batch's time is that of its run: not the planning and the loading of the model before it.
    """
    jobs = folder / "jobs.jsonl"
    half = {"count": count // 2, "steps": steps}
    jobs.write_text("".join(json.dumps(half | {"seed": seed}) + "\n" for seed in (1, 2)))
    ways = runs(jobs, folder, pack_size=max(1, count // 4))
    rates: dict[str, list[float]] = {name: [] for name in ways}
    said: dict[str, list[dict[str, float]]] = {name: [] for name in ways}
    for turn in range(repeats + 1):
        for name, way in ways.items():
            began = time.perf_counter()
            facts = way()
            spent = facts.pop("seconds", time.perf_counter() - began)
            if turn:  # the first is to warm up
                rates[name].append(count // 2 * 2 / spent)
                said[name].append(facts)
    return {"pictures": count // 2 * 2, "steps": steps, "pictures_per_second": rates, "said": said}


def show(found: dict[str, Any]) -> None:
    """Print a table of what ``measure`` found."""
    alone = statistics.median(found["pictures_per_second"]["network"])
    for name, rates in found["pictures_per_second"].items():
        rate, said = statistics.median(rates), found["said"][name]
        line = f"{name:8} {rate:8.2f}/s  ({min(rates):.2f} to {max(rates):.2f})  {rate / alone:6.1%} of the network"
        if said[0]:
            share, waited = (statistics.median(one[key] for one in said) for key in ("network_share", "waited"))
            line += f", {share:.1%} of its time in the network, {waited:.2f} s waited"
        print(line)


def main() -> None:
    """Print the table and write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=192)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--folder", type=Path, default=None, help="On the disk that is to be measured.")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "batch.json")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        found = measure(options.count, options.steps, options.repeats, Path(folder))
    show(found)
    machine = {"cpu": processor(), "instructions": torch.backends.cpu.get_cpu_capability()}
    machine |= {"threads": torch.get_num_threads(), "torch": torch.__version__}
    options.out.parent.mkdir(exist_ok=True)
    options.out.write_text(json.dumps(machine | found, indent=1) + "\n")


if __name__ == "__main__":
    main()
