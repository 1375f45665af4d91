"""The command line in this process, what a refusal looks like, and one thread for networks that need no more."""

import errno
import os
import signal
import sys
from collections.abc import Callable, Iterator
from typing import NamedTuple

import pytest
import torch

from belvedere.apps import cli, output
from belvedere.checkpoints import store


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Small networks only wait for each other's threads; the tests after this one have as many as before."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


class Done(NamedTuple):
    code: int
    out: str
    error: str


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Iterator[Callable[..., Done]]:
    """Run ``main()`` in this process: the same path as the command, without two seconds of imports."""
    before = signal.getsignal(signal.SIGTERM)

    def run(*arguments: object) -> Done:
        monkeypatch.setattr(sys, "argv", ["belvedere", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        return Done(int(ended.value.code or 0), *capsys.readouterr())

    yield run
    signal.signal(signal.SIGTERM, before)


def fill_cards(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the cards of models be on a full disk."""

    def amend_card(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(store, "amend_card", amend_card)


def fill_results(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the disk be full when results are written, not yet when it is looked at."""

    def atomic_write(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(output, "atomic_write", atomic_write)


def assert_refused(done: Done, *words: str) -> None:
    """One line on stderr, exit code 2, nothing on stdout."""
    assert done.code == 2, done
    assert done.out == ""
    assert done.error.startswith("belvedere: error: ") and done.error.count("\n") == 1
    for word in words:
        assert word in done.error
