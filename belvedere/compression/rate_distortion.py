"""How good a compressed picture is (PSNR, MS-SSIM), and how much smaller files are at equal quality (BD-rate)."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from belvedere.errors import InputError

WINDOW = 11
"""Side of the Gaussian window, in pixels."""
SIGMA = 1.5
WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)
"""Exponents of the five scales, finest first."""
SMALLEST = (WINDOW - 1) * 2 ** (len(WEIGHTS) - 1) + 1
"""Least side, in pixels, of a picture that ``ms_ssim`` can look at: the window fits in the coarsest scale."""

BAND = 256
"""Rows that are filtered at once."""

BLOCK = 1 << 22
"""Values whose errors are in memory at once: the sum of all is exact."""


@dataclass(frozen=True)
class Point:
    """What one codec at one quality reaches, for one picture or as the mean of several."""

    bpp: float
    """Bits per pixel of the whole file."""
    psnr: float
    """In dB; infinite when every bit is the same."""
    ms_ssim: float
    encode_seconds: float
    decode_seconds: float


def mean_point(points: Sequence[Point]) -> Point:
    """Return the mean of each figure over pictures, as results are published: of the bpp, of the PSNR in dB, ..."""
    return Point(*np.mean([tuple(vars(point).values()) for point in points], axis=0).tolist())


def psnr(a: Tensor, b: Tensor) -> float:
    """Return the peak signal-to-noise ratio of 8-bit pictures (peak 255) in dB, from the mean error of all values.

    a, b: uint8 of one shape; anything else raises ``InputError``, floats too: what a file shows has 8 bits.
    """
    _check_shapes(a, b)
    if a.dtype != torch.uint8 or b.dtype != torch.uint8:
        raise InputError(f"PSNR of {a.dtype} and {b.dtype}: round both pictures to 8 bits (uint8)")
    blocks = zip(a.flatten().split(BLOCK), b.flatten().split(BLOCK), strict=True)
    error = sum(int((x.int() - y.int()).square().sum()) for x, y in blocks) / a.numel()
    return 10 * math.log10(255**2 / error) if error else math.inf


def ms_ssim(a: Tensor, b: Tensor) -> Tensor:
    """Return the multi-scale structural similarity (b,) of pictures (b, 3, h, w) in [0, 1]; it can be trained on.

    Wang, Simoncelli and Bovik 2003: five scales, the window only where it fits, 2x2 means from scale to scale (at an
    odd border, of what there is). As usual for codecs, each channel is measured alone, negative similarity of a scale
    counts as none, and the channels' results are averaged. A side below 161 pixels raises ``InputError``.

    Channel after channel, which takes about 100 bytes a pixel where there are no gradients.
    """
    _check_shapes(a, b)
    if min(a.shape[-2:]) < SMALLEST:
        raise InputError(f"MS-SSIM of {a.shape[-1]} x {a.shape[-2]} pixels: each side must have {SMALLEST} or more")
    channels = zip(a.split(1, dim=1), b.split(1, dim=1), strict=True)
    return torch.cat([_over_scales(x, y) for x, y in channels], 1).mean(1)


def _over_scales(a: Tensor, b: Tensor) -> Tensor:
    """Return the product of the scales' similarities (b, c) of pictures (b, c, h, w)."""
    result = a.new_ones(a.shape[:2])
    for scale, weight in enumerate(WEIGHTS):
        if scale:
            a, b = (F.avg_pool2d(x, 2, ceil_mode=True) for x in (a, b))
        luminance, contrast = _similarity(a, b)
        similarity = (luminance * contrast if scale == len(WEIGHTS) - 1 else contrast).mean((2, 3))  # (b, c)
        result = result * similarity.clamp(min=0) ** weight
    return result


def _similarity(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Return luminance and contrast-structure similarity of pictures (b, c, h, w): two of (b, c, h - 10, w - 10)."""
    mean_a, mean_b, square_a, square_b, product = _blur(torch.stack([a, b, a * a, b * b, a * b]))
    variances = square_a + square_b - mean_a**2 - mean_b**2
    covariance = product - mean_a * mean_b
    luminance = (2 * mean_a * mean_b + 0.01**2) / (mean_a**2 + mean_b**2 + 0.01**2)
    return luminance, (2 * covariance + 0.03**2) / (variances + 0.03**2)


def _blur(x: Tensor) -> Tensor:
    """Return the Gaussian means of x (..., h, w) where the window fits: (..., h - 10, w - 10).

    All maps are channels of one picture, which a CPU filters three times faster than a batch; it pads them to 16, so
    that it is given bands of rows.
    """
    maps = x.flatten(0, -3)  # (n, h, w)
    distance = torch.arange(WINDOW, dtype=x.dtype, device=x.device) - WINDOW // 2
    window = torch.exp(-(distance**2) / (2 * SIGMA**2))
    window = (window / window.sum()).expand(len(maps), 1, 1, WINDOW)
    bands = (maps[None, :, row : row + BAND + WINDOW - 1] for row in range(0, maps.shape[1] - WINDOW + 1, BAND))
    filtered = [F.conv2d(F.conv2d(x, window, groups=len(maps)), window.mT, groups=len(maps)) for x in bands]
    means = torch.cat(filtered, 2)
    return means.view(*x.shape[:-2], *means.shape[-2:])


def _check_shapes(a: Tensor, b: Tensor) -> None:
    if a.shape != b.shape:
        raise InputError(f"pictures {tuple(a.shape)} and {tuple(b.shape)} cannot be compared: give one size")


def bd_rate(
    rate_a: Sequence[float], quality_a: Sequence[float], rate_b: Sequence[float], quality_b: Sequence[float]
) -> float:
    """Return how many percent more rate codec a needs than codec b, the anchor, at equal quality; negative is smaller.

    Bjontegaard 2001 (VCEG-M33): the mean difference of log rate over the range of quality that both cover, between
    the points by monotone cubics (PCHIP). Points come in any order. Fewer than four, a quality that does not rise
    with the rate, or no common range raises ``InputError``.
    """
    a, b = _curve(rate_a, quality_a), _curve(rate_b, quality_b)
    low, high = max(a[0][0], b[0][0]), min(a[0][-1], b[0][-1])
    if low >= high:
        raise InputError("BD-rate: the curves have no quality in common; measure more qualities of either")
    difference = (_integral(*a, low, high) - _integral(*b, low, high)) / (high - low)
    return 100 * math.expm1(difference)


def _curve(rate: Sequence[float], quality: Sequence[float]) -> tuple[np.ndarray, np.ndarray]:
    """Return quality and log rate in rising order, checked."""
    points = np.array(sorted(zip(rate, quality, strict=True)), dtype=float).reshape(-1, 2)
    if len(points) < 4:
        raise InputError(f"BD-rate: a curve has {len(points)} points; give four or more")
    if not (np.isfinite(points).all() and points[0, 0] > 0):
        raise InputError("BD-rate: rates must be above 0, and qualities finite; leave lossless points out")
    if not (np.diff(points, axis=0) > 0).all():
        raise InputError("BD-rate: quality does not rise with the rate all along a curve; leave out points that fall")
    return points[:, 1], np.log(points[:, 0])


def _integral(x: np.ndarray, y: np.ndarray, low: float, high: float) -> float:
    """Return the integral from ``low`` to ``high`` of the monotone cubics through (x, y), both rising."""
    width, slope = np.diff(x), np.diff(y) / np.diff(x)
    tangent = _tangents(width, slope)
    second = (3 * slope - 2 * tangent[:-1] - tangent[1:]) / width
    third = (tangent[:-1] + tangent[1:] - 2 * slope) / width**2
    start, end = (np.clip(bound, x[:-1], x[1:]) - x[:-1] for bound in (low, high))
    powers = [(end**k - start**k) / k for k in range(1, 5)]
    return float(sum((c * p).sum() for c, p in zip((y[:-1], tangent[:-1], second, third), powers, strict=True)))


def _tangents(width: np.ndarray, slope: np.ndarray) -> np.ndarray:
    """Return the tangents of PCHIP at n points (Fritsch and Butland 1984); ``width`` and ``slope`` > 0: (n - 1,)."""
    before, after = width[:-1] + 2 * width[1:], 2 * width[:-1] + width[1:]
    inner = (before + after) / (before / slope[:-1] + after / slope[1:])
    return np.concatenate([[_end_tangent(width, slope)], inner, [_end_tangent(width[::-1], slope[::-1])]])


def _end_tangent(width: np.ndarray, slope: np.ndarray) -> float:
    """Return the tangent at the first point, by the parabola through the first three, but not below 0."""
    return max(((2 * width[0] + width[1]) * slope[0] - width[0] * slope[1]) / (width[0] + width[1]), 0)
