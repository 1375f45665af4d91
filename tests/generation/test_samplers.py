import json
import math
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from belvedere.errors import InputError
from belvedere.generation.samplers import (
    add_noise,
    ddim,
    dpm_solver_multistep,
    dpm_solver_singlestep,
    from_clean,
    prediction_target,
    single_step_nodes,
    to_clean,
)
from belvedere.generation.schedules import Flow, ScaledLinear, Schedule, time_grid
from tests.parity_sampler import run

GOLDEN = Path(__file__).parents[1] / "golden" / "dimr_schedule_sampler.json"
MEAN, STD = 0.3, 0.7
Sampler = Callable[..., Tensor]
SCHEDULES = pytest.mark.parametrize("schedule", [ScaledLinear(), Flow()], ids=["scaled_linear", "flow"])
PREDICTIONS = pytest.mark.parametrize("kind", ["epsilon", "velocity", "sample"])


def gaussian(x: Tensor, t: float, schedule: Schedule) -> Tensor:
    """The clean data expected at (x, t) when the data is N(MEAN, STD^2)."""
    alpha, sigma = schedule.alpha(t), schedule.sigma(t)
    return MEAN + STD**2 * alpha * (x - alpha * MEAN) / (alpha**2 * STD**2 + sigma**2)


def exact(x: Tensor, s: float, t: float, schedule: Schedule) -> Tensor:
    """The probability-flow solution from (x, s) at time t: the standardised sample does not move."""
    mean, std = zip(*((schedule.alpha(r) * MEAN, _std(r, schedule)) for r in (s, t)), strict=True)
    return mean[1] + std[1] * (x - mean[0]) / std[0]


def _std(t: float, schedule: Schedule) -> Tensor:
    return (schedule.alpha(t) ** 2 * STD**2 + schedule.sigma(t) ** 2).sqrt()


def test_golden_trajectories() -> None:
    description = json.loads(GOLDEN.read_text())
    cases = {n: (g, w) for n, g, w in run(description, load_file(GOLDEN.with_suffix(".safetensors")))}
    assert {f"{r}.{what}" for r in description["runs"] for what in ("x0", "model_t")} <= cases.keys()
    for name, (got, want) in cases.items():
        assert torch.allclose(got.to(want.dtype), want, rtol=1e-4, atol=2e-6), name
    for name, settings in description["runs"].items():
        assert len(cases[f"{name}.model_t"][0]) == settings["nfe"]


@pytest.mark.parametrize(
    ("sampler", "order"),
    [(ddim, 1), (dpm_solver_multistep, 2)]
    + [(partial(dpm_solver_singlestep, order=k, method="singlestep"), k) for k in (1, 2, 3)]
    + [(partial(dpm_solver_singlestep, order=3, method="singlestep", solver="taylor", predict="noise"), 3)],
)
@SCHEDULES
def test_error_falls_with_the_order_of_the_solver(sampler: Sampler, order: int, schedule: Schedule) -> None:
    x = torch.linspace(-2, 2, 9, dtype=torch.float64)
    want = exact(x, 0.9, 0.1, schedule)

    def error(steps: int) -> float:
        times = time_grid(schedule, steps, "logSNR", start=0.9, end=0.1)
        return (sampler(partial(gaussian, schedule=schedule), x, times, schedule) - want).abs().max().item()

    assert error(64) < 0.05
    assert math.log2(error(32) / error(64)) > order - 0.35


@SCHEDULES
@pytest.mark.parametrize("sampler", [ddim, dpm_solver_multistep])
def test_grid_may_run_from_pure_noise_to_clean_data(sampler: Sampler, schedule: Schedule) -> None:
    x = torch.randn(64, generator=torch.Generator().manual_seed(0))
    seen: list[Tensor] = []
    times = time_grid(schedule, 200, end=0.0)
    got = sampler(
        partial(gaussian, schedule=schedule), x, times, schedule, callback=lambda i, t, x, x0: seen.append(x0)
    )
    assert torch.equal(got, seen[-1])
    torch.testing.assert_close(got, exact(x, 1.0, 0.0, schedule).float(), atol=0.03, rtol=0)


def test_first_order_solvers_agree() -> None:
    schedule, x = ScaledLinear(), torch.randn(5, dtype=torch.float64)
    times = time_grid(schedule, 6)
    denoise = partial(gaussian, schedule=schedule)
    single = dpm_solver_singlestep(denoise, x, times, schedule, order=1)
    torch.testing.assert_close(single, ddim(denoise, x, times, schedule))


def test_ddim_on_flow_is_euler() -> None:
    x, times = torch.randn(5, dtype=torch.float64), [1.0, 0.6, 0.3]
    want = x
    for s, t in ((1.0, 0.6), (0.6, 0.3)):
        want = want + (t - s) * from_clean(gaussian(want, s, Flow()), want, s, Flow(), "velocity")
    torch.testing.assert_close(ddim(partial(gaussian, schedule=Flow()), x, times, Flow()), want)


def test_fast_orders_spend_every_evaluation() -> None:
    schedule = ScaledLinear()
    for order, steps, want in [
        (3, 250, [3] * 83 + [1]),
        (3, 9, [3, 3, 2, 1]),
        (3, 11, [3, 3, 3, 2]),
        (3, 1, [1]),
        (3, 3, [2, 1]),
        (2, 9, [2, 2, 2, 2, 1]),
        (1, 2, [1, 1]),
    ]:
        nodes = single_step_nodes(time_grid(schedule, steps), schedule, order=order)
        assert [len(n) - 1 for n in nodes] == want


@pytest.mark.parametrize("sampler", [ddim, dpm_solver_multistep, dpm_solver_singlestep])
def test_callback_sees_every_update_and_may_stop(sampler: Sampler) -> None:
    schedule, times = ScaledLinear(), time_grid(ScaledLinear(), 8)
    seen: list[tuple[int, float]] = []

    def watch(step: int, t: float, x: Tensor, x0: Tensor) -> None:
        seen.append((step, t))
        if step == 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        sampler(partial(gaussian, schedule=schedule), torch.zeros(2), times, schedule, callback=watch)
    assert [s for s, _ in seen] == [0, 1] and seen[1][1] in times.tolist()


@pytest.mark.parametrize("sampler", [ddim, dpm_solver_multistep, dpm_solver_singlestep])
def test_what_a_callback_returns_takes_the_samples_place(sampler: Sampler) -> None:
    schedule, times, x = ScaledLinear(), time_grid(ScaledLinear(), 8), torch.linspace(-1, 1, 5)
    denoise, seen = partial(gaussian, schedule=schedule), list[Tensor]()

    def shift(step: int, t: float, x: Tensor, x0: Tensor) -> Tensor:
        seen.append(x)
        return x + 1

    plain = sampler(denoise, x, times, schedule)
    assert torch.equal(sampler(denoise, x, times, schedule, callback=lambda step, t, x, x0: x.clone()), plain)
    got = sampler(denoise, x, times, schedule, callback=shift)
    assert torch.equal(got, seen[-1] + 1) and not torch.equal(got, plain + 1)


@SCHEDULES
@PREDICTIONS
@pytest.mark.parametrize("shared", [True, False])
def test_conversions_undo_each_other(schedule: Schedule, kind: str, shared: bool) -> None:
    x0, noise = torch.randn(2, 4, 3, 5, 5, dtype=torch.float64)
    t = 0.4 if shared else torch.tensor([0.1, 0.4, 0.7, 0.99])
    x = add_noise(x0, noise, t, schedule)
    target = prediction_target(x0, noise, t, schedule, kind)  # type: ignore[arg-type]
    torch.testing.assert_close(to_clean(target, x, t, schedule, kind), x0)  # type: ignore[arg-type]
    torch.testing.assert_close(from_clean(x0, x, t, schedule, kind), target)  # type: ignore[arg-type]


@PREDICTIONS
def test_conversions_keep_low_precision(kind: str) -> None:
    x = torch.randn(2, 3, 4, 4).bfloat16()
    for t in (0.5, torch.tensor([0.2, 0.8])):
        assert to_clean(x, x, t, ScaledLinear(), kind).dtype == torch.bfloat16  # type: ignore[arg-type]


def test_bad_input_is_named() -> None:
    x, schedule = torch.zeros(1), Flow()
    denoise = partial(gaussian, schedule=schedule)
    with pytest.raises(InputError, match="decrease"):
        ddim(denoise, x, [0.1, 0.9], schedule)
    with pytest.raises(InputError, match="strictly between"):
        dpm_solver_singlestep(denoise, x, time_grid(schedule, 6), schedule)
    with pytest.raises(InputError, match="not 4 fast"):
        dpm_solver_singlestep(denoise, x, time_grid(schedule, 6), schedule, order=4)
    with pytest.raises(InputError, match="not euler data"):
        dpm_solver_singlestep(denoise, x, [0.9, 0.5], schedule, solver="euler")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="'eps'"):
        to_clean(x, x, 0.5, schedule, "eps")  # type: ignore[arg-type]
