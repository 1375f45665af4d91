"""How many Toybox pictures a second: ``python benchmarks/toybox.py [--threads 2] [--repeats 7]``.

Claim: at least 300 images/s at 64x64 with 4 samples a pixel on two CPU cores. Each repeat draws fresh indices, all
kinds in balance. The wall clock counts for the claim; images per second of CPU time are given beside it, because they
hold on a machine that other work shares.
"""

import argparse
import json
import os
import platform
import statistics
import time
from pathlib import Path

import torch

from belvedere.data.toybox import Toybox
from belvedere.files import atomic_write

CASES = ((64, 4, 384), (64, 1, 384), (128, 4, 96), (256, 4, 24))
"""Side in pixels, samples a pixel, pictures a repeat."""
RESULT = Path(__file__).parent / "results" / "toybox.json"


def measure(size: int, samples: int, count: int, repeats: int) -> dict[str, object]:
    """Return the images per second of each repeat, by the wall clock and by CPU time, after one warm-up."""
    toys = Toybox(size, samples=samples)
    wall, cpu = [], []
    for repeat in range(repeats + 1):
        started = time.perf_counter(), time.process_time()
        toys.batch(range(repeat * count, (repeat + 1) * count))
        if repeat:
            wall.append(count / (time.perf_counter() - started[0]))
            cpu.append(count / (time.process_time() - started[1]))
    return {"size": size, "samples": samples, "images": count, "wall": spread(wall), "cpu": spread(cpu)}


def spread(values: list[float]) -> dict[str, float]:
    """Return the median and the extremes."""
    return {k: round(f(values), 1) for k, f in (("median", statistics.median), ("min", min), ("max", max))}


def machine() -> dict[str, object]:
    """Return what the figures were measured on."""
    info = Path("/proc/cpuinfo")
    names = [line.split(":")[1].strip() for line in info.read_text().splitlines() if line.startswith("model name")]
    cpu = names[0] if names else platform.processor()
    load = round(os.getloadavg()[0], 1)
    return {"cpu": cpu, "cores": len(names), "load_before": load, "torch": torch.__version__}


def table(rows: list[dict]) -> str:
    """Return the rows as a table for reading."""
    lines = ["size     samples   images/s (min - max)        images per CPU second (min - max)"]
    for row in rows:
        wall, cpu = ("{median:7.0f} ({min:.0f} - {max:.0f})".format(**row[k]) for k in ("wall", "cpu"))
        lines.append(f"{row['size']:>3}x{row['size']:<3}  {row['samples']:>5}   {wall:<28}{cpu}")
    return "\n".join(lines)


def main() -> None:
    """Measure every case, print the table, write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--out", type=Path, default=RESULT)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    on, busy = machine(), os.getloadavg()[0] > 0.5
    rows = [measure(*case, options.repeats) for case in CASES]
    print(table(rows))
    if busy:
        print(f"the machine was busy (load {on['load_before']}): trust the CPU seconds, not the wall clock")
    options.out.parent.mkdir(parents=True, exist_ok=True)
    result = {"benchmark": "toybox", "threads": options.threads, "machine": on, "rows": rows}
    with atomic_write(options.out) as stream:
        stream.write(json.dumps(result, indent=2).encode() + b"\n")


if __name__ == "__main__":
    main()
