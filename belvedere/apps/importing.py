"""What makes large libraries come sooner."""

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def uncollected() -> Iterator[None]:
    """Import, or build what stays, without Python's cyclic garbage collector.

    It would look a thousand times at all that was made, of which nothing can go (``benchmarks/start.py``).
    """
    on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if on:
            gc.enable()
