"""What loading and importing a model cost in memory: the peak beyond what is held before, over the model's bytes.

    python benchmarks/store.py [--megabytes 200] [--out benchmarks/results/store.json]

A folder of random weights in float32 is loaded as it is stored, in another number format and from int8, whole and in
shards, each in a process of its own. 1.0 is one copy of the result; 2.0 would be two. Then a file of FiTv2-B/2's size
and of its official names (float32, 0.6 GB) is imported as a folder, from safetensors and from a pickle, which a child
process reads: its peak is given beside, what of the file is mapped included. There 1.0 is one copy of the file.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

HEAD = """
import json, resource, sys, time
from pathlib import Path
import torch
from belvedere.checkpoints import store

def held(line):
    text = Path("/proc/self/status").read_text()
    return int(text.split(line + ":")[1].split()[0]) / 1024

"""
LOAD = """
job, path, dtype = sys.argv[1:]
store.load("fitv2-toybox", "float32", "cpu")  # imports what loading imports
Path("/proc/self/clear_refs").write_text("5")
before, began = held("VmHWM"), time.perf_counter()
network = store.load(path, dtype, "cpu", fast=job == "fast").network
seconds = time.perf_counter() - began
size = sum(x.numel() * x.element_size() for x in network.state_dict().values()) / 2**20
print(json.dumps({"result_mb": size, "peak_mb": held("VmHWM") - before, "seconds": seconds}))
"""
IMPORT = """
from belvedere.apps.models_exchange import import_official
file, out, dtype = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]
store.load("fitv2-toybox", "float32", "cpu")
Path("/proc/self/clear_refs").write_text("5")
before, began = held("VmHWM"), time.perf_counter()
import_official(file, "fitv2", out, config="B/2", dtype=dtype)
seconds = time.perf_counter() - began
child = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024
size = file.stat().st_size / 2**20
print(json.dumps({"result_mb": size, "peak_mb": held("VmHWM") - before, "child_mb": child, "seconds": seconds}))
"""


def measure(program: str, *arguments: object) -> dict[str, float]:
    """Return what one load or import took, in a process of its own."""
    command = [sys.executable, "-c", HEAD + program, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return {**found, "copies": found["peak_mb"] / found["result_mb"]}


def official(dim: int, depth: int, rank: int) -> dict[str, Any]:
    """Return random weights in float32 by the names that FiTv2's published files have."""
    import torch

    hidden = dim * 8 // 3
    maps = {"x_embedder.proj": (dim, 16), "t_embedder.mlp.0": (dim, 256), "t_embedder.mlp.2": (dim, dim)}
    maps |= {"global_adaLN_modulation.1": (6 * dim, dim), "final_layer.linear": (16, dim)}
    maps |= {"final_layer.adaLN_modulation.1": (2 * dim, dim)}
    for i in range(depth):
        block = {"attn.qkv": (3 * dim, dim), "attn.proj": (dim, dim), "mlp.fc1_g": (hidden, dim)}
        block |= {"mlp.fc1_x": (hidden, dim), "mlp.fc2": (dim, hidden)}
        block |= {"adaLN_modulation.1": (rank, dim), "adaLN_modulation.2": (6 * dim, rank)}
        maps |= {f"blocks.{i}.{name}": shape for name, shape in block.items()}
    weights = {f"{name}.weight": torch.randn(shape) for name, shape in maps.items()}
    weights |= {f"{name}.bias": torch.randn(shape[0]) for name, shape in maps.items()}
    return weights | {"y_embedder.embedding_table.weight": torch.randn(1001, dim)}


def imports(folder: Path) -> dict[str, dict[str, float]]:
    """Return what importing an official file takes, of both kinds of files."""
    import torch
    from safetensors.torch import save_file

    weights = official(768, 15, 192)
    save_file(weights, folder / "model_ema.safetensors")
    torch.save(weights, folder / "model_ema.bin")
    del weights
    return {
        f"import {name}, {dtype}": measure(IMPORT, folder / name, folder / "imported", dtype)
        for name, dtype in (("model_ema.safetensors", "float32"), ("model_ema.bin", "bfloat16"))
    }


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
        torch.nn.Module.to(pipeline.network, torch.float16)
        store.save(pipeline, Path(folder) / "int8", {}, dtype="int8")
        del pipeline
        for job, name, dtype in (
            ("full", "model", "float32"),
            ("full", "model", "bfloat16"),
            ("fast", "model", "float32"),
            ("full", "shards", "bfloat16"),
            ("full", "int8", "float32"),
            ("full", "int8", "bfloat16"),
        ):
            results[f"{name}, {dtype}, {job} check"] = measure(LOAD, job, Path(folder) / name, dtype)
        results |= imports(Path(folder))
    for name, found in results.items():
        print(f"{name:40} {found['copies']:.2f} copies  {found['peak_mb']:.0f} MB  {found['seconds']:.1f} s")
    if options.out:
        machine = {"torch": torch.__version__, "megabytes": options.megabytes, "depth": depth}
        options.out.write_text(json.dumps({"machine": machine, "results": results}, indent=1) + "\n")


if __name__ == "__main__":
    main()
