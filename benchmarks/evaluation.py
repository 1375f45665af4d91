"""What measuring pictures takes on a CPU: Inception's features, and the figures that are made of them.

    python benchmarks/evaluation.py [--pictures 40] [--count 5000] [--out benchmarks/results/evaluation.json]

The network has random weights in float32, which take as long as any; pictures are noise of 256 x 256 pixels, features
normal numbers of FID's width. Seconds are by the clock and of the processor, which differ where other programs run;
memory is the process's peak.
"""

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from timing import peak
from torch import Tensor

from belvedere.apps.evaluate import frechet_distance
from belvedere.apps.image_statistics import kernel_distance, precision_recall
from belvedere.apps.picture_features import InceptionFeatures
from belvedere.generation.inception import POOL, InceptionV3


def taken(run: Callable[[], Any]) -> dict[str, float]:
    """Return the seconds of a run by the clock, and of the processor."""
    began, worked = time.perf_counter(), time.process_time()
    run()
    return {"seconds": time.perf_counter() - began, "cpu_seconds": time.process_time() - worked}


def features(count: int) -> dict[str, float]:
    """Return pictures a second through Inception-v3, and the most memory held."""
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        save_file(InceptionV3().state_dict(), Path(folder) / "weights.safetensors")
        network = InceptionFeatures(Path(folder) / "weights.safetensors", torch.device("cpu"))
    pictures = torch.randint(0, 256, (count, 3, 256, 256), dtype=torch.uint8)
    loaded = peak()

    def run() -> None:
        for chunk in pictures.split(network.chunk):
            network(chunk)

    network(pictures[: network.chunk])
    seconds = taken(run)
    rates = {f"pictures_per_{name.removesuffix('s')}": count / spent for name, spent in seconds.items()}
    return {**rates, "chunk": network.chunk, "loaded_mb": loaded, "peak_mb": peak()}


def figures(count: int) -> dict[str, Any]:
    """Return the seconds of each figure of ``count`` pictures and as many others, and the most memory held."""
    torch.manual_seed(0)
    made, real = torch.randn(count, POOL), torch.randn(count, POOL)
    runs: dict[str, Callable[[Tensor, Tensor], Any]] = {
        "frechet": frechet_distance,
        "precision and recall": precision_recall,
        "kernel distance": kernel_distance,
    }
    spent = {name: taken(partial(run, made, real)) for name, run in runs.items()}
    return {"count": count, **spent, "peak_mb": peak()}


def main() -> None:
    """Measure, print and, where asked to, store."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", type=int, default=40)
    parser.add_argument("--count", type=int, default=5000)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    machine = {"torch": torch.__version__, "threads": torch.get_num_threads()}
    result = {"machine": machine, "features": features(options.pictures), "figures": figures(options.count)}
    print(json.dumps(result, indent=1))
    if options.out:
        options.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
