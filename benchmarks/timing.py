"""What benchmarks share: seconds of runs that take turns, the best matrix product, the most memory a process held."""

import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

Runs = dict[str, Callable[[], Any]]


def measure(runs: Runs, repeats: int) -> dict[str, dict[str, float]]:
    """Return the seconds of each run, taken in turn after one that is not counted."""
    for run in runs.values():
        run()
    times: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(repeats):
        for name, run in runs.items():
            times[name].append(seconds(run))
    return {name: spread(taken) for name, taken in times.items()}


def seconds(run: Callable[[], Any]) -> float:
    """Return the wall time of one call."""
    began = time.perf_counter()
    run()
    return time.perf_counter() - began


def gemm_peak(dtype: torch.dtype, shapes: Sequence[tuple[int, int, int]], repeats: int = 2) -> float:
    """Return the best FLOP/s of products of matrices (m, k) and (n, k), of any of the ``shapes`` (m, k, n)."""
    best = 0.0
    for m, k, n in shapes:
        a, b = torch.randn(m, k).to(dtype), torch.randn(n, k).to(dtype)
        torch.mm(a, b.T)
        best = max(best, *(2 * m * k * n / seconds(lambda a=a, b=b: torch.mm(a, b.T)) for _ in range(repeats)))
    return best


def spread(taken: Sequence[float]) -> dict[str, float]:
    """Return median, fastest and slowest."""
    return {"median": statistics.median(taken), "fastest": min(taken), "slowest": max(taken)}


def peak() -> float:
    """Return the most MB this process has held so far."""
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) / 1024
