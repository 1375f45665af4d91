"""Whether a diffusers scheduler goes with a network: with its flow, or with the noise that it learned by."""

import inspect
from typing import Any

import torch

from belvedere.errors import InputError
from belvedere.generation.samplers import PredictionType
from belvedere.generation.schedules import Flow, ScaledLinear, Schedule

STEPS = 1000
"""Of training, by which schedulers count times."""
PREDICTIONS: dict[str, PredictionType] = {"epsilon": "epsilon", "v_prediction": "velocity", "sample": "sample"}
"""Our names of what a scheduler of noise asks a network for."""


def check_scheduler(scheduler: Any, schedule: Schedule) -> None:
    """Raise ``InputError`` for a scheduler that is not set up for networks of this schedule."""
    if isinstance(schedule, Flow):
        check_flow(scheduler)
    else:
        _check_noise(scheduler, schedule)


def check_flow(scheduler: Any) -> None:
    """Raise ``InputError`` for a scheduler that is not set up for rectified flows."""
    if not _follows_flows(scheduler) or scheduler.config.get("num_train_timesteps") != STEPS:
        raise InputError(
            f"{type(scheduler).__name__} is not configured for flows: use a FlowMatch scheduler of {STEPS} steps"
        )


def _follows_flows(scheduler: Any) -> bool:
    """Return whether a scheduler follows flows: because its class does nothing else, or because it is set up to.

    A config made from another scheduler's also holds keys that this class knows nothing of.
    """
    if any(cls.__name__.startswith("FlowMatch") for cls in type(scheduler).__mro__):
        return True
    known, config = inspect.signature(type(scheduler)).parameters, scheduler.config
    set_up = config.get("prediction_type") == "flow_prediction" and config.get("use_flow_sigmas") is True
    return set_up and "use_flow_sigmas" in known


def _check_noise(scheduler: Any, schedule: ScaledLinear) -> None:
    config, shares = scheduler.config, getattr(scheduler, "alphas_cumprod", torch.empty(0))
    known = config.get("prediction_type") in PREDICTIONS and not config.get("use_flow_sigmas", False)
    wanted = schedule.alpha_bar[1:]
    if not known or shares.shape != wanted.shape or not torch.allclose(shares.to(wanted), wanted, rtol=1e-3):
        raise InputError(
            f"{type(scheduler).__name__} is not configured for the noise of this network: give it "
            f'beta_schedule="scaled_linear", beta_start={schedule.beta_start}, beta_end={schedule.beta_end} '
            f"and prediction_type {' or '.join(PREDICTIONS)}"
        )


def set_steps(scheduler: Any, steps: int) -> None:
    """Set the steps of a scheduler; ``InputError`` for none, for some it cannot make, and for steps towards noise."""
    if steps < 1:
        raise InputError(f"num_inference_steps {steps}: a scheduler needs steps >= 1")
    name = type(scheduler).__name__
    try:
        scheduler.set_timesteps(steps)
    except Exception as error:  # schedulers raise anything for what does not go with their config
        reason = " ".join(str(error).split())[:200]
        raise InputError(f"{name} cannot make {steps} steps ({reason}): give other steps or settings") from error
    if scheduler.timesteps[0] < scheduler.timesteps[-1]:
        raise InputError(f"{name} goes from pictures to noise: use one that goes from noise to pictures")
