"""Noise schedules: how much data and noise a sample holds at time t, x_t = alpha(t) x0 + sigma(t) noise.

Time runs from t = 1 (noise) to t = 0 (clean data). Look-ups take a float or a tensor of any shape and are float64.
"""

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import torch
from torch import Tensor

from belvedere.errors import InputError

Skip = Literal["time_uniform", "logSNR", "t2"]


def _double(t: Tensor | float) -> Tensor:
    return t.double() if isinstance(t, Tensor) else torch.tensor(t, dtype=torch.float64, device="cpu")


@dataclass(frozen=True)
class ScaledLinear:
    """Stable Diffusion's discrete schedule made continuous: betas are the squares of a line, 1000 steps.

    ``log alpha`` is piecewise linear through the knots t = n / steps and extrapolated by its end segments
    (Lu et al. 2022, DPM-Solver, arXiv 2206.00927, appendix D.4). Variance preserving: alpha^2 + sigma^2 = 1.
    Times below about 5e-6 are clean data: alpha 1, sigma 0.
    """

    beta_start: float = 0.00085
    beta_end: float = 0.012
    steps: int = 1000
    start: float = 1.0
    end: float = 0.001

    @cached_property
    def betas(self) -> Tensor:
        """Variance added by each discrete step n = 1..steps: float64 (steps,)."""
        start, end = self.beta_start**0.5, self.beta_end**0.5
        return torch.linspace(start, end, self.steps, dtype=torch.float64, device="cpu") ** 2

    @cached_property
    def alpha_bar(self) -> Tensor:
        """Share of the data's variance left after n = 0..steps steps: float64 (steps + 1,), the first 1."""
        left = torch.cumprod(1 - self.betas, 0)
        return torch.cat([left.new_ones(1), left])

    @cached_property
    def _knots(self) -> Tensor:
        return 0.5 * torch.cumsum(torch.log1p(-self.betas), 0)

    def log_alpha(self, t: Tensor | float) -> Tensor:
        """Return log alpha(t) <= 0, float64, in the shape of ``t``."""
        position = _double(t) * self.steps - 1
        left = position.floor().clamp(0, self.steps - 2).long()
        knots = self._knots.to(position.device)
        return torch.lerp(knots[left], knots[left + 1], position - left).clamp(max=0)

    def alpha(self, t: Tensor | float) -> Tensor:
        """Return the coefficient of the data."""
        return self.log_alpha(t).exp()

    def sigma(self, t: Tensor | float) -> Tensor:
        """Return the coefficient of the noise."""
        return (-torch.expm1(2 * self.log_alpha(t))).sqrt()

    def log_snr_half(self, t: Tensor | float) -> Tensor:
        """Return lambda(t) = log(alpha / sigma), half the log signal-to-noise ratio; clean data: infinite."""
        log_alpha = self.log_alpha(t)
        return log_alpha - 0.5 * torch.log(-torch.expm1(2 * log_alpha))

    def inverse_lambda(self, lam: Tensor | float) -> Tensor:
        """Return the time t at which ``log_snr_half(t)`` is ``lam``."""
        lam = _double(lam)
        log_alpha = -0.5 * torch.logaddexp(torch.zeros_like(lam), -2 * lam)
        knots = self._knots.to(lam.device)
        right = torch.searchsorted(-knots, -log_alpha).clamp(1, self.steps - 1)
        fraction = (log_alpha - knots[right - 1]) / (knots[right] - knots[right - 1])
        return (right + fraction) / self.steps

    def velocity(self, t: Tensor | float) -> tuple[Tensor, Tensor]:
        """Return (p, q) of the velocity p noise - q x0: v = alpha noise - sigma x0 (arXiv 2202.00512)."""
        return self.alpha(t), self.sigma(t)


@dataclass(frozen=True)
class Flow:
    """Rectified flow: a straight line from data to noise, x_t = (1 - t) x0 + t noise (arXiv 2209.03003)."""

    start: float = 1.0
    end: float = 0.0

    def alpha(self, t: Tensor | float) -> Tensor:
        """Return the coefficient of the data."""
        return 1 - _double(t)

    def sigma(self, t: Tensor | float) -> Tensor:
        """Return the coefficient of the noise."""
        return _double(t)

    def log_snr_half(self, t: Tensor | float) -> Tensor:
        """Return lambda(t) = log((1 - t) / t): minus infinity for pure noise, infinity for clean data."""
        return torch.log1p(-_double(t)) - torch.log(_double(t))

    def inverse_lambda(self, lam: Tensor | float) -> Tensor:
        """Return the time t at which ``log_snr_half(t)`` is ``lam``."""
        return torch.sigmoid(-_double(lam))

    def velocity(self, t: Tensor | float) -> tuple[Tensor, Tensor]:
        """Return (p, q) of the velocity p noise - q x0: v = noise - x0, the line's direction."""
        one = torch.ones_like(_double(t))
        return one, one


Schedule = ScaledLinear | Flow


def make_schedule(name: str) -> Schedule:
    """Return the schedule called ``scaled_linear`` or ``flow``; another name raises ``InputError``."""
    if name == "scaled_linear":
        return ScaledLinear()
    if name == "flow":
        return Flow()
    raise InputError(f"unknown noise schedule {name!r}: use 'scaled_linear' or 'flow'")


def time_grid(
    schedule: Schedule,
    steps: int,
    skip: Skip = "time_uniform",
    *,
    shift: float = 1.0,
    start: float | None = None,
    end: float | None = None,
) -> Tensor:
    """Return ``steps + 1`` decreasing float64 times from ``start`` to ``end``, by default the schedule's own.

    ``skip`` spaces them evenly in t, in lambda (``logSNR``; the ends must not be pure noise or clean data) or
    in the root of t (``t2``). ``shift`` s moves them towards noise, t -> s t / (1 + (s - 1) t) (arXiv
    2403.03206, eq. 23), which suits larger pictures.
    """
    if steps < 1 or shift <= 0:
        raise InputError(f"a time grid needs steps >= 1 and shift > 0, not steps {steps} and shift {shift}")
    first = schedule.start if start is None else start
    last = schedule.end if end is None else end
    if skip == "time_uniform":
        times = torch.linspace(first, last, steps + 1, dtype=torch.float64, device="cpu")
    elif skip == "t2":
        times = torch.linspace(first**0.5, last**0.5, steps + 1, dtype=torch.float64, device="cpu") ** 2
    elif skip == "logSNR":
        times = _log_snr_grid(schedule, first, last, steps)
    else:
        raise InputError(f"unknown time spacing {skip!r}: use 'time_uniform', 'logSNR' or 't2'")
    return shift * times / (1 + (shift - 1) * times)


def _log_snr_grid(schedule: Schedule, first: float, last: float, steps: int) -> Tensor:
    lam = [schedule.log_snr_half(t).item() for t in (first, last)]
    if not all(map(math.isfinite, lam)):
        raise InputError(f"spacing 'logSNR' needs ends strictly between noise and data, not {first} and {last}")
    even = torch.linspace(lam[0], lam[1], steps + 1, dtype=torch.float64, device="cpu")
    times = schedule.inverse_lambda(even)
    times[0], times[-1] = first, last
    return times
