"""Which solver runs over a packed call: ours by name, or diffusers schedulers; time runs from 0, noise, to 1, data."""

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor

from belvedere.errors import InputError
from belvedere.generation.callbacks import Callback, tell
from belvedere.generation.flow_solvers import dopri5, integrate, sde
from belvedere.generation.packed_sampling import Guidance, PackedCall
from belvedere.generation.samplers import dpm_solver_multistep
from belvedere.generation.scheduler_checks import check_flow, set_steps
from belvedere.generation.schedules import Flow, time_grid

Noise = Callable[[int], Tensor]


class Field(Protocol):
    """What a solver asks of a packed call."""

    lengths: list[int]
    reaches_end: bool
    """Whether there is a velocity at t = 1; a network of clean pictures has none."""

    def clean(self, x: Tensor, t: float) -> Tensor: ...

    def velocity(self, x: Tensor, t: float) -> Tensor: ...

    def velocities(self, xs: Sequence[Tensor], ts: Sequence[float], images: Sequence[int]) -> list[Tensor]: ...


@dataclass(frozen=True)
class Plan:
    """How to sample, the same for every image of a call."""

    steps: int
    guidance: Guidance
    solver: str = "multistep"
    options: dict[str, Any] = field(default_factory=dict)
    """Keywords of ``dopri5`` or ``sde``."""
    shift: float = 1.0

    def __post_init__(self) -> None:
        if self.solver not in SOLVERS:
            raise InputError(f"unknown solver {self.solver!r}: choose from {', '.join(SOLVERS)}")
        known = _OPTIONS.get(self.solver.split("-")[0], ())
        if unknown := [key for key in self.options if key not in known]:
            raise InputError(f"solver {self.solver} has no option {unknown[0]!r}: it has {', '.join(known) or 'none'}")


class _Watched:
    """The velocity of a field, and the clean data it implied last."""

    def __init__(self, field: Field):
        self.field = field

    def velocity(self, x: Tensor, t: float) -> Tensor:
        v = self.field.velocity(x, t)
        self.clean = x + (1 - t) * v
        return v


def _multistep(field: Field, x: Tensor, plan: Plan, noise: Noise, report: Callback) -> Tensor:
    return dpm_solver_multistep(
        lambda x, t: field.clean(x, 1 - t),
        x,
        time_grid(Flow(), plan.steps, shift=plan.shift),
        Flow(),
        callback=lambda step, t, x, clean: report(step, 1 - t, x, clean),
    )


def _fixed(field: Field, x: Tensor, plan: Plan, noise: Noise, report: Callback) -> Tensor:
    times = 1 - time_grid(Flow(), plan.steps, shift=plan.shift)
    watched = _Watched(field)

    def part(x: Tensor, first: int, stop: int, method: Any) -> Tensor:
        def seen(step: int, t: float, x: Tensor, v: Tensor) -> Tensor | None:
            return report(first + step, t, x, watched.clean)

        return integrate(watched.velocity, x, times[first : stop + 1], method, callback=seen) if first < stop else x

    if field.reaches_end or plan.solver == "euler":
        return part(x, 0, plan.steps, plan.solver)
    x = part(x, 0, plan.steps - 1, plan.solver)
    return part(x, plan.steps - 1, plan.steps, "midpoint")  # heun and rk4 would ask for the velocity at the end


def _adaptive(field: Field, x: Tensor, plan: Plan, noise: Noise, report: Callback) -> Tensor:
    now = list(x.split(field.lengths))
    clean, times, steps = list(now), [0.0] * len(now), iter(range(10**9))

    def seen(image: int, t: float, x: Tensor, v: Tensor) -> Tensor:
        now[image], clean[image], times[image] = x, x + (1 - t) * v, t
        told = report(next(steps), min(times), torch.cat(now), torch.cat(clean))
        if told is not None:
            now[image] = told.split(field.lengths)[image]  # the others are in the middle of a step
        return now[image]

    return torch.cat(dopri5(field.velocities, list(now), callback=seen, **plan.options))


def _stochastic(field: Field, x: Tensor, plan: Plan, noise: Noise, report: Callback) -> Tensor:
    watched = _Watched(field)

    def seen(step: int, t: float, x: Tensor, v: Tensor) -> Tensor | None:
        return report(step, t, x, watched.clean)

    method: Any = plan.solver.removeprefix("sde-")
    return sde(watched.velocity, x, plan.steps, noise=noise, method=method, callback=seen, **plan.options)


SOLVERS: dict[str, Callable[[Field, Tensor, Plan, Noise, Callback], Tensor]] = {
    "multistep": _multistep,
    "euler": _fixed,
    "heun": _fixed,
    "midpoint": _fixed,
    "rk4": _fixed,
    "dopri5": _adaptive,
    "sde-euler": _stochastic,
    "sde-heun": _stochastic,
}
_OPTIONS = {
    "dopri5": ("rtol", "atol", "published", "max_evaluations"),
    "sde": ("diffusion", "norm", "last_step", "last_step_size"),
}


def solve(field: Field, x: Tensor, plan: Plan, noise: Noise, report: Callback) -> Tensor:
    """Return the samples at t = 1 from noise ``x`` (n, c); ``noise(step)`` is fresh noise in its shape."""
    return SOLVERS[plan.solver](field, x, plan, noise, report)


class _Recorder:
    """A field that is zero everywhere and remembers when it was asked."""

    def __init__(self, reaches_end: bool) -> None:
        self.lengths, self.times, self.reaches_end = [1], list[float](), reaches_end

    def velocity(self, x: Tensor, t: float) -> Tensor:
        self.times.append(t)
        return torch.zeros_like(x)

    clean = velocity

    def velocities(self, xs: Sequence[Tensor], ts: Sequence[float], images: Sequence[int]) -> list[Tensor]:
        raise NotImplementedError


def visited(plan: Plan, reaches_end: bool) -> list[float]:
    """Return the times at which a plan's solver asks a network, in order: found by a run on nothing.

    Empty for the adaptive solver, which cannot know them.
    """
    return list(dict.fromkeys(_asked(plan, reaches_end)))


def evaluations(plan: Plan, reaches_end: bool) -> int | None:
    """Return how often a plan's solver asks a network; None for the adaptive solver, which cannot know it."""
    return len(_asked(plan, reaches_end)) or None


def _asked(plan: Plan, reaches_end: bool) -> list[float]:
    if plan.solver == "dopri5":
        return []
    recorder = _Recorder(reaches_end)
    nothing = torch.zeros(1, 1, device="cpu")
    solve(recorder, nothing, plan, lambda step: nothing, lambda step, t, x, clean: None)
    return recorder.times


def scheduler_times(schedulers: Sequence[Any], steps: int) -> list[float]:
    """Set the steps of flow-match schedulers, one an image, and return the times they visit."""
    for scheduler in schedulers:
        check_flow(scheduler)
        set_steps(scheduler, steps)
    return [1 - float(n) / 1000 for n in schedulers[0].timesteps]


def run_schedulers(
    call: PackedCall,
    x: Tensor,
    schedulers: Sequence[Any],
    times: Sequence[float],
    sources: Sequence[torch.Generator | None],
    report: Callback,
) -> Tensor:
    """Sample ``x`` (n, c) with diffusers flow-match schedulers, one an image, since they keep state and draw noise."""
    draws = "generator" in inspect.signature(schedulers[0].step).parameters
    for i, t in enumerate(times):
        v = call.velocity(x, t)
        parts = zip(schedulers, x.split(call.lengths), v.split(call.lengths), sources, strict=True)
        stepped = [
            scheduler.step(
                -slope, scheduler.timesteps[i], part, return_dict=False, **({"generator": g} if draws else {})
            )
            for scheduler, part, slope, g in parts
        ]
        clean = x + (1 - t) * v
        x = torch.cat([sample for sample, *_ in stepped])
        x = tell(report, i, times[i + 1] if i + 1 < len(times) else 1.0, x, clean)
    return x
