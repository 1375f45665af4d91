"""Rounding and probabilities: sums, tails, gradients, noise."""

import math

import pytest
import torch

from belvedere.compression.probabilities import Bottleneck, gaussian_likelihood, rate_noise, round_through
from belvedere.seeds import BatchRng


def bottleneck() -> Bottleneck:
    torch.manual_seed(0)
    made = Bottleneck(3)
    for factor in made.factors:
        torch.nn.init.normal_(factor)
    return made


def test_rounding_is_to_even_and_has_the_gradient_of_nothing() -> None:
    x = torch.tensor([0.5, 1.5, -0.5, 2.4], requires_grad=True)
    rounded = round_through(x)
    (gradient,) = torch.autograd.grad(rounded.sum(), x)
    assert rounded.tolist() == [0, 2, 0, 2] and gradient.tolist() == [1, 1, 1, 1]


@pytest.mark.parametrize("scale", [0.05, 0.11, 1.0, 7.0])
def test_gaussian_probabilities_sum_to_one(scale: float) -> None:
    numbers = torch.arange(-100.0, 101)
    likelihood = gaussian_likelihood(numbers, torch.full_like(numbers, scale), None)
    assert likelihood.sum().item() == pytest.approx(1, abs=1e-5)
    wide = max(scale, 0.11)  # a smaller scale counts as that
    assert likelihood[100].item() == pytest.approx(math.erf(0.5 / wide / math.sqrt(2)), rel=1e-5)
    assert likelihood.min() == pytest.approx(1e-9, rel=1e-3) or scale == 7


def test_gaussian_without_noise_is_of_the_rounded_number() -> None:
    one = torch.ones(1)
    assert gaussian_likelihood(0.6 * one, one, None) == gaussian_likelihood(one, one, None)
    assert gaussian_likelihood(0.6 * one, one, 0.4 * one) == gaussian_likelihood(one, one, None)


def test_bottleneck_probabilities_sum_to_one() -> None:
    numbers = torch.arange(-2000.0, 2001).expand(1, 3, 1, -1)
    assert torch.allclose(bottleneck().likelihood(numbers).sum(-1), torch.ones(1, 3, 1), atol=1e-3)


def test_bottleneck_logits_rise() -> None:
    assert (bottleneck().logits(torch.linspace(-50, 50, 200).expand(3, 1, -1)).diff() > 0).all()


def test_bottleneck_rounds_about_its_medians() -> None:
    made = bottleneck()
    with torch.no_grad():
        made.quantiles[:, 0, 1] = torch.tensor([0.25, 0.0, -0.4])
    rounded, likelihood = made(torch.full((1, 3, 1, 1), 1.6), None)
    assert torch.allclose(rounded.flatten(), torch.tensor([1.25, 2.0, 1.6]))
    assert torch.equal(likelihood, made.likelihood(rounded.detach()))
    noisy = made(torch.full((1, 3, 1, 1), 1.6), torch.full((1, 3, 1, 1), 0.4))[1]
    assert torch.allclose(noisy, made.likelihood(torch.full((1, 3, 1, 1), 2.0)))


def test_quantiles_learn_where_the_tails_begin() -> None:
    made = bottleneck()
    with torch.no_grad():
        start = made.quantile_loss()
    optimizer = torch.optim.Adam([made.quantiles], lr=1.0)
    for _ in range(100):
        optimizer.zero_grad()
        made.quantile_loss().backward()
        optimizer.step()
    assert made.quantile_loss() < 0.6 * start
    assert all(p.grad is None for name, p in made.named_parameters() if name != "quantiles")


def test_quantile_loss_is_zero_where_the_tails_begin() -> None:
    made = Bottleneck(1)
    with torch.no_grad():
        for matrix, bias in zip(made.matrices, made.biases, strict=True):
            bias.zero_()
            matrix.fill_(math.log(math.expm1(1 / matrix.shape[2])))  # all layers together: the logit of x is x
        made.quantiles.copy_(torch.tensor([[[-1.0, 0.0, 1.0]]]) * math.log(2 / 1e-9 - 1))
    assert made.quantile_loss().item() == pytest.approx(0, abs=1e-4)


def test_quantiles_settle_where_the_tails_begin() -> None:
    made, medians = bottleneck(), bottleneck().medians
    made.settle_quantiles()
    tails = made.logits(made.quantiles)[:, 0, ::2]  # (c, 2)
    assert torch.equal(made.medians, medians)
    torch.testing.assert_close(
        tails, torch.tensor([[-1.0, 1.0]] * len(tails)) * math.log(2 / 1e-9 - 1), rtol=1e-3, atol=0
    )


def test_noise_is_uniform_and_each_pictures_own() -> None:
    x = torch.zeros(5, 40, 10, 10)
    noise = rate_noise(BatchRng(0, 3, [7, 8]), "y", x, [2, 3])
    assert noise is not None and noise.shape == x.shape and noise.abs().max() < 0.5
    assert abs(noise.mean()) < 0.01 and noise.var().item() == pytest.approx(1 / 12, rel=0.02)
    assert torch.equal(noise[2:], rate_noise(BatchRng(0, 3, [8]), "y", x[2:], [3]))
    assert rate_noise(None, "y", x, [2, 3]) is None
