"""A linear beginning: a good transform before the first step, nothing dead in it."""

import pytest
import torch
from torch import Tensor

from belvedere.compression.initial import begin_linear, parameter_groups
from belvedere.compression.segpic import loss
from belvedere.seeds import BatchRng
from tests.compression.test_segpic import small


def smooth(count: int = 8) -> Tensor:
    """Pictures without fine detail."""
    coarse = torch.rand(count, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    return torch.nn.functional.interpolate(coarse, (64, 64), mode="bicubic").clamp(0, 1)


@pytest.mark.parametrize("rates", [0, 2])
def test_it_is_a_transform_before_the_first_step(rates: int) -> None:
    quality = torch.ones(8) if rates else None
    errors = []
    for linear in (False, True):
        model = small(channels=16, latent=24, rates=rates)
        if linear:
            begin_linear(model, smooth())
        with torch.no_grad():
            errors.append((model(smooth(), quality=quality).reconstruction - smooth()).square().mean().item())
    assert errors[1] < 0.003 < 0.05 < errors[0]


def test_everything_still_learns() -> None:
    model = small(channels=16, latent=24)
    begin_linear(model, smooth())
    batch = {"image": smooth() * 2 - 1}
    optimizer = torch.optim.Adam(model.parameters(), 1e-4)
    for step in range(3):  # a layer before a sleeping one wakes a step later
        optimizer.zero_grad()
        loss(model, batch, BatchRng(0, step, range(8)))[0].backward()
        optimizer.step()
    dead = {name for name, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0}
    assert dead == set()


def test_what_begins_anywhere_learns_faster_than_what_begins_well() -> None:
    model = small()
    speeds = {id(p): group["lr_scale"] for group in parameter_groups(model, 0.0) for p in group["params"]}
    found: dict[str, set[float]] = {}
    for name, parameter in model.named_parameters():
        if not name.endswith(".quantiles"):
            found.setdefault(name.split(".")[0], set()).add(speeds.pop(id(parameter)))
    assert found["hyper_means"] == found["hyper_scales"] == found["channel_context"] == {3.0}
    assert found["analysis1"] == found["hyper_analysis"] == found["means_rat"] == found["scales_rat"] == {1.0}
    assert set(speeds.values()) == {10.0}
