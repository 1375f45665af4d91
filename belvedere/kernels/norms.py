"""Normalisation over channels, with parameters that may differ between the rows of a batch."""

import torch
import torch.nn.functional as F
from torch import Tensor


def _per_row(parameter: Tensor, x: Tensor) -> Tensor:
    """View a parameter (b', d) so that it broadcasts over x (b, ..., d)."""
    return parameter.view(len(parameter), *[1] * (x.ndim - 2), x.shape[-1])


def time_layer_norm(x: Tensor, weight: Tensor, bias: Tensor, eps: float = 1e-5) -> Tensor:
    """Return TD-LN: layer norm of ``x`` (b, ..., d) over d with ``weight`` and ``bias`` (b', d), b' = 1 or b.

    The parameters are already evaluated for the time of each row (DiMR, arXiv 2406.09416, section 3.2).
    Statistics in float32; the result has the dtype of ``x``. Differentiable in all three tensors.
    """
    d = x.shape[-1]
    if len(weight) == 1:
        return F.layer_norm(x, (d,), weight[0].to(x.dtype), bias[0].to(x.dtype), eps)
    normal = F.layer_norm(x.float(), (d,), eps=eps)
    return torch.addcmul(_per_row(bias, x), _per_row(weight, x), normal).to(x.dtype)


def rms_norm(x: Tensor, scale: Tensor, eps: float = 1e-8) -> Tensor:
    """Return ``x / (rms(x) + eps) * scale`` over the last axis, eps outside the root (DiMR's RMSN).

    ``x`` (b, ..., d), ``scale`` (b', d) with b' = 1 or b. Statistics in float32, result in the dtype of ``x``.
    """
    rms = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=torch.float32) * x.shape[-1] ** -0.5
    return x * (_per_row(scale, x) / (rms + eps)).to(x.dtype)


def rms_norm_inside(x: Tensor, scale: Tensor, eps: float = 1e-6) -> Tensor:
    """Return ``x * scale * rsqrt(mean(x^2) + eps)`` over the last axis, eps inside the root.

    ``scale`` broadcasts against ``x`` (..., d). Statistics in float32, result in the dtype of ``x``.
    """
    inverse = torch.rsqrt(x.float().square().mean(-1, keepdim=True) + eps)
    return x * (scale * inverse).to(x.dtype)
