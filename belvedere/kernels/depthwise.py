"""The first half of a ConvNeXt block: every channel is filtered by itself and added to what it was."""

import torch
import torch.nn.functional as F
from torch import Tensor

from belvedere.kernels.backends import OPERATIONS, fused
from belvedere.kernels.opaque import opaque

SIDES = (3, 5, 7)
"""Sides of filters that the kernel takes."""


def depthwise_residual(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Return ``x`` + the depthwise convolution of ``x`` (b, h, w, c), zeros around: (b, h, w, c).

    ``weight`` (c, 1, s, s) with s odd, one filter a channel, and ``bias`` (c,), as ``nn.Conv2d(c, c, s, padding=s // 2,
    groups=c)`` has them (ConvNeXt, Liu et al., arXiv 2201.03545, section 2.5). Differentiable once in all three.
    """
    if fused(x) and weight.shape[-1] in SIDES:
        return OPERATIONS["depthwise_residual"](x, weight, bias)
    filtered = F.conv2d(x.permute(0, 3, 1, 2), weight, bias, padding=weight.shape[-1] // 2, groups=len(weight))
    return x + filtered.permute(0, 2, 3, 1)  # (b, h, w, c)


def depthwise_packed(x: Tensor, weight: Tensor, bias: Tensor, sizes: Tensor, cells: int = 1) -> Tensor:
    """Return the depthwise convolution of each of s packed pictures, zeros around each: (m, c), as ``x``.

    ``x`` (m, c): the tokens of all pictures behind one another, row by row, and of each token its ``cells`` x ``cells``
    cells, row by row; ``sizes`` int64 (s, 2) on the CPU: (height, width) of each picture in tokens. ``weight`` (c, 1,
    k, k) with k odd and ``bias`` (c,) as in ``depthwise_residual``. Differentiable once in all three. Raises
    ``ValueError`` unless the pictures have m cells.
    """
    if not torch.compiler.is_compiling():
        return _packed(x, weight, bias, sizes, cells)
    if torch.is_autocast_enabled(x.device.type):  # as PyTorch has it for its own convolution
        x, weight, bias = (given.to(torch.get_autocast_dtype(x.device.type)) for given in (x, weight, bias))
    return _packed_op(x, weight, bias, sizes, cells)


def _packed(x: Tensor, weight: Tensor, bias: Tensor, sizes: Tensor, cells: int) -> Tensor:
    """Return the convolutions one by one, so that no picture's numbers depend on its neighbours'."""
    grids = [(height, width) for height, width in sizes.tolist()]
    lengths = [height * width * cells**2 for height, width in grids]
    if sum(lengths) != len(x):
        raise ValueError(f"pictures of {sum(lengths)} cells in all, given {len(x)}: whole pictures are needed")
    done = []
    for part, (h, w) in zip(x.split(lengths), grids, strict=True):
        grid = part.view(h, w, cells, cells, -1).transpose(1, 2).reshape(1, h * cells, w * cells, -1)
        grid = F.conv2d(grid.permute(0, 3, 1, 2), weight, bias, padding=weight.shape[-1] // 2, groups=len(weight))
        grid = grid.permute(0, 2, 3, 1).reshape(h, cells, w, cells, -1)
        done.append(grid.transpose(1, 2).reshape(part.shape))
    return torch.cat(done)


_packed_op = opaque("depthwise_packed", _packed, like=0)
"""For a compiler, which cannot see into sizes and fails to order the strides of grids that it does not know."""
