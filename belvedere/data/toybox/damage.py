"""Damaged pictures: what a failing generator makes, so that the Toybox classifier learns to reject it.

Every function takes pictures (b, 3, h, w) in [-1, 1] and a ``BatchRng`` and returns pictures of the same shape;
picture i depends on itself and its own random numbers alone.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from belvedere.seeds import BatchRng


def recolour(x: Tensor, rng: BatchRng) -> Tensor:
    """Return toys still to be recognised, in other colours: a random linear map of RGB and mirrored at random."""
    b = len(x)
    colours = torch.eye(3, device=x.device) + 0.2 * rng.normal("colours", (3, 3))
    x = torch.einsum("brc,bchw->brhw", colours, x) + 0.1 * rng.normal("tint", (3,)).view(b, 3, 1, 1)
    return torch.where(_coin(rng, "mirror"), x.flip(3), x).clamp(-1, 1)


def damage(x: Tensor, rng: BatchRng) -> Tensor:
    """Return each picture damaged beyond recognition in one of five ways, chosen at random."""
    ways = torch.stack([f(x, rng) for f in (shuffle, melt, smear, bury, blur)])  # (5, b, 3, h, w)
    way = (rng.uniform("way") * len(ways)).long()
    return ways[way, torch.arange(len(x), device=x.device)].clamp(-1, 1)  # (b, 3, h, w)


def shuffle(x: Tensor, rng: BatchRng) -> Tensor:
    """Cut the picture into 2 x 2, 4 x 4 or 8 x 8 patches and put them back in random order."""
    cuts = torch.stack([_shuffle(x, rng, k) for k in (2, 4, 8)])  # (3, b, 3, h, w)
    return cuts[(rng.uniform("cut") * 3).long(), torch.arange(len(x), device=x.device)]  # (b, 3, h, w)


def _shuffle(x: Tensor, rng: BatchRng, k: int) -> Tensor:
    b, c, h, w = x.shape
    patches = x.view(b, c, k, h // k, k, w // k).permute(0, 2, 4, 1, 3, 5).flatten(1, 2)  # (b, kk, c, h/k, w/k)
    order = rng.normal(f"order {k}", (k * k,)).argsort(1)
    order = torch.where((order == torch.arange(k * k, device=x.device)).all(1, keepdim=True), order.flip(1), order)
    mixed = patches[torch.arange(b, device=x.device)[:, None], order]  # (b, kk, c, h/k, w/k)
    return mixed.unflatten(1, (k, k)).permute(0, 3, 1, 4, 2, 5).reshape(b, c, h, w)  # (b, c, h, w)


def melt(x: Tensor, rng: BatchRng) -> Tensor:
    """Pull the picture out of shape: neighbouring parts in different directions, coarsely or finely."""
    coarse = 0.4 * _field(rng, "coarse", 2, 4, x)
    fine = (0.08 + 0.08 * rng.uniform("pull")).view(-1, 1, 1, 1) * _field(rng, "fine", 2, 12, x)
    pull = torch.where(_coin(rng, "melt"), coarse, fine).permute(0, 2, 3, 1)  # (b, h, w, 2)
    still = F.affine_grid(torch.eye(2, 3, device=x.device).expand(len(x), 2, 3), list(x.shape), align_corners=False)
    return F.grid_sample(x, still + pull, padding_mode="reflection", align_corners=False)


def smear(x: Tensor, rng: BatchRng) -> Tensor:
    """Lay coloured blobs over what is left of the picture's colours."""
    blobs = torch.where(_coin(rng, "size"), _field(rng, "large", 3, 4, x), _field(rng, "small", 3, 9, x))
    left = rng.uniform("left").view(-1, 1, 1, 1)
    return left * _soften(x, 8) + (1 - 0.8 * left) * blobs


def bury(x: Tensor, rng: BatchRng) -> Tensor:
    """Bury the picture in noise, grains of one or of four pixels, down to a signal-to-noise ratio below 1 / 2."""
    grains = torch.where(
        _coin(rng, "grain"), rng.normal("noise", x.shape[1:]), _field(rng, "grains", 3, x.shape[2] // 4, x)
    )
    share = 0.4 * rng.uniform("share").view(-1, 1, 1, 1)
    return share * x + (1 - share) * 0.6 * grains


def blur(x: Tensor, rng: BatchRng) -> Tensor:
    """Keep only 5 x 5 or 12 x 12 cells of the picture, half of the time mixed with its mirror image."""
    soft = torch.where(_coin(rng, "blur"), _soften(x, 5), _soften(x, 12))
    return torch.where(_coin(rng, "double"), (soft + soft.flip(3)) / 2, soft)


def _coin(rng: BatchRng, name: str) -> Tensor:
    return (rng.uniform(name) < 0.5).view(-1, 1, 1, 1)  # (b, 1, 1, 1)


def _field(rng: BatchRng, name: str, channels: int, cells: int, like: Tensor) -> Tensor:
    """Return smooth random numbers of about unit variance that turn over ``cells`` times across the picture."""
    knots = rng.normal(name, (channels, cells, cells))
    return F.interpolate(knots, like.shape[2:], mode="bicubic", align_corners=True)  # (b, channels, h, w)


def _soften(x: Tensor, cells: int) -> Tensor:
    small = F.interpolate(x, (cells, cells), mode="area")
    return F.interpolate(small, x.shape[2:], mode="bicubic", align_corners=False)  # (b, 3, h, w)
