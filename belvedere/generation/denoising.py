"""Training a denoiser: which times it sees, how they are weighted, what it should say at each resolution."""

import torch
import torch.nn.functional as F
from torch import Tensor

from belvedere.generation.samplers import PredictionType
from belvedere.generation.schedules import Flow, Schedule
from belvedere.seeds import BatchRng


def training_times(schedule: Schedule, rng: BatchRng) -> Tensor:
    """Return one time per sample (b,), float32.

    Scaled linear: uniform over the discrete steps n / 1000. Flow: logit-normal around 0.6,
    t = sigmoid(N(0.4, 1)), since pictures are decided at high noise (Esser et al., arXiv 2403.03206, section 3.1).
    """
    if isinstance(schedule, Flow):
        return torch.sigmoid(rng.normal("time", ()) + 0.4)
    return ((rng.uniform("time") * schedule.steps).floor() + 1) / schedule.steps


def loss_weight(schedule: Schedule, prediction: PredictionType, t: Tensor) -> Tensor:
    """Return the weight of each sample's squared error (b,): 1, but for clean images predicted under ``Flow``.

    There 1 / max(t, 0.1)^2 turns the error of the clean image into that of the velocity, bounded near t = 0.
    """
    if isinstance(schedule, Flow) and prediction == "sample":
        return t.clamp(min=0.1) ** -2
    return torch.ones_like(t)


def multiscale_targets(target: Tensor, widths: list[int], unit_variance: bool) -> list[Tensor]:
    """Return ``target`` (b, c, h, w) pooled to each of ``widths``.

    ``unit_variance`` multiplies the mean of a k x k cell by k, so that pooled white noise keeps its variance
    (DiMR's scale correction); without it the mean stays, as befits a clean image.
    """
    targets = []
    for width in widths:
        factor = target.shape[-1] // width
        pooled = F.avg_pool2d(target, factor) if factor > 1 else target
        targets.append(pooled * factor if unit_variance else pooled)
    return targets
