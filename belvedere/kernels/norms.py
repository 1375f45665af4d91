"""Normalisation over channels, with parameters that may differ between the rows of a batch."""

from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from belvedere.kernels.backends import OPERATIONS, fused

WIDEST = 4096
"""Most channels of a row that the kernels take: a row stays in a program's registers."""

Norm = Literal["layer", "rms", "none"]
"""Which statistics are taken: mean and variance, root mean square, none at all."""


def _fuses(x: Tensor, weight: Tensor | None = None) -> bool:
    """Return whether the kernel serves ``x`` (..., d) with a ``weight`` of every channel."""
    return fused(x) and x.shape[-1] <= WIDEST and (weight is None or weight.shape == x.shape[-1:])


def _per_row(parameter: Tensor, x: Tensor) -> Tensor:
    """View a parameter (b', d) so that it broadcasts over x (b, ..., d)."""
    return parameter.view(len(parameter), *[1] * (x.ndim - 2), x.shape[-1])


def time_norm(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Return TD-LN (with ``bias``) or TD-RMSN (without) of ``x`` (b, ..., d) over d.

    ``weight`` and ``bias`` (b', d), b' = 1 or b, are already evaluated for the time of each row (DiMR, arXiv
    2406.09416, section 3.2). TD-LN is layer norm with eps 1e-5; TD-RMSN is x / (rms(x) + 1e-8) * weight, its eps
    outside the root. Statistics in float32, the result in the dtype of ``x``. Differentiable in all three tensors.
    """
    if _fuses(x):
        return OPERATIONS["scaled_norm"](x, bias, weight, None, None, *_kind(bias), 0.0)[0]
    return _rms(x, weight) if bias is None else _layer(x, weight, bias)


def residual_time_norm(x: Tensor, y: Tensor, weight: Tensor, bias: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Return ``x + y`` (b, ..., d) and ``time_norm(x + y, weight, bias)``."""
    if _fuses(x) and fused(y) and x.shape == y.shape and x.dtype == torch.promote_types(x.dtype, y.dtype):
        norm, eps = _kind(bias)
        made = OPERATIONS["gated_residual_norm"](x, y, None, bias, weight, None, None, norm, eps, 0.0)
        return made[0], made[1]
    x = x + y
    return x, time_norm(x, weight, bias)


def _kind(bias: Tensor | None) -> tuple[str, float]:
    """Return the statistics and the eps of TD-LN, or without a bias of TD-RMSN."""
    return ("td-rms", 1e-8) if bias is None else ("layer", 1e-5)


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
    if _fuses(x) and (rows := _rows(weight, x)) is not None:
        return OPERATIONS["scaled_norm"](x, None, rows, None, None, "rms", eps, 0.0)[0]
    inverse = torch.rsqrt(x.float().square().mean(-1, keepdim=True) + eps)
    return x * (weight * inverse).to(x.dtype)


def _rows(weight: Tensor, x: Tensor) -> Tensor | None:
    """Return ``weight`` as one row of channels (1, d) for all of ``x`` or (b, d) for each of its parts, if it is so."""
    shape = (1,) * (x.ndim - weight.ndim) + tuple(weight.shape)
    if shape[-1:] != x.shape[-1:] or any(n != 1 for n in shape[1:-1]) or shape[0] not in (1, len(x)):
        return None
    return weight.reshape(-1, x.shape[-1])


def normalise(x: Tensor, norm: Norm, weight: Tensor | None = None, eps: float = 1e-6) -> Tensor:
    """Return ``x`` (..., d) normalised over d, times ``weight``, which broadcasts against it; eps inside the root.

    ``norm``: "layer", "rms" or "none". Statistics in float32, result in the dtype of ``x``. Raises ``ValueError``
    for another norm.
    """
    if norm == "layer":
        x = F.layer_norm(x, x.shape[-1:], eps=eps)
    elif norm == "rms":
        return rms_norm(x, torch.ones((), device=x.device) if weight is None else weight, eps)
    elif norm != "none":
        raise ValueError(f"norm {norm!r}: choose layer, rms or none")
    return x if weight is None else x * weight.to(x.dtype)


def modulate_norm(
    x: Tensor,
    shift: Tensor,
    scale: Tensor,
    index: Tensor | None = None,
    *,
    norm: Norm = "layer",
    weight: Tensor | None = None,
    eps: float = 1e-6,
) -> Tensor:
    """Return ``normalise(x) * (1 + scale) + shift``: adaLN (Peebles and Xie, arXiv 2212.09748, section 3.2).

    Packed: ``x`` (n, d), ``shift`` and ``scale`` (s, d), one row an image, and ``index`` int64 (n,), the image of each
    token, ascending: an image's tokens follow one another. Dense: ``x`` (b, n, d), ``shift`` and ``scale`` (b, d), no
    ``index``. ``norm``, ``weight`` (d,) and ``eps`` as in ``normalise``. Differentiable in all of them.
    """
    if norm in get_args(Norm) and _fuses(x, weight):
        return OPERATIONS["scaled_norm"](x, shift, scale, index, weight, norm, eps, 1.0)[0]
    normal = normalise(x, norm, weight, eps)
    return torch.addcmul(_spread(shift, index).to(x.dtype), normal, _spread(1 + scale, index).to(x.dtype))


def gated_residual(x: Tensor, y: Tensor, gate: Tensor, index: Tensor | None = None) -> Tensor:
    """Return ``x + gate * y``; shapes as in ``modulate_norm``."""
    if _fuses(x) and fused(y):
        return OPERATIONS["gated_residual"](x, y, gate, index)
    return torch.addcmul(x, _spread(gate, index).to(x.dtype), y.to(x.dtype))


def gated_residual_norm(
    x: Tensor,
    y: Tensor,
    gate: Tensor,
    shift: Tensor,
    scale: Tensor,
    index: Tensor | None = None,
    *,
    norm: Norm = "layer",
    weight: Tensor | None = None,
    eps: float = 1e-6,
) -> tuple[Tensor, Tensor]:
    """Return ``x = gated_residual(x, y, gate, index)`` and ``modulate_norm(x, shift, scale, index, ...)`` of it."""
    if norm in get_args(Norm) and _fuses(x, weight) and fused(y):
        made = OPERATIONS["gated_residual_norm"](x, y, gate, shift, scale, index, weight, norm, eps, 1.0)
        return made[0], made[1]
    x = gated_residual(x, y, gate, index)
    return x, modulate_norm(x, shift, scale, index, norm=norm, weight=weight, eps=eps)


def _spread(rows: Tensor, index: Tensor | None) -> Tensor:
    """Return the row of each token (n, d) of a packed batch, or rows (b, 1, d) that broadcast over a dense one."""
    return rows[:, None] if index is None else F.embedding(index, rows)  # its backward is the fast one
