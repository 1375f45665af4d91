"""The first half of a ConvNeXt block: every channel is filtered by itself and added to what it was."""

import torch.nn.functional as F
from torch import Tensor

from belvedere.kernels.backends import OPERATIONS, fused_where_asked

SIDES = (3, 5, 7)
"""Sides of filters that the kernel takes."""


def depthwise_residual(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Return ``x`` + the depthwise convolution of ``x`` (b, h, w, c), zeros around: (b, h, w, c).

    ``weight`` (c, 1, s, s) with s odd, one filter a channel, and ``bias`` (c,), as ``nn.Conv2d(c, c, s, padding=s // 2,
    groups=c)`` has them (ConvNeXt, Liu et al., arXiv 2201.03545, section 2.5). Differentiable once in all three.
    """
    if fused_where_asked(x) and weight.shape[-1] in SIDES:
        return OPERATIONS["depthwise_residual"](x, weight, bias)
    filtered = F.conv2d(x.permute(0, 3, 1, 2), weight, bias, padding=weight.shape[-1] // 2, groups=len(weight))
    return x + filtered.permute(0, 2, 3, 1)  # (b, h, w, c)
