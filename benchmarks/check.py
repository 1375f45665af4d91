"""How long ``belvedere train NAME --check`` takes for each system: ``python benchmarks/check.py``.

Each run is the command in a process of its own, with everything that a start loads; the systems take turns, after one
round that is not counted.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from functools import partial
from pathlib import Path

import torch
from timing import measure

from belvedere.apps.training_log import device_name
from belvedere.data.images import to_image
from belvedere.data.toybox import Toybox

NAMES = ("dimr-toybox", "fitv2-toybox", "segpic-photo", "nvist-toybox", "neti-toybox")
RESULT = Path(__file__).with_name("results") / "check.json"


def check(name: str, options: list[str]) -> None:
    """Overfit one batch of a packaged config."""
    command = [sys.executable, "-m", "belvedere", "train", name, "--check", *options]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--photographs", type=Path, required=True, help="parquet for segpic-photo, see its config")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--out", type=Path, default=RESULT)
    given = parser.parse_args()
    options = {"segpic-photo": [f'data.paths=["{given.photographs}"]']}
    with tempfile.TemporaryDirectory() as folder:
        for i, picture in enumerate(Toybox(64, kinds=["mug"]).batch(range(4))["image"]):
            to_image(picture).save(Path(folder) / f"{i}.png")
        concept = ["model.base=toybox-diffusion", "model.token=<toy>", "model.like=mug"]
        options["neti-toybox"] = [*concept, f"data.path={folder}"]
        seconds = measure({name: partial(check, name, options.get(name, [])) for name in NAMES}, given.repeats)
    for name, spread in seconds.items():
        print("| {} | {median:.0f} | {fastest:.0f} | {slowest:.0f} |".format(name, **spread))
    result = {"device": device_name(torch.device("cpu")), "torch": torch.__version__, "seconds": seconds}
    given.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
