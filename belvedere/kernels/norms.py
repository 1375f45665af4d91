"""Normalisation over channels, with parameters that may differ between the rows of a batch."""

import torch
import torch.nn.functional as F
from torch import Tensor


def _per_row(parameter: Tensor, x: Tensor) -> Tensor:
    """View a parameter (b', d) so that it broadcasts over x (b, ..., d)."""
    return parameter.view(len(parameter), *[1] * (x.ndim - 2), x.shape[-1])


def time_norm(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Return TD-LN (with ``bias``) or TD-RMSN (without) of ``x`` (b, ..., d) over d.

    ``weight`` and ``bias`` (b', d), b' = 1 or b, are already evaluated for the time of each row (DiMR, arXiv
    2406.09416, section 3.2). TD-LN is layer norm with eps 1e-5; TD-RMSN is x / (rms(x) + 1e-8) * weight, its eps
    outside the root. Statistics in float32, the result in the dtype of ``x``. Differentiable in all three tensors.
    """
    return _rms(x, weight) if bias is None else _layer(x, weight, bias)


def _layer(x: Tensor, weight: Tensor, bias: Tensor, eps: float = 1e-5) -> Tensor:
    d = x.shape[-1]
    if len(weight) == 1:
        return F.layer_norm(x, (d,), weight[0].to(x.dtype), bias[0].to(x.dtype), eps)
    normal = F.layer_norm(x.float(), (d,), eps=eps)
    return torch.addcmul(_per_row(bias, x), _per_row(weight, x), normal).to(x.dtype)


def _rms(x: Tensor, weight: Tensor, eps: float = 1e-8) -> Tensor:
    rms = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=torch.float32) * x.shape[-1] ** -0.5
    return x * (_per_row(weight, x) / (rms + eps)).to(x.dtype)


def rms_norm(x: Tensor, weight: Tensor, eps: float = 1e-6) -> Tensor:
    """Return ``x * weight * rsqrt(mean(x^2) + eps)`` over the last axis, eps inside the root.

    ``weight`` broadcasts against ``x`` (..., d). Statistics in float32, result in the dtype of ``x``.
    """
    inverse = torch.rsqrt(x.float().square().mean(-1, keepdim=True) + eps)
    return x * (weight * inverse).to(x.dtype)
