"""PSNR, SSIM and rank correlation against values worked out otherwise."""

import math

import pytest
import torch
from torch import Tensor

from belvedere.apps.view_metrics import WINDOW, psnr, rank_correlation, ssim
from belvedere.errors import InputError


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def test_psnr() -> None:
    a = random(3, 5, 7)
    assert psnr(a, a + 0.1) == pytest.approx(20, abs=1e-4)
    assert psnr(a, a) == math.inf
    with pytest.raises(InputError, match=r"\(3, 5, 7\) with \(3, 5, 6\)"):
        psnr(a, a[..., :6])


def test_ssim_of_one_window_is_its_formula() -> None:
    a, b = random(1, WINDOW, WINDOW), random(1, WINDOW, WINDOW, seed=1)
    x = torch.arange(WINDOW, dtype=torch.float64) - 5
    weight = torch.exp(-(x[:, None] ** 2 + x**2) / (2 * 1.5**2))
    weight /= weight.sum()
    p, q = a[0].double(), b[0].double()
    mean_p, mean_q = (weight * p).sum(), (weight * q).sum()
    variance_p, variance_q = (weight * (p - mean_p) ** 2).sum(), (weight * (q - mean_q) ** 2).sum()
    covariance = (weight * (p - mean_p) * (q - mean_q)).sum()
    expected = (2 * mean_p * mean_q + 1e-4) * (2 * covariance + 9e-4)
    expected /= (mean_p**2 + mean_q**2 + 1e-4) * (variance_p + variance_q + 9e-4)
    assert ssim(a, b) == pytest.approx(expected.item(), rel=1e-9)


def test_ssim_is_the_mean_over_windows_and_channels() -> None:
    a, b = random(2, 13, 12), random(2, 13, 12, seed=1)
    windows = [(c, i, j) for c in range(2) for i in range(3) for j in range(2)]
    parts = [ssim(*(x[c : c + 1, i : i + WINDOW, j : j + WINDOW] for x in (a, b))) for c, i, j in windows]
    assert ssim(a, b) == pytest.approx(sum(parts) / len(parts), rel=1e-9)
    assert ssim(a, a) == pytest.approx(1)
    assert ssim(a, 1 - a) < 0
    with pytest.raises(InputError, match="11 pixels a side"):
        ssim(a[..., :10], b[..., :10])


def test_rank_correlation() -> None:
    a = random(50)
    assert rank_correlation(a, a.exp()) == pytest.approx(1)
    assert rank_correlation(a, -a) == pytest.approx(-1)
    # Ties share ranks: 0.5, 0.5, 2, 3 against 0, 1.5, 1.5, 3: products 3.75, squares 4.5 each.
    assert rank_correlation(torch.tensor([1.0, 1, 2, 3]), torch.tensor([1.0, 2, 2, 3])) == pytest.approx(3.75 / 4.5)
    assert math.isnan(rank_correlation(a, torch.ones(50)))
    assert abs(rank_correlation(random(2000), random(2000, seed=1))) < 0.1
