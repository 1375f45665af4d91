"""Training a rectified flow in FiTv2's time, t = 0 noise and t = 1 data: which times it sees, what its error is."""

from typing import Literal

import torch
from torch import Tensor

from belvedere.errors import InputError
from belvedere.kernels.packed import check_offsets
from belvedere.seeds import BatchRng


def flow_times(rng: BatchRng, kind: Literal["lognorm", "uniform"] = "lognorm", mean: float = 0.0) -> Tensor:
    """Return one time per image (b,), float32: uniform, or sigmoid(N(``mean``, 1)) (``lognorm``; published: mean 0)."""
    if kind == "lognorm":
        return torch.sigmoid(rng.normal("time", ()) + mean)
    if kind == "uniform":
        return rng.uniform("time")
    raise InputError(f"unknown distribution of times {kind!r}: use 'lognorm' or 'uniform'")


def flow_loss(prediction: Tensor, target: Tensor, offsets: Tensor) -> Tensor:
    """Return every image's mean squared error (s,), float32, over its own tokens of a packed batch.

    ``prediction`` and ``target`` are (n, c), ``offsets`` int32 (s + 1,). An image without tokens has error 0.
    """
    check_offsets(offsets, len(prediction))
    error = (prediction.float() - target.float()).square().mean(-1)  # (n,)
    offsets = offsets.to(error.device)
    total = torch.segment_reduce(error, "sum", offsets=offsets)  # (s,)
    return total / offsets.diff().clamp(min=1)
