"""Files that are locked while their folder is worked in."""

import fcntl
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal, TextIO

from belvedere.errors import InputError

LOCK = ".lock"
"""What is locked of a folder in which one process works alone."""


def open_lock(path: Path, mode: Literal["w", "r+"] = "w") -> TextIO:
    """Open a file to lock it; ``InputError`` where that is not permitted, as with one that another user has made."""
    try:
        return path.open(mode)
    except PermissionError as error:
        mend = "have its owner remove it when nothing of theirs runs there, or choose another --out"
        raise InputError(f"cannot lock {path}: {error.strerror}; {mend}") from error


def is_locked(path: Path) -> bool:
    """Return whether a process holds a lock that is not its own; ``InputError`` as of ``open_lock``."""
    try:
        with open_lock(path, "r+") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except BlockingIOError:
        return True
    return False


@contextmanager
def only_run(folder: Path) -> Iterator[None]:
    """Hold a run's folder; raise ``InputError`` when another process has it, or its lock is another user's.

    It is free again when the process ends. Where its file system gives no locks a warning says so.
    """
    with open_lock(folder / LOCK) as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InputError(f"another run is writing into {folder}: stop it, or choose another --out") from None
        except OSError as error:
            warnings.warn(f"{folder}: no lock ({error.strerror}): let no other run write into it", stacklevel=3)
        yield
