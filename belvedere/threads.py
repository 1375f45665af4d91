"""Pools whose threads each keep to some of the processor's cores, while the rest of the process keeps to its own."""

from concurrent.futures import ThreadPoolExecutor
from threading import Lock, Thread

_LOCK = Lock()


def pool(workers: int, cores: int) -> ThreadPoolExecutor:
    """Return a pool of ``workers`` threads, in each of which PyTorch computes on ``cores``, 1 or more."""
    return ThreadPoolExecutor(workers, initializer=_keep_to, initargs=(cores,))


def _keep_to(cores: int) -> None:
    """Let PyTorch compute on ``cores`` in this thread, a new one, alone.

    ``set_num_threads`` is of the thread that calls it, but also of all that use PyTorch for the first time later: what
    it was for these is set again, by a thread that ends with that.
    """
    import torch

    with _LOCK:
        others = torch.get_num_threads()
        torch.set_num_threads(cores)
        back = Thread(target=torch.set_num_threads, args=(others,))
        back.start()
        back.join()
