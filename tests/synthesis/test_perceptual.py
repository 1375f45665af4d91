"""Losses of how pictures look: 0 for the same, more for more damage, gradients, and what LPIPS needs."""

import pytest
import torch
from torch import Tensor

from belvedere.errors import InputError
from belvedere.synthesis.perceptual import STAGES, WIDTHS, Lpips, structure_loss


def pictures(size: int = 32) -> Tensor:
    coarse = torch.rand(2, 3, 6, 6, generator=torch.Generator().manual_seed(0))
    return torch.nn.functional.interpolate(coarse, size, mode="bicubic").clamp(0, 1)


def weights() -> dict[str, Tensor]:
    """Random weights by the published names."""
    made, random = {}, torch.Generator().manual_seed(1)
    for i, stage in enumerate(STAGES):
        before = WIDTHS[i]
        for layer in stage:
            made[f"features.{layer}.weight"] = torch.randn(WIDTHS[i + 1], before, 3, 3, generator=random) / before
            made[f"features.{layer}.bias"] = torch.zeros(WIDTHS[i + 1])
            before = WIDTHS[i + 1]
        made[f"lin{i}.model.1.weight"] = torch.rand(1, before, 1, 1, generator=random)
    return made


def test_more_damage_is_more_loss() -> None:
    a = pictures()
    noise = torch.randn(a.shape, generator=torch.Generator().manual_seed(2))
    losses = [structure_loss(a, a + scale * noise).item() for scale in (0.0, 0.02, 0.1, 0.5)]
    assert losses[0] == pytest.approx(0, abs=1e-5) and losses == sorted(losses) and losses[-1] < 1.2


def test_one_scale_by_hand() -> None:
    """Constant pictures have no structure but their luminance, at every scale."""
    a, b = torch.full((1, 3, 28, 28), 0.2), torch.full((1, 3, 28, 28), 0.6)
    want = 1 - (2 * 0.2 * 0.6 + 1e-4) / (0.2**2 + 0.6**2 + 1e-4)
    assert structure_loss(a, b).item() == pytest.approx(want, abs=1e-3)


def test_structure_has_a_gradient_that_leads_to_the_picture() -> None:
    a, b = pictures(), pictures().flip(3).requires_grad_()
    before = structure_loss(a, b)
    before.backward()
    assert b.grad is not None
    assert structure_loss(a, b.detach() - 20 * b.grad) < before


def test_lpips_is_a_distance_of_features() -> None:
    measure, a = Lpips(weights()), pictures()
    assert measure(a, a).item() == pytest.approx(0, abs=1e-6)
    assert 0 < measure(a, a * 0.9) < measure(a, 1 - a)


def test_lpips_names_what_is_missing() -> None:
    lacking = weights()
    del lacking["lin2.model.1.weight"]
    with pytest.raises(InputError, match=r"lin2.*vgg16-397923af"):
        Lpips(lacking)


def test_small_pictures_are_refused() -> None:
    with pytest.raises(InputError, match="28 pixels"):
        structure_loss(pictures(27), pictures(27))
    with pytest.raises(InputError, match="to compare"):
        structure_loss(pictures(), pictures()[:1])
