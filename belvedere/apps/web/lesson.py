"""A lesson: what is learned, how far it is, and the command line of its process."""

import contextlib
import json
import os
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from belvedere.errors import InputError

OUT = "thing.safetensors"
"""The concept's file in a lesson's folder; its run is beside it."""
SHEETS = 4
"""Validation sheets of a lesson."""
SHEET_APART = 5
"""Steps between two of them at least."""
SHEET_STEPS = 12
"""Of the sampler for a sheet: fewer than for pictures, so that learning goes on soon."""
_WORD = re.compile(r"[^\s,;:\"'`\\/]{1,40}")


@dataclass(frozen=True)
class Lesson:
    """What is learned: ``token`` is how prompts write it, ``like`` the super-category, ``base`` an offered model."""

    token: str
    like: str
    base: str
    steps: int
    photographs: int
    when: float


@dataclass(frozen=True)
class Progress:
    """How far a lesson is. ``status``: learning, stopped, learned or failed; ``losses``: (step, loss); ``sheets``: the
    newest last; ``likeness``: how alike the pictures of a step's sheet are to the photographs, where somebody judges;
    ``fault``: one line when it failed."""

    lesson: Lesson
    status: str
    step: int
    losses: tuple[tuple[int, float], ...]
    sheets: tuple[Path, ...]
    likeness: Mapping[int, float]
    seconds_left: float
    fault: str = ""


def command(lesson: Lesson, folder: Path, base: str) -> list[str]:
    """Return the command line of a lesson's process."""
    recipe = "neti-toybox" if lesson.base == "toybox-diffusion" else "neti"
    changes = {
        "log_every": max(1, min(10, lesson.steps // 40)),
        "sheet_every": max(lesson.steps // SHEETS, min(lesson.steps, SHEET_APART)),
        "save_every": max(1, min(50, lesson.steps // 2)),
        "export.default_steps": SHEET_STEPS,
    }
    if recipe == "neti-toybox":
        changes |= {
            "optimizer.warmup_steps": min(20, lesson.steps // 4),
            "optimizer.decay_steps": -(-lesson.steps // 2),
        }
    asked = {"token": lesson.token, "like": lesson.like, "base": base, "steps": lesson.steps, "recipe": recipe}
    return [
        *(sys.executable, "-m", "belvedere", "personalize", "run", str(folder / "photographs")),
        *(f"{key}={value}" for key, value in changes.items()),
        *(f"--{key}={value}" for key, value in asked.items()),
        f"--out={folder / OUT}",
    ]


def environment(device: str) -> dict[str, str]:
    """Return the variables of a lesson's process, which keep it to the server's ``device``."""
    found = {**os.environ, "HF_HUB_OFFLINE": "1"}
    if device == "cpu":
        found["ACCELERATE_USE_CPU"] = "true"
    if device.startswith("cuda:"):
        number, seen = device.removeprefix("cuda:"), os.environ.get("CUDA_VISIBLE_DEVICES")
        found["CUDA_VISIBLE_DEVICES"] = number if seen is None else "".join(seen.split(",")[int(number) :][:1])
    return found


def read_log(path: Path) -> list[dict[str, Any]]:
    """Return the rows of a run's log; a line that is being written is left out."""
    rows = []
    for line in path.read_text().splitlines() if path.is_file() else ():
        with contextlib.suppress(ValueError):
            rows.append(json.loads(line))
    return [row for row in rows if isinstance(row, dict)]


def check_word(text: Any, name: str) -> str:
    """Return text that is one word, without blanks around it; ``InputError`` for anything else."""
    if not isinstance(text, str) or not text.isprintable() or not _WORD.fullmatch(text.strip()):
        raise InputError(f"the {name} must be one word of 1 to 40 characters, not {str(text)[:40]!r}")
    return text.strip()
