"""How much a network call holds: one picture need not wait for the work of many, and many fill the machine.

A matrix product may add up in another order for another number of rows, so all calls of a request have one size, the
last ones padded, and a picture does not depend on what shares its call. That size is a multiple of what fills a CPU,
the call's room: always 1 there. A GPU needs ``FULL`` times as much to be filled, and for so much a single picture would
wait as long as for dozens; so a request of few pictures has calls of a smaller room, and its pictures tell it.
"""

from collections.abc import Sequence
from typing import Any, Protocol

import torch

from belvedere.errors import InputError

FULL = 32
"""Room of a call that fills a GPU."""

Size = tuple[int, int]


class Pipeline(Protocol):
    """What cuts a request into network calls."""

    @property
    def network(self) -> Any: ...

    def split(self, sizes: Sequence[Size], room: int | None = None) -> list[range]:
        """Return which neighbouring pictures of ``sizes``, (height, width), share a call of a ``room``."""


def full(device: torch.device) -> int:
    """Return the room of a call that fills ``device``."""
    return 1 if device.type == "cpu" else FULL


def chosen(pipeline: Pipeline, sizes: Sequence[Size], room: int | None = None) -> int:
    """Return the room of the calls for pictures of ``sizes``: the one asked for, or the one that suits them.

    That is the smallest power of two that takes no further call. Raises ``InputError`` for a room that no call has.
    """
    if room is None:
        return _smallest(pipeline, sizes, full(pipeline.network.device))
    if isinstance(room, bool) or not isinstance(room, int) or not 1 <= room <= FULL:
        raise InputError(f"room {room!r:.80}: must be a whole number from 1 to {FULL}")
    return room


def _smallest(pipeline: Pipeline, sizes: Sequence[Size], most: int) -> int:
    room = 1
    if most > 1:
        calls = len(pipeline.split(sizes, most))
        while room < most and len(pipeline.split(sizes, room)) > calls:
            room *= 2
    return room
