"""What the pipelines of class-conditional networks share: names of classes, sources of noise, pixels at the end."""

import math
from collections.abc import Callable, Iterable, Sequence
from numbers import Integral, Real
from operator import index
from typing import Any, ClassVar

import torch
from diffusers import AutoencoderKL, DiffusionPipeline
from diffusers.image_processor import VaeImageProcessor
from torch import Tensor

from belvedere.errors import InputError
from belvedere.kernels.graphs import Graphs

Generators = torch.Generator | Sequence[torch.Generator] | None
StepCallback = Callable[[Any, int, float, dict[str, Any]], dict[str, Any] | None]
"""Called with the pipeline, the step, the time reached and the samples there, "latents"; as in diffusers, "latents" of
what it returns take their place."""
CLASSES_SHOWN = 12
OUTPUT_TYPES = ("pil", "np", "pt", "latent")
_WHOLE = ("height", "width", "num_inference_steps", "guidance_channels")


class ClassPipeline(DiffusionPipeline):
    """From class labels to pictures by ``network``, through ``vae`` when it makes latents.

    ``id2label``, in the config, has the names of the classes by id.
    """

    model_cpu_offload_seq = "vae"
    # lists, because diffusers adds others to them
    _exclude_from_cpu_offload: ClassVar = ["network"]  # it says where tensors go, and its hooks would not see all calls
    _optional_components: ClassVar = ["vae", "scheduler"]
    any_size = False
    """Whether a call takes ``sizes`` and ``extrapolation``."""
    clean_time = 0.0
    """The time at which callbacks see clean pictures; pure noise is 1 away from it."""
    network: Any
    vae: AutoencoderKL | None
    scheduler: Any

    def __init__(self) -> None:
        super().__init__()
        self._graphs = Graphs()

    def __setattr__(self, name: str, value: Any) -> None:
        if name in self._optional_components and value is not None and self.__dict__.get(name, value) is None:
            # diffusers forgets the class of what takes the place of None, and would not save it
            self.register_to_config(**{name: ("diffusers", type(value).__name__)})
        super().__setattr__(name, value)

    @property
    def labels(self) -> dict[str, int]:
        """Class ids by name."""
        return {name: int(i) for i, name in self.config.id2label.items()}

    @property
    def vae_factor(self) -> int:
        """Pixels a side of one position of the network's latents; 1 without ``vae``."""
        return 1 if self.vae is None else 2 ** (len(self.vae.config.block_out_channels) - 1)

    def split(self, sizes: Sequence[tuple[int, int]], room: int | None = None) -> list[range]:
        """Return which neighbouring pictures of ``sizes``, (height, width), share a call of a ``room``.

        ``room``: see ``rooms``; by default that of a call that fills the device.
        """
        raise NotImplementedError

    def class_ids(self, class_labels: int | str | Sequence[int | str]) -> list[int]:
        """Return the ids of classes given by id or name; an unknown one raises ``InputError``."""
        if isinstance(class_labels, str) or not isinstance(class_labels, Iterable):
            class_labels = [class_labels]
        count = self.network.null_class
        if count is None:
            raise InputError("this network is unconditional: class_labels has nothing to choose from")
        ids = []
        for label in class_labels:
            number = self.labels.get(label) if isinstance(label, str) else _index(label)
            if number is None or not 0 <= number < count:
                names = list(self.labels)
                more = f", ... ({len(names)} in all)" if len(names) > CLASSES_SHOWN else ""
                known = ", ".join(names[:CLASSES_SHOWN]) + more or f"0 to {count - 1}"
                raise InputError(f"unknown class {label!r}: this model knows {known}")
            ids.append(number)
        return ids

    def _sources(self, count: int, generator: Generators) -> "list[torch.Generator | None]":
        """Return the generator of each image's noise: its own, or the one for all."""
        each = generator if isinstance(generator, Sequence) else [] if generator is None else [generator]
        if not all(isinstance(one, torch.Generator) for one in each):
            raise InputError(f"generator {generator!r:.80}: must be a torch.Generator, or a list of one for each image")
        if isinstance(generator, Sequence):
            if len(generator) != count:
                raise InputError(f"{len(generator)} generators for {count} images: pass one each, or one for all")
            return list(generator)
        return [generator] * count

    @property
    def image_processor(self) -> VaeImageProcessor:
        """What brings pixels in [-1, 1] into the form that a caller asked for."""
        return VaeImageProcessor(vae_scale_factor=1)

    def _pixels(self, sample: Tensor) -> Tensor:
        """Return the pixels (c, H, W), about [-1, 1], of one sample (c, h, w), a latent or the picture itself."""
        return to_pixels(self.vae, sample)

    def _offload(self) -> None:
        """Send the autoencoder back to the CPU after ``enable_model_cpu_offload``."""
        for hook in getattr(self, "_all_hooks", ()):
            hook.offload()


def check_arguments(output_type: str, **numbers: Any) -> None:
    """Raise ``InputError`` naming the first argument of a call that is none it can take; None is not given."""
    if output_type not in OUTPUT_TYPES:
        raise InputError(f"output_type {output_type!r:.80}: choose {', '.join(OUTPUT_TYPES)}")
    for name, value in numbers.items():
        kind: Any = Integral if name in _WHOLE else Real
        if value is None:
            continue
        if isinstance(value, bool) or not isinstance(value, kind) or not math.isfinite(value):
            raise InputError(f"{name} {value!r:.80}: must be a {'whole' if kind is Integral else 'finite'} number")


def _index(label: Any) -> int:
    try:
        return index(label)
    except TypeError as error:
        raise InputError(f"class {label!r:.80}: give its name, or its id, a whole number") from error


def with_spares(generators: Sequence[torch.Generator], count: int) -> list[torch.Generator]:
    """Return generators and ``count`` more, for padding, on the device of the first."""
    return [*generators, *(torch.Generator(generators[0].device).manual_seed(0) for _ in range(count))]


def after_step(callback: StepCallback, pipeline: Any, step: int, t: float, values: dict[str, Any]) -> list[Tensor]:
    """Call back after a step; return the samples (c, h, w) to go on with: the "latents" that it returns, or its own.

    Raises ``InputError`` for others in number or shape.
    """
    own = values["latents"]
    latents = (callback(pipeline, step, t, values) or {}).get("latents", own)
    found, wanted = ([tuple(x.shape) for x in samples] for samples in (latents, own))
    if found != wanted:
        raise InputError(f"callback_on_step_end returned latents of {found}, not {wanted}")
    return [new.to(old) for new, old in zip(latents, own, strict=True)]


def to_pixels(vae: Any, sample: Tensor) -> Tensor:
    """Return the pixels (c, H, W), about [-1, 1], float32, of a latent (c, h, w); without a ``vae``, of pixels."""
    if vae is None:
        return sample.float()
    latent = (sample / vae.config.scaling_factor).to(vae.dtype)
    return vae.decode(latent[None]).sample[0].float()


def draw(shape: Sequence[int], source: torch.Generator | None) -> Tensor:
    """Return standard normal noise, float32, drawn where its generator is and brought to the CPU."""
    device = source.device if source else "cpu"
    return torch.randn(tuple(shape), generator=source, device=device, dtype=torch.float32).cpu()
