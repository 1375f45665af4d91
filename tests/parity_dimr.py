"""Golden cases of DiMR: networks of any config, and the schedule with its sampler."""

import re
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from belvedere.checkpoints.official import dimr_names, load_official
from belvedere.generation.denoising import multiscale_targets
from belvedere.generation.dimr import DiMR, denoising_loss
from belvedere.generation.guidance import combine, cosine_power_weight, guide, published_weight
from belvedere.generation.samplers import add_noise
from belvedere.generation.schedules import make_schedule
from tests import parity_sampler

Cases = Iterator[tuple[str, Tensor, Tensor]]


def run(description: dict[str, Any], tensors: dict[str, Tensor]) -> Cases:
    """Yield (case, ours, official) for everything the file holds."""
    if "runs" in description:
        yield from parity_sampler.run(description, tensors)
        return
    state = {name[3:]: tensor for name, tensor in tensors.items() if name.startswith("sd.")}
    model = load_official("dimr", state, description["config"])
    for case in sorted({name.split(".")[0] for name in tensors} - {"sd", "cfg", "loss"}):
        yield from _forward(model, case, tensors)
    if "cfg.x" in tensors:
        yield from _guidance(model, description, tensors)
    if "loss.x0" in tensors:
        yield from _loss(model, description, tensors)


@torch.no_grad()
def _forward(model: DiMR, case: str, tensors: dict[str, Tensor]) -> Cases:
    x, log_snr, y = tensors[f"{case}.x"], tensors[f"{case}.log_snr"], tensors.get(f"{case}.y")
    outputs = model(x, log_snr, y)
    for i, output in enumerate(outputs):
        yield f"{case}.out{i}", output, tensors[f"{case}.out{i}"]
    if bool((log_snr == log_snr[0]).all()):
        shared = model(x, y=y, time=model.evaluate_time(log_snr[:1]))
        yield (
            f"{case}.out{len(outputs) - 1} (one time for the batch)",
            shared[-1],
            tensors[f"{case}.out{len(outputs) - 1}"],
        )


@torch.no_grad()
def _guidance(model: DiMR, description: dict[str, Any], tensors: dict[str, Tensor]) -> Cases:
    x, log_snr, y = (tensors[f"cfg.{name}"] for name in ("x", "log_snr", "y"))
    null = model.null_class
    assert null is not None

    def predict(x: Tensor, labels: Tensor) -> Tensor:
        return model(x, log_snr.repeat(len(x) // len(log_snr)), labels)[-1]

    conditional, unconditional = predict(x, y), predict(x, torch.full_like(y, null))
    yield "cfg.cond", conditional, tensors["cfg.cond"]
    yield "cfg.uncond", unconditional, tensors["cfg.uncond"]
    yield "cfg.guided", guide(predict, x, y, null, published_weight(0.4)), tensors["cfg.guided"]
    for name in tensors:
        if match := re.fullmatch(r"cfg\.guided_pow([\d.]+)_scale([\d.]+)_t(\d+)", name):
            power, scale, n = (float(value) for value in match.groups())
            weight = cosine_power_weight(n / 1000, scale, power)
            yield name, combine(conditional, unconditional, weight), tensors[name]


def _loss(model: DiMR, description: dict[str, Any], tensors: dict[str, Tensor]) -> Cases:
    clean, noise, t, y = tensors["loss.x0"], tensors["loss.eps"], tensors["loss.n"] / 1000, tensors.get("loss.y")
    yield "loss.xn", add_noise(clean, noise, t, make_schedule(model.config.schedule)), tensors["loss.xn"]
    for name in tensors:
        if match := re.fullmatch(r"loss\.target_w(\d+)", name):
            yield name, multiscale_targets(noise, [int(match[1])], unit_variance=True)[0], tensors[name]
    per_sample = denoising_loss(model, clean, noise, t, y, description.get("loss_coeffs"))
    yield "loss.per_sample", per_sample, tensors["loss.per_sample"]
    yield "loss.mean", per_sample.mean(), torch.tensor(description["loss_mean"])
    per_sample.mean().backward()
    yield from _gradients(model, description)


def _gradients(model: DiMR, description: dict[str, Any]) -> Cases:
    """Compare the norm of every parameter's gradient, under the official names."""
    ours = {name: parameter.grad for name, parameter in model.named_parameters()}
    for name, norm in description["grad_norms"].items():
        if norm is None:
            continue
        half = re.search(r"\.block2\.w([01])\.(weight|bias)$", name)
        if half:
            gradient = ours[f"{name[: half.start()]}.mlp.project_in.{half[2]}"].chunk(2)[int(half[1])]
        else:
            gradient = ours[next(iter(dimr_names({name: torch.empty(0)})))]
        yield f"gradient {name}", gradient.norm(), torch.tensor(norm)
