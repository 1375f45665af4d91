"""Samplers: from noise to data in few network evaluations, each one plain function.

All take ``denoise(x, t) -> x0``, the network's prediction of the clean data at time t (a float), the noise
``x`` (b, ...) at ``times[0]``, decreasing ``times`` (steps + 1,) and the noise schedule. A callback
``(step, t, x, x0)`` is called after every update with its number, the time reached, the sample there and the
last clean prediction; it may raise to stop, or return what takes the sample's place.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from math import expm1
from typing import Literal

import torch
from torch import Tensor

from belvedere.errors import InputError
from belvedere.generation.callbacks import Callback, tell
from belvedere.generation.schedules import Schedule

Denoiser = Callable[[Tensor, float], Tensor]
PredictionType = Literal["epsilon", "velocity", "sample"]
Method = Literal["fast", "singlestep"]
Solver = Literal["dpm_solver", "taylor"]


def _spread(value: Tensor, x: Tensor) -> Tensor:
    """Make a per-sample coefficient (b,) multiply x (b, ...); a scalar stays one."""
    return value.to(x).reshape(-1, *[1] * (x.ndim - 1)) if value.ndim else value  # (b, 1, ...)


def _unknown(prediction_type: str) -> InputError:
    return InputError(f"unknown prediction type {prediction_type!r}: use 'epsilon', 'velocity' or 'sample'")


def add_noise(x0: Tensor, noise: Tensor, t: Tensor | float, schedule: Schedule) -> Tensor:
    """Return x_t = alpha(t) x0 + sigma(t) noise, (b, ...); t is a float or one time per sample (b,)."""
    return _spread(schedule.alpha(t), x0) * x0 + _spread(schedule.sigma(t), x0) * noise


def prediction_target(
    x0: Tensor, noise: Tensor, t: Tensor | float, schedule: Schedule, prediction_type: PredictionType
) -> Tensor:
    """Return what a network of this type should predict for ``add_noise(x0, noise, t, schedule)``."""
    if prediction_type == "epsilon":
        return noise
    if prediction_type == "sample":
        return x0
    if prediction_type == "velocity":
        p, q = schedule.velocity(t)
        return _spread(p, x0) * noise - _spread(q, x0) * x0
    raise _unknown(prediction_type)


def to_clean(
    prediction: Tensor, x: Tensor, t: Tensor | float, schedule: Schedule, prediction_type: PredictionType
) -> Tensor:
    """Return the clean data x0 that a network's ``prediction`` at (x, t) implies, (b, ...).

    ``epsilon``: (x - sigma eps) / alpha, which pure noise (alpha 0) cannot answer; ``velocity``: the
    schedule's own, alpha eps - sigma x0 or noise - x0; ``sample``: the prediction itself.
    """
    sigma = _spread(schedule.sigma(t), x)
    if prediction_type == "epsilon":
        return (x - sigma * prediction) / _spread(schedule.alpha(t), x)
    if prediction_type == "velocity":
        return _spread(schedule.velocity(t)[0], x) * x - sigma * prediction
    if prediction_type == "sample":
        return prediction
    raise _unknown(prediction_type)


def from_clean(x0: Tensor, x: Tensor, t: Tensor | float, schedule: Schedule, prediction_type: PredictionType) -> Tensor:
    """Return the prediction that implies clean data ``x0`` at (x, t), t > 0: the inverse of ``to_clean``."""
    noise = (x - _spread(schedule.alpha(t), x) * x0) / _spread(schedule.sigma(t), x)
    return prediction_target(x0, noise, t, schedule, prediction_type)


def _decreasing(times: Tensor | Sequence[float]) -> Tensor:
    times = torch.as_tensor(times, dtype=torch.float64, device="cpu")
    if times.ndim != 1 or len(times) < 2 or not (times.diff() < 0).all():
        raise InputError("sampling times must be two or more and decrease: make them with time_grid")
    return times


def ddim(
    denoise: Denoiser,
    x: Tensor,
    times: Tensor | Sequence[float],
    schedule: Schedule,
    *,
    callback: Callback | None = None,
) -> Tensor:
    """Return the sample at ``times[-1]`` by deterministic DDIM (arXiv 2010.02502), order 1.

    With the ``Flow`` schedule this is Euler's method on the velocity.
    """
    times = _decreasing(times)
    alpha, sigma = schedule.alpha(times).tolist(), schedule.sigma(times).tolist()
    for i, (s, t) in enumerate(pairwise(times.tolist())):
        x0 = denoise(x, s)
        keep = sigma[i + 1] / sigma[i]
        x = tell(callback, i, t, keep * x + (alpha[i + 1] - keep * alpha[i]) * x0, x0)
    return x


def dpm_solver_multistep(
    denoise: Denoiser,
    x: Tensor,
    times: Tensor | Sequence[float],
    schedule: Schedule,
    *,
    callback: Callback | None = None,
) -> Tensor:
    """Return the sample at ``times[-1]`` by DPM-Solver++(2M): one evaluation a step, order 2.

    Lu et al. 2022, arXiv 2211.01095, algorithm 2: extrapolate the clean prediction along lambda from the last
    two. The first and the last step are of order 1, so the grid may begin at pure noise and end at clean data.
    """
    times = _decreasing(times)
    alpha, sigma = schedule.alpha(times).tolist(), schedule.sigma(times).tolist()
    h = schedule.log_snr_half(times).diff().tolist()
    last = len(h) - 1
    previous = None
    for i, (s, t) in enumerate(pairwise(times.tolist())):
        x0 = denoise(x, s)
        ahead = x0 if previous is None or i == last else torch.lerp(previous, x0, 1 + h[i] / (2 * h[i - 1]))
        x = (sigma[i + 1] / sigma[i]) * x - alpha[i + 1] * expm1(-h[i]) * ahead
        previous = x0
        x = tell(callback, i, t, x, x0)
    return x


@dataclass(frozen=True)
class _Update:
    """One single-step update through nodes s = times[0], inner times, t = times[-1], in semilinear form.

    Exact: x_i = carry_i x_0 - gain_i * (integral over z in [0, z_i] of exp(z_i - z) m(z)), where m is the
    network's noise prediction (carry alpha_i / alpha_0, gain sigma_i, z = lambda - lambda_0) or its data
    prediction (carry sigma_i / sigma_0, gain alpha_i, z = lambda_0 - lambda). One set of formulas serves both.
    """

    times: list[float]
    carry: list[float]
    gain: list[float]
    z: list[float]


def single_step_nodes(
    times: Tensor | Sequence[float], schedule: Schedule, *, order: int = 3, method: Method = "fast"
) -> list[list[float]]:
    """Return the times of every update of ``dpm_solver_singlestep``: [s, inner times..., t].

    The network is evaluated at all but the last of each: ``fast`` spends one grid interval an evaluation and
    ends with lower orders; ``singlestep`` spends ``order`` evaluations, evenly spaced in lambda, on each.
    """
    grid = _decreasing(times)
    if order not in (1, 2, 3) or method not in ("fast", "singlestep"):
        raise InputError(f"DPM-Solver has order 1, 2 or 3 and method fast or singlestep, not {order} {method}")
    if method == "fast":
        ends = [0, *accumulate(_fast_orders(len(grid) - 1, order))]
        return [grid[i : j + 1].tolist() for i, j in pairwise(ends)]
    lam = schedule.log_snr_half(grid)
    share = torch.arange(1, order, dtype=torch.float64, device="cpu") / order
    inner = schedule.inverse_lambda(lam[:-1, None] + share * lam.diff()[:, None])  # (steps, order - 1)
    return torch.cat([grid[:-1, None], inner, grid[1:, None]], dim=1).tolist()  # (steps, order + 1)


def _fast_orders(steps: int, order: int) -> list[int]:
    """Split ``steps`` evaluations into updates; at order 3 the last is always of a lower order."""
    full, rest = divmod(steps, order)
    if order == 3 and rest == 0:
        return [3] * (full - 1) + [2, 1]
    return [order] * full + [rest] * (rest > 0)


def dpm_solver_singlestep(
    denoise: Denoiser,
    x: Tensor,
    times: Tensor | Sequence[float],
    schedule: Schedule,
    *,
    order: int = 3,
    method: Method = "fast",
    solver: Solver = "dpm_solver",
    predict: Literal["data", "noise"] = "data",
    final_denoise: bool = False,
    callback: Callback | None = None,
) -> Tensor:
    """Return the sample at ``times[-1]`` by single-step DPM-Solver, the published sampler of DiMR.

    Lu et al. 2022, arXiv 2206.00927 (``predict="noise"``) and 2211.01095 (``"data"``), orders 1 to 3;
    ``solver`` chooses the paper's form of the last correction or the Taylor form; ``single_step_nodes`` says
    what ``method`` does. ``final_denoise`` adds an evaluation at ``times[-1]`` and returns the clean data it
    predicts. The grid must stay strictly between pure noise and clean data.
    """
    if solver not in ("dpm_solver", "taylor") or predict not in ("data", "noise"):
        raise InputError(
            f"DPM-Solver has solver dpm_solver or taylor and predicts data or noise, not {solver} {predict}"
        )
    nodes = single_step_nodes(times, schedule, order=order, method=method)
    updates = [_prepare(n, schedule, predict) for n in nodes]
    seen: list[Tensor] = []

    def model(x: Tensor, t: float) -> Tensor:
        seen[:] = [denoise(x, t)]
        return seen[0] if predict == "data" else from_clean(seen[0], x, t, schedule, "epsilon")

    for i, update in enumerate(updates):
        x = _ORDERS[len(update.times) - 1](model, x, update, solver)
        x = tell(callback, i, update.times[-1], x, seen[0])
    return denoise(x, updates[-1].times[-1]) if final_denoise else x


def _prepare(nodes: list[float], schedule: Schedule, predict: str) -> _Update:
    times = torch.tensor(nodes, dtype=torch.float64, device="cpu")
    alpha, sigma, lam = schedule.alpha(times), schedule.sigma(times), schedule.log_snr_half(times)
    if not lam.isfinite().all():
        raise InputError(f"single-step DPM-Solver needs times strictly between data and noise, not {nodes}")
    carry, gain, sign = (sigma, alpha, -1) if predict == "data" else (alpha, sigma, 1)
    return _Update(nodes, (carry / carry[0]).tolist(), gain.tolist(), (sign * (lam - lam[0])).tolist())


Model = Callable[[Tensor, float], Tensor]


def _phi2(z: float) -> float:
    return expm1(z) / z - 1


def _phi3(z: float) -> float:
    return _phi2(z) / z - 0.5


def _jump(x: Tensor, m: Tensor, u: _Update, i: int) -> Tensor:
    """First-order step from node 0 to node i."""
    return u.carry[i] * x - u.gain[i] * expm1(u.z[i]) * m


def _first(model: Model, x: Tensor, u: _Update, solver: Solver) -> Tensor:
    return _jump(x, model(x, u.times[0]), u, 1)


def _second(model: Model, x: Tensor, u: _Update, solver: Solver) -> Tensor:
    m0 = model(x, u.times[0])
    slope = (model(_jump(x, m0, u, 1), u.times[1]) - m0) * (u.z[2] / u.z[1])
    weight = 0.5 * expm1(u.z[2]) if solver == "dpm_solver" else _phi2(u.z[2])
    return _jump(x, m0, u, 2) - u.gain[2] * weight * slope


def _third(model: Model, x: Tensor, u: _Update, solver: Solver) -> Tensor:
    _, z1, z2, z = u.z
    m0 = model(x, u.times[0])
    d1 = model(_jump(x, m0, u, 1), u.times[1]) - m0
    x2 = _jump(x, m0, u, 2) - u.gain[2] * _phi2(z2) * (z2 / z1) * d1
    d2 = model(x2, u.times[2]) - m0
    if solver == "dpm_solver":
        return _jump(x, m0, u, 3) - u.gain[3] * _phi2(z) * (z / z2) * d2
    slope1, slope2 = d1 * (z / z1), d2 * (z / z2)
    slope = (z2 * slope1 - z1 * slope2) / (z2 - z1)
    bend = 2 * z * (slope2 - slope1) / (z2 - z1)
    return _jump(x, m0, u, 3) - u.gain[3] * (_phi2(z) * slope + _phi3(z) * bend)


_ORDERS = {1: _first, 2: _second, 3: _third}
