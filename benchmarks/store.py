"""What loading a model costs in memory: the peak beyond what is held before, over the bytes of the result.

    python benchmarks/store.py [--megabytes 200] [--out benchmarks/results/store.json]

A folder of random weights in float32 is loaded as it is stored and in another number format, whole and in shards, each
in a process of its own. 1.0 is one copy of the result; 2.0 would be two.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

PROGRAM = """
import json, sys, time
from pathlib import Path
import torch
from belvedere.checkpoints import store

def held(line):
    text = Path("/proc/self/status").read_text()
    return int(text.split(line + ":")[1].split()[0]) / 1024

job, path, dtype = sys.argv[1:]
store.load("fitv2-toybox", "float32", "cpu")  # imports what loading imports
Path("/proc/self/clear_refs").write_text("5")
before, began = held("VmHWM"), time.perf_counter()
network = store.load(path, dtype, "cpu", fast=job == "fast").network
seconds = time.perf_counter() - began
size = sum(x.numel() * x.element_size() for x in network.state_dict().values()) / 2**20
print(json.dumps({"result_mb": size, "peak_mb": held("VmHWM") - before, "seconds": seconds}))
"""


def measure(job: str, path: Path, dtype: str) -> dict[str, float]:
    """Return what one load took, in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, job, str(path), dtype], capture_output=True, text=True, check=True
    )
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return {**found, "copies": found["peak_mb"] / found["result_mb"]}


def main() -> None:
    """Make a model of about the size asked for, load it in every way, print and write a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--megabytes", type=float, default=200)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    import torch

    from belvedere.checkpoints import store
    from belvedere.generation.fitv2 import FiTv2
    from belvedere.generation.fitv2_pipeline import FiTv2Pipeline

    depth = max(1, round((options.megabytes * 2**18 - 6e6) / 8.1e6))
    config = {"dim": 768, "heads": 12, "num_classes": 1001, "adaln_rank": 192, "depth": depth}
    results = {}
    with tempfile.TemporaryDirectory() as folder:
        torch.manual_seed(0)
        pipeline = FiTv2Pipeline(FiTv2(**config))
        store.save(pipeline, Path(folder) / "model", {})
        store.save(pipeline, Path(folder) / "shards", {}, shard=int(options.megabytes * 2**18))
        del pipeline
        for job, name, dtype in (
            ("full", "model", "float32"),
            ("full", "model", "bfloat16"),
            ("fast", "model", "float32"),
            ("full", "shards", "bfloat16"),
        ):
            results[f"{name}, {dtype}, {job} check"] = measure(job, Path(folder) / name, dtype)
    for name, found in results.items():
        print(f"{name:32} {found['copies']:.2f} copies  {found['peak_mb']:.0f} MB  {found['seconds']:.1f} s")
    if options.out:
        machine = {"torch": torch.__version__, "megabytes": options.megabytes, "depth": depth}
        options.out.write_text(json.dumps({"machine": machine, "results": results}, indent=1) + "\n")


if __name__ == "__main__":
    main()
