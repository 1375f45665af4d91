"""Datasets: each is indexable and stateless, so that item ``i`` is the same whenever it is asked for."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    import torch


class Dataset(Protocol):
    """What the trainer and the evaluation ask of a dataset."""

    classes: tuple[str, ...]
    """Class names; ``label`` indexes them. Empty when the data has no classes."""

    def __len__(self) -> int:
        """Return the number of items."""
        ...

    def __getitem__(self, index: int) -> "dict[str, Any]":
        """Return item ``index``: at least ``image`` (3, h, w) in [-1, 1] and ``label``."""
        ...

    def batch(self, indices: Sequence[int]) -> "dict[str, torch.Tensor]":
        """Return ``image`` float32 (b, 3, h, w) in [-1, 1] and ``label`` int64 (b,)."""
        ...
