"""Solvers of rectified flow in FiTv2's time: from noise at t = 0 to data at t = 1 along dx/dt = v(x, t).

``integrate`` and ``sde`` take ``velocity(x, t) -> v`` in the shape of x, which is any: a packed batch (n, c) as
well as images; ``dopri5`` gives every image a step size of its own. The state is float32, or x's type where that
is wider; times are Python floats. A callback ``(step, t, x, v)`` is called after every update with its number,
the time reached, the sample there and the velocity at the step's start; it may raise to stop, or return what takes
the sample's place.
"""

import math
from collections.abc import Callable, Collection, Generator, Sequence
from itertools import pairwise
from typing import Literal, get_args

import torch
from torch import Tensor

from belvedere.errors import InputError
from belvedere.generation.callbacks import Callback, tell

Velocity = Callable[[Tensor, float], Tensor]
ImagesVelocity = Callable[[list[Tensor], list[float], list[int]], list[Tensor]]
FixedStep = Literal["euler", "heun", "midpoint", "rk4"]
SdeMethod = Literal["euler", "heun"]
Diffusion = Literal["sigma", "constant", "SBDM", "linear", "decreasing", "increasing-decreasing"]
LastStep = Literal["mean", "tweedie", "euler"]

Slope = Callable[[Velocity, Tensor, float, float, Tensor], Tensor]  # of a step from s to t; v is the one at s
Query = tuple[Tensor, float]  # a place (x, t) whose velocity an image's solver asks for


def _state(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _in_state(velocity: Velocity) -> Velocity:
    """Return ``velocity`` with its values in the state's type, whatever the network computes in."""
    return lambda x, t: velocity(x, t).to(x.dtype)


def _check_name(what: str, name: str | None, choices: Collection[str | None]) -> None:
    if name not in choices:
        raise InputError(f"unknown {what} {name!r}: use {', '.join(map(repr, choices))}")


def _euler(velocity: Velocity, x: Tensor, s: float, t: float, v: Tensor) -> Tensor:
    return v


def _heun(velocity: Velocity, x: Tensor, s: float, t: float, v: Tensor) -> Tensor:
    return (v + velocity(x + (t - s) * v, t)) / 2


def _midpoint(velocity: Velocity, x: Tensor, s: float, t: float, v: Tensor) -> Tensor:
    half = (t - s) / 2
    return velocity(x + half * v, s + half)


def _rk4(velocity: Velocity, x: Tensor, s: float, t: float, v: Tensor) -> Tensor:
    h = t - s
    v2 = velocity(x + (h / 3) * v, s + h / 3)
    v3 = velocity(x + h * (v2 - v / 3), s + 2 * h / 3)
    v4 = velocity(x + h * (v - v2 + v3), t)
    return (v + 3 * (v2 + v3) + v4) / 8


_SLOPES: dict[str, Slope] = {"euler": _euler, "heun": _heun, "midpoint": _midpoint, "rk4": _rk4}


def integrate(
    velocity: Velocity,
    x: Tensor,
    times: Tensor | Sequence[float],
    method: FixedStep = "heun",
    *,
    callback: Callback | None = None,
) -> Tensor:
    """Return the sample at ``times[-1]`` from ``x`` at ``times[0]``, one step between each two increasing times.

    ``euler`` (order 1, one evaluation a step), ``heun`` and ``midpoint`` (order 2, two evaluations) or ``rk4``,
    Kutta's 3/8 rule (order 4, four evaluations).
    """
    _check_name("fixed-step method", method, _SLOPES)
    grid = torch.as_tensor(times, dtype=torch.float64, device="cpu")
    if grid.ndim != 1 or len(grid) < 2 or not (grid.diff() > 0).all():
        raise InputError("flow times must be two or more and increase, as from 0 (noise) to 1 (data)")
    x, velocity = _state(x), _in_state(velocity)
    for i, (s, t) in enumerate(pairwise(grid.tolist())):
        v = velocity(x, s)
        x = tell(callback, i, t, x + (t - s) * _SLOPES[method](velocity, x, s, t, v), v)
    return x


# Dormand and Prince 1980, RK5(4)7M: nodes and weights of stages 2 to 7; the last is the solution of order 5, whose
# velocity begins the next step. The error is two thirds of its difference from their solution of order 4, as the
# golden step sizes of the official sampler tell. Then the weights of the dense output of order 4 (Hairer, Norsett
# and Wanner, Solving Ordinary Differential Equations I, section II.6).
_NODES = (1 / 5, 3 / 10, 4 / 5, 8 / 9, 1.0, 1.0)
_WEIGHTS = (
    (1 / 5,),
    (3 / 40, 9 / 40),
    (44 / 45, -56 / 15, 32 / 9),
    (19372 / 6561, -25360 / 2187, 64448 / 6561, -212 / 729),
    (9017 / 3168, -355 / 33, 46732 / 5247, 49 / 176, -5103 / 18656),
    (35 / 384, 0.0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84),
)
_ERROR = (71 / 86400, 0.0, -142 / 50085, 71 / 2880, -5751 / 169600, 44 / 1575, -1 / 60)
_DENSE = (
    -12715105075 / 11282082432,
    0.0,
    87487479700 / 32700410799,
    -10690763975 / 1880347072,
    701980252875 / 199316789632,
    -1453857185 / 822651844,
    69997945 / 29380423,
)


def _rms(x: Tensor) -> float:
    rms = x.square().mean().sqrt().item()
    if not math.isfinite(rms):
        raise InputError("the velocity is not finite: check the network's weights and its precision")
    return rms


def _add_stages(x: Tensor, h: float, weights: Sequence[float], stages: list[Tensor]) -> Tensor:
    """Return x + h * (the weighted sum of the stages' velocities)."""
    for weight, v in zip(weights, stages, strict=True):
        if weight:
            x = x.add(v, alpha=h * weight)
    return x


def _dense_output(x: Tensor, y: Tensor, h: float, stages: list[Tensor], share: float) -> Tensor:
    """Return the sample at ``share`` in [0, 1] of a step of length h from x to y: a quartic.

    It has the values and the velocities of both ends, and at its middle the value of the dense output.
    """
    rest = 1 - share
    hermite = rest * (h * stages[0] - (y - x)) + share * ((y - x) - h * stages[-1])
    bend = _add_stages(torch.zeros_like(x), h, _DENSE, stages)
    return torch.lerp(x, y, share) + share * rest * (hermite + share * rest * bend)


def _first_step(x: Tensor, v: Tensor, rtol: float, atol: float, limit: float) -> Generator[Query, Tensor, float]:
    """Return the first step length: one probe by Euler's method (Hairer, Norsett and Wanner, section II.4)."""
    scale = atol + rtol * x.abs()
    size, speed = _rms(x / scale), _rms(v / scale)
    probe = min(1e-6 if min(size, speed) < 1e-5 else 0.01 * size / speed, limit)
    ahead = yield x.add(v, alpha=probe), probe
    fastest = max(speed, _rms((ahead - v) / scale) / probe)
    length = (0.01 / fastest) ** 0.2 if fastest > 1e-15 else max(1e-6, 1e-3 * probe)
    return min(100 * probe, length)


def _dormand_prince(
    x: Tensor, rtol: float, atol: float, published: bool, callback: Callback | None, image: int
) -> Generator[Query, Tensor, Tensor]:
    """Solve one image: yield the places whose velocity is needed, be sent it, return the sample at t = 1."""
    limit = math.inf if published else 1.0
    t, v = 0.0, (yield x, 0.0)
    h = yield from _first_step(x, v, rtol, atol, limit)
    while t < 1:
        h = min(h, limit - t)
        stages, y = [v], x
        for node, weights in zip(_NODES, _WEIGHTS, strict=True):
            y = _add_stages(x, h, weights, stages)
            stages.append((yield y, min(t + node * h, limit)))
        difference = _add_stages(torch.zeros_like(x), h, _ERROR, stages)
        error = _rms(difference / (atol + rtol * torch.maximum(x.abs(), y.abs())))
        if error <= 1:
            end = min(t + h, limit)
            if end > 1:
                y, end = _dense_output(x, y, h, stages, (1 - t) / h), 1.0
            told = tell(callback, image, end, y, v)
            same = told is y or torch.equal(told, y)
            x, t = y if same else told, end
            v = stages[-1] if same or t == 1 else (yield x, t)
        h *= min(10, max(0.9 / max(error, 1e-10) ** 0.2, 1 if error < 1 else 0.2))
    return x


def dopri5(
    velocity: ImagesVelocity,
    xs: Sequence[Tensor],
    *,
    rtol: float = 1e-3,
    atol: float = 1e-6,
    published: bool = False,
    max_evaluations: int = 1000,
    callback: Callback | None = None,
) -> list[Tensor]:
    """Return every image's sample at t = 1 by the Dormand-Prince method of order 5 with adaptive steps.

    ``xs`` holds each image's noise, in any shapes. ``velocity(xs, ts, images)`` is called with the images still
    under way, each at its own time, and their numbers in ``xs``; it returns their velocities. Every image controls
    the root mean square of its own error / (atol + rtol |x|), so its result does not depend on the others. No
    velocity is asked for past t = 1, where the last step ends. The callback's first argument is the number of the
    image that made a step. A solution that takes more than ``max_evaluations`` calls raises ``InputError``.

    ``published`` is the official behaviour: the last step runs past 1 and the result is read off the dense output.
    The official sampler controls the error of its whole batch, both guidance halves included: pass that as one image.
    """
    if not (rtol > 0 and atol > 0):
        raise InputError(f"dopri5 needs rtol and atol above 0, not {rtol} and {atol}")
    solvers = [_dormand_prince(_state(x), rtol, atol, published, callback, i) for i, x in enumerate(xs)]
    queries = {i: next(solver) for i, solver in enumerate(solvers)}
    results: dict[int, Tensor] = {}
    evaluations = 0
    while queries:
        if evaluations == max_evaluations:
            spent = f"dopri5 needs more than {max_evaluations} evaluations at rtol {rtol}"
            raise InputError(f"{spent}: use a looser rtol or a fixed-step solver")
        evaluations += 1
        images, places = list(queries), [x for x, _ in queries.values()]
        velocities = velocity(places, [t for _, t in queries.values()], images)
        for i, x, v in zip(images, places, velocities, strict=True):
            try:
                queries[i] = solvers[i].send(v.to(x.dtype))
            except StopIteration as end:
                results[i] = end.value
                del queries[i]
    return [results[i] for i in range(len(xs))]


_DIFFUSIONS: dict[str, Callable[[float, float, float], float]] = {
    "sigma": lambda t, norm, dt: norm * (1 - t),
    "constant": lambda t, norm, dt: norm,
    "SBDM": lambda t, norm, dt: norm * (1 - t) / max(t, dt),
    "linear": lambda t, norm, dt: norm * (1 - t),
    "decreasing": lambda t, norm, dt: 0.25 * (norm * math.cos(math.pi * t) + 1) ** 2,
    "increasing-decreasing": lambda t, norm, dt: norm * math.sin(math.pi * t) ** 2,
}


def sde(
    velocity: Velocity,
    x: Tensor,
    steps: int,
    *,
    noise: Callable[[int], Tensor],
    method: SdeMethod = "euler",
    diffusion: Diffusion = "sigma",
    norm: float = 1.0,
    last_step: LastStep | None = "mean",
    last_step_size: float = 0.04,
    callback: Callback | None = None,
) -> Tensor:
    """Return the sample at t = 1 of dx = (v + D score) dt + sqrt(2 D) dw, which has the flow's own marginals.

    Ma et al. 2024, SiT, arXiv 2401.08740, on the straight path x_t = t data + (1 - t) noise, where one evaluation
    tells both v and score = (t v - x) / (1 - t). ``steps`` even steps, each with the standard normal ``noise(i)`` in
    x's shape, reach t = 1 - ``last_step_size``; the official ``num_steps`` is ``steps + 1``. ``euler`` is
    Euler-Maruyama, one evaluation a step; ``heun`` adds the noise first, then makes a Heun step, two evaluations.

    The last step has no noise and one evaluation: ``mean`` follows the drift, ``euler`` the velocity;
    ``tweedie``, x / t + (1 - t)^2 / t score, is the same as ``euler`` on this path. With None the random steps
    run to t = 1, where the score is infinite: the last of ``heun`` is then one of ``euler``.

    D(t): ``sigma`` and ``linear`` norm (1 - t); ``constant`` norm; ``decreasing`` (norm cos(pi t) + 1)^2 / 4;
    ``increasing-decreasing`` norm sin(pi t)^2; ``SBDM`` norm (1 - t) / t, half the squared diffusion of the
    score-based model with this path's marginals: sigma^2 alpha' / alpha - sigma sigma' at alpha = t, sigma = 1 - t.
    It is infinite at t = 0, so its t is held at one step or more, which leaves the marginals as they are.
    """
    _check_name("SDE method", method, get_args(SdeMethod))
    _check_name("diffusion", diffusion, _DIFFUSIONS)
    _check_name("last step", last_step, (*get_args(LastStep), None))
    if steps < 1 or norm < 0 or not 0 < last_step_size < 1:
        given = f"steps {steps}, norm {norm}, last step {last_step_size}"
        raise InputError(f"an SDE needs steps >= 1, norm >= 0 and a last step between 0 and 1, not {given}")
    x, velocity = _state(x), _in_state(velocity)
    end = 1 - last_step_size if last_step else 1.0
    dt = end / steps

    def variance(t: float) -> float:
        return _DIFFUSIONS[diffusion](t, norm, dt)

    def drift(x: Tensor, v: Tensor, t: float) -> Tensor:
        return v + variance(t) / (1 - t) * (t * v - x)

    for i in range(steps):
        s, t = end * i / steps, end * (i + 1) / steps
        kick = math.sqrt(2 * variance(s) * dt) * noise(i).to(x)
        start = x + kick if method == "heun" else x
        v = velocity(start, s)
        slope = drift(start, v, s)
        x = x + kick + dt * slope
        if method == "heun" and t < 1:
            x = x + dt / 2 * (drift(x, velocity(x, t), t) - slope)
        x = tell(callback, i, t, x, v)
    if last_step:
        v = velocity(x, end)
        x = tell(callback, steps, 1.0, x + last_step_size * (drift(x, v, end) if last_step == "mean" else v), v)
    return x
