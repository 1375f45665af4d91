"""Layer norm and a linear map over the concatenation of many activations that is never made.

    y = W LN(cat(x_1 ... x_k)) + c          LN with weight g and bias b over all channels

With mean m and deviation s over all channels of a row this is

    y = (sum_i W_i (g_i x_i) - m W g) / s + W b + c

so activations can be folded in as they appear, one by one or a few at a time, and then forgotten.
"""

from collections.abc import Sequence
from functools import reduce
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from belvedere.kernels.backends import OPERATIONS, fused
from belvedere.kernels.norms import WIDEST

GROUP = 8
"""Activations that one matrix product takes where the kernel runs: it writes them side by side, which is less than
what products by one would write and add up. Of DiMR-XL/2R at batch 64 they are 253 MB."""


class Accumulated(NamedTuple):
    """What is known of the rows after some of the activations, in float32, and what is to come."""

    product: Tensor
    """sum of W_i (g_i x_i): (b, n, o)."""
    mean: Tensor
    """mean of the channels seen so far: (b, n, 1)."""
    square: Tensor
    """sum of their squared distances from that mean: (b, n, 1)."""
    channels: int
    """how many of them there were."""
    gains: tuple[Tensor, ...]
    """of each group of activations that is to come: (b', g c)."""
    weights: tuple[Tensor, ...]
    """the same of the linear map: (o, g c)."""
    waiting: tuple[Tensor, ...] = ()
    """the first activations of the next group."""


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
    """``(cat(xs) * g) @ W.T``, and the moments of the xs joined to those seen; of the rows the xs are all that is kept.

    The scaled rows, which are as large, are made once more for the gradients.
    """

    @staticmethod
    def forward(
        ctx: Any, gain: Tensor, weight: Tensor, mean: Tensor, square: Tensor, before: int, *xs: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        scaled, joined, square = OPERATIONS["concat_scale"](list(xs), gain, mean, square, before)
        product = F.linear(scaled, weight)
        ctx.save_for_backward(gain, weight, mean, joined, *xs)
        ctx.before, ctx.dtype = before, product.dtype
        return product, joined, square

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor, dmean: Tensor, dsquare: Tensor) -> tuple[Tensor | None, ...]:
        gain, weight, mean, joined, *xs = ctx.saved_tensors
        count = ctx.before + weight.shape[1]
        inner = grad @ weight.to(ctx.dtype)  # (b, n, g c), in the dtype that autocast chose in forward
        pulled = OPERATIONS["concat_scale_backward"](inner, xs, gain, joined, dmean, dsquare, count)
        dxs, scaled, dgain = pulled
        outer = grad.flatten(0, -2).T @ scaled.flatten(0, -2)  # (o, g c)
        dmean = dmean * (ctx.before / count) + 2 * ctx.before * dsquare * (mean - joined)
        return dgain.to(gain.dtype), outer.to(weight.dtype), dmean, dsquare, None, *dxs


def concat_begin(x: Tensor, gain: Tensor, weight: Tensor) -> Accumulated:
    """Return the empty accumulator for activations like ``x`` (b, n, c); ``gain`` (b', k c), ``weight`` (o, k c).

    What follows must have as many channels each, k c in all.
    """
    product = x.new_zeros((*x.shape[:2], len(weight)), dtype=torch.float32)
    mean, square = x.new_zeros((2, *x.shape[:2], 1), dtype=torch.float32)
    width = x.shape[-1] * (GROUP if _grouped(x) else 1)
    gains, weights = (whole.split(width, 1) for whole in (gain, weight))  # slices would have gradients as of the whole
    return Accumulated(product, mean, square, 0, gains, weights)


def concat_add(seen: Accumulated, x: Tensor) -> Accumulated:
    """Fold the next activation ``x`` (b, n, c) in, or have it wait until its group is complete."""
    xs = (*seen.waiting, x)
    gain, weight = seen.gains[0], seen.weights[0]
    if len(xs) * x.shape[-1] < weight.shape[1]:
        return seen._replace(waiting=xs)
    product, mean, square = _fold_group(seen, xs, gain, weight) if _grouped(x) else _fold_one(seen, x, gain, weight)
    count = seen.channels + weight.shape[1]
    return Accumulated(product, mean, square, count, seen.gains[1:], seen.weights[1:])


def _grouped(x: Tensor) -> bool:
    """Return whether the kernel folds activations like this one in, some at a time."""
    return fused(x) and x.shape[-1] <= WIDEST


def _fold_group(seen: Accumulated, xs: Sequence[Tensor], gain: Tensor, weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the product, mean and square with those of some activations."""
    gain = gain.to(reduce(torch.promote_types, (x.dtype for x in xs)))
    product, mean, square = _Fold.apply(gain, weight, seen.mean, seen.square, seen.channels, *xs)
    return _plus(seen.product, product), mean, square


def _fold_one(seen: Accumulated, x: Tensor, gain: Tensor, weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the same with those of one, in PyTorch."""
    channels = x.shape[-1]
    count = seen.channels + channels
    wide = x.float()
    mean = wide.mean(-1, keepdim=True)
    square = (wide - mean).square().sum(-1, keepdim=True)
    # Chan et al. 1979: joining the moments of two sets without cancellation.
    delta = mean - seen.mean
    return (
        seen.product + _ScaledLinear.apply(x, gain.to(x.dtype)[:, None], weight),
        seen.mean + delta * (channels / count),
        seen.square + square + delta.square() * (seen.channels * channels / count),
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
    Raises ``ValueError`` when activations are missing.
    """
    if seen.channels < weight.shape[1]:
        raise ValueError(f"the norm has {weight.shape[1]} channels, and {seen.channels} were folded in")
    inverse = torch.rsqrt(seen.square / seen.channels + eps)
    of_gain, of_bias = F.linear(torch.stack((gain, bias)).to(weight.dtype), weight).float()[:, :, None]  # (b', 1, o)
    return (seen.product - seen.mean * of_gain) * inverse + of_bias + linear_bias.float()
