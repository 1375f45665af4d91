"""Every solver over a packed call: against a flow known in closed form, with the times it announced, step by step."""

from collections.abc import Callable
from typing import Any

import diffusers
import pytest
import torch
from torch import Tensor

from belvedere.errors import InputError
from belvedere.generation.fitv2 import FiTv2
from belvedere.generation.flow_sampling import (
    SOLVERS,
    Plan,
    evaluations,
    run_schedulers,
    scheduler_times,
    solve,
    visited,
)
from belvedere.generation.flow_solvers import integrate
from belvedere.generation.packed_sampling import Guidance, PackedCall
from tests.generation.test_fitv2 import tiny

SIZES, LENGTHS = [(2, 2), (1, 3)], [4, 3]
STD = 0.7


def gaussian(prediction: str) -> FiTv2:
    """A network that knows its data: normal, its mean the number of the class and its deviation ``STD``."""
    network: Any = tiny(prediction=prediction)
    network.modulate = lambda t, y: torch.stack((t, y.float()), -1)

    def run(x: Tensor, rows: Tensor, layout: Any) -> Tensor:
        t, mean = rows[layout.image].split(1, -1)
        v = mean + (t * STD**2 - (1 - t)) / (t**2 * STD**2 + (1 - t) ** 2) * (x - t * mean)
        return v if prediction == "velocity" else x + (1 - t) * v

    network.run = run
    return network


def start() -> Tensor:
    return torch.randn(7, 16, generator=torch.Generator().manual_seed(0))


def exact() -> Tensor:
    """The solution at t = 1: of class 0 for the first image, of class 1 for the second."""
    return torch.tensor([0.0, 1.0]).repeat_interleave(torch.tensor(LENGTHS))[:, None] + STD * start()


class Asked(PackedCall):
    """A packed call that remembers the times it was asked for."""

    def __init__(self, network: FiTv2, plan: Plan):
        super().__init__(
            network,
            SIZES,
            [0, 1],
            ["none"] * 2,
            plan.guidance,
            8,
            visited(plan, network.config.prediction == "velocity"),
        )
        self.asked: list[float] = []

    def velocity(self, x: Tensor, t: float) -> Tensor:
        self.asked.append(t)
        return super().velocity(x, t)

    def clean(self, x: Tensor, t: float) -> Tensor:
        self.asked.append(t)
        return super().clean(x, t)


def plan_of(solver: str, steps: int, weight: float = 1.0, shift: float = 1.0, **options: Any) -> Plan:
    return Plan(steps, Guidance(weight), solver, options, shift)


def no_noise(step: int) -> Tensor:
    return torch.zeros(7, 16)


def silent(step: int, t: float, x: Tensor, clean: Tensor) -> None:
    pass


def sample(network: FiTv2, plan: Plan, noise: Callable[[int], Tensor] = no_noise, report: Any = silent) -> Tensor:
    with torch.no_grad():
        return solve(Asked(network, plan), start(), plan, noise, report)


def error(prediction: str, solver: str, steps: int, **options: Any) -> float:
    return (sample(gaussian(prediction), plan_of(solver, steps, **options)) - exact()).abs().max().item()


@pytest.mark.parametrize("prediction", ["velocity", "sample"])
@pytest.mark.parametrize(
    ("solver", "steps", "options"),
    [
        ("multistep", 50, {}),
        ("euler", 200, {}),
        ("heun", 60, {}),
        ("midpoint", 40, {}),
        ("rk4", 20, {}),
        ("dopri5", 1, {"rtol": 1e-4}),
        ("sde-euler", 200, {"norm": 0.0}),
        ("sde-heun", 40, {"norm": 0.0}),
    ],
)
def test_every_solver_finds_the_solution_on_a_fine_grid(
    solver: str, steps: int, options: dict[str, Any], prediction: str
) -> None:
    assert error(prediction, solver, steps, **options) < 0.025


@pytest.mark.parametrize("solver", [name for name in SOLVERS if not name.startswith("sde")])
def test_data_that_is_always_the_same_is_found_in_few_steps(solver: str) -> None:
    network: Any = tiny(prediction="sample")
    network.run = lambda x, rows, layout: torch.full_like(x, 2.0)
    assert (sample(network, plan_of(solver, 4)) - 2).abs().max() < 0.02


@pytest.mark.parametrize("prediction", ["velocity", "sample"])
@pytest.mark.parametrize(("solver", "steps"), [("heun", 10), ("midpoint", 10), ("rk4", 5)])
def test_solvers_of_higher_order_are_better_at_equal_cost(solver: str, steps: int, prediction: str) -> None:
    assert error(prediction, solver, steps) < 0.2 * error(prediction, "euler", 20)


@pytest.mark.parametrize("solver", ["multistep", "euler"])
def test_a_shift_towards_noise_moves_the_grid(solver: str) -> None:
    plain, shifted = visited(plan_of(solver, 4), True), visited(plan_of(solver, 4, shift=3.0), True)
    assert plain == pytest.approx([0, 0.25, 0.5, 0.75])
    assert shifted == pytest.approx([0, 0.1, 0.25, 0.5])  # noise share n -> 3 n / (1 + 2 n)


@pytest.mark.parametrize(
    ("solver", "options"),
    [
        *((name, {}) for name in SOLVERS if name != "dopri5"),
        ("sde-heun", {"last_step": None}),
        ("sde-euler", {"last_step": "tweedie", "last_step_size": 0.2}),
    ],
)
@pytest.mark.parametrize("shift", [1.0, 2.0])
def test_visited_are_the_times_that_are_asked_for(solver: str, options: dict[str, Any], shift: float) -> None:
    network, plan, evaluated = tiny(), plan_of(solver, 5, weight=2.0, shift=shift, **options), []
    modulate = network.modulate
    network.modulate = lambda t, y: evaluated.append(len(t)) or modulate(t, y)  # type: ignore[method-assign]
    call = Asked(network, plan)
    solve(call, start(), plan, lambda step: start(), silent)
    times = visited(plan, call.reaches_end)
    assert list(dict.fromkeys(call.asked)) == times and times[0] == 0 and times == sorted(times)
    assert evaluated == [len(times)] * 3  # of two classes and the null class, each once
    assert evaluations(plan, call.reaches_end) == len(call.asked)


def test_the_adaptive_solver_announces_nothing() -> None:
    assert visited(plan_of("dopri5", 5), True) == [] and evaluations(plan_of("dopri5", 5), True) is None


@pytest.mark.parametrize("solver", SOLVERS)
def test_reports_rise_to_the_returned_sample(solver: str) -> None:
    seen: list[tuple[int, float, Tensor]] = []

    def report(step: int, t: float, x: Tensor, clean: Tensor) -> None:
        assert x.shape == clean.shape == (7, 16)
        seen.append((step, t, x))

    out = sample(tiny(), plan_of(solver, 4), lambda step: start(), report)
    steps, times, xs = zip(*seen, strict=True)
    assert list(steps) == list(range(len(steps)))
    assert list(times) == sorted(times) and times[-1] == 1.0
    assert torch.equal(xs[-1], out)


@pytest.mark.parametrize("solver", SOLVERS)
def test_the_clean_data_reported_is_what_the_network_saw(solver: str) -> None:
    """Of data that is always 2, whatever x and t."""
    network: Any = tiny(prediction="sample")
    network.run = lambda x, rows, layout: torch.full_like(x, 2.0)
    seen: list[Tensor] = []
    generator = torch.Generator().manual_seed(1)
    sample(
        network,
        plan_of(solver, 4),
        lambda step: torch.randn(7, 16, generator=generator),
        lambda step, t, x, clean: seen.append(clean),
    )
    torch.testing.assert_close(seen[len(seen) // 2], torch.full((7, 16), 2.0), atol=1e-4, rtol=0)


@pytest.mark.parametrize("solver", SOLVERS)
def test_a_report_may_stop_the_run(solver: str) -> None:
    def report(step: int, t: float, x: Tensor, clean: Tensor) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        sample(tiny(), plan_of(solver, 4), report=report)


@pytest.mark.parametrize("solver", SOLVERS)
def test_what_a_report_returns_takes_the_samples_place(solver: str) -> None:
    """Of the adaptive solver that of the image whose step it was, so that in the end it is of both."""
    moved = sample(tiny(), plan_of(solver, 4), report=lambda step, t, x, clean: torch.full_like(x, 3.0))
    assert torch.equal(moved, torch.full((7, 16), 3.0))


@pytest.mark.parametrize("solver", ["sde-euler", "sde-heun"])
def test_noise_is_drawn_once_a_step(solver: str) -> None:
    drawn: list[int] = []
    sample(tiny(), plan_of(solver, 4), lambda step: drawn.append(step) or start())
    assert drawn == [0, 1, 2, 3]


# What a plan refuses


def test_unknown_solvers_list_the_known_ones() -> None:
    with pytest.raises(InputError, match=r"unknown solver 'magic': choose from multistep, euler, .*sde-heun"):
        plan_of("magic", 4)


@pytest.mark.parametrize(
    ("solver", "option", "message"),
    [
        ("euler", "rtol", "solver euler has no option 'rtol': it has none"),
        ("dopri5", "norm", "solver dopri5 has no option 'norm': it has rtol, atol, published, max_evaluations"),
        ("sde-heun", "method", "solver sde-heun has no option 'method': it has diffusion, norm"),
    ],
)
def test_options_of_other_solvers_are_named(solver: str, option: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        plan_of(solver, 4, **{option: 0.1})


@pytest.mark.parametrize("solver", [name for name in SOLVERS if name != "dopri5"])
def test_no_steps_are_refused(solver: str) -> None:
    with pytest.raises(InputError, match="steps"):
        sample(tiny(), plan_of(solver, 0))


# diffusers schedulers


def flow_euler() -> Any:
    return diffusers.FlowMatchEulerDiscreteScheduler()


def test_flow_match_euler_is_our_euler_on_its_times() -> None:
    network, schedulers, ends = tiny(), [flow_euler(), flow_euler()], []
    times = scheduler_times(schedulers, 6)
    call = PackedCall(network, SIZES, [0, 1], ["none"] * 2, Guidance(2.0), 8, times)
    got = run_schedulers(call, start(), schedulers, times, [None, None], lambda i, t, x, clean: ends.append((i, t)))
    want = integrate(call.velocity, start(), [*times, 1.0], "euler")
    torch.testing.assert_close(got, want, atol=1e-4, rtol=1e-4)
    assert ends == list(enumerate([*times[1:], 1.0]))


def test_multistep_schedulers_find_the_solution() -> None:
    schedulers = [diffusers.UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True)] * 1
    schedulers.append(diffusers.UniPCMultistepScheduler.from_config(schedulers[0].config))
    times = scheduler_times(schedulers, 30)
    call = PackedCall(gaussian("velocity"), SIZES, [0, 1], ["none"] * 2, Guidance(1.0), 8, times)
    got = run_schedulers(call, start(), schedulers, times, [None, None], silent)
    assert (got - exact()).abs().max() < 0.02


def test_schedulers_draw_from_their_own_images_generator() -> None:
    def run(seeds: list[int]) -> Tensor:
        schedulers = [diffusers.FlowMatchEulerDiscreteScheduler(stochastic_sampling=True) for _ in seeds]
        times = scheduler_times(schedulers, 3)
        call = PackedCall(gaussian("velocity"), SIZES, [0, 1], ["none"] * 2, Guidance(1.0), 8, times)
        sources = [torch.Generator().manual_seed(seed) for seed in seeds]
        return run_schedulers(call, start(), schedulers, times, sources, silent)

    first, second = run([1, 2]), run([1, 3])
    assert torch.equal(first[:4], second[:4]) and not torch.equal(first[4:], second[4:])


@pytest.mark.parametrize(
    "scheduler",
    [diffusers.DDIMScheduler(), diffusers.UniPCMultistepScheduler(prediction_type="flow_prediction")],
    ids=["of noise", "with the sigmas of noise"],
)
def test_schedulers_that_are_not_set_up_for_flows_are_refused(scheduler: Any) -> None:
    with pytest.raises(InputError, match="is not configured for flows"):
        scheduler_times([scheduler], 4)


def test_schedulers_refuse_no_steps() -> None:
    with pytest.raises(InputError, match="steps"):
        scheduler_times([flow_euler()], 0)
