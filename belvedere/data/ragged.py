"""Ragged batches of pictures: of any size each, behind one another in one flat tensor, never padded."""

from collections.abc import Sequence

import torch
from torch import Tensor


def pack_images(images: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Return pictures (c, h_i, w_i) as one flat tensor (sum of c h_i w_i,), and their sizes (b, 2), int64, (h, w)."""
    sizes = torch.tensor([image.shape[-2:] for image in images], dtype=torch.int64).view(-1, 2)
    return torch.cat([image.reshape(-1) for image in images]) if images else torch.empty(0), sizes


def unpack_images(flat: Tensor, sizes: Tensor, channels: int) -> list[Tensor]:
    """Return the pictures (channels, h_i, w_i) of a flat tensor and their ``sizes`` (b, 2), as views."""
    shapes = [(channels, height, width) for height, width in sizes.tolist()]
    parts = flat.split([channels * height * width for _, height, width in shapes])
    return [part.view(shape) for part, shape in zip(parts, shapes, strict=True)]
