"""The batches of one process, made a step ahead: that one cannot be made is known before the step that needs it."""

import time
from collections.abc import Iterable
from itertools import islice

from torch import Tensor

from belvedere.errors import InputError


class Feed:
    """What comes out of ``batches``, as many for each step as this process has ``parts`` of one."""

    def __init__(self, batches: Iterable[dict[str, Tensor]], parts: int):
        self._batches, self._parts = iter(batches), parts
        self._next: list[dict[str, Tensor]] = []
        self.trouble: str | None = None
        """Why the next step has no batches."""

    def draw(self) -> float:
        """Make the batches of the next step, none after the last; return the seconds that it took."""
        began = time.perf_counter()
        try:
            self._next = list(islice(self._batches, self._parts))
        except InputError as error:  # a worker's comes with its traceback
            self.trouble = str(error).strip().splitlines()[-1].split("InputError: ")[-1]
            error.__traceback__ = None  # its frames, in a circle, would keep workers that cannot end any more
            self._batches = iter(())
        return time.perf_counter() - began

    def take(self) -> list[dict[str, Tensor]]:
        """Return the batches that were drawn."""
        taken, self._next = self._next, []
        return taken

    def check(self) -> None:
        """Raise ``InputError`` when the last draw failed."""
        if self.trouble is not None:
            raise InputError(f"could not make a batch: {self.trouble}")
