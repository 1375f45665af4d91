"""Rotary position over a two-dimensional grid, with the normalisation of queries and keys before it."""

import torch
from torch import Tensor


def cell_centres(height: int, width: int, device: torch.device | None = None) -> Tensor:
    """Return the (y, x) centres of a grid's cells, row by row: float32 (height * width, 2).

    The longer side spans [-1, 1], the shorter one [-r, r] with r = shorter / longer.
    """
    longest = max(height, width)
    sides = []
    for n in (height, width):
        edges = torch.linspace(-n / longest, n / longest, n + 1, device=device)
        sides.append((edges[:-1] + edges[1:]) / 2)
    return torch.cartesian_prod(*sides)


def rotate_pairs(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate neighbouring channels: (x0, x1) -> (x0 cos - x1 sin, x1 cos + x0 sin), angles in float32.

    ``x`` (b, n, h, d); ``cos`` and ``sin`` broadcast against it, the two channels of a pair holding one angle.
    """
    pairs = x.float().unflatten(-1, (-1, 2))  # (b, n, h, d/2, 2)
    turned = torch.stack((-pairs[..., 1], pairs[..., 0]), -1).flatten(-2)  # (b, n, h, d)
    return (x.float() * cos + turned * sin).to(x.dtype)


def qk_norm_rope(
    q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, gain: Tensor, eps: float = 1e-6
) -> tuple[Tensor, Tensor]:
    """Normalise q and k by their root mean square, scale each head by ``gain``, then rotate.

    ``q``, ``k`` (b, n, h, d); ``gain`` (h,); ``cos``, ``sin`` (n, h, d) float32. Differentiable in all.
    """
    out = []
    for x in (q, k):
        wide = x.float()
        inverse = torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)
        out.append(rotate_pairs(wide * (gain[:, None] * inverse), cos, sin).to(x.dtype))
    return out[0], out[1]
