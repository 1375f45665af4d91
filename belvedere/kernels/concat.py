"""Layer norm and a linear map over the concatenation of many activations that is never made.

    y = W LN(cat(x_1 ... x_k)) + c          LN with weight g and bias b over all channels

With mean m and deviation s over all channels of a row this is

    y = (sum_i W_i (g_i x_i) - m W g) / s + W b + c

so each activation can be folded in when it appears and then forgotten.
"""

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from belvedere.kernels.backends import OPERATIONS, fused
from belvedere.kernels.norms import WIDEST


class Accumulated(NamedTuple):
    """What is known of the rows after some of the activations; all float32."""

    product: Tensor
    """sum of W_i (g_i x_i): (b, n, o)."""
    mean: Tensor
    """mean of the channels seen so far: (b, n, 1)."""
    square: Tensor
    """sum of their squared distances from that mean: (b, n, 1)."""
    channels: int
    """how many of them there were."""


class _ScaledLinear(torch.autograd.Function):
    """``(x * g) @ W.T``, keeping x (which its producer keeps anyway) and not the product x * g."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, gain: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(x, gain, weight)
        y = F.linear(x * gain, weight)
        ctx.dtype = y.dtype
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, gain, weight = (saved.to(ctx.dtype) for saved in ctx.saved_tensors)  # autocast chose it in forward
        inner = grad @ weight  # (b, n, c)
        grad_gain = (inner * x).sum_to_size(gain.shape) if ctx.needs_input_grad[1] else None
        grad_weight = grad.flatten(0, -2).T @ (x * gain).flatten(0, -2) if ctx.needs_input_grad[2] else None
        return inner * gain, grad_gain, grad_weight


class _Fold(torch.autograd.Function):
    """``(x * g) @ W.T``, and the moments of x joined to those seen, with one pass over x; x is all that is kept."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, gain: Tensor, weight: Tensor, mean: Tensor, square: Tensor, before: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        ctx.save_for_backward(x, gain, weight, mean)
        rows = None if len(gain) == 1 else gain
        scaled, mean, square = OPERATIONS["concat_scale"](x, rows, mean, square, before)
        product = F.linear(x, weight * gain) if rows is None else F.linear(scaled, weight)
        ctx.before, ctx.dtype = before, product.dtype
        return product, mean, square

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor, dmean: Tensor, dsquare: Tensor) -> tuple[Tensor | None, ...]:
        x, gain, weight, mean = ctx.saved_tensors
        rows, narrow = None if len(gain) == 1 else gain, weight.to(ctx.dtype)  # autocast chose it in forward
        inner = grad @ (narrow if rows is not None else narrow * gain.to(ctx.dtype))  # (b, n, c)
        pulled = OPERATIONS["concat_scale_backward"](inner, x, rows, mean, dmean, dsquare, ctx.before)
        dx, scaled, dgain, dmean = pulled
        outer = grad.flatten(0, -2).T @ (x if rows is None else scaled).flatten(0, -2).to(ctx.dtype)  # (o, c)
        if rows is None:
            dgain = (outer.float() * weight).sum(0, keepdim=True)
            outer = outer * gain
        return dx, dgain.to(gain.dtype), outer.to(weight.dtype), dmean, dsquare, None


def concat_begin(x: Tensor, outputs: int) -> Accumulated:
    """Return the empty accumulator for rows like ``x`` (b, n, c) and ``outputs`` of the linear map."""
    product = x.new_zeros((*x.shape[:2], outputs), dtype=torch.float32)
    mean, square = x.new_zeros((2, *x.shape[:2], 1), dtype=torch.float32)
    return Accumulated(product, mean, square, 0)


def concat_add(seen: Accumulated, x: Tensor, gain: Tensor, weight: Tensor) -> Accumulated:
    """Fold the next activation in: ``x`` (b, n, c), its part of the norm's ``gain`` (b', c) and ``weight`` (o, c)."""
    channels = x.shape[-1]
    count = seen.channels + channels
    gain = gain.to(x.dtype)
    if fused(x) and channels <= WIDEST:
        product, mean, square = _Fold.apply(x, gain, weight, seen.mean, seen.square, seen.channels)
        return Accumulated(_plus(seen.product, product), mean, square, count)
    wide = x.float()
    mean = wide.mean(-1, keepdim=True)
    square = (wide - mean).square().sum(-1, keepdim=True)
    # Chan et al. 1979: joining the moments of two sets without cancellation.
    delta = mean - seen.mean
    return Accumulated(
        seen.product + _ScaledLinear.apply(x, gain[:, None], weight),
        seen.mean + delta * (channels / count),
        seen.square + square + delta.square() * (seen.channels * channels / count),
        count,
    )


def _plus(total: Tensor, product: Tensor) -> Tensor:
    """Return the sum, whose dtypes may differ; a compiler joins it with those that follow."""
    if torch.compiler.is_compiling() or total.shape[-1] > WIDEST:
        return total + product
    return OPERATIONS["gated_residual"](total, product, None, None)


def concat_end(
    seen: Accumulated, gain: Tensor, bias: Tensor, weight: Tensor, linear_bias: Tensor, eps: float = 1e-5
) -> Tensor:
    """Return ``W LN(cat) + c`` (b, n, o), float32, from the accumulator of all activations.

    ``gain``, ``bias`` (b', k c) of the norm, ``weight`` (o, k c) and ``linear_bias`` (o,): the whole of them.
    """
    inverse = torch.rsqrt(seen.square / seen.channels + eps)
    of_gain, of_bias = F.linear(torch.stack((gain, bias)).to(weight.dtype), weight).float()[:, :, None]  # (b', 1, o)
    return (seen.product - seen.mean * of_gain) * inverse + of_bias + linear_bias.float()
