"""What encoder and decoder must share to the last bit and no machine computes alike: as tables of integers.

erf, tanh, exp and the distributions made of them differ between libraries and processors. They are tabulated once,
when a model is exported, and stored beside its weights.
"""

from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from belvedere.compression.entropy import MAX_VALUE
from belvedere.compression.official_tables import (
    PRECISION,
    SCALES,
    Tables,
    bottleneck_tables,
    gaussian_tables,
    scale_table,
)
from belvedere.compression.probabilities import FAR
from belvedere.compression.segpic import SegPIC
from belvedere.errors import InputError

FRACTION = 10
"""Bits after the point of the numbers of the entropy path: they are multiples of 2^-10."""
LIMIT = 2**21
"""They are within +-LIMIT of those: +-2048."""
REACH = 8
"""The functions are tabulated from -REACH to REACH."""
GATE = 14
"""Bits after the point of a sigmoid."""

CURVES: dict[str, tuple[Callable[[Tensor], Tensor], int, float, float]] = {
    "gelu": (F.gelu, FRACTION, -1, REACH),
    "half_tanh": (lambda x: torch.tanh(x) / 2, FRACTION, -0.5, 0.5),
    "sigmoid": (torch.sigmoid, GATE, 0, 1),
}
"""Functions of multiples of 2^-FRACTION: themselves, bits after the point of their values, bounds of their values."""


@dataclass(frozen=True)
class ExactTables:
    """The tables of a model, checked. Int32 tensors but for those of the coder."""

    curves: dict[str, Tensor]
    """By the names of ``CURVES``: (2 REACH 2^FRACTION + 1,) each."""
    scales: Tensor
    """The scales (63,), times 2^FRACTION, that all but the first tables of y begin above: each halfway, by logarithm,
    between the scale of its table and the one before."""
    medians: dict[str, Tensor]
    """Of z, prototypes1 and prototypes2, times 2^FRACTION: (c,) each."""
    numbers: dict[str, Tables]
    """Tables of the coder, by what is coded: y, by scale, and z, prototypes1 and prototypes2, by channel."""

    @classmethod
    def of(cls, tensors: dict[str, Tensor], config: Any) -> "ExactTables":
        """Return the tables in ``tensors``, what ``make`` returned for a model of this ``config``.

        Raises ``InputError`` unless they are complete and cannot lead outside the bounds.
        """
        channels = _channels(config)
        counts = {"y": SCALES} | channels
        wanted = {*CURVES, "scales", *(f"{name}.median" for name in channels)}
        wanted |= {f"{name}.{part}" for name in counts for part in ("cdf", "length", "offset")}
        if tensors.keys() != wanted:
            raise InputError(f"tables of a model: missing or unknown {', '.join(sorted(tensors.keys() ^ wanted))}")
        points = 2 * REACH * 2**FRACTION + 1
        curves = {
            name: _ranged(tensors, name, points, int(low * 2**bits), int(high * 2**bits))
            for name, (_, bits, low, high) in CURVES.items()
        }
        scales = _ranged(tensors, "scales", SCALES - 1, 0, LIMIT)
        if (scales.diff() < 0).any():
            raise InputError("table scales of a model does not rise")
        medians = {name: _ranged(tensors, f"{name}.median", n, -LIMIT, LIMIT) for name, n in channels.items()}
        return cls(curves, scales, medians, {name: _numbers(tensors, name, n) for name, n in counts.items()})


@torch.no_grad()
def make(model: SegPIC) -> dict[str, Tensor]:
    """Return the tables of a model, int32, to be stored with it.

    Raises ``InputError`` for a median that is further out than numbers are: it decides how large a table is.
    """
    at = torch.arange(-REACH * 2**FRACTION, REACH * 2**FRACTION + 1, dtype=torch.float64) / 2**FRACTION
    tensors = {name: _rounded(curve(at), bits) for name, (curve, bits, _, _) in CURVES.items()}
    logs = scale_table().double().log()
    tensors["scales"] = (((logs[:-1] + logs[1:]) / 2).exp() * 2**FRACTION).floor().int()
    numbers = {"y": gaussian_tables()}
    bottlenecks = {
        "z": model.bottleneck,
        "prototypes1": model.prototypes1.bottleneck,
        "prototypes2": model.prototypes2.bottleneck,
    }
    for name, bottleneck in bottlenecks.items():
        alone = deepcopy(bottleneck).float().cpu()
        if not (alone.medians.abs() <= FAR).all():
            raise InputError(f"{name} of a model has medians up to {alone.medians.abs().max():g}: at most {FAR:g}")
        alone.settle_quantiles()
        numbers[name] = bottleneck_tables(alone)
        tensors[f"{name}.median"] = _rounded(alone.medians.flatten(), FRACTION)
    for name, tables in numbers.items():
        tensors[f"{name}.cdf"] = torch.tensor([count for cdf in tables.cdf for count in cdf], dtype=torch.int32)
        tensors[f"{name}.length"] = torch.tensor([len(cdf) for cdf in tables.cdf], dtype=torch.int32)
        tensors[f"{name}.offset"] = torch.tensor(tables.offset, dtype=torch.int32)
    return tensors


def _rounded(x: Tensor, bits: int) -> Tensor:
    return torch.floor(x.double() * 2**bits + 0.5).int()


def _channels(config: Any) -> dict[str, int]:
    """Return how many channels each bottleneck of a model has."""
    return {"z": config.hyper[-1], "prototypes1": config.prototype[-1], "prototypes2": config.prototype[-1]}


def _ranged(tensors: dict[str, Tensor], name: str, length: int, low: int, high: int) -> Tensor:
    """Return an int32 table of ``length`` whose numbers are from ``low`` to ``high``."""
    tensor = tensors[name]
    if tensor.dtype != torch.int32 or tensor.ndim != 1 or len(tensor) != length:
        raise InputError(f"table {name} of a model is {tensor.dtype} {tuple(tensor.shape)}: must be int32 ({length},)")
    least, most = (bound.item() for bound in tensor.aminmax())
    if least < low or most > high:
        raise InputError(f"table {name} of a model has numbers from {least} to {most}: must be from {low} to {high}")
    return tensor


def _numbers(tensors: dict[str, Tensor], name: str, count: int) -> Tables:
    """Return ``count`` tables of the coder: of two symbols or more, each of some count, 65536 together."""
    total = 2**PRECISION
    lengths = _ranged(tensors, f"{name}.length", count, 3, total + 1).tolist()
    flat = _ranged(tensors, f"{name}.cdf", sum(lengths), 0, total).tolist()
    offset = _ranged(tensors, f"{name}.offset", count, -MAX_VALUE, MAX_VALUE - total).tolist()
    ends = [0, *accumulate(lengths)]
    cdfs = [flat[start:end] for start, end in pairwise(ends)]
    for cdf in cdfs:
        if cdf[0] or cdf[-1] != total or any(a >= b for a, b in pairwise(cdf)):
            raise InputError(f"table {name}.cdf of a model does not rise from 0 to {total} in each part")
    return Tables(cdfs, offset)
