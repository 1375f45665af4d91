"""Rotary position over a two-dimensional grid, with the normalisation of queries and keys before it."""

from typing import get_args

import torch
from torch import Tensor

from belvedere.kernels.backends import OPERATIONS, fused
from belvedere.kernels.norms import WIDEST, Norm, normalise


def cell_centres(height: int, width: int, device: torch.device | None = None) -> Tensor:
    """Return the (y, x) centres of a grid's cells, row by row: float32 (height * width, 2).

    The longer side spans [-1, 1], the shorter one [-r, r] with r = shorter / longer.
    """
    longest = max(height, width)
    sides = []
    for n in (height, width):
        edges = torch.linspace(-n / longest, n / longest, n + 1, dtype=torch.float32, device=device)
        sides.append((edges[:-1] + edges[1:]) / 2)
    return torch.cartesian_prod(*sides)


def _fuses(x: Tensor, cos: Tensor, sin: Tensor) -> bool:
    """Return whether the kernel serves ``x`` (..., n, h, d): with these angles, of which it gives no gradient."""
    n, h, d = x.shape[-3:]
    if not fused(x) or cos.requires_grad or sin.requires_grad or h * d > WIDEST:
        return False
    angles = (cos.shape, cos.dtype) == (sin.shape, sin.dtype) and cos.dtype == torch.float32
    return angles and cos.shape in ((n, h, d // 2), (n, 1, d // 2))


def rotate_pairs(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate neighbouring channels: (x0, x1) -> (x0 cos - x1 sin, x1 cos + x0 sin), angles in float32.

    ``x`` (..., n, h, d); ``cos`` and ``sin`` broadcast against (..., n, h, d/2), one angle a pair. Differentiable
    in all.
    """
    if _fuses(x, cos, sin):
        return OPERATIONS["rotate_pairs"](x, cos, sin, 1.0)
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
    if {q_norm, k_norm} <= set(get_args(Norm)) and _fuses(q, cos, sin) and k.shape == q.shape and k.dtype == q.dtype:
        return OPERATIONS["qk_norm_rope"](q, k, cos, sin, q_weight, k_weight, q_norm, k_norm, eps)
    q, k = normalise(q, q_norm, q_weight, eps), normalise(k, k_norm, k_weight, eps)
    return rotate_pairs(q, cos, sin), rotate_pairs(k, cos, sin)
