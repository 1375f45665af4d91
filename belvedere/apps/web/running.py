"""Work in a thread of its own, as news for the page: stopped within a step when nobody waits for it any more.

Gradio closes an event's generator when the event is cancelled or the page is left. What the work tells next then raises
``Stopped`` in it.
"""

import contextlib
import ctypes
import logging
import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from html import escape
from typing import Any, TypeVar

import gradio as gr

from belvedere.errors import InputError, out_of_memory

T = TypeVar("T")
Tell = Callable[[Any], None]
BEAT = 0.5
"""Seconds after which the last news is given again, so that a generator can be closed while its work is silent."""
WHAT = 80
"""Characters that are kept of what a piece of work was."""
log = logging.getLogger("belvedere.studio")


class Stopped(BaseException):
    """Nobody waits for this piece of work any more. Not an ``Exception``, so that no step of the work takes it for one
    of its own."""


@dataclass(frozen=True)
class Done:
    """A piece of work that ended: its room, seconds, and "done", "stopped", "refused" or "failed"."""

    room: str
    seconds: float
    outcome: str
    what: str = ""


class Runner:
    """Runs one piece of work after the other, all in one thread: two would only share the same cores."""

    def __init__(self, seconds: float = 600.0):
        self.seconds = seconds
        self.current: tuple[str, float] | None = None
        """Room of the work that is running, and when it began (``time.monotonic``)."""
        self.recent: deque[Done] = deque(maxlen=20)
        self._thread = ThreadPoolExecutor(1, "studio-work")
        self._closing, self._busy = threading.Event(), threading.Lock()

    def run(
        self, room: str, work: Callable[[Tell], T], *, seconds: float | None = None, what: str = ""
    ) -> Iterator[Any]:
        """Yield the newest of what ``work(tell)`` tells, at least every ``BEAT``, and what it returns last.

        Before the first news it yields None. Closing the iterator stops the work at its next ``tell``, and so does
        running for more than ``seconds``. Errors are raised as ``gr.Error``: see ``in_words``. ``what``: a few words
        for the list of recent work, such as "2 pictures of 64 x 64".
        """
        limit = self.seconds if seconds is None else seconds
        stop, news = threading.Event(), queue.SimpleQueue[Any]()
        with in_words():
            future = self._thread.submit(self._work, room, what, work, stop, news, limit)
            future.add_done_callback(lambda _: news.put(None))
            try:
                yield from _newest(future, news, limit)
                yield future.result()
            finally:
                stop.set()
                future.cancel()

    def result(self, room: str, work: Callable[[Tell], T], *, seconds: float | None = None, what: str = "") -> T:
        """Return what ``work(tell)`` returns, for events that show nothing before; errors as in ``run``."""
        found: Any = None
        for found in self.run(room, work, seconds=seconds, what=what):  # noqa: B007
            pass
        return found

    def background(self, room: str, work: Callable[[], object]) -> None:
        """Do something before the first click; what goes wrong is logged, and told when it is asked for."""

        def run() -> None:
            try:
                with self._busy:
                    work()
            except InputError as error:
                log.error("%s: could not be prepared: %s", room, error)
            except Exception:
                log.exception("%s: could not be prepared", room)

        self._thread.submit(run)

    def close(self, seconds: float = 0.0) -> bool:
        """Take no more work, stop what is running at its next step, and return whether it did within ``seconds``."""
        self._closing.set()
        self._thread.shutdown(wait=False, cancel_futures=True)
        return self._busy.acquire(timeout=seconds)

    def _work(
        self,
        room: str,
        what: str,
        work: Callable[[Tell], T],
        stop: threading.Event,
        news: "queue.SimpleQueue[Any]",
        limit: float,
    ) -> T:
        began = time.monotonic()

        def tell(value: Any) -> None:
            if stop.is_set() or self._closing.is_set():
                raise Stopped
            if time.monotonic() - began > limit:
                raise _too_long(limit)
            news.put((value,))

        self.current, outcome = (room, began), "done"
        try:
            if stop.is_set():
                raise Stopped
            with self._busy:
                return work(tell)
        except BaseException as error:
            outcome = "stopped" if isinstance(error, Stopped) else "refused" if _told(error) else "failed"
            raise
        finally:
            give_back_memory()
            self.current = None
            self.recent.appendleft(Done(room, time.monotonic() - began, outcome, what[:WHAT]))


def give_back_memory() -> None:
    """Give what was freed back to the system, where the C library is glibc: it keeps gaps between what is still held,
    and those of scenes of many sizes add up (``benchmarks/soak.py``)."""
    with contextlib.suppress(AttributeError, TypeError):  # no malloc_trim, no library of the process itself
        ctypes.CDLL(None).malloc_trim(0)


def _too_long(limit: float) -> InputError:
    return InputError(f"stopped after {limit:g} seconds, the most for one request: ask for less")


def _newest(future: "Future[Any]", news: "queue.SimpleQueue[Any]", limit: float) -> Iterator[Any]:
    latest: tuple[Any] = (None,)
    end = time.monotonic() + limit
    while not future.done():
        if time.monotonic() > end:
            raise _too_long(limit)
        try:
            latest = news.get(timeout=BEAT) or latest
            while not news.empty():
                latest = news.get() or latest
        except queue.Empty:
            pass
        if not future.done():
            yield latest[0]


@contextlib.contextmanager
def in_words() -> Iterator[None]:
    """Raise whatever goes wrong within as ``gr.Error`` of one sentence, escaped: the page shows it as HTML.

    What nobody expected goes into the log.
    """
    try:
        yield
    except gr.Error:
        raise
    except Exception as error:
        words = _told(error)
        if not words:
            log.error("unexpected %s", type(error).__name__, exc_info=error)
        told = escape(words, quote=False) or "Something went wrong: see the server's log."
        raise gr.Error(told, print_exception=False) from None
    except Stopped:
        raise gr.Error("Stopped.", print_exception=False) from None


def _told(error: BaseException) -> str:
    """Return what a person is told of an error that is no fault of ours; empty for one that is."""
    if isinstance(error, InputError):
        text = str(error)
        return f"{text[:1].upper()}{text[1:]}" + ("" if text.endswith((".", "?", "!")) else ".")
    if out_of_memory(error):
        return "Out of memory: ask for fewer or smaller pictures."
    return ""
