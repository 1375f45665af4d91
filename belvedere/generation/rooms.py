"""How much a network call holds: one picture need not wait for the work of many, and many fill the machine.

A matrix product may add up in another order for another number of rows, so all calls of a request have one size, the
last ones padded, and a picture does not depend on what shares its call. That size is a multiple of what fills a CPU,
the call's room: always 1 there. A GPU needs ``FULL`` times as much to be filled, and for so much a single picture would
wait as long as for dozens; so a request of few pictures has calls of a smaller room, and its pictures tell it.
"""

from collections.abc import Callable, Sequence

import torch

from belvedere.errors import InputError

FULL = 32
"""Room of a call that fills a GPU."""

Size = tuple[int, int]
Split = Callable[[Sequence[Size], int], list[range]]
"""Return which neighbouring pictures of the (height, width) given share a call of so much room."""


def full(device: torch.device) -> int:
    """Return the room of a call that fills ``device``."""
    return 1 if device.type == "cpu" else FULL


def choose(split: Split, sizes: Sequence[Size], device: torch.device) -> int:
    """Return the room for a request of pictures of ``sizes``: the smallest power of two that takes no further call."""
    room, most = 1, full(device)
    calls = len(split(sizes, most))
    while room < most and len(split(sizes, room)) > calls:
        room *= 2
    return room


def check(room: int) -> int:
    """Return ``room``; ``InputError`` for one that no call has."""
    if isinstance(room, bool) or not isinstance(room, int) or not 1 <= room <= FULL:
        raise InputError(f"room {room!r:.80}: must be a whole number from 1 to {FULL}")
    return room
