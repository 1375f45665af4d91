"""How pictures look while they are made: the clean data that a sampler foresees, decoded small."""

from collections.abc import Mapping
from typing import Any

import torch
from PIL import Image

from belvedere.data.images import to_image
from belvedere.generation.class_pipeline import to_pixels


@torch.no_grad()
def pictures(pipeline: Any, values: Mapping[str, Any], count: int) -> list[Image.Image]:
    """Return the first ``count`` pictures of what a pipeline tells after a step.

    ``values``: samples "latents" and, where the sampler knows, "clean", each (b, c, h, w) or a list of (c, h, w):
    pixels in [-1, 1], or latents, which ``pipeline.vae`` decodes.
    """
    samples = values.get("clean", values["latents"])[:count]
    return [to_image(to_pixels(pipeline.vae, sample)) for sample in samples]
