"""Waiting for what a process of a test does: never longer than it lives, nor without an end."""

import subprocess
import time
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import pytest

Process = subprocess.Popen[Any] | BaseProcess


def wait_until(condition: Callable[[], object], process: Process, seconds: float, said: Path | None = None) -> None:
    """Return once ``condition`` holds.

    Where ``process`` ends before that, or ``seconds`` are over, it is killed and the test fails, with what the process
    wrote to the file ``said``, else to its standard error where that is a pipe.
    """
    end = time.monotonic() + seconds
    while True:
        late, ended = time.monotonic() > end, _code(process)  # first: what is waited for may come with the end
        if condition():
            return
        if late or ended is not None:
            process.kill()
            why = f"not within {seconds:g} s" if ended is None else f"the process ended before, exit code {ended}"
            pytest.fail(f"{why}; it said:\n{_words(process, said)}")
        time.sleep(0.005)


def _code(process: Process) -> int | None:
    return process.poll() if isinstance(process, subprocess.Popen) else process.exitcode


def _words(process: Process, said: Path | None) -> str:
    if said is not None:
        return said.read_text() if said.exists() else ""
    if isinstance(process, BaseProcess) or process.stderr is None:
        return "(see the captured standard error)"
    words = process.communicate(timeout=30)[1]
    return words if isinstance(words, str) else words.decode()
