"""Labels of one dataset in the numbers of another."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from belvedere.data import Dataset

if TYPE_CHECKING:
    import torch


class Relabelled:
    """A dataset whose labels count ``classes``, among which its own must be."""

    def __init__(self, dataset: Dataset, classes: tuple[str, ...]):
        self.dataset, self.classes = dataset, classes
        self._numbers = [classes.index(name) for name in dataset.classes]

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> dict[str, Any]:
        item = self.dataset[index]
        return {**item, "label": self._numbers[item["label"]]}

    def batch(self, indices: Sequence[int]) -> "dict[str, torch.Tensor]":
        """Return the dataset's batch with these labels."""
        batch = self.dataset.batch(indices)
        label = batch["label"]
        return {**batch, "label": label.new_tensor(self._numbers)[label]}
