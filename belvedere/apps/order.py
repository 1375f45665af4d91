"""Which samples a step sees: a keyed permutation of the data for each epoch, computed for any position at once.

Nothing is stored, so a resumed run, or one on another number of processes, makes the same batches.
"""

import signal
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from torch import Tensor
from torch.utils.data import DataLoader

from belvedere.data import Dataset
from belvedere.seeds import derive

_ROUNDS = 8


def permute(positions: np.ndarray, size: int, key: int) -> np.ndarray:
    """Return where the permutation ``key`` of 0..size-1 sends ``positions`` (n,), int64.

    A balanced Feistel network on the next even power of two, walked until it lands below ``size``
    (Black & Rogaway 2002, "Ciphers with arbitrary finite domains"): O(n) for any size.
    """
    half = max(1, ((size - 1).bit_length() + 1) // 2)
    values = _feistel(positions.astype(np.uint64), half, key)
    while (outside := values >= size).any():
        values[outside] = _feistel(values[outside], half, key)
    return values.astype(np.int64)


@lru_cache(maxsize=8)
def _round_keys(key: int) -> tuple[np.uint64, ...]:
    return tuple(np.uint64(derive(key, i)) for i in range(_ROUNDS))


def _feistel(values: np.ndarray, half: int, key: int) -> np.ndarray:
    shift, mask = np.uint64(half), np.uint64((1 << half) - 1)
    left, right = values >> shift, values & mask
    for round_key in _round_keys(key):
        left, right = right, left ^ (_mix(right ^ round_key) & mask)
    return (left << shift) | right


def _mix(x: np.ndarray) -> np.ndarray:
    """Return the 64-bit finaliser of MurmurHash3 of each element."""
    for factor in (0xFF51AFD7ED558CCD, 0xC4CEB9FE1A85EC53):
        x = (x ^ (x >> np.uint64(33))) * np.uint64(factor)
    return x ^ (x >> np.uint64(33))


@dataclass(frozen=True)
class Order:
    """The samples of every step: ``batch`` a step in ``parts`` equal parts (processes x accumulation)."""

    size: int
    seed: int
    batch: int
    parts: int

    def positions(self, part: int) -> range:
        """Return the places of part ``part`` within the batch of a step."""
        length = self.batch // self.parts
        return range(part * length, (part + 1) * length)

    def indices(self, step: int, part: int) -> list[int]:
        """Return the dataset indices of one part of step ``step``."""
        counters = step * self.batch + np.array(self.positions(part))
        epochs, places = np.divmod(counters, self.size)
        indices = np.empty_like(places)
        for epoch in np.unique(epochs):
            here = epochs == epoch
            indices[here] = permute(places[here], self.size, derive(self.seed, "order", int(epoch)))
        return indices.tolist()


@dataclass(frozen=True)
class _Requests:
    """The index lists one process asks for, in order."""

    order: Order
    steps: range
    parts: Sequence[int]

    def __iter__(self) -> Iterator[list[int]]:
        return (self.order.indices(step, part) for step in self.steps for part in self.parts)

    def __len__(self) -> int:
        return len(self.steps) * len(self.parts)


@dataclass(frozen=True)
class _Batches:
    """A dataset whose items are batches, so that a worker makes a whole batch in one call."""

    dataset: Dataset

    def __getitem__(self, indices: Sequence[int]) -> dict[str, Tensor]:
        return self.dataset.batch(indices)


def _outlive_signals(worker: int) -> None:
    """Let the training process alone decide what a signal to the whole group means."""
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)


def make_loader(
    dataset: Dataset, order: Order, steps: range, parts: Sequence[int], workers: int, pin: bool
) -> DataLoader:
    """Return a loader of ``dataset.batch(indices)`` for each step and each of this process's ``parts``."""
    return DataLoader(
        _Batches(dataset),  # type: ignore[arg-type]
        batch_size=None,
        sampler=_Requests(order, steps, parts),
        num_workers=workers,
        worker_init_fn=_outlive_signals,
        pin_memory=pin,
    )
