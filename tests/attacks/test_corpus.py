"""The corpus of hostile files: a typed error soon and in little memory, or the right result; nothing is executed."""

import json
import os
import re
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[2]
SECONDS = 1.0
"""Of work, whatever else the machine does; for a file that only PyTorch can judge, after PyTorch has started."""
MEGABYTES = 64
COUNTS = {"checkpoints": 40, "pictures": 20, "documents": 20}
"""The fewest files of each kind."""


def child(*arguments: object) -> list[dict[str, Any]]:
    """Run ``tests.attacks.run``; return its lines."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PYTHONWARNINGS": "ignore"}
    command = [sys.executable, "-m", "tests.attacks.run", *map(str, arguments)]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]


@cache
def opened(folder: Path) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Open all files; return what came of each, and what was executed."""
    *files, end = child(folder, *COUNTS)
    return files, end


def of_kind(kind: str, folder: Path) -> list[dict[str, Any]]:
    return [found for found in opened(folder)[0] if found["kind"] == kind]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("corpus")


def as_it_should(found: dict[str, Any]) -> bool:
    if not found["expected"]:
        return bool(found["outcome"] == "opened" and found["right"])
    one_line = "\n" not in found["message"]
    return bool(found["outcome"] == "InputError" and one_line and re.search(found["expected"], found["message"]))


@pytest.mark.parametrize("kind", COUNTS)
def test_every_file_is_refused_or_right(kind: str, folder: Path) -> None:
    files = of_kind(kind, folder)
    assert len({found["name"] for found in files}) == len(files) >= COUNTS[kind]
    assert [found for found in files if not as_it_should(found)] == []


@pytest.mark.parametrize("kind", COUNTS)
def test_no_file_takes_long_or_much(kind: str, folder: Path) -> None:
    files, end = of_kind(kind, folder), opened(folder)[1]
    start = end["usual child"]
    slow = [f for f in files if f["seconds"] > SECONDS or f["seconds of the child"] > SECONDS + start["seconds"]]
    assert slow == []
    assert [found for found in files if found["megabytes"] > MEGABYTES] == []
    assert end["child megabytes"] < start["megabytes"] + MEGABYTES


def test_nothing_is_executed(folder: Path) -> None:
    """No pickle is opened in this process, no program started but the converter, no code run that is no module's."""
    _, end = opened(folder)
    assert end["executed"] == [] and end["marks"] == []
    started = {kind: sum(found["children"] for found in of_kind(kind, folder)) for kind in COUNTS}
    assert started.pop("checkpoints") > 40 and set(started.values()) == {0}


def test_the_watch_sees_gadgets_that_run(tmp_path: Path) -> None:
    (end,) = child(tmp_path, "control")
    events = {line.split()[0] for line in end["executed"]}
    assert {"pickle.find_class", "os.system", "subprocess.Popen", "exec", "compile"} <= events
    assert end["marks"] != []
