"""Prompts in place of classes: a Stable Diffusion pipeline with the face of the pipelines of classes.

Picture i then depends on its own prompt, size and noise alone: pictures share a call of one fixed size, padded.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import wraps
from itertools import groupby
from types import SimpleNamespace
from typing import Any

import torch
from diffusers import ImagePipelineOutput
from torch import Tensor

from belvedere.errors import InputError
from belvedere.generation import rooms
from belvedere.generation.class_pipeline import StepCallback, after_step, with_spares
from belvedere.generation.concept import Concept, check_lengths
from belvedere.generation.concept_pipeline import KEPT, ConceptSampler

CELLS_PER_CALL = 1024
"""Positions of latents in one call on a CPU."""
STEPS, GUIDANCE = 50, 7.5
"""Of Stable Diffusion, where a model does not say."""


class PromptPipeline:
    """Makes pictures of ``prompts``, which are called by their numbers.

    ``pipe``: a plain Stable Diffusion pipeline. With ``concepts``, every prompt has to hold one; ``negative`` is plain
    text. Raises ``InputError`` for prompts that do not fit, and for concepts of another base.
    """

    any_size = True

    def __init__(
        self,
        pipe: Any,
        prompts: Sequence[str],
        negative: str = "",
        concepts: Sequence[Concept] = (),
        editability: float = 0.0,
        default_steps: int = STEPS,
        default_guidance: float = GUIDANCE,
    ):
        self.pipe, self.prompts, self.negative, self.editability = pipe, tuple(prompts), negative, editability
        self.sampler = ConceptSampler(pipe, concepts, keep=len(set(self.prompts)) <= KEPT)
        self.config = SimpleNamespace(default_steps=default_steps, default_guidance=default_guidance)
        if concepts:
            self.sampler.check(self.prompts, [negative])
            for concept in concepts:
                concept.truncation(editability)
        elif editability:
            raise InputError("editability belongs to concepts: give one, or leave it out")
        for encoder, tokenizer in zip(self.sampler.encoders, self.sampler.tokenizers, strict=True):
            check_lengths(tokenizer, (*self.prompts, negative), encoder.length)

    def changed(self, **values: Any) -> "PromptPipeline":
        """Return this pipeline with other keywords of the constructor, on the same networks."""
        own = {
            "prompts": self.prompts,
            "negative": self.negative,
            "concepts": self.sampler.concepts,
            "editability": self.editability,
        }
        return PromptPipeline(self.pipe, **{**own, **vars(self.config), **values})

    @property
    def network(self) -> Any:
        """The U-Net."""
        return self.pipe.unet

    @property
    def vae(self) -> Any:
        """The autoencoder of the latents."""
        return self.pipe.vae

    @property
    def default_size(self) -> tuple[int, int]:
        """(height, width) in pixels of the pictures the U-Net was trained on."""
        sample, factor = self.network.config.sample_size, self.pipe.vae_scale_factor
        height, width = (sample, sample) if isinstance(sample, int) else sample
        return height * factor, width * factor

    @property
    def unit(self) -> int:
        """Sides are multiples of this many pixels."""
        return max(8, self.pipe.vae_scale_factor)

    def grid(self, size: tuple[int, int]) -> tuple[int, int]:
        """Return the (rows, columns) of the latents of a picture of ``size`` (height, width).

        Raises ``InputError`` for sides that are no multiples of ``unit``.
        """
        if any(side % self.unit for side in size):
            raise InputError(f"size {size[1]}x{size[0]}: this model makes multiples of {self.unit} pixels a side")
        return size[0] // self.pipe.vae_scale_factor, size[1] // self.pipe.vae_scale_factor

    def together(self, size: tuple[int, int], room: int | None = None) -> int:
        """Return how many pictures of ``size`` share a call of a ``room``, by default of the fullest."""
        rows, columns = self.grid(size)
        room = room or rooms.full(self.network.device)
        return max(1, room * CELLS_PER_CALL // (rows * columns))

    def split(self, sizes: Sequence[tuple[int, int]], room: int | None = None) -> list[range]:
        """Return which neighbouring pictures share a call: of one size, up to ``together``."""
        parts: list[range] = []
        for size, group in groupby(range(len(sizes)), key=sizes.__getitem__):
            alike, count = list(group), self.together(size, room)
            parts += [range(i, min(i + count, alike[-1] + 1)) for i in range(alike[0], alike[-1] + 1, count)]
        return parts

    def __call__(
        self,
        numbers: Sequence[int],
        *,
        sizes: Sequence[tuple[int, int]],
        num_inference_steps: int,
        guidance_scale: float,
        generator: Sequence[torch.Generator],
        callback_on_step_end: StepCallback | None = None,
        output_type: str = "pil",
        room: int | None = None,
    ) -> ImagePipelineOutput:
        """Make one picture of each prompt of ``numbers``, all of size ``sizes[0]``, at most ``together`` of them.

        ``callback_on_step_end(pipe, step, t, {"latents"})`` runs after every step, with "clean", the latents that the
        scheduler foresees, where it tells them; t is the scheduler's, where the step began. "latents" that it returns
        take their place. ``room``: of the call, see ``rooms``.
        """
        (height, width), count = sizes[0], len(numbers)
        padding = self.together((height, width), rooms.chosen(self, [sizes[0]] * count, room)) - count
        prompts = [self.prompts[i] for i in numbers]
        options: dict[str, Any] = {
            "height": height,
            "width": width,
            "num_inference_steps": num_inference_steps,
            "guidance_scale": guidance_scale,
            "generator": with_spares(generator, padding),
            "output_type": output_type,
        }
        prompts += prompts[-1:] * padding
        negative = [self.negative] * len(prompts) if self.negative else None  # SDXL knows none from an empty one
        with _foreseen(self.pipe.scheduler) as seen:
            if callback_on_step_end:
                options["callback_on_step_end"] = _cut(callback_on_step_end, count, seen)
            if self.sampler.concepts:
                made = self.sampler(prompts, negative_prompt=negative, editability=self.editability, **options)
            else:
                made = self.pipe(prompts, negative_prompt=negative, **options)
        return ImagePipelineOutput(images=made.images[:count])


def _cut(callback: StepCallback, count: int, seen: Mapping[str, Tensor]) -> StepCallback:
    """Return what shows ``callback`` the first ``count`` rows after a step, those that are no padding."""

    def report(pipe: Any, step: int, t: float, values: dict[str, Any]) -> dict[str, Any]:
        shown = {name: x[:count] for name, x in {**values, **seen}.items()}
        latents = after_step(callback, pipe, step, t, shown)
        return {"latents": torch.cat((torch.stack(latents), values["latents"][count:]))}

    return report


@contextmanager
def _foreseen(scheduler: Any) -> Iterator[dict[str, Tensor]]:
    """Yield what holds, after each step within the block, "clean": the latents that the scheduler takes for clean.

    Schedulers return them second, if at all.
    """
    own, seen = scheduler.step, dict[str, Tensor]()

    @wraps(own)
    def step(*arguments: Any, **named: Any) -> Any:
        made = own(*arguments, **named)
        if len(made) > 1:
            seen["clean"] = made[1]
        return made

    scheduler.step = step
    try:
        yield seen
    finally:
        del scheduler.step
