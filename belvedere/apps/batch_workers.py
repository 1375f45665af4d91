"""The processes that work on one batch: who is alive, and what the dead have left.

Each has a folder ``.worker-TOKEN`` beside the pictures and holds a lock on the file in it. The system frees the lock
when the process ends, however it ends, so no clock, no process number and no heartbeat has to be trusted; unfinished
files are inside and go with it. All machines of a batch have a part of their own (``--shard``), so the lock is never
asked for over a network.
"""

import fcntl
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

from belvedere.apps.locks import is_locked, open_lock
from belvedere.errors import InputError

LOCK = "lock"


class Worker:
    """This process among those of a batch in ``out``; ``part`` is what sets its files apart from another machine's.

    Raises ``InputError`` where another user's locks are in the way, and so does ``others``.
    """

    def __init__(self, out: Path, part: str = ""):
        self.out, self.part = out, part
        self._gate = open_lock(out / f".lock{part}")
        self.token = secrets.token_hex(8)
        self.folder = out / f".worker{part}-{self.token}"
        """For files that are not whole yet."""
        self._held: TextIO | None = None

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Hold the batch: no process comes, goes or is declared dead meanwhile."""
        fcntl.flock(self._gate, fcntl.LOCK_EX)
        try:
            yield
        finally:
            fcntl.flock(self._gate, fcntl.LOCK_UN)

    def enter(self) -> None:
        """Join the batch; to be called while ``alone``."""
        self.folder.mkdir()
        self._held = (self.folder / LOCK).open("w")
        fcntl.flock(self._held, fcntl.LOCK_EX | fcntl.LOCK_NB)

    def others(self) -> set[str]:
        """Return the tokens of the living others and remove what the dead have left; to be called while ``alone``."""
        living = set()
        for folder in self.out.glob(f".worker{self.part}-*"):
            token = folder.name.removeprefix(f".worker{self.part}-")
            if folder == self.folder or len(token) != len(self.token):
                continue
            if is_locked(folder / LOCK):
                living.add(token)
            else:
                shutil.rmtree(folder, ignore_errors=True)
        return living

    def leave(self) -> None:
        """Leave the batch."""
        shutil.rmtree(self.folder, ignore_errors=True)
        if self._held:
            self._held.close()
        self._gate.close()


def launched() -> tuple[int, int, int, int]:
    """Return (process, processes) of this machine and (machine, machines), as torchrun and accelerate tell it."""
    names = {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": None}
    told = {name: os.environ.get(name, default) for name, default in names.items()}
    told["LOCAL_WORLD_SIZE"] = told["LOCAL_WORLD_SIZE"] or told["WORLD_SIZE"]
    if not all(value and value.isdecimal() and len(value) < 8 for value in told.values()):
        raise InputError("environment RANK, WORLD_SIZE: no numbers; unset both, or start with torchrun")
    rank, world, local, here = (int(str(told[name])) for name in names)
    if not (rank < world and local < here <= world) or world % here:
        raise InputError(f"environment RANK {rank} of WORLD_SIZE {world}: unset both, or start with torchrun")
    return local, here, rank // here, world // here
