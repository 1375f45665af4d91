"""Counter-based randomness: every random number is a function of what it is for, never of what ran before."""

import hashlib
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def derive(*parts: int | str) -> int:
    """Return a 63-bit seed from integers and names; the same parts give the same seed on every machine."""
    text = "\x1f".join(f"{type(part).__name__}:{part}" for part in parts)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little") >> 1


def generator(*parts: int | str) -> "torch.Generator":
    """Return a CPU ``torch.Generator`` seeded by ``derive(*parts)``."""
    import torch

    return torch.Generator().manual_seed(derive(*parts))


class BatchRng:
    """Random numbers for one training batch: sample ``i`` of step ``s`` draws from (seed, s, i, name) alone.

    The numbers do not depend on the batch size, the number of processes or on earlier draws, so a resumed
    run and a run on another number of processes see the same noise.
    """

    def __init__(self, seed: int, step: int, samples: Sequence[int], device: "torch.device | str" = "cpu"):
        self.seed, self.step, self.samples, self.device = seed, step, tuple(samples), device

    def _generators(self, name: str) -> "list[torch.Generator]":
        return [generator(self.seed, self.step, sample, name) for sample in self.samples]

    def normal(self, name: str, shape: Sequence[int]) -> "torch.Tensor":
        """Return standard normal numbers (b, *shape), float32."""
        import torch

        return torch.stack(self._drawn(name, [shape] * len(self.samples))).to(self.device)

    def ragged(self, name: str, shapes: Sequence[Sequence[int]]) -> "list[torch.Tensor]":
        """Return standard normal numbers for each sample in a shape of its own, float32."""
        return [row.to(self.device) for row in self._drawn(name, shapes)]

    def _drawn(self, name: str, shapes: Sequence[Sequence[int]]) -> "list[torch.Tensor]":
        import torch

        pairs = zip(self._generators(name), shapes, strict=True)
        return [torch.randn(tuple(shape), generator=g, dtype=torch.float32, device="cpu") for g, shape in pairs]

    def uniform(self, name: str) -> "torch.Tensor":
        """Return one number per sample in [0, 1): (b,), float32."""
        import torch

        rows = [torch.rand((), generator=g, dtype=torch.float32, device="cpu") for g in self._generators(name)]
        return torch.stack(rows).to(self.device)
