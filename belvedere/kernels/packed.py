"""Packed sequences: the tokens of many images behind one another, with the offsets at which each begins."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor


def check_offsets(offsets: Tensor, total: int) -> None:
    """Raise ``ValueError`` unless ``offsets`` (s + 1,) rises from 0 to ``total`` and holds integers.

    On a GPU only shape and type are checked, since the values cannot be read without waiting for the device.
    """
    if offsets.ndim != 1 or len(offsets) < 1 or offsets.dtype not in (torch.int32, torch.int64):
        raise ValueError(f"offsets {tuple(offsets.shape)} {offsets.dtype}: expected (s + 1,) int32")
    if offsets.device.type != "cpu" or torch.compiler.is_compiling():
        return
    if offsets[0] != 0 or offsets[-1] != total or bool((offsets.diff() < 0).any()):
        raise ValueError(f"offsets {offsets.tolist()[:8]}: must rise from 0 to the number of tokens, {total}")


class Packed(NamedTuple):
    """A ragged batch without padding."""

    tokens: Tensor
    """All sequences behind one another: (n, ...)."""
    offsets: Tensor
    """Where each of the s sequences begins, and the end of the last: int32 (s + 1,)."""

    @classmethod
    def pack(cls, sequences: Sequence[Tensor]) -> "Packed":
        """Pack sequences of shape (n_i, ...) that agree in all axes but the first."""
        lengths = torch.tensor([0, *(len(s) for s in sequences)], device="cpu")
        return cls(torch.cat(list(sequences)), lengths.cumsum(0).to(torch.int32))

    def unpack(self) -> list[Tensor]:
        """Return the sequences, each (n_i, ...), as views."""
        return list(self.tokens.split(self.offsets.diff().tolist()))

    def sequence_ids(self) -> Tensor:
        """Return for every token the number of its sequence: int64 (n,)."""
        lengths = self.offsets.diff().long()
        return torch.repeat_interleave(torch.arange(len(lengths), device=lengths.device), lengths)
