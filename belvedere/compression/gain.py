"""One network for many rates: the latent is scaled before it is rounded, and scaled back after."""

import math

import torch
from torch import Tensor, nn

from belvedere.errors import InputError

SPREAD = math.log(0.0483 / 0.0018) / 2
"""Logarithm of the gain of the highest rate over that of the lowest, at first: an error of rounding whose square goes
with 1 / lambda, from the lowest published lambda to the highest."""


class Gain(nn.Module):
    """A factor of every latent channel for each of ``rates`` rates, and another that undoes it.

    Both are learned and stored as logarithms (Cui et al., "Asymmetric gained deep image compression with continuous
    rate adaptation", arXiv 2003.02012).
    """

    def __init__(self, rates: int, channels: int):
        super().__init__()
        logs = torch.linspace(-SPREAD / 2, SPREAD / 2, rates)[:, None].repeat(1, channels)
        self.log_gain, self.log_inverse = nn.Parameter(logs), nn.Parameter(-logs)

    @property
    def rates(self) -> int:
        """How many rates were trained."""
        return len(self.log_gain)

    def forward(self, quality: Tensor) -> tuple[Tensor, Tensor]:
        """Return the factors (b, c, 1, 1) before and after rounding.

        ``quality`` (b,): from 0, the lowest rate, to ``rates`` - 1; between two rates the factors are the geometric
        interpolation of theirs. Outside that range ``InputError``.
        """
        last = self.rates - 1
        if not (quality >= 0).all() or not (quality <= last).all():
            raise InputError(f"quality {quality.tolist()}: must be from 0 to {last}")
        low = quality.floor().long().clamp(max=max(0, last - 1))  # (b,)
        part = (quality - low)[:, None]  # (b, 1)
        high = (low + 1).clamp(max=last)
        gain, inverse = (torch.lerp(logs[low], logs[high], part) for logs in (self.log_gain, self.log_inverse))
        return gain.exp()[:, :, None, None], inverse.exp()[:, :, None, None]
