"""FiTv2 as a diffusers pipeline: from class labels and sizes to pictures, all in as few network calls as they fill."""

import copy
from collections.abc import Sequence
from operator import index
from typing import Any

import diffusers
import numpy as np
import torch
from diffusers import AutoencoderKL, ImagePipelineOutput
from torch import Tensor

from belvedere.errors import InputError
from belvedere.generation import rooms
from belvedere.generation.class_pipeline import (
    ClassPipeline,
    Generators,
    StepCallback,
    after_step,
    check_arguments,
    draw,
)
from belvedere.generation.extrapolation import each
from belvedere.generation.fitv2 import FiTv2
from belvedere.generation.fitv2_config import LARGEST
from belvedere.generation.flow_sampling import Plan, evaluations, run_schedulers, scheduler_times, solve, visited
from belvedere.generation.packed_sampling import TOKENS_PER_CALL, Guidance, PackedCall, split
from belvedere.generation.tokens import patchify, unpatchify

Size = tuple[int, int]


class FiTv2Pipeline(ClassPipeline):
    """Class-conditional pictures of any size from FiTv2.

    ``network``: the model. ``vae``: the KL autoencoder of its latents; None for a network of pixels. ``scheduler``: a
    diffusers flow-match scheduler that replaces the built-in solvers; None for those. ``id2label``: class names by id.
    ``default_steps``, ``default_guidance``, ``default_shift``: what a call uses when it does not say; the shift moves
    the times of the grid towards noise. ``default_side``: patches a side of its square; None for the network's
    ``trained_side``.
    """

    any_size = True
    clean_time = 1.0
    network: FiTv2

    def __init__(
        self,
        network: FiTv2,
        vae: AutoencoderKL | None = None,
        scheduler: Any = None,
        id2label: dict[int, str] | dict[str, str] | None = None,
        default_steps: int = 25,
        default_guidance: float = 1.5,
        default_shift: float = 1.0,
        default_side: int | None = None,
    ):
        super().__init__()
        if network.config.learn_sigma or network.config.channels_first:
            raise InputError("this is a FiT of version 1, no rectified flow: the pipeline samples version 2")
        most = LARGEST["trained_side"]
        if default_side is not None and (not isinstance(default_side, int) or not 1 <= default_side <= most):
            raise InputError(f"default_side {default_side!r}: must be an integer from 1 to {most}")
        self.register_modules(network=network, vae=vae, scheduler=scheduler)
        self.register_to_config(
            id2label={str(i): name for i, name in (id2label or {}).items()},
            default_steps=default_steps,
            default_guidance=default_guidance,
            default_shift=default_shift,
            default_side=default_side,
        )

    @property
    def unit(self) -> int:
        """Pixels a side of one token: sizes are multiples of it."""
        return self.network.config.patch * self.vae_factor

    @property
    def default_size(self) -> Size:
        """(height, width) in pixels of the square that a call makes when it does not say."""
        return ((self.config.default_side or self.network.config.trained_side) * self.unit,) * 2

    def capacity(self, room: int | None = None) -> int:
        """Return the tokens that small images share in one call of a ``room``, for each half of the guidance."""
        return TOKENS_PER_CALL * (room or rooms.full(self.network.device))

    def grid(self, size: Size) -> Size:
        """Return the (height, width) in patches of a picture of (height, width) pixels; ``InputError`` if none fits."""
        height, width = size
        if height < 1 or width < 1 or height % self.unit or width % self.unit:
            raise InputError(f"size {width}x{height}: this model makes multiples of {self.unit} pixels a side")
        return height // self.unit, width // self.unit

    def split(self, sizes: Sequence[Size], room: int | None = None) -> list[range]:
        """Return which neighbouring images share a network call."""
        return split([height * width for height, width in map(self.grid, sizes)], self.capacity(room))

    def evaluations(self, solver: str, steps: int) -> int | None:
        """Return how often a solver asks the network for a picture, guidance aside; None: it chooses its own steps.

        Raises ``InputError`` for an unknown solver.
        """
        return evaluations(Plan(steps, Guidance(1.0), solver), self.network.reaches_end)

    @torch.no_grad()
    def __call__(
        self,
        class_labels: int | str | Sequence[int | str],
        *,
        height: int | None = None,
        width: int | None = None,
        sizes: Sequence[Size] | None = None,
        num_inference_steps: int | None = None,
        guidance_scale: float | None = None,
        guidance_power: float | None = None,
        guidance_interval: tuple[float, float] = (0.0, 1.0),
        guidance_channels: int | None = None,
        solver: str = "multistep",
        solver_options: dict[str, Any] | None = None,
        extrapolation: str | Sequence[str] | None = None,
        generator: Generators = None,
        output_type: str = "pil",
        callback_on_step_end: StepCallback | None = None,
        room: int | None = None,
        return_dict: bool = True,
    ) -> ImagePipelineOutput | tuple[Any]:
        """Make one picture for each of ``class_labels`` (ids or names).

        ``height`` and ``width`` in pixels for all, or ``sizes``: a (height, width) for each; multiples of ``unit``.
        ``extrapolation``: a name of ``extrapolation.EXTRAPOLATIONS`` for all or one each, for sizes beyond training;
        by default the network's own.

        ``guidance_scale`` w: uncond + w (cond - uncond), 1 turns it off; ``guidance_power`` lets w fall to 1 over time
        by the cosine rule; ``guidance_interval``: only between these times, 0 noise to 1 data; ``guidance_channels``:
        only the first so many channels (published: 3 of 4), by default all.

        ``solver``: multistep (DPM-Solver++ 2M, the default), euler, heun, midpoint, rk4, dopri5 (adaptive, each image
        by its own error; published; takes no steps), sde-euler or sde-heun; ``solver_options`` are the keywords of
        ``flow_solvers.dopri5`` and ``flow_solvers.sde``.

        ``generator``: one per image, or one for all, from which the images draw in order. An image with its own
        depends on nothing else, bit for bit on a CPU. ``output_type``: pil, np (b, h, w, 3), pt (b, 3, h, w) or
        latent; a list where sizes differ. ``callback_on_step_end(pipeline, step, t, {"latents", "clean"})`` is given
        lists of (c, h, w) after every step of every call, and the time reached, from 0 to 1; "latents" that it returns
        take their place, of dopri5 the one whose step it was. ``room``: of a network call, see ``rooms``.
        """
        numbers = {"guidance_scale": guidance_scale, "guidance_power": guidance_power}
        numbers |= {"guidance_channels": guidance_channels, "height": height, "width": width}
        check_arguments(output_type, num_inference_steps=num_inference_steps, **numbers)
        ids, config = self.class_ids(class_labels), self.config
        pixels = self._sizes(len(ids), height, width, sizes)
        grids = [self.grid(size) for size in pixels]
        capacity = self.capacity(rooms.chosen(self, pixels, room))
        names = each(self.network.config.extrapolation if extrapolation is None else extrapolation, len(ids))
        weight = config.default_guidance if guidance_scale is None else float(guidance_scale)
        plan = Plan(
            steps=config.default_steps if num_inference_steps is None else int(num_inference_steps),
            guidance=Guidance(weight, guidance_power, guidance_interval, guidance_channels),
            solver=solver,
            options=solver_options or {},
            shift=config.default_shift,
        )
        sources = self._sources(len(ids), generator)
        width_in = self.network.config.channels * self.network.config.patch**2
        noise = [draw((h * w, width_in), source) for (h, w), source in zip(grids, sources, strict=True)]
        samples: list[Tensor] = []
        for part in split([len(x) for x in noise], capacity):
            i = slice(part.start, part.stop)
            samples += self._sample(
                noise[i], grids[i], ids[i], names[i], sources[i], plan, capacity, callback_on_step_end
            )
        images = self._output(samples, output_type)
        self._offload()
        return ImagePipelineOutput(images=images) if return_dict else (images,)

    def _sizes(self, count: int, height: int | None, width: int | None, sizes: Sequence[Size] | None) -> list[Size]:
        if sizes is None:
            high, wide = self.default_size
            return [(high if height is None else height, wide if width is None else width)] * count
        if height is not None or width is not None:
            raise InputError("sizes, and height or width too: give either")
        if len(sizes) != count:
            raise InputError(
                f"{len(sizes)} sizes for {count} images: give one (height, width) each, or height and width"
            )
        return [_pair(size) for size in sizes]

    def _output(self, samples: list[Tensor], output_type: str) -> Any:
        """Return pictures in the form asked for: one batch where all have one size, else a list."""
        if output_type == "latent":
            return torch.stack(samples) if len({x.shape for x in samples}) == 1 else samples
        made = [self.image_processor.postprocess(self._pixels(x)[None], output_type=output_type)[0] for x in samples]
        if output_type == "pil" or len({x.shape for x in made}) != 1:
            return made
        return torch.stack(made) if output_type == "pt" else np.stack(made)

    def _sample(
        self,
        noise: list[Tensor],
        grids: list[Size],
        ids: list[int],
        names: list[str],
        sources: Sequence[torch.Generator | None],
        plan: Plan,
        capacity: int,
        callback: StepCallback | None,
    ) -> list[Tensor]:
        """Return the samples (c, h, w), float32, of the images of one network call."""
        schedulers = None if self.scheduler is None else [copy.deepcopy(self.scheduler) for _ in noise]
        ends = self.network.reaches_end
        times = visited(plan, ends) if schedulers is None else scheduler_times(schedulers, plan.steps)
        call = PackedCall(self.network, grids, ids, names, plan.guidance, capacity, times, self._graphs)
        patch = self.network.config.patch

        def pictures(x: Tensor) -> list[Tensor]:
            parts = zip(x.split(call.lengths), grids, strict=True)
            return [unpatchify(tokens, grid, patch) for tokens, grid in parts]

        def report(step: int, t: float, x: Tensor, clean: Tensor) -> Tensor | None:
            if callback is None:
                return None
            latents = after_step(callback, self, step, t, {"latents": pictures(x), "clean": pictures(clean)})
            return torch.cat([patchify(latent, patch) for latent in latents])

        x = torch.cat(noise).to(self.network.device)
        if schedulers is not None:
            return pictures(run_schedulers(call, x, schedulers, times, sources, report))

        def fresh(step: int) -> Tensor:
            return torch.cat([draw(part.shape, source) for part, source in zip(noise, sources, strict=True)])

        return pictures(solve(call, x, plan, fresh, report))


def _pair(size: Any) -> Size:
    try:
        height, width = map(index, size)
    except (TypeError, ValueError) as error:
        raise InputError(f"size {size!r:.80}: give (height, width), whole numbers of pixels") from error
    return height, width


# DiffusionPipeline.from_pretrained looks up the class named by model_index.json in diffusers itself.
setattr(diffusers, "FiTv2Pipeline", FiTv2Pipeline)  # noqa: B010
