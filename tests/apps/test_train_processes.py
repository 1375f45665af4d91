"""The trainer as real processes, for every system: killed, told to stop, on another number of processes."""

import multiprocessing
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from belvedere.apps.locks import only_run
from belvedere.apps.training_state import checkpoints, last_good, verify
from tests.apps.training_helpers import assert_same, events, rows, tensors, write_config
from tests.apps.training_processes import finish, run_one, run_two, start, start_two, wait_for_step, words
from tests.apps.training_systems import SYSTEMS, write_system
from tests.waiting import wait_until

pytestmark = pytest.mark.slow

ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]


@pytest.fixture(autouse=True)
def _no_process_is_left() -> Iterator[None]:
    yield
    for process in multiprocessing.active_children():
        process.kill()


@pytest.mark.parametrize("system", SYSTEMS)
def test_killed_at_a_random_moment_and_resumed_is_the_same_run(tmp_path: Path, system: str) -> None:
    """Two thirds of the kills hit a step, the others the writing of a checkpoint."""
    config = write_system(system, tmp_path, precision="no", steps=12, save_every=2)
    straight, killed, seed = tmp_path / "straight", tmp_path / "killed", random.randrange(2**32)
    moments = random.Random(seed)
    run_one(config, straight)
    process = start(config, killed)
    wait_for_step(killed, moments.randrange(3, 9), process)
    time.sleep(moments.random() * 0.05)
    process.kill()
    process.join()
    assert process.exitcode == -signal.SIGKILL and last_good(killed / "checkpoints") is not None, seed
    run_one(config, killed)
    assert_same(tensors(straight, 12), tensors(killed, 12))
    assert sorted(path.name for path in (killed / "checkpoints").iterdir()) == ["step-00000010", "step-00000012"]
    assert [row["loss"] for row in rows(straight)] == [row["loss"] for row in rows(killed)], seed


def test_stopped_twenty_times_at_random_moments_is_the_same_run(tmp_path: Path) -> None:
    """Each SIGTERM: exit 0 and a checkpoint of the step in the log; the twenty-first command has nothing left to do."""
    optimizer = {"lr": 1e-3, "clip": 1.0}
    config = write_config(tmp_path, precision="no", steps=100_000, save_every=5, optimizer=optimizer)
    run, seed = tmp_path / "run", random.randrange(2**32)
    moments = random.Random(seed)
    for count in range(20):
        process = start(config, run)
        began = 2 * count + 1  # and each time it stopped
        wait_until(lambda: (run / "log.jsonl").exists() and len(events(run)) >= began, process, 120, words(run))  # noqa: B023
        time.sleep(moments.random() * 0.3)
        process.terminate()
        finish(run, process)
        assert events(run)[-1].startswith("stopped by a signal"), seed
        newest = checkpoints(run / "checkpoints")[-1]
        assert verify(newest) is None and newest.name == f"step-{rows(run)[-1]['step']:08d}", seed
    done = rows(run)[-1]["step"]
    run_one(config, tmp_path / "straight", f"steps={done}")
    assert_same(tensors(tmp_path / "straight", done), tensors(run, done))


@pytest.mark.parametrize("system", SYSTEMS)
def test_two_processes_continue_what_one_began(tmp_path: Path, system: str) -> None:
    """The same batches and noise: losses equal to 1e-5, the way that weights go to 1 %.

    Adam makes a whole step of a gradient that is nothing but rounding, hence not to the last digit.
    """
    optimizer = {"lr": 1e-4, "clip": 1.0}
    config = write_system(system, tmp_path, precision="no", steps=6, save_every=3, batch=4, optimizer=optimizer)
    one, two = tmp_path / "one", tmp_path / "two"
    run_one(config, one)
    run_two(config, two, "--resume", str(one / "checkpoints/step-00000003"))
    expected, found = rows(one)[3:], rows(two)
    assert [row["step"] for row in found] == [4, 5, 6]
    assert [row["loss"] for row in found] == pytest.approx([row["loss"] for row in expected], rel=1e-5)
    assert [row["grad_norm"] for row in found] == pytest.approx([row["grad_norm"] for row in expected], rel=1e-3)
    assert distance(one, two, 6) < 0.01 * distance(one, one, 3, 6)


def distance(run: Path, other: Path, step: int, other_step: int | None = None) -> float:
    """Return how far the weights of two checkpoints are from each other."""
    mine, theirs = tensors(run, step), tensors(other, other_step or step)
    gaps = [(mine[name] - theirs[name]).double().square().sum() for name in mine if name.startswith("model")]
    return float(torch.stack(gaps).sum().sqrt())


def test_one_process_continues_what_two_began(tmp_path: Path) -> None:
    """A signal to one of them stops both."""
    config = write_config(tmp_path, precision="no", batch=8, steps=40)
    one, mixed = tmp_path / "one", tmp_path / "mixed"
    run_one(config, one)
    processes = start_two(config, mixed)
    wait_for_step(mixed, 4, processes[0])
    processes[1].terminate()
    finish(mixed, *processes)
    assert 4 <= rows(mixed)[-1]["step"] < 40
    run_one(config, mixed)
    assert [row["loss"] for row in rows(one)] == pytest.approx([row["loss"] for row in rows(mixed)], rel=1e-3)


def test_processes_with_different_configs_are_refused(tmp_path: Path) -> None:
    script = tmp_path / "differ.py"
    script.write_text(
        "import os, sys\nfrom belvedere.apps.train import main\n"
        "sys.exit(main([*sys.argv[1:], 'seed=' + os.environ['RANK']]))\n"
    )
    command = [*TORCHRUN, str(script), "--config", write_config(tmp_path), "--out", str(tmp_path / "run")]
    done = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode != 0 and "error: the processes were started with different configs" in done.stderr
    assert not (tmp_path / "run").exists()


def test_what_a_loss_refuses_in_both_processes_is_one_line(tmp_path: Path) -> None:
    script = tmp_path / "refuse.py"
    script.write_text(
        "import sys\nfrom belvedere.apps.cli import main\nfrom belvedere.apps.objective import Objective\n"
        "from belvedere.errors import InputError\n"
        "def refuse(*_):\n    raise InputError('no loss of this')\n"
        "Objective.forward = refuse\nmain()\n"
    )
    command = [*TORCHRUN, str(script), "train", write_config(tmp_path), "--out", str(tmp_path / "run")]
    done = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode != 0 and done.stderr.count("belvedere: error: no loss of this") == 1, done.stderr


def test_both_processes_end_where_the_first_may_not_write_the_model(tmp_path: Path) -> None:
    run = tmp_path / "run"
    (run / "model").mkdir(parents=True)
    (run / "model/.DS_Store").touch()
    processes = start_two(write_config(tmp_path), run)
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [2, 2]
    assert "not empty and not a model" in (tmp_path / "run.0.txt").read_text()
    assert "Traceback" not in (tmp_path / "run.1.txt").read_text() and not (run / "log.jsonl").exists()


def test_both_processes_end_where_the_model_is_refused_at_the_end(tmp_path: Path) -> None:
    run = tmp_path / "run"
    processes = start_two(write_config(tmp_path, steps=60), run)
    wait_for_step(run, 3, processes[0])
    (run / "model").mkdir()
    (run / "model/.DS_Store").touch()
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [2, 2]
    assert words(run).read_text().count("error: cannot write the model") == 1
    assert "Traceback" not in words(run).read_text() + words(run, 1).read_text()
    assert last_good(run / "checkpoints") == run / "checkpoints/step-00000060"


def test_a_tracker_that_only_the_first_process_has(tmp_path: Path) -> None:
    script = tmp_path / "lacking.py"
    script.write_text(
        "import os, sys\nfrom belvedere.apps import training_log\nfrom belvedere.apps.train import main\n"
        "if os.environ['RANK'] == '1':\n    training_log.find_spec = lambda name: None\n"
        "sys.exit(main())\n"
    )
    config, run = write_config(tmp_path, tracker="auto"), tmp_path / "run"
    command = [*TORCHRUN, str(script), "--config", config, "--out", str(run)]
    done = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0 and list((run / "tensorboard").glob("events*")), done.stderr


def test_both_processes_end_where_another_run_has_the_folder(tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    with only_run(run):
        processes = start_two(write_config(tmp_path), run)
        for process in processes:
            process.join(60)
    assert [process.exitcode for process in processes] == [2, 2]
    assert "another run is writing" in words(run).read_text() and not (run / "log.jsonl").exists()
    assert "Traceback" not in words(run, 1).read_text()


def test_a_signal_to_the_whole_group_saves_within_a_step(tmp_path: Path) -> None:
    run = tmp_path / "run"
    config = write_config(tmp_path, steps=100_000, save_every=100_000, workers=2)
    command = [sys.executable, "-m", "belvedere.apps.train", "--config", config, "--out", str(run)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    process = subprocess.Popen(command, env=ENVIRONMENT, text=True, start_new_session=True, **pipes)  # type: ignore[call-overload]
    try:
        wait_for_step(run, 3, process)
        os.killpg(process.pid, signal.SIGTERM)
        output, _ = process.communicate(timeout=120)
    finally:
        process.kill()
    assert process.returncode == 0 and "stopped by a signal" in output, output
    (saved,) = checkpoints(run / "checkpoints")
    assert verify(saved) is None
