from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from belvedere.errors import InputError
from belvedere.generation.guidance import combine, cosine_power_weight, guide, published_weight

GOLDEN = load_file(Path(__file__).parents[1] / "golden" / "dimr_2r_tdrmsn.safetensors")


def test_published_forms() -> None:
    cond, uncond = GOLDEN["cfg.cond"], GOLDEN["cfg.uncond"]
    torch.testing.assert_close(combine(cond, uncond, published_weight(0.4)), GOLDEN["cfg.guided"])
    late = combine(cond, uncond, cosine_power_weight(0.6, scale=3, power=2))
    torch.testing.assert_close(late, GOLDEN["cfg.guided_pow2_scale3_t600"])


def test_cosine_weight_rises_from_one_to_the_scale() -> None:
    weights = [cosine_power_weight(n / 10, 4.0, 1.5) for n in range(10, -1, -1)]
    assert weights[0] == 1 and weights[-1] == 4 and weights == sorted(weights)
    for scale, power in ((0.9, 1.0), (2.0, 0.0)):
        with pytest.raises(InputError, match=f"scale {scale} and power {power}"):
            cosine_power_weight(0.5, scale, power)


def test_guide_runs_both_halves_in_one_batch() -> None:
    calls: list[Tensor] = []

    def predict(x: Tensor, labels: Tensor) -> Tensor:
        calls.append(labels)
        return x * labels[:, None]

    x, labels = torch.randn(2, 3), torch.tensor([1, 4])
    got = guide(predict, x, labels, null_label=9, weight=2.0)
    assert len(calls) == 1 and calls[0].tolist() == [1, 4, 9, 9]
    torch.testing.assert_close(got, 9 * x + 2.0 * (x * labels[:, None] - 9 * x))


def test_weight_one_leaves_the_unconditional_half_out() -> None:
    calls: list[Tensor] = []

    def predict(x: Tensor, labels: Tensor) -> Tensor:
        calls.append(labels)
        return x

    x = torch.randn(2, 3)
    assert guide(predict, x, torch.tensor([1, 4]), null_label=9, weight=1.0) is x
    assert [c.tolist() for c in calls] == [[1, 4]]
