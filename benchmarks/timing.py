"""What benchmarks share: seconds of runs that take turns, and the most memory a process has held."""

import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

Runs = dict[str, Callable[[], Any]]


def measure(runs: Runs, repeats: int) -> dict[str, dict[str, float]]:
    """Return the seconds of each run, taken in turn after one that is not counted."""
    for run in runs.values():
        run()
    times: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(repeats):
        for name, run in runs.items():
            began = time.perf_counter()
            run()
            times[name].append(time.perf_counter() - began)
    return {name: spread(taken) for name, taken in times.items()}


def spread(taken: Sequence[float]) -> dict[str, float]:
    """Return median, fastest and slowest."""
    return {"median": statistics.median(taken), "fastest": min(taken), "slowest": max(taken)}


def peak() -> float:
    """Return the most MB this process has held so far."""
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) / 1024
