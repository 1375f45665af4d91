"""A token's heads in registers, in one part or two: how they are read where they lie, weighed and turned."""

import triton
import triton.language as tl
from torch import Tensor

from belvedere.kernels.triton.launch import helper


@helper
def columns_of(FIRST: tl.constexpr, SECOND: tl.constexpr):
    """The channels of a head, in one part or two."""
    columns = (tl.arange(0, FIRST)[None, :],)
    if SECOND:
        columns += (FIRST + tl.arange(0, SECOND)[None, :],)
    return columns


@helper
def load_heads(ptr, head, columns, h, D: tl.constexpr, COUNT: tl.constexpr):
    """Load a token's heads as float32 parts, zero outside."""
    parts = ()
    for i in tl.static_range(COUNT):
        inside = (head < h) & (columns[i] < D)
        parts += (tl.load(ptr + head * D + columns[i], inside, 0.0).to(tl.float32),)
    return parts


@helper
def store_heads(ptr, parts, head, columns, h, D: tl.constexpr, COUNT: tl.constexpr):
    """Store a token's heads."""
    for i in tl.static_range(COUNT):
        tl.store(ptr + head * D + columns[i], parts[i], (head < h) & (columns[i] < D))


@helper
def turn(parts, cos, sin, HEADS: tl.constexpr, FIRST: tl.constexpr, SECOND: tl.constexpr, COUNT: tl.constexpr):
    """(x0, x1) -> (x0 cos - x1 sin, x1 cos + x0 sin) for neighbouring channels."""
    turned = ()
    for i in tl.static_range(COUNT):
        a, b = tl.split(tl.reshape(parts[i], (HEADS, (SECOND if i else FIRST) // 2, 2)))
        pairs = tl.join(a * cos[i] - b * sin[i], b * cos[i] + a * sin[i])
        turned += (tl.reshape(pairs, (HEADS, SECOND if i else FIRST)),)
    return turned


@helper
def angles_of(
    angle_ptr, token, head, h, length,
    SHARED: tl.constexpr, D: tl.constexpr, FIRST: tl.constexpr, SECOND: tl.constexpr, COUNT: tl.constexpr,
):  # fmt: skip
    """The cosines or sines of a token, (heads, pairs) of each part, from (n, h or 1 if ``SHARED``, d / 2)."""
    angles = ()
    for i in tl.static_range(COUNT):
        pair = (FIRST // 2 if i else 0) + tl.arange(0, (SECOND if i else FIRST) // 2)[None, :]
        if SHARED:
            place = (token % length) * (D // 2) + head * 0 + pair
        else:
            place = ((token % length) * h + head) * (D // 2) + pair
        angles += (tl.load(angle_ptr + place, (head < h) & (pair < D // 2), 0.0),)
    return angles


@helper
def weights_of(
    weight_ptr, head, columns, h, head_stride, column_stride,
    D: tl.constexpr, HEADS: tl.constexpr, FIRST: tl.constexpr, SECOND: tl.constexpr, COUNT: tl.constexpr,
):  # fmt: skip
    """The weights of all heads, or one."""
    weights = ()
    for i in tl.static_range(COUNT):
        if weight_ptr is None:
            weight = tl.full((HEADS, SECOND if i else FIRST), 1.0, tl.float32)
        else:
            inside = (head < h) & (columns[i] < D)
            place = head * head_stride + columns[i] * column_stride
            weight = tl.load(weight_ptr + place, inside, 0.0).to(tl.float32)
        weights += (weight,)
    return weights


@helper
def negative(parts, COUNT: tl.constexpr):
    """Parts with the other sign."""
    turned = ()
    for i in tl.static_range(COUNT):
        turned += (-parts[i],)
    return turned


def tokens_of(x: Tensor) -> Tensor:
    """Return x (..., n, h, d) as (tokens, h, d), heads one behind another; copied only where they are not so."""
    x = x.flatten(0, -3) if x.ndim > 3 else x
    return x if x.stride()[1:] == (x.shape[-1], 1) else x.contiguous()


def strides_of(weight: Tensor | None, like: Tensor) -> tuple[int, ...]:
    """Return the strides of a weight that broadcasts against (h, d)."""
    return (0, 0) if weight is None else weight.expand(like.shape[-2:]).stride()


def parts_of(d: int) -> tuple[int, int]:
    """Return the two powers of two, the second may be 0, that a head of ``d`` channels is cut into: 72 is 64 and 8."""
    whole = triton.next_power_of_2(d)
    first, second = whole // 2, triton.next_power_of_2(max(d - whole // 2, 2))
    return (first, second) if whole >= 64 and first + second < whole else (whole, 0)


def heads_tile(x: Tensor, each: int) -> dict[str, int]:
    """Return how a token's heads are cut, and the warps for ``each`` numbers a thread: for 16 where there is a second
    part, of whose pairs no thread should have only one half."""
    heads, (first, second) = triton.next_power_of_2(x.shape[-2]), parts_of(x.shape[-1])
    each = max(each, 16) if second else each
    warps = min(max(1, heads * first // (32 * each)), 32)
    sizes = {"D": x.shape[-1], "HEADS": heads, "FIRST": first, "SECOND": second, "COUNT": 2 if second else 1}
    return sizes | {"num_warps": warps}
