"""Golden cases of FiTv2's transport: training targets, the loss, and trajectories of every published solver."""

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from belvedere.generation.flow_solvers import _dense_output, dopri5, integrate, sde
from belvedere.generation.flow_training import flow_loss, flow_times
from belvedere.generation.samplers import add_noise, prediction_target
from belvedere.generation.schedules import Flow

Cases = Iterator[tuple[str, Tensor, Tensor]]
OUR_NAMES = {"heun2": "heun"}


class Gaussian:
    """The velocity of data N(mu, s^2 I) in closed form; remembers every evaluation."""

    def __init__(self, mu: float, s: float):
        self.mu, self.s = mu, s
        self.x: list[Tensor] = []
        self.t: list[float] = []
        self.v: list[Tensor] = []

    def __call__(self, x: Tensor, t: float) -> Tensor:
        pull = (t * self.s**2 - (1 - t)) / (t**2 * self.s**2 + (1 - t) ** 2)
        v = self.mu + pull * (x - t * self.mu)
        self.x.append(x)
        self.t.append(t)
        self.v.append(v)
        return v


def run(description: dict[str, Any], tensors: dict[str, Tensor]) -> Cases:
    """Yield (case, ours, official) for everything the file holds."""
    yield from _training(tensors)
    for name, settings in description["runs"].items():
        velocity = Gaussian(description["mu"], description["s"])
        if settings["kind"] == "sde":
            ours = _random(velocity, tensors["z"], tensors[f"{name}.noise"], settings)
        elif settings["sampling_method"] == "dopri5":
            ours = _adaptive(velocity, tensors["z"], settings["num_steps"])
        else:
            ours = _fixed(velocity, tensors["z"], settings)
        twice = 2 if settings["kind"] == "sde" else 1  # the official drift evaluates v and score apart
        yield f"{name}.model_t", torch.tensor(velocity.t), tensors[f"{name}.model_t"][::twice]
        yield f"{name}.nfe", torch.tensor(twice * len(velocity.t)), torch.tensor(settings["nfe"])
        yield from ((f"{name}.{what}", value, tensors[f"{name}.{what}"]) for what, value in ours.items())


def _training(tensors: dict[str, Tensor]) -> Cases:
    noise, data, t = tensors["x0"], tensors["x1"], flow_times(SimpleNamespace(normal=lambda *_: tensors["u"]))
    yield "t", t, tensors["t"]
    yield "xt", add_noise(data, noise, 1 - t, Flow()), tensors["xt"]
    yield "ut", -prediction_target(data, noise, 1 - t, Flow(), "velocity"), tensors["ut"]
    for name, mask in (("loss", tensors["mask"]), ("loss_mask_ids", tensors["mask_ids"])):
        valid = mask.bool()
        offsets = torch.cat([torch.zeros(1), valid.sum(1).cumsum(0)]).int()
        target = tensors["ut"][valid]
        error = (tensors["model_out"][valid] - target) * mask[valid][:, None]  # official: ids scale the error
        yield name, flow_loss(target + error, target, offsets), tensors[name]


def _fixed(velocity: Gaussian, z: Tensor, settings: dict[str, Any]) -> dict[str, Tensor]:
    path = [z]
    times = torch.linspace(0, 1, settings["num_steps"], dtype=torch.float64)
    method = OUR_NAMES.get(settings["sampling_method"], settings["sampling_method"])
    final = integrate(velocity, z, times, method, callback=lambda i, t, x, v: path.append(x))
    return {"final": final, "traj_first3": torch.stack(path[:3])}


def _adaptive(velocity: Gaussian, z: Tensor, points: int) -> dict[str, Tensor]:
    """Solve the batch as one image; the early outputs lie in the first step, evaluations 2 to 7 after 0."""
    (final,) = dopri5(lambda xs, ts, _: [velocity(xs[0], ts[0])], [z], published=True)
    h, stages = velocity.t[7], [velocity.v[0], *velocity.v[2:8]]
    inner = [i / (points - 1) for i in range(1, min(points - 1, 3))]
    path = [_dense_output(z, velocity.x[7], h, stages, t / h) for t in inner]
    return {"final": final, "traj_first3": torch.stack([z, *path, final][:3])}


def _random(velocity: Gaussian, z: Tensor, noise: Tensor, settings: dict[str, Any]) -> dict[str, Tensor]:
    path = [z]
    final = sde(
        velocity,
        z,
        settings["num_steps"] - 1,
        noise=lambda i: noise[i],
        method=settings["sampling_method"].lower(),
        diffusion=settings["diffusion_form"],
        norm=settings["diffusion_norm"],
        last_step=settings["last_step"].lower(),
        last_step_size=settings["last_step_size"],
        callback=lambda i, t, x, v: path.append(x),
    )
    return {"final": final, "before_last": path[-2]}
