"""From what a dataset holds to what a loss wants: latents drawn or encoded, pictures of one size or of many."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from belvedere.data.latents import sample_latents, sample_mixed_latents
from belvedere.data.ragged import pack_images, unpack_images
from belvedere.seeds import BatchRng

Loss = Callable[[Any, dict[str, Tensor], BatchRng], tuple[Tensor, dict[str, float]]]


def of_data(loss: Loss, ragged: bool, vae: Any = None) -> Loss:
    """Return ``loss`` for any dataset: its batches become the pictures or latents that the loss takes.

    ``ragged``: the loss takes pictures of any size, packed; otherwise (b, c, h, w). Latents are drawn from
    ``moments`` where a batch has them, anew at every visit, or from what ``vae`` makes of its pictures.
    """

    def of_batch(model: Any, batch: dict[str, Tensor], rng: BatchRng) -> tuple[Tensor, dict[str, float]]:
        if "moments" not in batch and vae is not None:
            batch = encode(vae, batch)
        if "moments" in batch:
            batch = draw(batch, rng)
        if ragged and "size" not in batch:
            image, size = pack_images(list(batch["image"]))
            batch = batch | {"image": image, "size": size}
        return loss(model, batch, rng)

    return of_batch


def shape_of(sample: dict[str, Tensor], vae: Any = None) -> tuple[int, int, int]:
    """Return the (c, h, w) of what a loss is given of a batch of one sample: of its latent, or of its picture.

    ``vae``: what its picture goes through, where it has no ``moments``.
    """
    values = sample["moments"] if "moments" in sample else sample["image"]
    height, width = sample["size"][0].tolist() if "size" in sample else values.shape[-2:]
    channels = values.numel() // (height * width)
    if "moments" in sample:
        return channels // 2, height, width
    if vae is None:
        return channels, height, width
    factor = 2 ** (len(vae.config.block_out_channels) - 1)
    return vae.config.latent_channels, height // factor, width // factor


def draw(batch: dict[str, Tensor], rng: BatchRng) -> dict[str, Tensor]:
    """Return a batch with latents as ``image``, drawn from its ``moments``, of one size or ragged."""
    moments = batch["moments"]
    if "size" not in batch:
        channels, *size = moments.shape[1:]
        return batch | {"image": sample_latents(moments, rng.normal("latent", (channels // 2, *size)))}
    areas = batch["size"].prod(1)
    channels = len(moments) // int(areas.sum()) // 2
    noise = rng.ragged("latent", [(channels, *size) for size in batch["size"].tolist()])
    return batch | {"image": sample_mixed_latents(moments, batch["size"], noise)}


@torch.no_grad()
def encode(vae: Any, batch: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return a batch with the ``moments`` that ``vae`` makes of its pictures, of one size or ragged."""
    vae.to(batch["image"].device)
    if "size" not in batch:
        return batch | {"moments": _moments(vae, batch["image"])}
    images = unpack_images(batch["image"], batch["size"], 3)
    moments, size = pack_images([_moments(vae, image[None])[0] for image in images])
    return batch | {"moments": moments, "size": size.to(batch["size"].device)}


def _moments(vae: Any, images: Tensor) -> Tensor:
    return vae.encode(images.to(vae.dtype)).latent_dist.parameters.float()  # (b, 2 c, h, w)


def load_vae(name: str | None) -> Any:
    """Return the autoencoder of a config's ``vae``: a folder, a pipeline's folder or a hub id; None for None."""
    if name is None:
        return None
    from belvedere.checkpoints.autoencoder import find_autoencoder, load_autoencoder

    return load_autoencoder(find_autoencoder(Path(name)), torch.float32, torch.device("cpu"))
