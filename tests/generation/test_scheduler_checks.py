"""Which of diffusers' schedulers are taken: those that make pictures of what a network foresees, and no others."""

import inspect
from contextlib import suppress
from itertools import product
from typing import Any

import diffusers
import pytest
import torch

from belvedere.checkpoints.published import CLASSES
from belvedere.errors import InputError
from belvedere.generation.scheduler_checks import check_scheduler, set_steps
from belvedere.generation.schedules import make_schedule
from tests.generation.test_pipelines import NOISE, pipeline

FLOW: dict[str, Any] = {"prediction_type": "flow_prediction", "use_flow_sigmas": True}
KINDS = [kind for name, kind in inspect.getmembers(diffusers, inspect.isclass) if name.endswith("Scheduler")]
CONFIGS = [{}, diffusers.UniPCMultistepScheduler(**FLOW).config, diffusers.DDIMScheduler(**NOISE).config]
"""Any class takes the config of another: it keeps what it does not know."""


@pytest.fixture(scope="module")
def schedulers() -> list[Any]:
    """Those of diffusers, in every one of ``CONFIGS`` that they can be made from."""
    made = []
    for kind, config in product(KINDS, CONFIGS):
        with suppress(TypeError, ValueError, ImportError):  # some need what no other has
            made.append(kind.from_config(config))
    return made


def is_taken(scheduler: Any, schedule: str, steps: int) -> bool:
    try:
        check_scheduler(scheduler, make_schedule(schedule))
        set_steps(scheduler, steps)
    except InputError:
        return False
    return True


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("schedule", ["flow", "scaled_linear"])
def test_a_scheduler_that_is_taken_makes_pictures_and_may_be_saved(schedule: str, schedulers: list[Any]) -> None:
    """The network foresees one picture always: nothing else may come out, but the noise that some leave at the end."""
    made, steps = pipeline(schedule=schedule), 20
    target = torch.linspace(0.1, 0.9, 3 * 8 * 8).view(3, 8, 8)
    made._denoiser = lambda *_: lambda x, t: (2 * target - 1).expand_as(x)  # type: ignore[method-assign]
    taken = [scheduler for scheduler in schedulers if is_taken(scheduler, schedule, steps)]
    assert len({type(scheduler) for scheduler in taken}) >= 8
    for made.scheduler in taken:
        name = type(made.scheduler).__name__
        found = made([0], num_inference_steps=steps, generator=[torch.Generator().manual_seed(0)], output_type="pt")
        assert (found.images[0] - target).square().mean().sqrt() < 0.03, name
        assert name in CLASSES["scheduler"], f"{name}: taken and saved, but not loaded"


@pytest.mark.parametrize(
    "kind",
    [
        diffusers.IPNDMScheduler,
        diffusers.KarrasVeScheduler,
        diffusers.RePaintScheduler,
        diffusers.DDPMWuerstchenScheduler,
        diffusers.DDIMScheduler,
    ],
)
@pytest.mark.parametrize("config", [{}, FLOW], ids=["plain", "with keys of flows"])
def test_what_says_nothing_of_flows_is_not_taken_for_one(kind: Any, config: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=f"{kind.__name__} is not configured for flows: use a FlowMatch"):
        check_scheduler(kind.from_config(config), make_schedule("flow"))


@pytest.mark.parametrize(
    ("scheduler", "steps", "message"),
    [
        (diffusers.FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True), 4, r"cannot make 4 steps \(`mu` must"),
        (diffusers.LCMScheduler(), 60, r"LCMScheduler cannot make 60 steps \(.*50.*\): give other steps or settings"),
        (diffusers.FlowMatchEulerDiscreteScheduler(invert_sigmas=True), 4, "goes from pictures to noise"),
        (diffusers.DDIMInverseScheduler(**NOISE), 4, "DDIMInverseScheduler goes from pictures to noise: use one"),
    ],
)
def test_steps_that_a_scheduler_cannot_make_are_one_line(scheduler: Any, steps: int, message: str) -> None:
    with pytest.raises(InputError, match=message) as error:
        set_steps(scheduler, steps)
    assert "\n" not in str(error.value)
