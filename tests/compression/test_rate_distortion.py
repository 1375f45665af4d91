"""Quality and BD-rate against slow formulas, figures by hand, and published ones."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from belvedere.compression.rate_distortion import Point, _integral, bd_rate, mean_point, ms_ssim, psnr
from belvedere.errors import InputError

KODAK = {
    "SegPIC": [(0.12, 29.24), (0.194, 30.76), (0.288, 32.25), (0.439, 34.23), (0.633, 36.01), (0.861, 37.81)],
    "VTM": [
        (0.034, 25.392), (0.049, 26.242), (0.097, 28.112), (0.135, 29.136), (0.184, 30.216), (0.251, 31.366),
        (0.334, 32.557), (0.439, 33.803), (0.565, 35.063), (0.715, 36.323), (0.892, 37.591),
    ],
    "BPG": [(0.068, 26.195), (0.161, 28.679), (0.351, 31.601), (0.684, 34.855), (1.199, 38.256)],
    "ChARM": [(0.113, 28.618), (0.19, 30.258), (0.3, 31.961), (0.461, 33.831), (0.669, 35.756), (0.899, 37.411)],
}  # fmt: skip
RATE, QUALITY = [0.1, 0.2, 0.4, 0.9], [25.0, 27.5, 31.0, 36.0]


def pair(height: int, width: int, noise: float = 0.1, batch: int = 1) -> tuple[Tensor, Tensor]:
    """Two pictures (b, 3, h, w) in [0, 1], float64: waves, and the same with noise."""
    generator = torch.Generator().manual_seed(0)
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    waves = torch.stack([torch.sin(x / 9), torch.cos(y / 7), torch.sin((x + y) / 23)]).double()  # (3, h, w)
    a = (0.5 + 0.4 * waves).expand(batch, 3, height, width)
    return a, (a + noise * torch.randn(a.shape, generator=generator, dtype=torch.float64)).clamp(0, 1)


def slow_ms_ssim(a: np.ndarray, b: np.ndarray) -> float:
    """Of one channel (h, w), from the definition: weighted moments about the mean of every window."""
    window = np.array([[math.exp(-(i * i + j * j) / 4.5) for i in range(-5, 6)] for j in range(-5, 6)])
    window /= window.sum()
    product = 1.0
    for scale, weight in enumerate((0.0448, 0.2856, 0.3001, 0.2363, 0.1333)):
        if scale:
            a, b = (halved(x) for x in (a, b))
        p, q = (np.lib.stride_tricks.sliding_window_view(x, (11, 11)) for x in (a, b))
        mean_p, mean_q = ((x * window).sum((2, 3)) for x in (p, q))
        p, q = p - mean_p[..., None, None], q - mean_q[..., None, None]
        both = (p * q * window).sum((2, 3))
        found = (2 * both + 0.0009) / ((p * p * window).sum((2, 3)) + (q * q * window).sum((2, 3)) + 0.0009)
        if scale == 4:
            found *= (2 * mean_p * mean_q + 0.0001) / (mean_p**2 + mean_q**2 + 0.0001)
        product *= max(found.mean(), 0) ** weight
    return product


def halved(x: np.ndarray) -> np.ndarray:
    height, width = x.shape
    return np.array([[x[i : i + 2, j : j + 2].mean() for j in range(0, width, 2)] for i in range(0, height, 2)])


def test_psnr_by_hand() -> None:
    a = torch.full((3, 2, 2), 7, dtype=torch.uint8)
    assert psnr(a, a + 1) == pytest.approx(20 * math.log10(255))
    b = a.clone()
    b[0, 0, 0] = 0  # 7 off in one of 12 values: an uint8 that goes below 0 would wrap
    assert psnr(b, a) == psnr(a, b) == pytest.approx(10 * math.log10(255**2 * 12 / 49))
    assert psnr(a, a) == math.inf


def test_psnr_of_a_picture_in_blocks_is_that_of_all_its_values(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(0)
    a, b = torch.randint(0, 256, (2, 97, 131, 3), dtype=torch.uint8, generator=generator)
    want = 10 * math.log10(255**2 / (a.double() - b.double()).square().mean().item())
    assert psnr(a, b) == want
    monkeypatch.setattr("belvedere.compression.rate_distortion.BLOCK", 1000)
    assert psnr(a, b) == want and psnr(a.transpose(0, 1), b.transpose(0, 1)) == want


def test_psnr_takes_little_memory_beside_the_picture() -> None:
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    a = torch.zeros(20_000_000, dtype=torch.uint8)
    before = _peak()
    assert psnr(a, a) == math.inf
    assert _peak() - before < 120  # as float64 it would be 480


def test_ms_ssim_takes_little_memory_beside_the_picture() -> None:
    a = torch.zeros(1, 3, 1000, 1000)
    ms_ssim(a[..., :200, :200], a[..., :200, :200])  # what is set up once
    Path("/proc/self/clear_refs").write_text("5")
    before = _peak()
    assert ms_ssim(a, a).item() == 1
    assert _peak() - before < 150  # all channels at once: 270


def _peak() -> float:
    """Return the most MB this process has held."""
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) / 1024


def test_ms_ssim_is_the_slow_formula() -> None:
    a, b = pair(161, 166)  # halved to 81, 41, 21, 11 and 83, 42, 21, 11: borders of one pixel
    want = np.mean([slow_ms_ssim(a[0, c].numpy(), b[0, c].numpy()) for c in range(3)])
    assert 0.3 < want < 0.95
    assert ms_ssim(a, b).item() == pytest.approx(want, abs=1e-12)
    assert ms_ssim(a.float(), b.float()).item() == pytest.approx(want, abs=1e-5)


def test_ms_ssim_in_bands_of_rows_is_that_of_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    a, b = pair(170, 166)
    whole = ms_ssim(a, b)
    monkeypatch.setattr("belvedere.compression.rate_distortion.BAND", 7)
    torch.testing.assert_close(ms_ssim(a, b), whole, rtol=0, atol=1e-12)


def test_ms_ssim_of_each_picture_of_a_batch() -> None:
    a, b = pair(161, 161, batch=2)
    found = ms_ssim(a, b)
    assert found.shape == (2,) and found[0] != found[1]
    for i in range(2):
        torch.testing.assert_close(ms_ssim(a[i : i + 1], b[i : i + 1])[0], found[i])
    torch.testing.assert_close(ms_ssim(b, a), found)
    torch.testing.assert_close(ms_ssim(a, a), torch.ones(2).double())


def test_more_noise_is_less_similar() -> None:
    found = [ms_ssim(*pair(161, 161, noise)).item() for noise in (0.02, 0.1, 0.3)]
    assert found[0] > found[1] + 0.01 > found[2] + 0.02


def test_a_negative_has_no_similarity_and_no_broken_gradient() -> None:
    a, _ = pair(161, 161)
    b = (1 - a).requires_grad_()
    found = ms_ssim(a, b)
    found.sum().backward()
    assert found.item() == 0 and torch.isfinite(b.grad).all()


def test_ms_ssim_can_be_trained_on() -> None:
    a, b = pair(161, 161)
    b = b.clone().requires_grad_()
    ms_ssim(a, b).sum().backward()
    direction = torch.randn(b.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    with torch.no_grad():
        numeric = (ms_ssim(a, b + 1e-5 * direction) - ms_ssim(a, b - 1e-5 * direction)).item() / 2e-5
    assert (b.grad * direction).sum().item() == pytest.approx(numeric, rel=1e-6)


def test_pictures_that_cannot_be_compared() -> None:
    a = torch.zeros(3, 4, 4, dtype=torch.uint8)
    with pytest.raises(InputError, match=r"\(3, 4, 4\) and \(3, 4, 5\) cannot be compared"):
        psnr(a, torch.zeros(3, 4, 5, dtype=torch.uint8))
    with pytest.raises(InputError, match=r"float32 and torch\.uint8: round both pictures to 8 bits"):
        psnr(a.float(), a)
    with pytest.raises(InputError, match="MS-SSIM of 200 x 160 pixels: each side must have 161 or more"):
        ms_ssim(*pair(160, 200))
    with pytest.raises(InputError, match="cannot be compared"):
        ms_ssim(torch.zeros(1, 3, 161, 161), torch.zeros(2, 3, 161, 161))


def test_means_of_points() -> None:
    assert mean_point([Point(1, 30, 0.5, 2, 4), Point(2, 40, 1, 0, 1)]) == Point(1.5, 35, 0.75, 1, 2.5)


@pytest.mark.parametrize(
    ("name", "stated", "exact"), [("SegPIC", -8.16, -8.17361), ("BPG", 31.49, 31.46994), ("ChARM", 3.0, 3.01962)]
)
def test_published_bd_rates_against_vtm_on_kodak(name: str, stated: float, exact: float) -> None:
    """Stated: in ``published_rd.json``, whose points have three digits. Exact: these points by scipy's PCHIP."""
    (rate_a, quality_a), (rate_b, quality_b) = (zip(*KODAK[key], strict=True) for key in (name, "VTM"))
    found = bd_rate(rate_a, quality_a, rate_b, quality_b)
    assert found == pytest.approx(stated, abs=0.025) and found == pytest.approx(exact, abs=1e-5)


def test_half_the_rate_is_minus_fifty_percent_in_any_order() -> None:
    half = [r / 2 for r in RATE]
    assert bd_rate(half, QUALITY, RATE, QUALITY) == pytest.approx(-50)
    assert bd_rate(RATE, QUALITY, half, QUALITY) == pytest.approx(100)
    assert bd_rate(half[::-1], QUALITY[::-1], RATE, QUALITY) == pytest.approx(-50)


def test_only_the_common_range_counts() -> None:
    """Straight lines in log rate: q and q / 2 + 1 over qualities 2 to 4: the mean of q / 2 - 1 there is 1 / 2."""
    a, b = np.array([1, 2, 3.5, 4]), np.array([2, 3, 5, 9])
    assert bd_rate(np.exp(a), a, np.exp(b / 2 + 1), b) == pytest.approx(100 * math.expm1(0.5))


@pytest.mark.parametrize(
    ("x", "y", "low", "high", "want"),
    [
        ([0, 1, 3, 4, 6], [0, 2, 2.5, 7, 7.1], 0.5, 5.2, 18.583923120424508),
        ([0, 2, 3, 7], [1, 1.1, 4, 4.5], 0, 7, 21.989371188438476),
    ],
)
def test_integrals_of_pchip(x: list[float], y: list[float], low: float, high: float, want: float) -> None:
    """Those of scipy 1.17.1, ``PchipInterpolator(x, y).integrate(low, high)``."""
    assert _integral(np.array(x), np.array(y), low, high) == pytest.approx(want, rel=1e-12)


@pytest.mark.parametrize(
    ("rate", "quality", "message"),
    [
        (RATE[:3], QUALITY[:3], "a curve has 3 points; give four or more"),
        (RATE, [36.0, *QUALITY[1:]], "quality does not rise with the rate"),
        (RATE, [25.0, 25.0, 31.0, 36.0], "quality does not rise with the rate"),
        ([0.1, 0.1, 0.4, 0.9], QUALITY, "quality does not rise with the rate"),
        ([0, 0.2, 0.4, 0.9], QUALITY, "rates must be above 0"),
        (RATE, [25.0, 27.5, 31.0, math.inf], "leave lossless points out"),
        (RATE, [36.0, 37.0, 38.0, 39.0], "no quality in common"),
    ],
)
def test_curves_that_have_no_bd_rate(rate: list[float], quality: list[float], message: str) -> None:
    for arguments in ((rate, quality, RATE, QUALITY), (RATE, QUALITY, rate, quality)):
        with pytest.raises(InputError, match=message):
            bd_rate(*arguments)
