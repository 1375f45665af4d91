import json
import math
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import get_args

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from belvedere.errors import InputError
from belvedere.generation.flow_solvers import (
    Diffusion,
    FixedStep,
    LastStep,
    SdeMethod,
    dopri5,
    integrate,
    sde,
)
from tests import parity, parity_transport

GOLDEN = Path(__file__).parents[1] / "golden" / "fitv2_transport.json"
MEAN, STD = 0.3, 0.7
METHODS = get_args(FixedStep)


def gaussian(x: Tensor, t: float) -> Tensor:
    """The velocity when the data is N(MEAN, STD^2)."""
    return MEAN + (t * STD**2 - (1 - t)) / (t**2 * STD**2 + (1 - t) ** 2) * (x - t * MEAN)


def exact(x: Tensor, t: float) -> Tensor:
    """The solution at t from x at time 0: the standardised sample does not move."""
    return t * MEAN + math.sqrt(t**2 * STD**2 + (1 - t) ** 2) * x


def wavy(x: Tensor, t: float) -> Tensor:
    """A velocity without closed form, different for every entry."""
    return torch.sin(3 * x) * math.cos(5 * t) - x


def grid(steps: int, end: float = 1.0) -> Tensor:
    return torch.linspace(0, end, steps + 1, dtype=torch.float64)


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


class Watched:
    """A velocity of many images from one of a single image; remembers every call."""

    def __init__(self, velocity: Callable[[Tensor, float], Tensor]):
        self.velocity = velocity
        self.times: list[list[float]] = []
        self.images: list[list[int]] = []

    def __call__(self, xs: list[Tensor], ts: list[float], images: list[int]) -> list[Tensor]:
        self.times.append(ts)
        self.images.append(images)
        return [self.velocity(x, t) for x, t in zip(xs, ts, strict=True)]


def test_golden() -> None:
    description = json.loads(GOLDEN.read_text())
    cases = {n: (g, w) for n, g, w in parity_transport.run(description, load_file(GOLDEN.with_suffix(".safetensors")))}
    assert {f"{run}.{what}" for run in description["runs"] for what in ("final", "model_t", "nfe")} <= cases.keys()
    assert {"xt", "ut", "loss", "loss_mask_ids", "dopri5_250.traj_first3", "sde_heun.before_last"} <= cases.keys()
    for name, (got, want) in cases.items():
        assert parity.compare("fitv2_transport", name, got, want, parity.ATOL).passed, name


@pytest.mark.parametrize(
    ("method", "order", "evaluations"), [("euler", 1, 1), ("heun", 2, 2), ("midpoint", 2, 2), ("rk4", 4, 4)]
)
def test_error_falls_with_the_order_of_the_method(method: FixedStep, order: int, evaluations: int) -> None:
    x, visited = torch.linspace(-2, 2, 9, dtype=torch.float64), []

    def velocity(x: Tensor, t: float) -> Tensor:
        visited.append(t)
        return gaussian(x, t)

    def error(steps: int) -> float:
        return (integrate(velocity, x, grid(steps), method) - exact(x, 1)).abs().max().item()

    assert math.log2(error(32) / error(64)) > order - 0.15
    assert len(visited) == 96 * evaluations and min(visited) >= 0 and max(visited) <= 1


@pytest.mark.parametrize("method", METHODS)
def test_part_of_the_way(method: FixedStep) -> None:
    x = random(3, 4)
    half = integrate(gaussian, x, grid(200, 0.5), method)
    torch.testing.assert_close(half, exact(x, 0.5), atol=0.01, rtol=0)
    uneven = integrate(gaussian, half, [0.5, 0.6, 0.61, *torch.linspace(0.62, 1, 100).tolist()], method)
    torch.testing.assert_close(uneven, exact(x, 1), atol=0.05, rtol=0)


@pytest.mark.parametrize("method", METHODS)
def test_state_is_at_least_float32(method: FixedStep) -> None:
    seen: list[torch.dtype] = []

    def network(x: Tensor, t: float) -> Tensor:
        seen.append(x.dtype)
        return gaussian(x, t).bfloat16()

    x = random(6).bfloat16()
    assert integrate(network, x, grid(4), method).dtype == torch.float32
    assert sde(network, x, 4, noise=lambda i: random(6).bfloat16(), method="heun").dtype == torch.float32
    assert set(seen) == {torch.float32}
    assert integrate(network, x.double(), grid(4), method).dtype == torch.float64
    assert dopri5(Watched(network), [x.double()], rtol=0.1)[0].dtype == torch.float64


@pytest.mark.parametrize("published", [False, True])
def test_adaptive_result_does_not_depend_on_the_other_images(published: bool) -> None:
    xs = [random(5, 4, seed=1), 4 * random(7, seed=2), 0.1 * random(2, 3, 2, seed=3), torch.zeros(1)]
    velocity = Watched(wavy)
    together = dopri5(velocity, xs, rtol=1e-4, published=published)
    for x, got in zip(xs, together, strict=True):
        (alone,) = dopri5(Watched(wavy), [x], rtol=1e-4, published=published)
        assert torch.equal(alone, got)
    assert velocity.images[0] == [0, 1, 2, 3]
    assert all(set(later) <= set(earlier) for earlier, later in zip(velocity.images, velocity.images[1:], strict=False))
    assert len(velocity.images[-1]) < 4


@pytest.mark.parametrize("rtol", [1e-3, 1e-4, 1e-5])
def test_adaptive_error_follows_the_tolerance(rtol: float) -> None:
    xs = [random(50, seed=1).double(), random(8, seed=2).double()]
    for velocity in (gaussian, wavy):
        for x, got in zip(xs, dopri5(Watched(velocity), xs, rtol=rtol), strict=True):
            want = integrate(velocity, x, grid(400), "rk4")
            assert ((got - want).square().mean() / want.square().mean()).sqrt() < 20 * rtol


def test_adaptive_evaluations() -> None:
    spent = []
    for rtol in (1e-1, 1e-3, 1e-5):
        velocity = Watched(wavy)
        dopri5(velocity, [random(20)], rtol=rtol)
        times = [t for (t,) in velocity.times]
        assert max(times) == times[-1] == 1.0
        assert (len(times) - 2) % 6 == 0
        spent.append(len(times))
    assert spent == sorted(set(spent))


@pytest.mark.parametrize("velocity", [lambda x, t: torch.zeros_like(x), lambda x, t: torch.full_like(x, 1e-3)])
def test_slow_velocity_is_not_asked_for_past_one(velocity: Callable[[Tensor, float], Tensor]) -> None:
    watched = Watched(velocity)
    (got,) = dopri5(watched, [torch.ones(4)])
    assert max(watched.times) == [1.0]
    torch.testing.assert_close(got, 1 + velocity(got, 1.0))


def test_published_steps_run_past_one() -> None:
    x, velocity, ends = random(30), Watched(gaussian), []
    (got,) = dopri5(velocity, [x], rtol=1e-5, published=True, callback=lambda i, t, y, v: ends.append((t, y)))
    assert max(velocity.times)[0] > 1
    assert ends[-1][0] == 1.0 and torch.equal(ends[-1][1], got)
    torch.testing.assert_close(got, exact(x, 1), atol=1e-4, rtol=0)


def marginal_error(**settings: object) -> tuple[float, float]:
    """The error of the mean and of the standard deviation of 40,000 samples of the Gaussian after 100 steps."""
    g = torch.Generator().manual_seed(0)
    x = torch.randn(40000, generator=g)
    x = sde(gaussian, x, 100, noise=lambda i: torch.randn(x.shape, generator=g), **settings)  # type: ignore[arg-type]
    return abs(x.mean().item() - MEAN), abs(x.std().item() - STD)


@pytest.mark.parametrize("diffusion", get_args(Diffusion))
@pytest.mark.parametrize("method", get_args(SdeMethod))
def test_sde_has_the_marginals_of_the_flow(method: SdeMethod, diffusion: Diffusion) -> None:
    assert max(marginal_error(method=method, diffusion=diffusion, last_step="euler")) < 0.012


@pytest.mark.parametrize("last_step", [*get_args(LastStep), None])
@pytest.mark.parametrize("method", get_args(SdeMethod))
def test_sde_may_end_in_any_way(method: SdeMethod, last_step: LastStep | None) -> None:
    assert max(marginal_error(method=method, last_step=last_step, norm=0.5)) < 0.012


@pytest.mark.parametrize(
    ("diffusion", "start", "middle"),
    [
        ("sigma", 0.7, 0.35),
        ("linear", 0.7, 0.35),
        ("constant", 0.7, 0.7),
        ("SBDM", 1.4, 0.7),
        ("decreasing", 0.7225, 0.25),
        ("increasing-decreasing", 0.0, 0.7),
    ],
)
def test_sde_steps_by_hand(diffusion: Diffusion, start: float, middle: float) -> None:
    noise, path = random(2, 5).double(), [random(5, seed=1).double()]
    sde(
        gaussian,
        path[0],
        2,
        noise=lambda i: noise[i],
        diffusion=diffusion,
        norm=0.7,
        last_step=None,
        callback=lambda i, t, x, v: path.append(x),
    )
    for i, (t, d) in enumerate([(0.0, start), (0.5, middle)]):
        v = gaussian(path[i], t)
        score = (t * v - path[i]) / (1 - t)
        want = path[i] + 0.5 * (v + d * score) + math.sqrt(2 * d * 0.5) * noise[i]
        torch.testing.assert_close(path[i + 1], want)


@pytest.mark.parametrize("last_step", get_args(LastStep))
def test_sde_last_steps_by_hand(last_step: LastStep) -> None:
    path = [random(6).double()]
    sde(
        gaussian,
        path[0],
        3,
        noise=lambda i: random(6, seed=i),
        norm=0.5,
        last_step=last_step,
        last_step_size=0.1,
        callback=lambda i, t, x, v: path.append(x),
    )
    x, t = path[3], 0.9
    v = gaussian(x, t)
    score = (t * v - x) / (1 - t)
    want = {
        "mean": x + 0.1 * (v + 0.5 * (1 - t) * score),
        "tweedie": x / t + (1 - t) ** 2 / t * score,
        "euler": x + 0.1 * v,
    }
    torch.testing.assert_close(path[4], want[last_step])


@pytest.mark.parametrize(
    ("method", "last_step", "evaluations"),
    [("euler", "mean", 6), ("heun", "mean", 11), ("euler", None, 5), ("heun", None, 9)],
)
def test_sde_evaluations(method: SdeMethod, last_step: LastStep | None, evaluations: int) -> None:
    visited: list[float] = []

    def velocity(x: Tensor, t: float) -> Tensor:
        visited.append(t)
        return gaussian(x, t)

    got = sde(velocity, random(3), 5, noise=lambda i: random(3, seed=i), method=method, last_step=last_step)
    assert got.isfinite().all()
    assert len(visited) == evaluations and visited == sorted(visited) and visited[-1] < 1


SOLVERS: dict[str, Callable[..., object]] = {
    **{method: partial(integrate, times=grid(8), method=method) for method in METHODS},
    "dopri5": lambda v, x, callback: dopri5(Watched(v), [x], rtol=1e-5, callback=callback),
    "sde": partial(sde, steps=7, noise=lambda i: random(5, seed=i)),
}


@pytest.mark.parametrize("solver", SOLVERS)
def test_callback_sees_every_update_and_may_stop(solver: str) -> None:
    x, seen = random(5), []

    def watch(step: int, t: float, x: Tensor, v: Tensor) -> None:
        seen.append((step, t, x, v))

    def stop(step: int, t: float, x: Tensor, v: Tensor) -> None:
        raise KeyboardInterrupt

    got = SOLVERS[solver](gaussian, x, callback=watch)
    steps, times, xs, vs = zip(*seen, strict=True)
    assert torch.equal(vs[0], gaussian(x, 0.0))
    assert torch.equal(xs[-1], got[0] if solver == "dopri5" else got)
    assert list(times) == sorted(set(times)) and times[-1] == 1.0
    assert list(steps) == ([0] * len(steps) if solver == "dopri5" else list(range(8)))
    with pytest.raises(KeyboardInterrupt):
        SOLVERS[solver](gaussian, x, callback=stop)


@pytest.mark.parametrize("solver", SOLVERS)
def test_what_a_callback_returns_takes_the_samples_place(solver: str) -> None:
    x, seen = random(5), []

    def shift(step: int, t: float, x: Tensor, v: Tensor) -> Tensor:
        seen.append(x)
        return x + 1

    got = SOLVERS[solver](lambda x, t: torch.zeros_like(x), x, callback=shift)
    assert torch.equal(got[0] if solver == "dopri5" else got, seen[-1] + 1)
    if solver != "sde":
        torch.testing.assert_close(seen[1], seen[0] + 1)
    same = [SOLVERS[solver](gaussian, x, callback=told) for told in (None, lambda step, t, x, v: x.clone())]
    assert torch.equal(same[0][0], same[1][0])


def test_adaptive_solver_asks_anew_where_the_callback_has_put_an_image() -> None:
    x, velocity, moved = random(30).double(), Watched(wavy), []

    def jump(image: int, t: float, y: Tensor, v: Tensor) -> Tensor | None:
        if moved:
            return None
        moved.append((t, 1 - y))
        return 1 - y

    (got,) = dopri5(velocity, [x], rtol=1e-6, callback=jump)
    t, start = moved[0]
    want = integrate(wavy, start, torch.linspace(t, 1, 401, dtype=torch.float64), "rk4")
    torch.testing.assert_close(got, want, atol=1e-4, rtol=0)
    assert (len(velocity.times) - 2) % 6 == 1


def test_adaptive_callback_names_the_image() -> None:
    seen: dict[int, list[float]] = {0: [], 1: []}
    xs = [random(5, seed=1), 3 * random(4, seed=2)]
    dopri5(Watched(wavy), xs, callback=lambda image, t, x, v: seen[image].append(t))
    assert all(times == sorted(times) and times[-1] == 1.0 for times in seen.values())


def test_bad_input_is_named() -> None:
    x = torch.zeros(2)
    for times in ([0.0], [0.0, 0.5, 0.5], [1.0, 0.0], [0.0, math.nan]):
        with pytest.raises(InputError, match="increase"):
            integrate(gaussian, x, times)
    with pytest.raises(InputError, match="'heun2': use 'euler', 'heun', 'midpoint', 'rk4'"):
        integrate(gaussian, x, [0, 1], "heun2")  # type: ignore[arg-type]
    draw = partial(sde, gaussian, x, noise=lambda i: x)
    for settings in ({"steps": 0}, {"steps": 5, "norm": -1.0}, {"steps": 5, "last_step_size": 1.0}):
        with pytest.raises(InputError, match="an SDE needs"):
            draw(**settings)
    for name, first in (("method", "euler"), ("diffusion", "sigma"), ("last_step", "mean")):
        with pytest.raises(InputError, match=f"unknown .* 'Mean': use '{first}'"):
            draw(5, **{name: "Mean"})


def test_adaptive_solver_stops_with_the_mend() -> None:
    xs = [random(5)]
    velocity = Watched(gaussian)
    dopri5(velocity, xs)
    evaluations = len(velocity.times)
    dopri5(Watched(gaussian), xs, max_evaluations=evaluations)
    with pytest.raises(InputError, match="looser rtol or a fixed-step solver"):
        dopri5(Watched(gaussian), xs, max_evaluations=evaluations - 1)
    with pytest.raises(InputError, match="rtol and atol above 0"):
        dopri5(Watched(gaussian), xs, rtol=0.0)
    for broken in (math.inf, math.nan):
        with pytest.raises(InputError, match="not finite"):
            dopri5(Watched(lambda x, t, v=broken: x * v if t > 0.1 else x), xs)
