"""What is imported before a first picture, and what Python's garbage collector adds: ``python benchmarks/start.py``.

Each round imports the libraries of the studio in a fresh process, part after part, once with the cyclic collector and
once without it (``belvedere/apps/importing.py``). Seconds are those of the processor, so that other work on the machine
counts little.
"""

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from timing import spread

from belvedere.apps.record import processor

PARTS = {
    "gradio": "gradio",
    "torch": "torch",
    "torch.compile, which diffusers asks for": "torch._dynamo",
    "diffusers, of a network": "diffusers.models.modeling_utils",
    "diffusers and transformers, of a pipeline": "diffusers.pipelines.pipeline_utils",
    "belvedere": "belvedere.generation.pipelines",
}
"""What is imported, in this order, by what it is for."""
CHILD = """
import contextlib, importlib, json, sys, time
from belvedere.apps.importing import uncollected
with uncollected() if sys.argv[1] == "without" else contextlib.nullcontext():
    seconds = [time.process_time()]
    for name in sys.argv[2:]:
        importlib.import_module(name)
        seconds.append(time.process_time())
print(json.dumps([after - before for before, after in zip(seconds, seconds[1:])]))
"""


def imported(collector: str) -> list[float]:
    """Return the seconds of each part in a new process, "with" or "without" the collector."""
    command = [sys.executable, "-c", CHILD, collector, *PARTS.values()]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    return list(json.loads(subprocess.run(command, env=environment, stdout=subprocess.PIPE, check=True).stdout))


def main() -> None:
    """Measure, print and store."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, default=Path(__file__).with_name("results") / "start.json")
    options = parser.parse_args()
    rounds: dict[str, list[list[float]]] = {"with": [], "without": []}
    for _ in range(options.rounds):
        for collector, taken in rounds.items():
            taken.append(imported(collector))
    result: dict[str, Any] = {"processor": processor(), "cores": os.cpu_count(), "unit": "seconds of the processor"}
    for i, name in enumerate([*PARTS, "all"]):
        result[name] = {
            collector: spread([each[i] if i < len(PARTS) else sum(each) for each in taken])
            for collector, taken in rounds.items()
        }
        print(f"{name:42} " + "  ".join(f"{key} {value['median']:.2f} s" for key, value in result[name].items()))
    options.out.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
