import json
import math
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from belvedere.errors import InputError
from belvedere.generation.schedules import Flow, ScaledLinear, Schedule, Skip, make_schedule, time_grid
from tests.parity_sampler import run

GOLDEN = Path(__file__).parents[1] / "golden" / "dimr_schedule_sampler.json"
SCHEDULES: list[Schedule] = [ScaledLinear(), Flow()]


def test_tables_and_look_ups_equal_the_published_ones() -> None:
    description = json.loads(GOLDEN.read_text()) | {"runs": {}}
    cases = list(run(description, load_file(GOLDEN.with_suffix(".safetensors"))))
    assert len(cases) == 10
    for name, got, want in cases:
        assert torch.allclose(got.to(want.dtype), want, rtol=1e-4, atol=1e-9), name


def test_knots_are_the_discrete_schedule() -> None:
    schedule = ScaledLinear()
    n = torch.arange(1, 1001)
    torch.testing.assert_close(schedule.alpha(n / 1000.0).square(), schedule.alpha_bar[1:], rtol=1e-6, atol=0)
    assert schedule.alpha_bar[-1].item() == pytest.approx(0.00466, rel=1e-3)


def test_zero_is_clean_data() -> None:
    for schedule in SCHEDULES:
        assert schedule.alpha(0.0) == 1 and schedule.sigma(0.0) == 0 and schedule.log_snr_half(0.0) == math.inf


@pytest.mark.parametrize("schedule", SCHEDULES, ids=["scaled_linear", "flow"])
@settings(deadline=None)
@given(t=st.floats(1e-3, 0.999))
def test_inverse_lambda_undoes_lambda(schedule: Schedule, t: float) -> None:
    lam = schedule.log_snr_half(t)
    assert lam.dtype == torch.float64
    assert lam == pytest.approx(float(torch.log(schedule.alpha(t) / schedule.sigma(t))), abs=1e-9)
    assert schedule.inverse_lambda(lam).item() == pytest.approx(t, abs=1e-9)


def test_inverse_lambda_reaches_beyond_the_outermost_knots() -> None:
    schedule = ScaledLinear()
    for t in (0.0005, 1.0):
        assert schedule.inverse_lambda(schedule.log_snr_half(t)).item() == pytest.approx(t, abs=1e-9)


@pytest.mark.parametrize("schedule", SCHEDULES, ids=["scaled_linear", "flow"])
def test_shapes_are_kept(schedule: Schedule) -> None:
    t = torch.rand(3, 2)
    for look_up in (schedule.alpha, schedule.sigma, schedule.log_snr_half, schedule.inverse_lambda):
        assert look_up(t).shape == t.shape
    assert all(c.shape == t.shape for c in schedule.velocity(t))


@pytest.mark.parametrize("schedule", SCHEDULES, ids=["scaled_linear", "flow"])
@pytest.mark.parametrize("skip", ["time_uniform", "t2", "logSNR"])
def test_grid_runs_down_from_start_to_end(schedule: Schedule, skip: Skip) -> None:
    times = time_grid(schedule, 7, skip, start=0.9, end=0.01)
    assert times.shape == (8,) and (times.diff() < 0).all()
    torch.testing.assert_close(times[[0, -1]], torch.tensor([0.9, 0.01], dtype=torch.float64))


def test_grid_spacings() -> None:
    torch.testing.assert_close(time_grid(Flow(), 4), torch.tensor([1, 0.75, 0.5, 0.25, 0], dtype=torch.float64))
    lam = ScaledLinear().log_snr_half(time_grid(ScaledLinear(), 5, "logSNR"))
    torch.testing.assert_close(lam.diff(), lam.diff().mean().expand(5))
    root = time_grid(Flow(), 5, "t2").sqrt()
    torch.testing.assert_close(root, torch.linspace(1, 0, 6, dtype=torch.float64))


def test_shift_keeps_the_ends_and_moves_the_middle_towards_noise() -> None:
    times = time_grid(Flow(), 2, shift=3.0)
    torch.testing.assert_close(times, torch.tensor([1, 0.75, 0], dtype=torch.float64))


def test_bad_input_is_named() -> None:
    with pytest.raises(InputError, match="linear_scaled"):
        make_schedule("linear_scaled")
    with pytest.raises(InputError, match="steps 0"):
        time_grid(Flow(), 0)
    with pytest.raises(InputError, match="logSNR"):
        time_grid(Flow(), 3, "logSNR")
    with pytest.raises(InputError, match="cubic"):
        time_grid(Flow(), 3, "cubic")  # type: ignore[arg-type]
