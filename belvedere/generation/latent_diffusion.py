"""A small Stable Diffusion: its autoencoder, its text model and its U-Net, and the losses they learn by.

Rombach et al. 2022, arXiv 2112.10752. The networks are those of diffusers and transformers, so that what is trained is
a plain ``StableDiffusionPipeline``.
"""

from collections.abc import Sequence
from typing import Any

import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from diffusers.models.resnet import ResnetBlock2D
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel

from belvedere.errors import InputError
from belvedere.seeds import BatchRng

LOG_VARIANCE = -6.0
"""Of the latents, before training: with that of untrained networks, 0, a decoder sees noise for a thousand steps."""
EMBEDDING_STD = 0.3
"""Of the words, before training; with CLIP's, 0.02, the first layers hardly tell words apart."""


def make_autoencoder(size: int, channels: Sequence[int], latent_channels: int, layers: int = 1) -> AutoencoderKL:
    """Return an autoencoder of pictures (b, 3, size, size), each level of ``channels`` after the first half as large.

    Its convolutions begin orthogonal and its residual branches at nothing, so that it is nearly linear and learns from
    the first steps; channels are multiples of 8. Raises ``InputError`` for others, and for no latent channel or layer.
    """
    _check_channels(channels)
    if latent_channels < 1 or layers < 1:
        raise InputError(f"{latent_channels} latent channels, {layers} layers a level: give 1 or more of each")
    levels = len(channels)
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        block_out_channels=tuple(channels),
        layers_per_block=layers,
        latent_channels=latent_channels,
        norm_num_groups=8,
        sample_size=size,
        mid_block_add_attention=False,
    )
    for module in vae.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.orthogonal_(module.weight)
    for module in vae.modules():
        if isinstance(module, ResnetBlock2D):
            nn.init.zeros_(module.conv2.weight)
    with torch.no_grad():
        vae.quant_conv.bias[latent_channels:] = LOG_VARIANCE
    return vae


def autoencoder_loss(
    model: AutoencoderKL, batch: dict[str, Tensor], rng: BatchRng, *, edges: float = 1.0, kl: float = 1e-3
) -> tuple[Tensor, dict[str, float]]:
    """Return what a batch (``image`` (b, 3, h, w) in [-1, 1]) comes out wrong by, and its parts.

    The mean absolute error of pixels, that of the differences between neighbours times ``edges``, and the KL divergence
    of a latent number from a standard normal one times ``kl``.
    """
    image = batch["image"]
    posterior = model.encode(image).latent_dist
    noise = rng.normal("latent", posterior.mean.shape[1:])
    made = model.decode(posterior.mean + posterior.std * noise).sample
    pixels = (made - image).abs().mean()
    structure = torch.stack(
        [(a - b).abs().mean() for a, b in zip(_differences(made), _differences(image), strict=True)]
    )
    divergence = posterior.kl().mean() / noise[0].numel()
    value = pixels + edges * structure.sum() + kl * divergence
    parts = {"loss": value, "pixels": pixels, "edges": structure.sum(), "kl": divergence}
    return value, {name: part.item() for name, part in parts.items()}


def _differences(x: Tensor) -> tuple[Tensor, Tensor]:
    return x[..., 1:] - x[..., :-1], x[..., 1:, :] - x[..., :-1, :]


@torch.no_grad()
def latent_scale(vae: AutoencoderKL, images: Tensor) -> float:
    """Return 1 / the standard deviation of the latents of pictures (b, 3, h, w): the pipeline's scaling factor."""
    return 1 / vae.encode(images).latent_dist.mean.std().item()


class TextToImage(nn.Module):
    """What learns when pictures are made of words: a text model and a U-Net that looks at what it says."""

    def __init__(self, text_encoder: CLIPTextModel, unet: UNet2DConditionModel):
        super().__init__()
        self.text_encoder, self.unet = text_encoder, unet

    def forward(self, x: Tensor, t: Tensor, tokens: Tensor) -> Tensor:
        """Return what the U-Net predicts (b, c, h, w) of noisy latents x at times t (b,), told ``tokens`` (b, n)."""
        context = self.text_encoder(tokens).last_hidden_state  # (b, n, c)
        return self.unet(x, t, context).sample


def make_text_encoder(tokenizer: Any, width: int, layers: int, heads: int) -> CLIPTextModel:
    """Return a CLIP text model for a tokenizer, for texts of ``tokenizer.model_max_length`` tokens."""
    if width < 1 or heads < 1 or width % heads:
        raise InputError(f"width {width} of a text model does not divide into {heads} heads")
    model = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=width,
            intermediate_size=2 * width,
            projection_dim=width,
            num_hidden_layers=layers,
            num_attention_heads=heads,
            max_position_embeddings=tokenizer.model_max_length,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )
    for embedding in (m for m in model.modules() if isinstance(m, nn.Embedding)):
        nn.init.normal_(embedding.weight, std=EMBEDDING_STD)
    return model


def make_unet(
    size: int, latent_channels: int, context: int, channels: Sequence[int], heads: int
) -> UNet2DConditionModel:
    """Return a U-Net of latents (b, latent_channels, size, size) and texts (b, n, context).

    Each level of ``channels`` after the first is half as large, and looks at the text; the first, where that would be
    dear, only convolves. Residual branches begin at nothing.
    """
    _check_channels(channels)
    if len(channels) < 2 or size % 2 ** (len(channels) - 1):
        raise InputError(f"channels {channels!r}: give 2 levels or more, which latents of {size} can be halved for")
    levels = len(channels) - 1
    unet = UNet2DConditionModel(
        sample_size=size,
        in_channels=latent_channels,
        out_channels=latent_channels,
        down_block_types=("DownBlock2D",) + ("CrossAttnDownBlock2D",) * levels,
        up_block_types=("CrossAttnUpBlock2D",) * levels + ("UpBlock2D",),
        block_out_channels=tuple(channels),
        layers_per_block=1,
        cross_attention_dim=context,
        attention_head_dim=heads,  # diffusers' name for the number of heads
        norm_num_groups=8,
    )
    for module in unet.modules():
        if isinstance(module, ResnetBlock2D):
            nn.init.zeros_(module.conv2.weight)
    nn.init.zeros_(unet.conv_out.weight)
    return unet


def make_scheduler(prediction: str) -> DDIMScheduler:
    """Return Stable Diffusion's noise schedule for a U-Net that predicts ``epsilon`` or ``v_prediction``."""
    if prediction not in ("epsilon", "v_prediction"):
        raise InputError(f"prediction {prediction!r}: choose epsilon or v_prediction")
    return DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        prediction_type=prediction,
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
    )


def diffusion_loss(
    model: TextToImage, batch: dict[str, Tensor], rng: BatchRng, *, scheduler: DDIMScheduler
) -> tuple[Tensor, dict[str, float]]:
    """Return the mean squared error of what the model predicts for a batch, and its figures.

    ``image``: latents (b, c, h, w) of unit variance; ``tokens`` int64 (b, n). Times are uniform.
    """
    x = batch["image"]
    t = (rng.uniform("time") * scheduler.config.num_train_timesteps).long()  # (b,)
    noise = rng.normal("noise", x.shape[1:])
    target = noise if scheduler.config.prediction_type == "epsilon" else scheduler.get_velocity(x, noise, t)
    error = (model(scheduler.add_noise(x, noise, t), t, batch["tokens"]) - target).square().mean((1, 2, 3))
    value = error.mean()
    return value, {"loss": value.item()}


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Return the optimizer's groups: weight decay for matrices and kernels, none for embeddings, norms and biases."""
    embeddings = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding)}
    parameters = [p for p in model.parameters() if p.requires_grad]
    decayed = [p for p in parameters if p.ndim > 1 and id(p) not in embeddings]
    others = [p for p in parameters if p.ndim <= 1 or id(p) in embeddings]
    return [{"params": decayed, "weight_decay": weight_decay}, {"params": others, "weight_decay": 0.0}]


def _check_channels(channels: Sequence[int]) -> None:
    if not channels or any(not isinstance(c, int) or c < 8 or c % 8 for c in channels):
        raise InputError(f"channels {channels!r}: must be a list of multiples of 8")
