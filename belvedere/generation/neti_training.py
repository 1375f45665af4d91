"""How a concept is learned: the mapper alone, by what a frozen base model then says of a few photographs.

    photograph ─► autoencoder ─► latents ─► noise at a time t ─► U-Net ─► noise predicted: mean squared error
    template with the token ─► mapper(t, layer) ─► text encoder ─┘

The published recipe (Alaluf et al., section 4.3) is ``configs/neti.yaml``.
"""

import copy
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import DDPMScheduler, DPMSolverMultistepScheduler
from torch import Tensor, nn

from belvedere.errors import InputError
from belvedere.generation.concept import Concept, Conditioning, check_new, embeddings_of, prompt_ids
from belvedere.generation.concept_pipeline import ConceptSampler, own_tokenizers, text_encoders
from belvedere.generation.neti import TIMES, NeTIMapper
from belvedere.generation.neti_attention import cross_attentions, install, layer_indexes
from belvedere.generation.neti_text import TextEncoder
from belvedere.seeds import BatchRng

MOST_LAYERS = 16
"""Cross-attentions that have a layer each; of a U-Net with more, each transformer is one (11 in SDXL)."""
STARTS = ("published", "word")
_PREDICTIONS = ("epsilon", "v_prediction")


class FrozenBase:
    """A Stable Diffusion pipeline to learn a concept for: nothing in it learns, no word is added to its tokenizers.

    ``pipe``: as diffusers or ``checkpoints.store`` loads it. Raises ``InputError`` for another kind of pipeline, and
    for one that was not trained to predict noise or velocity at 1000 times.
    """

    def __init__(self, pipe: Any):
        self.pipe = pipe
        self.encoders: list[TextEncoder] = text_encoders(pipe)
        self.tokenizers = own_tokenizers(pipe)
        for network in (pipe.unet, pipe.vae, *(encoder.model for encoder in self.encoders)):
            network.requires_grad_(False).eval()
        given = pipe.scheduler.config
        kind, times = given.get("prediction_type", "epsilon"), given.get("num_train_timesteps")
        if kind not in _PREDICTIONS or times != TIMES or "beta_schedule" not in given:
            raise InputError(
                f"the base was trained on {kind} at {times} times: concepts need noise or velocity, {TIMES}"
            )
        self.schedule = DDPMScheduler.from_config(given)
        self._pooled: dict[str, Tensor] = {}

    @property
    def device(self) -> torch.device:
        """Where the networks are."""
        return torch.device(self.pipe.unet.device)

    @property
    def size(self) -> int:
        """Pixels a side of the pictures that the U-Net was trained on."""
        side = self.pipe.unet.config.sample_size
        return int(side if isinstance(side, int) else min(side)) * int(self.pipe.vae_scale_factor)

    def to(self, device: torch.device | str) -> "FrozenBase":
        """Bring the networks to a device."""
        if self.device != torch.device(device):
            self.pipe.to(device)
        return self

    def concept(self, token: str, super_category: str, name: str, start: str = "published", **config: Any) -> Concept:
        """Return a fresh concept for this base, whose ``layers`` are by default those of ``MOST_LAYERS``.

        ``name``: of the base, only shown. ``start``: "published", random words of the super-category's norm, or "word",
        the super-category itself. ``config``: fields of ``NeTIMapper``. Raises ``InputError`` for a token that the
        tokenizer knows, and a super-category that is not one token.
        """
        if start not in STARTS:
            raise InputError(f"start {start!r}: choose from {', '.join(STARTS)}")
        names = cross_attentions(self.pipe.unet)
        transformers = len({name.split(".transformer_blocks.")[0] for name in names})
        layers = config.pop("layers", None) or (len(names) if len(names) <= MOST_LAYERS else transformers)
        layer_indexes(self.pipe.unet, layers)
        for tokenizer in self.tokenizers:
            check_new(tokenizer, token)
        concept = Concept.create(token, super_category, self.encoders, self.tokenizers, layers, name, **config)
        if start == "word":
            concept.mapper.start_at(embeddings_of(super_category, self.encoders, self.tokenizers))
        return concept

    @torch.no_grad()
    def moments(self, images: Tensor) -> Tensor:
        """Return mean and log-variance (b, 2 c, h, w), float32, of the latents of pictures (b, 3, H, W) in [-1, 1]."""
        vae = self.pipe.vae
        rows = [vae.encode(image[None].to(vae.device, vae.dtype)).latent_dist.parameters for image in images]
        return torch.cat(rows).float()

    def latents(self, moments: Tensor, noise: Tensor) -> Tensor:
        """Return latents (b, c, h, w) as the U-Net takes them, drawn from ``moments`` with standard ``noise``."""
        mean, log_variance = moments.chunk(2, 1)
        config = self.pipe.vae.config
        drawn = mean + (0.5 * log_variance.clamp(-30, 20)).exp() * noise
        return (drawn - (config.get("shift_factor") or 0.0)) * config.scaling_factor

    @torch.no_grad()
    def added(self, prompts: Sequence[str], height: int, width: int) -> dict[str, Tensor] | None:
        """Return what SDXL's U-Net is told besides: pooled text of prompts without concepts, and sizes; else None."""
        if not hasattr(self.pipe, "text_encoder_2"):
            return None
        for prompt in set(prompts) - self._pooled.keys():
            _, _, self._pooled[prompt], _ = self.pipe.encode_prompt(prompt, do_classifier_free_guidance=False)
        sizes = torch.tensor([[height, width, 0, 0, height, width]] * len(prompts), device=self.device)
        pooled = torch.cat([self._pooled[prompt] for prompt in prompts]).to(self.device)
        return {"text_embeds": pooled, "time_ids": sizes.to(pooled.dtype)}


class Lesson:
    """What one concept learns from: its base and the ``templates`` of its prompts, in which ``{}`` is the token.

    Raises ``InputError`` for a template without ``{}``, or too long with the token.
    """

    def __init__(self, base: FrozenBase, concept: Concept, templates: Sequence[str]):
        self.base, self.concept = base, concept
        self.prompts = [_filled(template, concept.token) for template in templates]
        if not self.prompts:
            raise InputError("no templates: give prompts with {} for the concept")
        for tokenizer, encoder in zip(base.tokenizers, base.encoders, strict=True):
            prompt_ids(tokenizer, self.prompts, [concept.token], encoder.length)
        install(base.pipe.unet, concept.mapper.config.layers)

    def loss(self, mapper: nn.Module, batch: dict[str, Tensor], rng: BatchRng) -> tuple[Tensor, dict[str, float]]:
        """Return the mean squared error of what the U-Net predicts, and nothing else to log.

        ``mapper``: a ``NeTIMapper``. ``batch``: ``moments`` (b, 2 c, h, w) of the photographs. Each sample has a
        template, a time and a noise of its own, and for each layer a truncation (nested dropout).
        """
        assert isinstance(mapper, NeTIMapper)
        base, moments = self.base.to(mapper.device), batch["moments"]
        shape = (moments.shape[1] // 2, *moments.shape[2:])
        latents, noise = base.latents(moments, rng.normal("latent", shape)), rng.normal("noise", shape)
        t = (rng.uniform("time") * TIMES).long()  # (b,)
        prompts = [self.prompts[int(u * len(self.prompts))] for u in rng.uniform("template").tolist()]
        concept = replace(self.concept, mapper=mapper)
        conditioning = Conditioning(base.encoders, base.tokenizers, prompts, [concept])
        contexts = conditioning(t, mapper.draw_truncation(rng))  # (b, layers, 2, n, c)
        factor = base.pipe.vae_scale_factor
        added = base.added([concept.spelled(prompt) for prompt in prompts], shape[1] * factor, shape[2] * factor)
        noisy = base.schedule.add_noise(latents, noise, t)
        predicted = base.pipe.unet(noisy, t, contexts, added_cond_kwargs=added).sample
        velocity = base.schedule.config.prediction_type == "v_prediction"
        target = base.schedule.get_velocity(latents, noise, t) if velocity else noise
        return F.mse_loss(predicted.float(), target.float()), {}


def _filled(template: str, token: str) -> str:
    if template.count("{}") != 1:
        raise InputError(f"template {template[:80]!r}: must have one {{}} where the concept stands")
    return template.replace("{}", token)


def sampler(base: FrozenBase, concept: Concept, mapper: NeTIMapper | None = None) -> ConceptSampler:
    """Return what makes pictures of a concept, as published: by DPM-Solver++ on the base's own schedule.

    ``mapper``: in place of the concept's. The base's pipeline keeps its scheduler.
    """
    pipe = copy.copy(base.pipe)
    pipe.scheduler = DPMSolverMultistepScheduler.from_config(pipe.scheduler.config, final_sigmas_type="sigma_min")
    return ConceptSampler(pipe, [concept if mapper is None else replace(concept, mapper=mapper)])


def parameter_groups(mapper: Any, weight_decay: float) -> list[dict[str, Any]]:
    """Return the optimizer's one group: as published, everything decays."""
    return [{"params": list(mapper.parameters()), "weight_decay": weight_decay}]
