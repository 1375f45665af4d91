"""Rotary position over a two-dimensional grid, with the normalisation of queries and keys before it."""

import torch
from torch import Tensor

from belvedere.kernels.norms import Norm, normalise


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

    ``x`` (..., n, h, d); ``cos`` and ``sin`` broadcast against (..., n, h, d/2), one angle a pair. Differentiable
    in all.
    """
    pairs = torch.view_as_complex(x.float().unflatten(-1, (-1, 2)))  # (..., n, h, d/2)
    return torch.view_as_real(pairs * torch.complex(cos, sin)).flatten(-2).to(x.dtype)  # (..., n, h, d)


def qk_norm_rope(
    q: Tensor,
    k: Tensor,
    cos: Tensor,
    sin: Tensor,
    *,
    q_norm: Norm = "rms",
    k_norm: Norm = "rms",
    q_weight: Tensor | None = None,
    k_weight: Tensor | None = None,
    eps: float = 1e-6,
) -> tuple[Tensor, Tensor]:
    """Normalise q and k over their channels, multiply by their weights, then rotate.

    ``q``, ``k`` (..., n, h, d), dense or packed; ``cos``, ``sin`` float32, (n, h or 1, d/2); a weight broadcasts
    against (h, d). Differentiable in all.
    """
    q, k = normalise(q, q_norm, q_weight, eps), normalise(k, k_norm, k_weight, eps)
    return rotate_pairs(q, cos, sin), rotate_pairs(k, cos, sin)
