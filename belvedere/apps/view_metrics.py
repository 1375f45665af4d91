"""How good a view is: PSNR and SSIM against the true picture, and whether what is farther away is seen as farther."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from belvedere.errors import InputError

WINDOW = 11
"""Side of the Gaussian window of SSIM, in pixels."""
SIGMA = 1.5
CONSTANTS = 0.01**2, 0.03**2
"""C1 and C2 of SSIM for values in [0, 1]."""


def psnr(a: Tensor, b: Tensor) -> float:
    """Return the peak signal-to-noise ratio in dB of pictures of one shape, 1 being white; infinite for equal ones."""
    _check_shapes(a, b)
    error = (a.double() - b.double()).square().mean().item()
    return -10 * math.log10(error) if error else math.inf


def ssim(a: Tensor, b: Tensor) -> float:
    """Return the structural similarity of pictures (c, h, w) in [0, 1], the mean over channels and pixels.

    Wang, Bovik, Sheikh and Simoncelli 2004, equation (13): a Gaussian window of 11 pixels and sigma 1.5, where it fits.
    Raises ``InputError`` for pictures of fewer than 11 pixels a side.
    """
    _check_shapes(a, b)
    if a.ndim != 3 or min(a.shape[1:]) < WINDOW:
        raise InputError(f"SSIM of {tuple(a.shape)}: pictures must be (c, h, w), of {WINDOW} pixels a side or more")
    a, b = a.double(), b.double()
    mean_a, mean_b, square_a, square_b, product = _blur(torch.stack([a, b, a * a, b * b, a * b]))
    variance_a, variance_b = square_a - mean_a**2, square_b - mean_b**2
    covariance = product - mean_a * mean_b
    c1, c2 = CONSTANTS
    luminance = (2 * mean_a * mean_b + c1) / (mean_a**2 + mean_b**2 + c1)
    structure = (2 * covariance + c2) / (variance_a + variance_b + c2)
    return (luminance * structure).mean().item()


def _blur(x: Tensor) -> Tensor:
    """Return the Gaussian means of maps (n, c, h, w) where the window fits: (n, c, h - 10, w - 10)."""
    distance = torch.arange(WINDOW, dtype=x.dtype, device=x.device) - WINDOW // 2
    window = torch.exp(-(distance**2) / (2 * SIGMA**2))
    window = window / window.sum()
    maps = x.flatten(0, 1).unsqueeze(1)  # (n c, 1, h, w)
    maps = F.conv2d(F.conv2d(maps, window.view(1, 1, -1, 1)), window.view(1, 1, 1, -1))
    return maps.squeeze(1).unflatten(0, x.shape[:2])  # (n, c, h - 10, w - 10)


def rank_correlation(a: Tensor, b: Tensor) -> float:
    """Return Spearman's rank correlation of two lists (n,): 1 where both rise together; NaN when one is constant.

    Equal numbers share the mean of their ranks. Raises ``InputError`` for lists of different lengths.
    """
    _check_shapes(a, b)
    ranks = torch.stack([_ranks(a), _ranks(b)])  # (2, n)
    ranks -= ranks.mean(1, keepdim=True)
    spread = ranks.square().sum(1).prod().sqrt()
    return (ranks.prod(0).sum() / spread).item()


def _ranks(values: Tensor) -> Tensor:
    """Return the rank (n,), float64, of each number, from 0."""
    _, place, count = values.flatten().unique(return_inverse=True, return_counts=True)
    return (count.cumsum(0) - (count + 1) / 2)[place].double()


def _check_shapes(a: Tensor, b: Tensor) -> None:
    if a.shape != b.shape:
        raise InputError(f"cannot compare {tuple(a.shape)} with {tuple(b.shape)}: give the same shape")
