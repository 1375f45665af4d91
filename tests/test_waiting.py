"""Whoever waits for a process hears of its end, and what it said."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.waiting import wait_until


def child(program: str, text: bool = True) -> "subprocess.Popen":
    return subprocess.Popen([sys.executable, "-Sc", program], stderr=subprocess.PIPE, text=text)


@pytest.mark.parametrize("text", [True, False])
def test_a_process_that_ends_fails_the_test_with_its_words(text: bool) -> None:
    process = child("raise SystemExit('no room')", text)
    with pytest.raises(pytest.fail.Exception, match=r"ended before, exit code 1; it said:\nno room"):
        wait_until(lambda: False, process, 60)


def test_time_has_an_end_and_so_has_the_process(tmp_path: Path) -> None:
    process = child("import time; time.sleep(60)")
    (tmp_path / "said.txt").write_text("still at it")
    with pytest.raises(pytest.fail.Exception, match=r"not within 0.05 s; it said:\nstill at it"):
        wait_until(lambda: False, process, 0.05, tmp_path / "said.txt")
    assert process.wait(10) < 0


def test_what_comes_with_the_end_is_not_missed(tmp_path: Path) -> None:
    process = child(f"open({str(tmp_path / 'done')!r}, 'w')")
    wait_until((tmp_path / "done").exists, process, 60)
    process.communicate()
