"""Classifier-free guidance (Ho and Salimans 2022, arXiv 2207.12598): lean towards what the class adds."""

import math
from collections.abc import Callable, Sequence
from numbers import Real
from typing import Any

import torch
from torch import Tensor

from belvedere.errors import InputError

ROUNDING = 1e-6
"""By which the time of a step may miss the end of an interval that it is meant to be."""


def combine(conditional: Tensor, unconditional: Tensor, weight: Tensor | float, channels: int | None = None) -> Tensor:
    """Return ``unconditional + weight * (conditional - unconditional)``, (..., c); weight 1 is the conditional.

    ``channels``: only the first of the last axis are guided, the others stay the conditional's (DiT's "three channel"
    form, which the published FiTv2 samples use); None: all.
    """
    if channels is None:
        return torch.lerp(unconditional, conditional, weight)
    guided = torch.lerp(unconditional[..., :channels], conditional[..., :channels], weight)
    return torch.cat((guided, conditional[..., channels:]), -1)


def check_interval(interval: Any) -> tuple[float, float]:
    """Return an interval of guidance (low, high): shares of the way from noise, 0, to the picture, 1.

    Outside of it there is none, and its half of the work is saved (Kynkaanniemi et al., arXiv 2404.07724). What is no
    such pair raises ``InputError``.
    """
    pair = tuple(interval) if isinstance(interval, Sequence) and not isinstance(interval, str) else ()
    numbers = all(isinstance(x, Real) and not isinstance(x, bool) for x in pair)
    if len(pair) != 2 or not numbers or not 0 <= pair[0] <= pair[1] <= 1:
        raise InputError(f"guidance interval {interval!r:.80}: two numbers with 0 <= first <= second <= 1")
    return float(pair[0]), float(pair[1])


def guides(interval: tuple[float, float], share: float) -> bool:
    """Return whether there is guidance at this share of the way; ends belong to it, whatever rounding made of them."""
    low, high = interval
    return low - ROUNDING <= share <= high + ROUNDING


def published_weight(scale: float) -> float:
    """Return the weight of DiMR's form ``cond + scale * (cond - uncond)``, which is ``1 + scale``."""
    return 1 + scale


def cosine_power_weight(t: float, scale: float, power: float) -> float:
    """Return the weight at time t in [0, 1]: ``scale`` at t = 0, falling to 1 at t = 1.

    1 + (scale - 1) (1 - cos(pi (1 - t)^power)) / 2, the cosine-power form of MDT (arXiv 2303.14389); with a larger
    ``power`` > 0 it falls earlier. DiMR's t = 0 is clean data, FiTv2's is noise: each as published. ``scale`` below 1
    or ``power`` not above 0 raises ``InputError``.
    """
    if scale < 1 or power <= 0:
        raise InputError(f"cosine guidance needs scale >= 1 and power > 0, not scale {scale} and power {power}")
    rise = (1 - math.cos((1 - t) ** power * math.pi)) / 2
    return 1 + (scale - 1) * rise


def guide(
    predict: Callable[[Tensor, Tensor], Tensor], x: Tensor, labels: Tensor, null_label: int, weight: float
) -> Tensor:
    """Return the guided prediction (b, ...) of ``predict(x, labels)`` for x (b, ...) and labels (b,), int64.

    The conditional and the unconditional half go through the network as one batch (2b, ...). At weight 1 the
    unconditional half is not computed.
    """
    if weight == 1:
        return predict(x, labels)
    both = torch.cat([labels, torch.full_like(labels, null_label)])  # (2b,)
    conditional, unconditional = predict(torch.cat([x, x]), both).chunk(2)  # (b, ...) twice
    return combine(conditional, unconditional, weight)
