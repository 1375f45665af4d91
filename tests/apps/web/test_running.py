"""Work gives news, stops within a step when nobody waits for it, and fails in words."""

import logging
import platform
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import gradio as gr
import pytest

from belvedere.apps.web.running import BEAT, WHAT, Runner, Tell, in_words
from belvedere.errors import InputError


@pytest.fixture
def runner() -> Iterator[Runner]:
    runner = Runner()
    yield runner
    runner.close()


def endless(begun: threading.Event, ended: threading.Event, tell: Tell) -> None:
    try:
        for step in range(10**6):
            begun.set()
            tell(step)
            time.sleep(0.01)
    finally:
        ended.set()


def test_news_and_then_the_result(runner: Runner) -> None:
    gate = threading.Event()

    def work(tell: Tell) -> str:
        tell("half")
        assert gate.wait(20)
        return "whole"

    seen = []
    for news in runner.run("Make", work, what="one"):
        seen.append(news)
        if news == "half":
            gate.set()
    assert seen[-1] == "whole" and "half" in seen
    assert [(done.room, done.outcome, done.what) for done in runner.recent] == [("Make", "done", "one")]
    assert runner.current is None


def test_silent_work_still_lets_the_page_breathe(runner: Runner) -> None:
    seen = list(runner.run("Make", lambda tell: time.sleep(3 * BEAT)))
    assert len(seen) >= 3 and set(seen) == {None}


def test_closing_stops_it_at_its_next_step(runner: Runner) -> None:
    begun, ended = threading.Event(), threading.Event()
    running = runner.run("Make", lambda tell: endless(begun, ended, tell))
    next(running)
    assert begun.wait(20)
    running.close()
    assert ended.wait(20)
    assert runner.result("Make", lambda tell: 7) == 7, "the next one runs"
    assert [done.outcome for done in runner.recent] == ["done", "stopped"]


def test_no_step_of_the_work_takes_the_stop_for_its_own_error(runner: Runner) -> None:
    begun, ended = threading.Event(), threading.Event()

    def stubborn(tell: Tell) -> None:
        try:
            for _ in range(10**6):
                try:
                    begun.set()
                    tell(0)
                except Exception:
                    continue
                time.sleep(0.01)
        finally:
            ended.set()

    running = runner.run("Make", stubborn)
    next(running)
    assert begun.wait(20)
    running.close()
    assert ended.wait(20)


def test_the_end_of_the_server_stops_it(runner: Runner) -> None:
    begun, ended = threading.Event(), threading.Event()
    running = runner.run("Make", lambda tell: endless(begun, ended, tell))
    next(running)
    assert begun.wait(20)
    assert runner.close(20)
    assert ended.is_set()
    with pytest.raises(gr.Error, match="Stopped"):
        list(running)


def test_one_after_the_other(runner: Runner) -> None:
    at_once, most, lock = 0, 0, threading.Lock()

    def work(tell: Tell) -> None:
        nonlocal at_once, most
        with lock:
            at_once += 1
            most = max(most, at_once)
        time.sleep(0.02)
        with lock:
            at_once -= 1

    threads = [threading.Thread(target=lambda: runner.result("Make", work)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == 1


def test_time_runs_out_for_work_that_tells_and_for_silent_work(runner: Runner) -> None:
    begun, ended = threading.Event(), threading.Event()
    with pytest.raises(gr.Error, match=r"Stopped after 0\.2 seconds"):
        runner.result("Make", lambda tell: endless(begun, ended, tell), seconds=0.2)
    assert ended.wait(20)
    with pytest.raises(gr.Error, match=r"Stopped after 0\.2 seconds"):
        runner.result("Make", lambda tell: time.sleep(1), seconds=0.2)


def test_bad_input_is_told_and_what_nobody_expected_is_logged(runner: Runner, caplog: pytest.LogCaptureFixture) -> None:
    def refuse(tell: Tell) -> None:
        raise InputError("no such kind: choose another")

    def fail(tell: Tell) -> None:
        raise RuntimeError("secret detail")

    with pytest.raises(gr.Error) as refused:
        runner.result("Make", refuse)
    assert refused.value.message == "No such kind: choose another."
    assert caplog.records == []
    with caplog.at_level(logging.ERROR), pytest.raises(gr.Error) as failed:
        runner.result("Make", fail)
    assert failed.value.message == "Something went wrong: see the server's log."
    assert "secret detail" in caplog.text
    assert [done.outcome for done in runner.recent] == ["failed", "refused"]


def test_what_is_told_is_text_where_the_page_shows_html() -> None:
    with pytest.raises(gr.Error) as refused, in_words():
        raise InputError("the prompt can't hold <thing> & <b>more</b>")
    assert refused.value.message == "The prompt can't hold &lt;thing&gt; &amp; &lt;b&gt;more&lt;/b&gt;."


def test_little_is_kept_of_what_a_piece_of_work_was(runner: Runner) -> None:
    runner.result("Make", lambda tell: None, what="x" * 10**6)
    assert runner.recent[0].what == "x" * WHAT


def test_memory_that_runs_out_is_told() -> None:
    with pytest.raises(gr.Error, match="Out of memory"), in_words():
        raise MemoryError


def test_what_cannot_be_prepared_is_logged(runner: Runner, caplog: pytest.LogCaptureFixture) -> None:
    runner.background("Make", lambda: 1 / 0)
    assert runner.result("Make", lambda tell: 1) == 1
    assert "could not be prepared" in caplog.text


def test_what_cannot_be_prepared_for_bad_input_is_logged_in_one_line(
    runner: Runner, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse() -> None:
        raise InputError("no device cuda:3 on this machine")

    runner.background("Make", refuse)
    assert runner.result("Make", lambda tell: 1) == 1
    (told,) = caplog.records
    assert told.exc_info is None and "no device cuda:3" in told.getMessage()


def test_silent_work_is_known_not_to_have_ended(runner: Runner) -> None:
    gate = threading.Event()
    running = runner.run("Make", lambda tell: gate.wait(20))
    next(running)
    assert not runner.close(0.1)
    gate.set()
    assert list(running)[-1] is True


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc gives memory back when it is asked to")
def test_what_a_piece_of_work_frees_goes_back_to_the_system(runner: Runner) -> None:
    def resident() -> float:
        line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmRSS"))
        return int(line.split()[1]) / 1024

    most, kept = 0.0, []

    def work(tell: Tell) -> None:
        nonlocal most
        blocks = [bytearray(b"x" * 100_000) for _ in range(2000)]
        most = resident()
        kept.append(blocks[-1])  # what lies below it is a gap

    before = resident()
    runner.result("Orbit", work)
    assert most > before + 150, "200 MB were held"
    assert resident() < before + 50
