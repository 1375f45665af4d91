"""A token's heads in a program's registers: how they are read where they lie, weighed and turned."""

import triton
import triton.language as tl
from torch import Tensor

from belvedere.kernels.triton.launch import helper


@helper
def turn(x, cos, sin, HEADS: tl.constexpr, BLOCK: tl.constexpr):
    """(x0, x1) -> (x0 cos - x1 sin, x1 cos + x0 sin) for neighbouring channels."""
    a, b = tl.split(tl.reshape(x, (HEADS, BLOCK // 2, 2)))
    return tl.reshape(tl.join(a * cos - b * sin, b * cos + a * sin), (HEADS, BLOCK))


@helper
def angle_of(angle_ptr, token, head, h, length, SHARED: tl.constexpr, D: tl.constexpr, BLOCK: tl.constexpr):
    """The cosines or sines of a token, (heads, pairs), from (n, h or 1 if ``SHARED``, d / 2)."""
    pair = tl.arange(0, BLOCK // 2)[None, :]
    if SHARED:
        place = (token % length) * (D // 2) + head * 0 + pair
    else:
        place = ((token % length) * h + head) * (D // 2) + pair
    return tl.load(angle_ptr + place, (head < h) & (pair < D // 2), 0.0)


@helper
def weight_of(weight_ptr, head, column, head_stride, column_stride, inside, HEADS: tl.constexpr, BLOCK: tl.constexpr):
    """The weights of all heads, or one."""
    if weight_ptr is None:
        weight = tl.full((HEADS, BLOCK), 1.0, tl.float32)
    else:
        weight = tl.load(weight_ptr + head * head_stride + column * column_stride, inside, 0.0).to(tl.float32)
    return weight


def tokens_of(x: Tensor) -> Tensor:
    """Return x (..., n, h, d) as (tokens, h, d), heads one behind another; copied only where they are not so."""
    x = x.flatten(0, -3) if x.ndim > 3 else x
    return x if x.stride()[1:] == (x.shape[-1], 1) else x.contiguous()


def strides_of(weight: Tensor | None, like: Tensor) -> tuple[int, ...]:
    """Return the strides of a weight that broadcasts against (h, d)."""
    return (0, 0) if weight is None else weight.expand(like.shape[-2:]).stride()


def heads_tile(x: Tensor, each: int) -> dict[str, int]:
    """Return the block of a token's heads and channels, and its warps for ``each`` numbers a thread."""
    heads, block = triton.next_power_of_2(x.shape[-2]), triton.next_power_of_2(x.shape[-1])
    warps = min(max(1, heads * block // (32 * each)), 32)
    return {"D": x.shape[-1], "HEADS": heads, "BLOCK": block, "num_warps": warps}
