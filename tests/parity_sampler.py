"""Runs the cases of a golden sampler file: schedule tables, look-ups and whole DPM-Solver trajectories."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from belvedere.generation.samplers import dpm_solver_singlestep, to_clean
from belvedere.generation.schedules import ScaledLinear, time_grid

Case = tuple[str, Tensor, Tensor]


def run(description: dict[str, Any], tensors: dict[str, Tensor]) -> Iterator[Case]:
    """Yield (case, ours, golden) for every table, look-up and trajectory that ``description`` lists."""
    schedule = ScaledLinear()
    yield from _tables(schedule, tensors)
    yield from _queries(schedule, tensors)
    for name, settings in description["runs"].items():
        x0, times = _trajectory(schedule, tensors["xT"], settings, description["mu"], description["s"])
        yield f"{name}.x0", x0, tensors[f"{name}.x0"]
        yield f"{name}.model_t", times, tensors[f"{name}.model_t"]


def _tables(schedule: ScaledLinear, tensors: dict[str, Tensor]) -> Iterator[Case]:
    ours = {
        "betas_f64": schedule.betas,
        "cum_alphas_f64": schedule.alpha_bar,
        "cum_betas_f64": 1 - schedule.alpha_bar,
        "snr_f64_n1to1000": schedule.alpha_bar[1:] / (1 - schedule.alpha_bar[1:]),
    }
    yield from ((name, table, tensors[name]) for name, table in ours.items() if name in tensors)


def _queries(schedule: ScaledLinear, tensors: dict[str, Tensor]) -> Iterator[Case]:
    if "q.t" not in tensors:
        return
    t = tensors["q.t"]
    ours = {
        "q.log_alpha": schedule.log_alpha(t),
        "q.alpha": schedule.alpha(t),
        "q.sigma": schedule.sigma(t),
        "q.lambda": schedule.log_snr_half(t),
        "q.inverse_lambda": schedule.inverse_lambda(tensors["q.lambda"]),
        "q.model_log_snr_input": 8 * t - 4,
    }
    yield from ((name, values, tensors[name]) for name, values in ours.items())


def _trajectory(
    schedule: ScaledLinear, noise: Tensor, settings: dict[str, Any], mu: float, s: float
) -> tuple[Tensor, Tensor]:
    """Sample the Gaussian N(mu, s^2 I), whose noise prediction is known in closed form."""
    order, method = settings.get("order", 3), settings.get("method", "fast")
    intervals = settings["steps"] // order if method == "singlestep" else settings["steps"]
    skip = settings.get("skip_type", "time_uniform")
    times = time_grid(schedule, intervals, skip, start=settings.get("T"), end=settings.get("eps"))
    visited: list[float] = []

    def denoise(x: Tensor, t: float) -> Tensor:
        visited.append(t)
        alpha, sigma = schedule.alpha(t), schedule.sigma(t)
        noise = sigma * (x - alpha * mu) / (alpha**2 * s**2 + sigma**2)
        return to_clean(noise, x, t, schedule, "epsilon")

    x0 = dpm_solver_singlestep(
        denoise,
        noise,
        times,
        schedule,
        order=order,
        method=method,
        solver=settings.get("solver_type", "dpm_solver"),
        predict="data" if settings["predict_x0"] else "noise",
        final_denoise=settings.get("denoise", False),
    )
    return x0, torch.tensor(visited)
