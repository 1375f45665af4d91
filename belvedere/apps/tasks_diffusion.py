"""The tasks of a small Stable Diffusion: its autoencoder, then its text model and U-Net together."""

import json
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from belvedere.apps.config import ExportConfig, TrainConfig, call
from belvedere.apps.latents import Loss, load_vae, of_data
from belvedere.apps.task import (
    SHARE,
    WEIGHT,
    Task,
    cast_weights,
    check_numbers,
    export_network,
    make_dataset,
    save_grid,
)
from belvedere.apps.written import check_keys
from belvedere.data.latents import SCALE
from belvedere.errors import InputError
from belvedere.seeds import BatchRng, generator

EXAMPLES = 96
"""Pictures that the scale of the latents is measured on, and the first of which a sheet shows."""
COLUMNS = 12
CLIP_LENGTH = 77
"""Tokens of a text, where a config does not say."""
PROMPTS = (
    "a photo of a red car on green grass",
    "a photo of a white boat on blue water",
    "a picture of a yellow plane on a grey floor",
    "a photo of an orange rocket on a lilac floor",
    "a photo of a blue house on the beach",
    "a green tree on a peach floor",
    "a purple mushroom on green grass",
    "a photo of a teal lamp on a cream floor",
    "a photo of a pink chair on a checkered floor",
    "a photo of a brown table on a mint floor",
    "a blue mug on sand",
    "a photo of a robot",
)
"""Of a sheet: one a column."""


def autoencoder_task(config: TrainConfig) -> Task:
    """An ``AutoencoderKL``: ``model`` has the keywords of ``make_autoencoder`` but for the size, which is the data's;
    ``loss`` has ``edges`` and ``kl``."""
    from belvedere.generation import latent_diffusion

    check_keys(config.loss, ("edges", "kl"), "loss.")
    check_numbers(config.loss, edges=WEIGHT, kl=WEIGHT)
    dataset = make_dataset(config.data)
    examples = dataset.batch(range(min(EXAMPLES, len(dataset))))["image"]
    model = call(partial(latent_diffusion.make_autoencoder, examples.shape[-1]), config.model, "model")

    def export(network: Any, folder: Path, facts: dict[str, Any]) -> str:
        scale = latent_diffusion.latent_scale(network, examples.to(network.device))
        network.register_to_config(scaling_factor=scale)
        return export_network(network, config.export.dtype, folder, facts)

    return Task(
        model=model,
        dataset=dataset,
        loss=partial(latent_diffusion.autoencoder_loss, **config.loss),
        groups=latent_diffusion.parameter_groups,
        export=export,
        sheet=lambda network, path: _autoencoder_sheet(network, examples[: 2 * COLUMNS], path),
    )


@torch.no_grad()
def _autoencoder_sheet(network: Any, examples: Tensor, path: Path) -> None:
    """Write a sheet: rows of pictures as they are, below each how they come out."""
    made = network.decode(network.encode(examples.to(network.device)).latent_dist.mean).sample.cpu()
    rows = [part for pair in zip(examples.split(COLUMNS), made.split(COLUMNS), strict=True) for part in pair]
    save_grid(torch.cat(rows) / 2 + 0.5, COLUMNS, path)


def diffusion_task(config: TrainConfig) -> Task:
    """A text model and a U-Net together, on the latents of the autoencoder ``vae``, which stays as it is.

    ``model`` is {text: {width, layers, heads, length (77)}, unet: {channels, heads}, prediction}; ``loss`` has
    ``caption_dropout``, the share of pictures whose caption is left out. The data has captions.
    """
    from belvedere.data.toybox.captions import words
    from belvedere.generation import latent_diffusion
    from belvedere.generation.clip_words import word_tokenizer

    if config.vae is None:
        raise InputError("config vae: this task needs the folder of an autoencoder")
    check_keys(config.model, ("text", "unet", "prediction"), "model.")
    check_keys(config.loss, ("caption_dropout",), "loss.")
    check_numbers(config.loss, caption_dropout=SHARE)
    dataset, vae = make_dataset(config.data), load_vae(config.vae)
    first = dataset.batch([0])
    if "caption" not in first:
        raise InputError(f"config data.kind {config.data['kind']!r} has no captions: choose captioned-toybox")
    text, unet_values = (dict(config.model.get(name, {})) for name in ("text", "unet"))
    tokenizer = word_tokenizer(words(), text.pop("length", CLIP_LENGTH))
    text_encoder = call(partial(latent_diffusion.make_text_encoder, tokenizer), text, "model.text")
    size = first["image"].shape[-1] // 2 ** (len(vae.config.block_out_channels) - 1)
    make_unet = partial(latent_diffusion.make_unet, size, vae.config.latent_channels, text_encoder.config.hidden_size)
    unet = call(make_unet, unet_values, "model.unet")
    scheduler = latent_diffusion.make_scheduler(config.model.get("prediction", "epsilon"))
    loss = partial(latent_diffusion.diffusion_loss, scheduler=scheduler)

    def pipeline(network: Any) -> Any:
        return _pipeline(network, vae, tokenizer, scheduler)

    return Task(
        model=latent_diffusion.TextToImage(text_encoder, unet),
        dataset=dataset,
        loss=of_data(_told(loss, vae, tokenizer, config.loss.get("caption_dropout", 0.0)), False, vae),
        groups=latent_diffusion.parameter_groups,
        export=lambda network, folder, facts: _export(pipeline(network), config.export, folder, facts),
        sheet=lambda network, path: _sheet(pipeline(network), config.export, path),
    )


def _told(loss: Loss, vae: Any, tokenizer: Any, dropout: float) -> Loss:
    """Return ``loss`` for batches of latents, which are Stable Diffusion's scale, and captions.

    Latents get the scale of this autoencoder, unit variance; a share ``dropout`` of the captions is left out.
    """
    from belvedere.data.toybox.captions import caption_texts

    def of_batch(model: Any, batch: dict[str, Tensor], rng: BatchRng) -> tuple[Tensor, dict[str, float]]:
        left_out = (rng.uniform("caption") < dropout).tolist()
        texts = ["" if out else text for out, text in zip(left_out, caption_texts(batch["caption"]), strict=True)]
        tokens = tokenizer(texts, padding="max_length", truncation=True, return_tensors="pt").input_ids
        latents = batch["image"] * (vae.config.scaling_factor / SCALE)
        return loss(model, {"image": latents, "tokens": tokens.to(latents.device)}, rng)

    return of_batch


def _pipeline(network: Any, vae: Any, tokenizer: Any, scheduler: Any) -> Any:
    from diffusers import StableDiffusionPipeline

    pipeline = StableDiffusionPipeline(
        vae=vae,
        text_encoder=network.text_encoder,
        tokenizer=tokenizer,
        unet=network.unet,
        scheduler=scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@torch.no_grad()
def _sheet(pipeline: Any, export: ExportConfig, path: Path, rows: int = 2) -> None:
    """Write a sheet of pictures, one prompt a column, with fixed seeds."""
    pipeline.vae.to(pipeline.unet.device)
    images = [
        pipeline(
            list(PROMPTS),
            generator=[generator("sheet", row, column) for column in range(COLUMNS)],
            num_inference_steps=export.default_steps,
            guidance_scale=export.default_guidance,
            output_type="pt",
        ).images
        for row in range(rows)
    ]
    save_grid(torch.cat(images), COLUMNS, path)


def _export(pipeline: Any, export: ExportConfig, folder: Path, facts: dict[str, Any]) -> str:
    """Write the folder of a complete pipeline and its card; return the digest."""
    from belvedere.checkpoints import store
    from belvedere.generation.clip_words import save_tokenizer

    parts = {name: cast_weights(getattr(pipeline, name), export.dtype) for name in ("vae", "text_encoder", "unet")}
    pipeline.register_modules(**parts)

    def write(fresh: Path) -> None:
        pipeline.save_pretrained(fresh, safe_serialization=True)
        save_tokenizer(pipeline.tokenizer, fresh / "tokenizer")
        _ask_for_float32(fresh / "text_encoder" / "config.json")

    return store.save_folder(write, folder, facts)


def _ask_for_float32(config: Path) -> None:
    """Let transformers load a text model as float32 unless told otherwise, as diffusers loads the rest."""
    values = json.loads(config.read_text()) | {"dtype": "float32"}
    config.write_text(json.dumps(values, indent=2) + "\n")
