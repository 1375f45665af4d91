"""The first half of a ConvNeXt block: every channel is filtered by itself and added to what it was."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from belvedere.kernels.backends import OPERATIONS, fused

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


# A compiler, which cannot see into sizes and fails to order the strides of grids it does not know, is given one
# operation, and one for its backward.


@torch.library.custom_op("belvedere::depthwise_packed", mutates_args=())
def _packed_op(x: Tensor, weight: Tensor, bias: Tensor, sizes: Tensor, cells: int) -> Tensor:
    return _packed(x, weight, bias, sizes, cells)


@torch.library.custom_op("belvedere::depthwise_packed_backward", mutates_args=())
def _packed_backward(
    gradient: Tensor, x: Tensor, weight: Tensor, bias: Tensor, sizes: Tensor, cells: int
) -> tuple[Tensor, Tensor, Tensor]:
    def convolution(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return _packed(x, weight, bias, sizes, cells)

    _, pull = torch.func.vjp(convolution, x, weight, bias)  # type: ignore[misc]
    x_gradient, weight_gradient, bias_gradient = pull(gradient)
    return x_gradient.contiguous(), weight_gradient.contiguous(), bias_gradient.contiguous()


_packed_op.register_fake(lambda x, weight, bias, sizes, cells: x.new_empty(x.shape))
_packed_backward.register_fake(
    lambda gradient, x, weight, bias, sizes, cells: tuple(given.new_empty(given.shape) for given in (x, weight, bias))
)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    *tensors, ctx.cells = inputs
    ctx.save_for_backward(*tensors)


def _pull(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
    return *_packed_backward(gradient, *ctx.saved_tensors, ctx.cells), None, None


_packed_op.register_autograd(_pull, setup_context=_keep)
