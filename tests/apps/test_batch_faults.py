"""Batches made by processes that are killed: whatever the moment, the folder comes out as if nothing had happened.

The processes are forked from a server that has imported everything, so that a kill costs no seconds of imports.
"""

import multiprocessing
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.context import ForkServerContext, ForkServerProcess
from pathlib import Path

import pytest

from belvedere.apps import batch
from belvedere.apps.batch import Watch, run_batch
from belvedere.apps.batch_begin import Batch
from belvedere.apps.batch_manifest import Manifest
from tests.apps.batch_helpers import OPTIONS, content, write_jobs
from tests.waiting import wait_until

IMPORTS = [
    "belvedere.apps.batch",
    "belvedere.apps.prompts",
    "belvedere.checkpoints.store",
    "belvedere.generation.fitv2_pipeline",
    "belvedere.generation.pipelines",
    "tests.apps.batch_helpers",
]
PACK = 8
"""Pictures of a tar."""


@pytest.fixture(scope="module")
def forks() -> Iterator[ForkServerContext]:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(IMPORTS)
    yield context


def work(jobs: Path, out: Path, pack: str) -> None:
    """Be one process of a batch; exit code 0 when all is made."""
    batch.REPORT_EVERY = 0.0
    done = run_batch(Batch(jobs, out, OPTIONS, pack=pack, pack_size=PACK), Watch())
    sys.exit(0 if done.counts.done == done.counts.total else 1)


def many(path: Path, tiny_model: Path, tiny_fitv2: Path, steps: int, tens: int = 20) -> Path:
    """Write a job file of 200 pictures, or of ``tens`` times ten, of two models and many sizes.

    The 200 are some 60 calls of about one length.
    """
    model, mixed = str(tiny_model), str(tiny_fitv2)
    return write_jobs(
        path,
        {"model": model, "count": 9 * tens // 2, "seed": 7, "steps": (steps + 7) // 8, "name": "toys"},
        "a bad line",
        {"model": mixed, "count": 3 * tens, "seed": 7, "size": "16x16,32x16,48x48,8x8", "steps": steps},
        {"model": mixed, "count": 3 * tens // 2, "seed": 8, "size": "48x48", "steps": steps, "name": "large"},
        {"model": model, "count": tens, "seed": 9, "steps": (steps + 7) // 8},
    )


@contextmanager
def processes(forks: ForkServerContext, *arguments: object) -> Iterator[list[ForkServerProcess]]:
    """Yield two processes at work; they are gone afterwards."""
    running = [start(forks, *arguments) for _ in range(2)]
    try:
        yield running
    finally:
        for process in running:
            process.kill()
            process.join()


def start(forks: ForkServerContext, *arguments: object) -> ForkServerProcess:
    process = forks.Process(target=work, args=arguments)
    process.start()
    return process


def kill_at_random(forks: ForkServerContext, kills: int, jobs: Path, out: Path, pack: str = "none") -> tuple[int, int]:
    """Let two processes make a batch, killing one or the other at random moments and starting another in its place.

    Every second kill, on average, waits until more is made, so that kills fall on all of the batch at any speed of the
    machine. Returns how many were killed at work, and at how many different counts of finished pictures.
    """
    chance, killed, stands = random.Random(0), 0, set[int]()
    with processes(forks, jobs, out, pack) as running:
        while killed < kills and left(out):
            if chance.random() < 0.5:
                wait_for_more(out)
            time.sleep(chance.uniform(0.0, 0.3))
            victim = chance.randrange(2)
            if running[victim].is_alive():
                running[victim].kill()  # SIGKILL
                killed += 1
                stands.add(left(out))
            running[victim].join()
            assert running[victim].exitcode in (0, -signal.SIGKILL)
            running[victim] = start(forks, jobs, out, pack)
        for process in running:
            process.join(300)
            assert process.exitcode == 0
    return killed, len(stands)


def wait_for_more(out: Path) -> None:
    before, end = left(out), time.monotonic() + 300
    while left(out) == before and before != 0:
        assert time.monotonic() < end, "no picture was made in five minutes"
        time.sleep(0.005)


def left(out: Path) -> int:
    """Return how many pictures of a batch are not yet made; -1 when nothing is begun."""
    path = out / "manifest.sqlite"
    if not path.exists():
        return -1
    manifest = Manifest(path)
    try:
        return manifest.counts().left if manifest.settings() else -1
    finally:
        manifest.close()


def leave_nothing_else(out: Path) -> None:
    assert sorted(path.name for path in out.iterdir() if path.name.startswith((".", "manifest"))) == [
        ".lock",
        "manifest.sqlite",
    ]


@pytest.mark.slow
@pytest.mark.parametrize("pack", ["none", "tar"])
def test_three_kills_change_nothing(
    forks: ForkServerContext, tiny_model: Path, tiny_fitv2: Path, tmp_path: Path, pack: str
) -> None:
    jobs = many(tmp_path / "jobs.jsonl", tiny_model, tiny_fitv2, steps=2, tens=8)
    run_batch(Batch(jobs, tmp_path / "whole", OPTIONS, pack=pack, pack_size=PACK))
    killed, _ = kill_at_random(forks, 3, jobs, tmp_path / "killed", pack)
    assert killed >= 1
    assert content(tmp_path / "killed") == content(tmp_path / "whole")
    leave_nothing_else(tmp_path / "killed")


@pytest.mark.slow
@pytest.mark.parametrize("pack", ["none", "tar"])
def test_fifty_kills_change_nothing(
    forks: ForkServerContext, tiny_model: Path, tiny_fitv2: Path, tmp_path: Path, pack: str
) -> None:
    jobs = many(tmp_path / "jobs.jsonl", tiny_model, tiny_fitv2, steps=8)
    run_batch(Batch(jobs, tmp_path / "whole", OPTIONS, pack=pack, pack_size=PACK))
    kills = stands = 0
    while kills < 50:  # a batch may be done before it was killed so often: then another one
        out = tmp_path / f"killed-{kills}"
        killed, stood = kill_at_random(forks, 50 - kills, jobs, out, pack)
        kills, stands = kills + killed, stands + stood
        assert killed and content(out) == content(tmp_path / "whole")
        leave_nothing_else(out)
    assert stands >= 10


def test_the_living_take_over_from_the_dead(
    forks: ForkServerContext, tiny_model: Path, tiny_fitv2: Path, tmp_path: Path
) -> None:
    """A process stopped with a piece in hand and then killed: the other waits, and makes it."""
    jobs = many(tmp_path / "jobs.jsonl", tiny_model, tiny_fitv2, steps=5)
    out = tmp_path / "out"
    with processes(forks, jobs, out, "none") as running:
        wait_until(lambda: 0 <= left(out) < 200, running[0], 120)
        os.kill(running[0].pid or 0, signal.SIGSTOP)
        running[1].join(1.0)
        running[0].kill()
        running[1].join(120)
        assert running[1].exitcode == 0
    assert left(out) == 0 and len(content(out)) == 200


@pytest.mark.slow
def test_ctrl_c_finishes_what_is_in_hand(tiny_model: Path, tmp_path: Path) -> None:
    jobs = write_jobs(tmp_path / "jobs.jsonl", {"model": str(tiny_model), "count": 400, "steps": 40})
    command = [sys.executable, "-m", "belvedere", "generate", "--jobs", jobs, "--out", tmp_path / "out"]
    run = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    process = subprocess.Popen([*command, "--device", "cpu"], **run)  # type: ignore[call-overload]
    try:
        wait_until(lambda: 0 <= left(tmp_path / "out") < 400, process, 120)
        process.send_signal(signal.SIGINT)
        _, error = process.communicate(timeout=120)
    finally:
        process.kill()
    assert process.returncode == 130, error
    assert "finishing what is in hand" in error and "the same command goes on" in error and "Traceback" not in error
    made = left(tmp_path / "out")
    assert 0 < made < 400 and len(content(tmp_path / "out")) == 400 - made
    again = subprocess.run([*command, "--device", "cpu"], capture_output=True, text=True)
    assert again.returncode == 0 and f"({made} made in" in again.stdout


@pytest.mark.slow
def test_a_launcher_starts_two(tiny_model: Path, tmp_path: Path) -> None:
    jobs = write_jobs(tmp_path / "jobs.jsonl", {"model": str(tiny_model), "count": 64, "steps": 10}, "a bad line")
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "-m"]
    command = [
        *launcher,
        "belvedere",
        "generate",
        "--jobs",
        str(jobs),
        "--out",
        str(tmp_path / "out"),
        "--device",
        "cpu",
    ]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(batch.__file__).parents[2])}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert left(tmp_path / "out") == 0 and len(content(tmp_path / "out")) == 64
    assert done.stderr.count("jobs.jsonl line 2: is not JSON") == 1
