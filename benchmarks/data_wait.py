"""How long training waits for its data: ``python benchmarks/data_wait.py dimr-toybox dimr-cifar10:data.path=FILE``.

Each run is a config, and with ``:key=value`` what it replaces; it trains by the command's own loop until ``--windows``
windows of five steps are in its log, then it is told to stop. The training process has all cores but the one that its
worker needs. The share is that of ``log.jsonl``, without the first window, in which workers start.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from belvedere.apps.config import load_config
from belvedere.apps.training_log import device_name

WINDOW = 5
"""Steps a line of the log."""


def measure(run: str, windows: int, threads: int) -> dict[str, Any]:
    """Return the share of the time that a run waited for data, window by window, and images a second."""
    name, *replaced = run.split(":")
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "run"
        command = [sys.executable, "-m", "belvedere.apps.train", "--config", name, "--out", str(out), *replaced]
        environment = os.environ | {"OMP_NUM_THREADS": str(threads)}
        training = subprocess.Popen([*command, f"log_every={WINDOW}"], env=environment, stdout=subprocess.DEVNULL)
        while training.poll() is None and len(figures(out)) <= windows:
            time.sleep(0.2)
        training.terminate()
        if training.wait():
            raise SystemExit(f"{run}: training ended with {training.returncode}")
        rows = figures(out)[1:]
    shares = [row["data_share"] for row in rows]
    return {
        "run": run,
        "workers": load_config(name, replaced).workers,
        "threads": threads,
        "shares": shares,
        "median": statistics.median(shares),
        "largest": max(shares),
        "images_per_s": statistics.median(row["images_per_s"] for row in rows),
    }


def figures(out: Path) -> list[dict[str, Any]]:
    """Return the lines of a run's log that give figures."""
    log = out / "log.jsonl"
    lines = log.read_text().splitlines(keepends=True) if log.is_file() else []
    rows = [json.loads(line) for line in lines if line.endswith("\n")]
    return [row for row in rows if "data_share" in row]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("runs", nargs="+", metavar="CONFIG[:key=value]")
    parser.add_argument("--windows", type=int, default=8)
    parser.add_argument("--threads", type=int, default=max(1, (os.cpu_count() or 2) - 1))
    parser.add_argument("--out", type=Path, help="JSON to write")
    given = parser.parse_args()
    found = [measure(run, given.windows, given.threads) for run in given.runs]
    for row in found:
        print(f"{row['run']}: {row['median']:.1%} of the time (largest {row['largest']:.1%})")
    if given.out:
        result = {"device": device_name(torch.device("cpu")), "torch": torch.__version__, "runs": found}
        given.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
