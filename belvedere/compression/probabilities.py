"""Quantisation, and how probable the quantised numbers are: the float path, for training and parity."""

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from belvedere.compression.layers import lower_bound
from belvedere.seeds import BatchRng

LEAST_PROBABILITY = 1e-9
LEAST_SCALE = 0.11
TAIL_MASS = 1e-9
"""Probability outside the outer quantiles of a bottleneck."""
TAIL = math.log(2 / TAIL_MASS - 1)
"""Logit of the cumulative distribution at the upper of them."""
FAR = 1024.0
"""Outer quantiles that are further out than this are put here; what is beyond is coded as an escape."""
BISECTIONS = 24
"""Until the interval, at first 2 ``FAR``, is about 1e-4."""

FILTERS = (1, 3, 3, 3, 3, 1)
"""Widths of the network that is a bottleneck's cumulative distribution."""
INITIAL_SCALE = 10.0


def round_through(x: Tensor) -> Tensor:
    """Return ``x`` rounded, halves to even; its gradient is that of ``x``."""
    return torch.round(x) - x.detach() + x


def rate_noise(rng: BatchRng | None, name: str, x: Tensor, rows: Sequence[int]) -> Tensor | None:
    """Return uniform noise in (-1/2, 1/2) for ``x`` (r, ...); None, which means rounding, without ``rng``.

    ``rows``: how many of the r rows belong to each picture, whose noise is its own.
    """
    if rng is None:
        return None
    normal = torch.cat(rng.ragged(name, [(count, *x.shape[1:]) for count in rows]))
    return torch.special.ndtr(normal) - 0.5


def gaussian_likelihood(residual: Tensor, scale: Tensor, noise: Tensor | None) -> Tensor:
    """Return the probability of ``residual``, latent - mean, once rounded (or noisy), under a normal of ``scale``."""
    distance = (torch.round(residual) if noise is None else residual + noise).abs()
    scale = lower_bound(scale, LEAST_SCALE)
    upper, lower = ((half - distance) / scale for half in (0.5, -0.5))
    return lower_bound(normal_cdf(upper) - normal_cdf(lower), LEAST_PROBABILITY)


def normal_cdf(x: Tensor) -> Tensor:
    """Return the cumulative distribution of the standard normal, precise in the lower tail."""
    return 0.5 * torch.erfc(-(2**-0.5) * x)


class Bottleneck(nn.Module):
    """A learned distribution for each of ``channels`` (Ballé et al., arXiv 1802.01436, appendix 6.1)."""

    def __init__(self, channels: int):
        super().__init__()
        scale = INITIAL_SCALE ** (1 / (len(FILTERS) - 1))
        pairs = list(pairwise(FILTERS))
        start = [math.log(math.expm1(1 / scale / outputs)) for _, outputs in pairs]
        self.matrices = nn.ParameterList(
            torch.full((channels, o, i), at) for at, (i, o) in zip(start, pairs, strict=True)
        )
        self.biases = nn.ParameterList(torch.rand(channels, o, 1) - 0.5 for _, o in pairs)
        self.factors = nn.ParameterList(torch.zeros(channels, o, 1) for _, o in pairs[:-1])
        self.quantiles = nn.Parameter(torch.tensor([-INITIAL_SCALE, 0.0, INITIAL_SCALE]).repeat(channels, 1, 1))

    @property
    def medians(self) -> Tensor:
        """The median of each channel: (c, 1, 1)."""
        return self.quantiles[:, :, 1:2]

    def forward(self, x: Tensor, noise: Tensor | None) -> tuple[Tensor, Tensor]:
        """Return ``x`` (b, c, h, w) rounded about the medians, and the probability of that (or of ``x`` + noise)."""
        from_median = x - self.medians
        noisy = torch.round(from_median) + self.medians if noise is None else x + noise
        return round_through(from_median) + self.medians, self.likelihood(noisy)

    def likelihood(self, x: Tensor) -> Tensor:
        """Return the probability of the interval x - 1/2 to x + 1/2: (b, c, h, w)."""
        rows = x.transpose(0, 1).flatten(1)[:, None]  # (c, 1, n)
        probability = self.interval(rows)[:, 0].unflatten(1, (len(x), *x.shape[2:])).transpose(0, 1)
        return lower_bound(probability, LEAST_PROBABILITY)

    def interval(self, rows: Tensor) -> Tensor:
        """Return the probability of the unit interval around each number (c, 1, n), precise in both tails."""
        lower, upper = self.logits(rows - 0.5), self.logits(rows + 0.5)
        sign = -torch.sign(lower + upper).detach()
        return (torch.sigmoid(sign * upper) - torch.sigmoid(sign * lower)).abs()

    def logits(self, rows: Tensor, *, fixed: bool = False) -> Tensor:
        """Return the logit of the cumulative distribution at ``rows`` (c, 1, n).

        ``fixed``: as if the distribution were no parameter.
        """
        parameters = (self.matrices, self.biases, self.factors)
        matrices, biases, factors = ([p.detach() if fixed else p for p in group] for group in parameters)
        with torch.autocast(rows.device.type, enabled=False):
            for i, (matrix, bias) in enumerate(zip(matrices, biases, strict=True)):
                rows = F.softplus(matrix) @ rows + bias  # (c, o, n)
                if i < len(factors):
                    rows = rows + torch.tanh(factors[i]) * torch.tanh(rows)
        return rows

    def quantile_loss(self) -> Tensor:
        """Return how far the quantiles are from where they belong: they alone learn from it."""
        wanted = self.quantiles.new_tensor([-TAIL, 0.0, TAIL])
        return (self.logits(self.quantiles, fixed=True) - wanted).abs().sum()

    @torch.no_grad()
    def settle_quantiles(self) -> None:
        """Move the outer quantiles to where they belong, by bisection, at most ``FAR`` from 0.

        The auxiliary loss is slow to follow a distribution that changes; the median, about which numbers are rounded,
        stays where training left it.
        """
        wanted = self.quantiles.new_tensor([-TAIL, TAIL])
        low = torch.full_like(self.quantiles[..., ::2], -FAR)  # (c, 1, 2)
        high = -low
        for _ in range(BISECTIONS):
            middle = (low + high) / 2
            below = self.logits(middle) < wanted
            low, high = torch.where(below, middle, low), torch.where(below, high, middle)
        self.quantiles[..., ::2] = (low + high) / 2
