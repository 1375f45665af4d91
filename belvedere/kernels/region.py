"""Filtering with a 3x3 kernel of its own for every pixel and channel, the kernels made on the fly.

The kernels of a region-adaptive transform come out of a convolution that expands each channel into its nine taps.
Neither the 9 c taps nor the 9 c neighbours of all pixels ever exist at once: forward and backward take one tap at a
time, and on a CPU only so many channels as stay in its cache.
"""

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from belvedere.kernels.backends import OPERATIONS, fused

TAPS = 9
CACHED = 2**19
"""Numbers of one map that a CPU works on at a time."""


class _RegionFilter(torch.autograd.Function):
    """See ``region_filter``; keeps its inputs and makes the taps again in backward."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, features: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        ctx.save_for_backward(x, features, weight, bias)
        out = torch.empty_like(x)
        for part in _parts(x):
            padded, source = _padded(x[:, part]), features[:, part].contiguous()
            total = torch.zeros_like(source, dtype=torch.promote_types(x.dtype, torch.float32))
            for tap in range(TAPS):
                kernel = _kernel(source, weight[part, tap], bias[part, tap])
                total.addcmul_(kernel, _neighbour(padded, tap))
            out[:, part] = total
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, ...]:
        x, features, weight, bias = saved = ctx.saved_tensors
        grads = tuple(torch.empty_like(tensor) for tensor in saved)
        for part in _parts(x):
            here, near, source = (tensor[:, part].contiguous() for tensor in (grad, x, features))
            results = _backward_part(here, near, source, weight[part], bias[part])
            for whole, result, rows in zip(grads, results, (False, False, True, True), strict=True):
                (whole[part] if rows else whole[:, part]).copy_(result)
        return grads


def _backward_part(grad: Tensor, x: Tensor, features: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, ...]:
    """Return the gradients of x, features, weight and bias for some of the channels."""
    wide = torch.promote_types(x.dtype, torch.float32)
    padded = _padded(x)
    grad_padded, grad_features = torch.zeros_like(padded, dtype=wide), torch.zeros_like(features, dtype=wide)
    grad_weight, grad_bias = torch.empty_like(weight), torch.empty_like(bias)
    for tap in range(TAPS):
        _neighbour(grad_padded, tap).addcmul_(grad, _kernel(features, weight[:, tap], bias[:, tap]))
        of_features, grad_weight[:, tap], grad_bias[:, tap] = torch.ops.aten.convolution_backward(
            grad * _neighbour(padded, tap),
            features,
            weight[:, tap].contiguous(),
            bias_sizes=[x.shape[1]],
            stride=[1, 1],
            padding=[1, 1],
            dilation=[1, 1],
            transposed=False,
            output_padding=[0, 0],
            groups=x.shape[1],
            output_mask=[True, True, True],
        )
        grad_features += of_features
    return grad_padded[:, :, 1:-1, 1:-1], grad_features, grad_weight, grad_bias


def _parts(x: Tensor) -> Iterator[slice]:
    """Yield the channels that are worked on together."""
    channels, area = x.shape[1], max(1, x.shape[0] * x.shape[2] * x.shape[3])
    step = max(1, CACHED // area) if x.device.type == "cpu" else channels
    for start in range(0, channels, step):
        yield slice(start, min(start + step, channels))


def _padded(x: Tensor) -> Tensor:
    return F.pad(x, (1, 1, 1, 1))


def _neighbour(padded: Tensor, tap: int) -> Tensor:
    """Return the view (b, c, h, w) of each pixel's neighbour number ``tap``, row by row."""
    down, right = divmod(tap, 3)
    height, width = padded.shape[2] - 2, padded.shape[3] - 2
    return padded[:, :, down : down + height, right : right + width]


def _kernel(features: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Return one tap (b, c, h, w) of the kernels of all pixels."""
    return F.conv2d(features, weight.contiguous(), bias, padding=1, groups=len(weight))


def region_filter(x: Tensor, features: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Filter every pixel and channel of ``x`` with its own 3x3 kernel, made from ``features``.

    ``x``, ``features`` (b, c, h, w); ``weight`` (9 c, 1, 3, 3) and ``bias`` (9 c,) of the depthwise convolution, zeros
    around, that expands channel i of ``features`` into the taps 9 i to 9 i + 8 of channel i (SegPIC, Liu et al., arXiv
    2403.00628). Returns sum over t of tap[t] * neighbour[t] of ``x``, the neighbours row by row, zeros around: (b, c,
    h, w) in the dtype of ``x``, summed in float32. Differentiable once in all four; no map of 9 c channels is made.
    """
    taps = weight.to(x.dtype).unflatten(0, (-1, TAPS))  # (c, 9, 1, 3, 3)
    given = x, features.to(x.dtype), taps, bias.to(x.dtype).unflatten(0, (-1, TAPS))
    return OPERATIONS["region_filter"](*given) if fused(x) else _RegionFilter.apply(*given)
