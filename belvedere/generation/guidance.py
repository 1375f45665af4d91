"""Classifier-free guidance (Ho and Salimans 2022, arXiv 2207.12598): lean towards what the class adds."""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from belvedere.errors import InputError


def combine(conditional: Tensor, unconditional: Tensor, weight: float) -> Tensor:
    """Return ``unconditional + weight * (conditional - unconditional)``; weight 1 is the conditional."""
    return torch.lerp(unconditional, conditional, weight)


def published_weight(scale: float) -> float:
    """Return the weight of DiMR's form ``cond + scale * (cond - uncond)``, which is ``1 + scale``."""
    return 1 + scale


def cosine_power_weight(t: float, scale: float, power: float) -> float:
    """Return the weight at time t in [0, 1]: 1 at pure noise, rising to ``scale`` at clean data.

    1 + (scale - 1) (1 - cos(pi (1 - t)^power)) / 2, the cosine-power form of MDT (arXiv 2303.14389). A larger
    ``power`` > 0 rises later. ``scale`` below 1 or ``power`` not above 0 raises ``InputError``.
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
