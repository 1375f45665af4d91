"""Rates of one network: ends, the middle between two, gradients, what is refused."""

import pytest
import torch

from belvedere.compression.gain import SPREAD, Gain
from belvedere.compression.segpic import loss, parameter_groups
from belvedere.errors import InputError
from belvedere.seeds import BatchRng
from tests.compression.test_segpic import pictures, small


def test_a_fresh_gain_spans_the_published_rates_and_is_undone() -> None:
    gain, inverse = Gain(5, 3)(torch.tensor([0.0, 4.0]))
    assert gain.shape == (2, 3, 1, 1)
    assert torch.allclose(gain * inverse, torch.ones_like(gain))
    assert torch.allclose((gain[1] / gain[0]).log(), torch.full((3, 1, 1), SPREAD))


def test_between_two_rates_it_is_their_geometric_mean() -> None:
    module = Gain(3, 2)
    torch.nn.init.normal_(module.log_gain)
    low, middle, high = module(torch.tensor([1.0, 1.5, 2.0]))[0]
    assert torch.allclose(middle, (low * high).sqrt())


@pytest.mark.parametrize("quality", [-0.1, 2.1, float("nan")])
def test_a_quality_outside_is_refused(quality: float) -> None:
    with pytest.raises(InputError, match="from 0 to 2"):
        Gain(3, 2)(torch.tensor([quality]))


def test_a_higher_quality_rounds_finer() -> None:
    model = small(rates=4)
    with torch.no_grad():
        coded = [model(pictures(), quality=torch.tensor([q])).likelihoods["y"] for q in (0.0, 3.0)]
    assert coded[1].log2().sum() < coded[0].log2().sum()


@pytest.mark.parametrize(("rates", "quality", "message"), [(0, 1.0, "one rate"), (4, None, "4 rates")])
def test_a_quality_is_given_where_there_are_rates(rates: int, quality: float | None, message: str) -> None:
    with pytest.raises(InputError, match=message):
        small(rates=rates)(pictures(), quality=None if quality is None else torch.tensor([quality]))


def test_every_rate_learns_from_its_own_weight() -> None:
    model = small(rates=2)
    batch = {"image": pictures(4) * 2 - 1}
    rng = BatchRng(0, 0, range(4))
    drawn = set((rng.uniform("quality") * 2).long().tolist())
    loss(model, batch, rng, weights=(0.001, 0.1))[0].backward()
    assert model.gain is not None and model.gain.log_gain.grad is not None
    learned = {i for i, row in enumerate(model.gain.log_gain.grad) if row.abs().sum() > 0}
    assert learned == drawn == {0, 1}
    assert sum(len(group["params"]) for group in parameter_groups(model, 0.1)) == len(list(model.parameters()))


def test_the_share_of_prototypes_counts() -> None:
    model, batch = small(), {"image": pictures() * 2 - 1}
    values = [loss(model, batch, BatchRng(0, 0, [0]), prototype_share=share)[1]["bpp"] for share in (0.0, 0.5, 1.0)]
    assert values[0] < values[1] < values[2]
    assert values[2] - values[1] == pytest.approx(values[1] - values[0], rel=1e-3)


def test_ms_ssim_is_a_distortion_too() -> None:
    model, batch = small(), {"image": pictures(1, 192, 192) * 2 - 1}
    values = [loss(model, batch, BatchRng(0, 0, [0]), weights=(w,), distortion="ms-ssim")[1] for w in (0.0, 2.0)]
    assert 0 < values[1]["loss"] - values[0]["loss"] <= 2.001
    with pytest.raises(InputError, match="161"):
        loss(model, {"image": pictures() * 2 - 1}, BatchRng(0, 0, [0]), distortion="ms-ssim")
