"""The networks as diffusers pipelines: from class labels to pictures."""

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import diffusers
import torch
from diffusers import AutoencoderKL, ImagePipelineOutput
from torch import Tensor

from belvedere.errors import InputError
from belvedere.generation import rooms
from belvedere.generation.callbacks import Callback, tell
from belvedere.generation.class_pipeline import (
    ClassPipeline,
    Generators,
    StepCallback,
    after_step,
    check_arguments,
    draw,
    with_spares,
)
from belvedere.generation.dimr import DiMR
from belvedere.generation.guidance import check_interval, cosine_power_weight, guide, guides
from belvedere.generation.samplers import (
    Denoiser,
    PredictionType,
    dpm_solver_multistep,
    dpm_solver_singlestep,
    from_clean,
    single_step_nodes,
    to_clean,
)
from belvedere.generation.scheduler_checks import PREDICTIONS, check_scheduler, set_steps
from belvedere.generation.schedules import Flow, Schedule, make_schedule, time_grid

Solver = Literal["multistep", "published"]

CELLS_PER_CALL = 512
"""Positions of the last stage in one network call on a CPU: enough to fill two cores, few enough that a first picture
comes soon (``benchmarks/studio.py``)."""


@dataclass(frozen=True)
class Plan:
    """How to sample, the same for every image of a call."""

    steps: int
    guidance: float
    guidance_power: float | None
    guidance_interval: tuple[float, float]
    solver: Solver
    shift: float
    callback: StepCallback | None
    micro_batch: int
    """Images in one network call, the last one padded."""

    def weight(self, t: float) -> float:
        """Return the weight of the guidance at time t, from 1, noise, to 0, data."""
        if not guides(self.guidance_interval, 1 - t):
            return 1.0
        if self.guidance_power is None:
            return self.guidance
        return cosine_power_weight(t, self.guidance, self.guidance_power)


class _TimeRows:
    """The network's time-dependent parameters at given times, evaluated a block of steps at once."""

    BLOCK = 32

    def __init__(self, network: DiMR, times: Sequence[float]):
        self.network, self.times = network, list(times)
        self.index = {t: i for i, t in enumerate(self.times)}
        self.block, self.rows = -1, torch.empty(0)

    def __call__(self, t: float) -> Tensor:
        """Return the parameters at ``t``: (1, total)."""
        block, row = divmod(self.index[t], self.BLOCK)
        if block != self.block:
            chosen = self.times[block * self.BLOCK : (block + 1) * self.BLOCK]
            times = torch.tensor(chosen, dtype=torch.float32, device=self.network.device)
            self.block, self.rows = block, self.network.evaluate_time(8 * times - 4)
        return self.rows[row : row + 1]


class DiMRPipeline(ClassPipeline):
    """Class-conditional pictures from DiMR.

    ``network``: the model. ``vae``: the KL autoencoder of its latents; None for a network of pixels.
    ``scheduler``: a diffusers scheduler that replaces the built-in solvers; None for those.
    ``id2label``: class names by id. ``default_steps``, ``default_guidance``, ``default_shift``: what a call uses
    when it does not say; the shift moves the times of the grid towards noise.
    """

    network: DiMR

    def __init__(
        self,
        network: DiMR,
        vae: AutoencoderKL | None = None,
        scheduler: Any = None,
        id2label: dict[int, str] | dict[str, str] | None = None,
        default_steps: int = 25,
        default_guidance: float = 1.4,
        default_shift: float = 1.0,
    ):
        super().__init__()
        if network.sizes[-1].ratio != network.sizes[-1].head_patch:
            raise InputError("the network's last stage does not predict at the resolution of its input")
        self.register_modules(network=network, vae=vae, scheduler=scheduler)
        names = {str(i): name for i, name in (id2label or {}).items()}
        self.register_to_config(
            id2label=names,
            default_steps=default_steps,
            default_guidance=default_guidance,
            default_shift=default_shift,
        )

    @property
    def sample_shape(self) -> tuple[int, int, int]:
        """Shape of one sample: (channels, height, width) of the latent or of the picture."""
        last = self.network.sizes[-1]
        return self.network.config.channels, last.height * last.ratio, last.width * last.ratio

    @property
    def default_size(self) -> tuple[int, int]:
        """(height, width) in pixels of the pictures it makes, the only ones."""
        return self.sample_shape[1] * self.vae_factor, self.sample_shape[2] * self.vae_factor

    def split(self, sizes: Sequence[tuple[int, int]], room: int | None = None) -> list[range]:
        """Return which neighbouring images share a network call."""
        count = self.micro_batch(room)
        return [range(i, min(i + count, len(sizes))) for i in range(0, len(sizes), count)]

    def micro_batch(self, room: int | None = None) -> int:
        """Return the images in one network call of a ``room``, by default of the fullest; the last call is padded."""
        last = self.network.sizes[-1]
        room = room or rooms.full(self.network.device)
        return max(1, room * CELLS_PER_CALL // (last.height * last.width))

    def evaluations(self, solver: str, steps: int) -> int | None:
        """Return how often a solver asks the network for a picture, guidance aside: once a step, whatever its order.

        Raises ``InputError`` for a solver that is unknown or does not fit the network.
        """
        self._check_solver(solver)
        return steps

    def _check_solver(self, solver: str) -> None:
        if solver not in get_args(Solver):
            raise InputError(f"unknown solver {solver!r}: choose {' or '.join(get_args(Solver))}")
        if solver == "published" and isinstance(make_schedule(self.network.config.schedule), Flow):
            raise InputError("solver 'published' needs a network of the scaled_linear schedule: use multistep")

    @torch.no_grad()
    def __call__(
        self,
        class_labels: int | str | Sequence[int | str],
        *,
        num_inference_steps: int | None = None,
        guidance_scale: float | None = None,
        guidance_power: float | None = None,
        guidance_interval: tuple[float, float] = (0.0, 1.0),
        solver: Solver = "multistep",
        generator: Generators = None,
        output_type: str = "pil",
        callback_on_step_end: StepCallback | None = None,
        room: int | None = None,
        return_dict: bool = True,
    ) -> ImagePipelineOutput | tuple[Any]:
        """Make one picture for each of ``class_labels`` (ids or names).

        ``guidance_scale`` w: uncond + w (cond - uncond); 1 turns guidance off; the published eval setting 0.4 is
        w = 1.4. ``guidance_power`` raises w over time by the cosine-power rule. ``guidance_interval``: only between
        these shares of the time, 0 noise to 1 data. ``solver``: "multistep" is DPM-Solver++(2M), "published" the
        single-step third-order solver of the paper (250 steps there).
        ``generator``: one per image, or one for all, from which the images draw in order. Image i depends on its
        own noise alone, bit for bit on a CPU. ``output_type``: pil, np (b, h, w, 3), pt (b, 3, h, w) or latent.
        ``callback_on_step_end(pipeline, step, t, {"latents", "clean"})`` runs after every step of every micro-batch,
        with the rows of its pictures and the time reached, from 1 to 0; "latents" that it returns take their place.
        ``room``: of a network call, see ``rooms``.
        """
        numbers = {"guidance_scale": guidance_scale, "guidance_power": guidance_power}
        check_arguments(output_type, num_inference_steps=num_inference_steps, **numbers)
        ids, config = self.class_ids(class_labels), self.config
        count = self.micro_batch(rooms.chosen(self, [self.default_size] * len(ids), room))
        plan = Plan(
            steps=config.default_steps if num_inference_steps is None else int(num_inference_steps),
            guidance=config.default_guidance if guidance_scale is None else float(guidance_scale),
            guidance_power=guidance_power,
            guidance_interval=check_interval(guidance_interval),
            solver=solver,
            shift=config.default_shift,
            callback=callback_on_step_end,
            micro_batch=count,
        )
        noise = self._noise(len(ids), generator)
        parts = [
            self._micro_batch(noise[i : i + count], ids[i : i + count], plan, generator, i)
            for i in range(0, len(ids), count)
        ]
        samples = torch.cat(parts) if parts else noise
        images = samples if output_type == "latent" else self._decode(samples, output_type)
        self._offload()
        return ImagePipelineOutput(images=images) if return_dict else (images,)

    def _noise(self, count: int, generator: Generators) -> Tensor:
        rows = [draw(self.sample_shape, source) for source in self._sources(count, generator)]
        return torch.stack(rows) if rows else torch.empty(0, *self.sample_shape, dtype=torch.float32, device="cpu")

    def _micro_batch(self, noise: Tensor, ids: list[int], plan: Plan, generator: Any, first: int) -> Tensor:
        """Sample up to ``plan.micro_batch`` images, padded to exactly that many: (b, c, h, w), float32."""
        padding = plan.micro_batch - len(ids)
        x = torch.cat((noise, noise.new_zeros(padding, *noise.shape[1:]))).to(self.network.device)
        labels = torch.tensor(ids + [self.network.null_class] * padding, device=self.network.device)
        report = None if plan.callback is None else self._reporter(plan.callback, len(ids))
        if self.scheduler is not None:
            if isinstance(generator, Sequence):
                generator = with_spares(generator[first : first + len(ids)], padding)
            return self._run_scheduler(x, labels, plan, generator, report)[: len(ids)]
        return self._run_solver(x, labels, plan, report)[: len(ids)]

    def _reporter(self, callback: StepCallback, count: int) -> Callback:
        """Return what shows ``callback`` the first ``count`` rows after a step, those that are no padding."""

        def report(step: int, t: float, x: Tensor, clean: Tensor) -> Tensor:
            values = {"latents": x[:count], "clean": clean[:count]}
            return torch.cat((torch.stack(after_step(callback, self, step, t, values)), x[count:]))

        return report

    def _denoiser(self, labels: Tensor, plan: Plan, schedule: Schedule, rows: _TimeRows) -> Denoiser:
        config, null = self.network.config, self.network.config.num_classes - 1
        self._graphs.follow(self.network)

        def last(x: Tensor, y: Tensor, time: Tensor) -> Tensor:
            return self.network(x, y=y, time=time)[-1]

        def denoise(x: Tensor, t: float) -> Tensor:
            def predict(x: Tensor, y: Tensor) -> Tensor:
                return self._graphs(last, x.to(self.network.dtype), y, rows(t)).float()

            return to_clean(guide(predict, x, labels, null, plan.weight(t)), x, t, schedule, config.prediction)

        return denoise

    def _run_solver(self, x: Tensor, labels: Tensor, plan: Plan, report: Callback | None) -> Tensor:
        self._check_solver(plan.solver)
        schedule = make_schedule(self.network.config.schedule)
        published = plan.solver == "published"
        times = time_grid(schedule, plan.steps, shift=plan.shift, end=schedule.end if published else 0.0)
        visited = times[:-1].tolist()
        if published:
            visited = [t for nodes in single_step_nodes(times, schedule) for t in nodes[:-1]]
        denoise = self._denoiser(labels, plan, schedule, _TimeRows(self.network, visited))
        run = dpm_solver_singlestep if published else dpm_solver_multistep
        return run(denoise, x, times, schedule, callback=report)

    def _run_scheduler(self, x: Tensor, labels: Tensor, plan: Plan, generator: Any, report: Callback | None) -> Tensor:
        """Sample with the diffusers scheduler; it is given the prediction it was configured for."""
        scheduler, schedule = self.scheduler, make_schedule(self.network.config.schedule)
        check_scheduler(scheduler, schedule)
        set_steps(scheduler, plan.steps)
        flow = isinstance(schedule, Flow)
        times = [float(n) / 1000 if flow else (float(n) + 1) / 1000 for n in scheduler.timesteps]
        denoise = self._denoiser(labels, plan, schedule, _TimeRows(self.network, times))
        kind: PredictionType = "velocity" if flow else PREDICTIONS[scheduler.config.prediction_type]
        takes_generator = "generator" in inspect.signature(scheduler.step).parameters
        extra = {"generator": generator} if takes_generator else {}
        x = x * getattr(scheduler, "init_noise_sigma", 1.0)
        for i, (n, t) in enumerate(zip(scheduler.timesteps, times, strict=True)):
            scaled = scheduler.scale_model_input(x, n) if hasattr(scheduler, "scale_model_input") else x
            clean = denoise(scaled, t)
            output = from_clean(clean, scaled, t, schedule, kind)
            x = scheduler.step(output, n, x, return_dict=False, **extra)[0]
            x = tell(report, i, times[i + 1] if i + 1 < len(times) else 0.0, x, clean)
        return x

    def _decode(self, samples: Tensor, output_type: str) -> Any:
        pixels = torch.stack([self._pixels(sample) for sample in samples]) if len(samples) else samples
        return self.image_processor.postprocess(pixels, output_type=output_type)


# DiffusionPipeline.from_pretrained looks up the class named by model_index.json in diffusers itself.
setattr(diffusers, "DiMRPipeline", DiMRPipeline)  # noqa: B010
