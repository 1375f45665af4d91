"""Locks of a folder in which one run or batch works: of another user, and where there are none."""

import errno
import fcntl
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from belvedere.apps.batch_workers import Worker
from belvedere.apps.locks import is_locked, only_run
from belvedere.errors import InputError


@contextmanager
def refused(lock: Path) -> Iterator[None]:
    """Expect the refusal of a lock that this process, no longer root, may not open."""
    lock.touch()
    lock.chmod(0)
    user = os.geteuid()
    with pytest.raises(InputError, match="Permission denied; have its owner remove it") as found:
        os.seteuid(user or 65534)
        try:
            yield
        finally:
            os.seteuid(user)
    assert f"cannot lock {lock}: " in str(found.value)


def run(folder: Path) -> None:
    with only_run(folder):
        pass


@pytest.mark.parametrize("begin", [run, Worker])
def test_the_lock_of_a_folder_that_another_user_worked_in(begin: Callable[[Path], object], tmp_path: Path) -> None:
    with refused(tmp_path / ".lock"):
        begin(tmp_path)


def test_the_lock_of_another_users_process_on_a_batch(tmp_path: Path) -> None:
    with refused(tmp_path / "lock"):
        is_locked(tmp_path / "lock")


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP])
def test_a_file_system_without_locks_is_told_of_and_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def refuse(file: object, operation: int) -> None:
        raise OSError(number, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)
    with pytest.warns(UserWarning, match=r"no lock \(No locks available\): let no other run"), only_run(tmp_path):
        pass
