"""How pictures look while they are made: the clean data that a sampler foresees, decoded small."""

from collections.abc import Mapping
from typing import Any

import torch
from PIL import Image
from torch import Tensor


@torch.no_grad()
def pictures(pipeline: Any, values: Mapping[str, Any], count: int) -> list[Image.Image]:
    """Return the first ``count`` pictures of what a pipeline tells after a step.

    ``values``: samples "latents" and, where the sampler knows, "clean", each (b, c, h, w) or a list of (c, h, w):
    pixels in [-1, 1], or latents, which ``pipeline.vae`` decodes.
    """
    return [_picture(pipeline.vae, sample) for sample in values.get("clean", values["latents"])[:count]]


def _picture(vae: Any, sample: Tensor) -> Image.Image:
    if vae is not None:
        latent = (sample / vae.config.scaling_factor).to(vae.dtype)
        sample = vae.decode(latent[None]).sample[0]  # (c, H, W)
    levels = (sample.float() * 127.5 + 127.5).round().clamp(0, 255).byte()
    return Image.fromarray(levels.expand(3, -1, -1).permute(1, 2, 0).cpu().numpy())  # (H, W, 3)
