"""Threads that keep to some of the processor's cores, while the rest of the process keeps to its own."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from threading import Lock

_LOCK = Lock()


def pool(workers: int, cores: int) -> ThreadPoolExecutor:
    """Return a pool of ``workers`` threads, in each of which PyTorch computes on ``cores``, 1 or more."""
    return ThreadPoolExecutor(workers, initializer=_keep_to, initargs=(cores,))


@contextmanager
def kept_to(cores: int) -> Iterator[None]:
    """Let PyTorch compute on ``cores``, 1 or more, in this thread alone, and afterwards on as many as before."""
    before = _keep_to(cores)
    try:
        yield
    finally:
        _keep_to(before)


def _keep_to(cores: int) -> int:
    """Let PyTorch compute on ``cores`` in this thread alone; return on how many it did.

    ``set_num_threads`` is of the thread that calls it, but also of all that use PyTorch for the first time later: what
    it was for these is set again at once, by a thread that ends with that; one that begins between has ``cores`` too.
    """
    import torch

    with _LOCK, ThreadPoolExecutor(1) as fresh:
        later = fresh.submit(torch.get_num_threads).result()
        before = torch.get_num_threads()
        torch.set_num_threads(cores)
        fresh.submit(torch.set_num_threads, later).result()
        return before
