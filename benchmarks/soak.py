"""Whether a studio that works for hours grows: ``python benchmarks/soak.py --minutes 30``.

``belvedere serve`` runs on an empty folder, and a program asks it for everything in turn, each round with other seeds,
sizes, prompts and pictures: pictures of three models, a codec's round trip, a scene with a film and a mesh, what is
refused, what is cancelled, and a client that goes away without waiting. After each round the memory of the server and
of its children (PSS, pages that are shared counted once), its threads and its open files are taken. Growth is the
median of the last quarter of the rounds over that of the second: the first loads models and fills caches.
"""

import argparse
import contextlib
import json
import os
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from gradio_client import Client, handle_file
from studio import free_port, wait_for_answer

from belvedere.apps.training_log import device_name
from belvedere.data.images import to_image
from belvedere.data.toybox import Toybox

KINDS = ("car", "boat", "plane", "rocket", "house", "tree", "mushroom", "lamp", "chair", "table", "mug", "robot")


def family(process: int) -> list[Path]:
    """Return the folders under /proc of a process and of all that it started."""
    folder = Path(f"/proc/{process}")
    children = [int(child) for tasks in folder.glob("task/*/children") for child in tasks.read_text().split()]
    return [folder, *(path for child in children for path in family(child))]


def held(process: int) -> dict[str, int]:
    """Return what a process and its children hold: MB of memory, threads, open files."""
    totals = {"memory_mb": 0, "threads": 0, "files": 0}
    for folder in family(process):
        with contextlib.suppress(OSError):  # one that ended meanwhile
            lines = (folder / "smaps_rollup").read_text().splitlines()
            totals["memory_mb"] += next(int(line.split()[1]) for line in lines if line.startswith("Pss:")) // 1024
            totals["threads"] += len(list((folder / "task").iterdir()))
            totals["files"] += len(list((folder / "fd").iterdir()))
    return totals


class Visitor:
    """Asks a studio for one thing of each sort a round; ``folder`` holds the pictures that it uploads."""

    def __init__(self, address: str, folder: Path) -> None:
        self.address, self.folder = address, folder
        self.studio = Client(address, verbose=False)

    def photograph(self, chance: random.Random) -> Any:
        """Return a toy of some size as an upload."""
        picture = Toybox(chance.choice((64, 96, 160)), seed=chance.randrange(10**6)).batch([0])["image"][0]
        to_image(picture).save(path := self.folder / "photograph.png")
        return handle_file(str(path))

    def toys(self, chance: random.Random) -> None:
        kinds, seed = chance.sample(KINDS, 2), chance.randrange(10**6)
        self.studio.predict("dimr-toybox", kinds, seed=seed, count=2, steps=4, api_name="/make")

    def sizes(self, chance: random.Random) -> None:
        size = {"width": chance.choice((48, 64, 80, 96)), "height": chance.choice((48, 64, 96))}
        self.studio.predict("fitv2-toybox", ["car"], **size, steps=4, count=2, api_name="/make")

    def prompt(self, chance: random.Random) -> None:
        words = f"a photo of a {chance.choice(KINDS)} number {chance.randrange(10**6)}"
        self.studio.predict("toybox-diffusion", [], words=words, steps=4, count=1, api_name="/make")

    def file(self, chance: random.Random) -> None:
        quality = chance.randint(1, 6)
        self.studio.predict(self.photograph(chance), quality, [], api_name="/compress")

    def scene(self, chance: random.Random) -> None:
        scene, _ = self.studio.predict(self.photograph(chance), "nvist-toybox", api_name="/orbit_build")
        self.studio.predict(scene, what="depth", elevation=10, frames=8, arc=90, side=64, api_name="/orbit_film")
        if chance.random() < 0.25:
            self.studio.predict(scene, api_name="/orbit_mesh")

    def refused(self, chance: random.Random) -> None:
        with contextlib.suppress(Exception):
            self.studio.predict("dimr-toybox", ["unicorn"], seed=chance.randrange(9), api_name="/make")

    def cancelled(self, chance: random.Random) -> None:
        job = self.studio.submit("dimr-toybox", ["car"], seed=chance.randrange(10**6), steps=50, api_name="/make")
        time.sleep(1)
        job.cancel()

    def gone(self, chance: random.Random) -> None:
        """Ask as another client, which is forgotten before it is answered."""
        other = Client(self.address, verbose=False)
        other.submit("dimr-toybox", ["boat"], seed=chance.randrange(10**6), steps=4, count=1, api_name="/make")

    def looks(self, _chance: random.Random) -> None:
        self.studio.predict([], api_name="/results")
        for name in ("/state", "/orbit_scenes", "/compress_files", "/doctor"):
            self.studio.predict(api_name=name)

    def asks(self) -> list[Callable[[random.Random], None]]:
        """Return everything of a round."""
        pictures = [self.toys, self.sizes, self.prompt]
        return [*pictures, self.file, self.scene, self.refused, self.cancelled, self.gone, self.looks]


def soak(minutes: float, folder: Path) -> list[dict[str, Any]]:
    """Return what the server held after each round."""
    command = [sys.executable, "-m", "belvedere", "serve", "--port", str(port := free_port()), "--no-open"]
    command += ["--folder", str(folder / "kept")]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, env={**os.environ, "HF_HUB_OFFLINE": "1"})
    rounds: list[dict[str, Any]] = []
    try:
        wait_for_answer(address := f"http://127.0.0.1:{port}/", server)
        visitor, ends = Visitor(address, folder), time.monotonic() + 60 * minutes
        while time.monotonic() < ends:
            began, chance = time.monotonic(), random.Random(len(rounds))
            for ask in visitor.asks():
                ask(chance)
            rounds.append({"seconds": round(time.monotonic() - began, 1), **held(server.pid)})
            print(json.dumps(rounds[-1]), flush=True)
    finally:
        server.send_signal(signal.SIGTERM)
        code = server.wait(60)
    if code:
        raise SystemExit(f"the server ended with {code}")
    return rounds


def growth(rounds: list[dict[str, Any]], what: str) -> float:
    """Return how much more of something there is in the last quarter of the rounds than in the second, as a share."""
    quarter = len(rounds) // 4
    early, late = rounds[quarter : 2 * quarter], rounds[-quarter:]
    return statistics.median(row[what] for row in late) / statistics.median(row[what] for row in early) - 1


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--out", type=Path, help="JSON to write")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        rounds = soak(given.minutes, Path(folder))
    if len(rounds) < 8:
        raise SystemExit(f"{len(rounds)} rounds are too few to tell of growth: give more --minutes")
    grown = {what: growth(rounds, what) for what in ("memory_mb", "threads", "files")}
    print(f"{len(rounds)} rounds; " + ", ".join(f"{what} {share:+.1%}" for what, share in grown.items()))
    if given.out:
        machine = {"device": device_name(torch.device("cpu")), "torch": torch.__version__}
        given.out.write_text(json.dumps({**machine, "grown": grown, "rounds": rounds}, indent=1) + "\n")


if __name__ == "__main__":
    main()
