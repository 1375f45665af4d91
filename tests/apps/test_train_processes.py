"""The trainer as real processes: two at once, killed, told to stop."""

import os
import random
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest
import torch

from belvedere.apps.train import train
from belvedere.apps.training_state import checkpoints, last_good, verify
from tests.apps.training_helpers import assert_same, rows, tensors, write_config

pytestmark = pytest.mark.slow

ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "-m"]


def start(config: str, run: Path, *overrides: str, two: bool = False) -> subprocess.Popen[str]:
    """Start the trainer in a session of its own."""
    launcher = TORCHRUN if two else [sys.executable, "-m"]
    command = [*launcher, "belvedere.apps.train", "--config", config, "--out", str(run), *overrides]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    return subprocess.Popen(command, env=ENVIRONMENT, text=True, start_new_session=True, **pipes)  # type: ignore[call-overload]


def finish(process: subprocess.Popen[str]) -> str:
    """Wait for a process that must succeed; return what it said."""
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output
    return output


def wait_for_step(run: Path, step: int) -> None:
    """Wait until the log has come to ``step``."""
    for _ in range(6000):
        with suppress(FileNotFoundError, ValueError):  # not yet there, or a line half written
            if any(row["step"] >= step for row in rows(run)):
                return
        time.sleep(0.02)
    raise TimeoutError(f"{run} did not come to step {step}")


def test_two_processes_are_one_run(tmp_path: Path) -> None:
    config = write_config(tmp_path, precision="no", batch=8)
    torch.set_num_threads(1)
    train(config, out=tmp_path / "one")
    finish(start(config, tmp_path / "two", two=True))
    one, two = rows(tmp_path / "one"), rows(tmp_path / "two")
    assert [row["loss"] for row in one] == pytest.approx([row["loss"] for row in two], rel=1e-4)
    assert [row["grad_norm"] for row in one] == pytest.approx([row["grad_norm"] for row in two], rel=1e-3)


def test_one_process_continues_what_two_began(tmp_path: Path) -> None:
    config = write_config(tmp_path, precision="no", batch=8, steps=40)
    train(config, out=tmp_path / "one")
    process = start(config, tmp_path / "mixed", two=True)
    wait_for_step(tmp_path / "mixed", 4)
    os.killpg(process.pid, signal.SIGTERM)
    process.communicate(timeout=120)
    assert 4 <= rows(tmp_path / "mixed")[-1]["step"] < 40
    train(config, out=tmp_path / "mixed")
    one, mixed = ([row["loss"] for row in rows(tmp_path / name)] for name in ("one", "mixed"))
    assert one == pytest.approx(mixed, rel=1e-3)


def test_processes_with_different_configs_are_refused(tmp_path: Path) -> None:
    script = tmp_path / "differ.py"
    script.write_text(
        "import os, sys\nfrom belvedere.apps.train import main\n"
        "sys.exit(main([*sys.argv[1:], 'seed=' + os.environ['RANK']]))\n"
    )
    command = [*TORCHRUN[:-1], str(script), "--config", write_config(tmp_path), "--out", str(tmp_path / "run")]
    done = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode != 0 and "error: the processes were started with different configs" in done.stderr
    assert not (tmp_path / "run").exists()


def test_killed_at_random_moments_and_resumed_is_the_same_run(tmp_path: Path) -> None:
    config = write_config(tmp_path, steps=120, save_every=3, workers=2)
    train(config, out=tmp_path / "straight")
    run, seed = tmp_path / "killed", random.randrange(2**32)
    moments = random.Random(seed)
    for _ in range(3):
        process = start(config, run)
        done = checkpoints(run / "checkpoints")[-1:] if run.exists() else []
        wait_for_step(run, min(115, (int(done[0].name[5:]) if done else 0) + moments.randrange(2, 30)))
        time.sleep(moments.random() * 0.1)
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        assert last_good(run / "checkpoints") is not None, seed
    finish(start(config, run))
    assert_same(tensors(tmp_path / "straight", 120), tensors(run, 120))
    assert sorted(path.name for path in (run / "checkpoints").iterdir()) == ["step-00000117", "step-00000120"]


def test_a_signal_to_the_whole_group_saves_within_a_step(tmp_path: Path) -> None:
    run = tmp_path / "run"
    process = start(write_config(tmp_path, steps=100_000, save_every=100_000, workers=2), run)
    wait_for_step(run, 3)
    os.killpg(process.pid, signal.SIGTERM)
    assert "stopped by a signal" in finish(process)
    (saved,) = checkpoints(run / "checkpoints")
    assert verify(saved) is None
