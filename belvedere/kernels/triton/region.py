"""The region filter: the 3x3 kernel of every pixel and channel lives in registers, forward and backward.

With w (9, 9), b (9) of a channel, f its features, x its map and s_t the shift of tap t, the filter is

    y[p] = sum_t x[p + s_t] (b_t + sum_j w_tj f[p + s_j])

The gradients of x and f have one form, with the roles of x and f and the sides of w exchanged; those of w and b are
sums over all pixels, made block by block and then over the blocks, in a fixed order.
"""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from belvedere.kernels.triton.launch import helper, launch, meta, register

PIXELS = 256
"""A program's share of a map."""
SUMMED = 4096
"""Pixels of a map that one program sums for the gradients of weights."""


@helper
def _near(map_ptr, row, column, height, width):
    """Load pixels of a map, zeros around it."""
    inside = (row >= 0) & (row < height) & (column >= 0) & (column < width)
    return tl.load(map_ptr + row * width + column, inside, other=0.0).to(tl.float32)


@helper
def _three(map_ptr, row, column, height, width):
    """Return three neighbours in a row: to the left, here, to the right."""
    left = _near(map_ptr, row, column - 1, height, width)
    right = _near(map_ptr, row, column + 1, height, width)
    return left, _near(map_ptr, row, column, height, width), right


@helper
def _five(map_ptr, row, column, height, width):
    """Return five neighbours in a row, from two to the left to two to the right."""
    left, here, right = _three(map_ptr, row, column, height, width)
    far_left = _near(map_ptr, row, column - 2, height, width)
    return far_left, left, here, right, _near(map_ptr, row, column + 2, height, width)


@triton.jit
def _forward_kernel(x_ptr, f_ptr, w_ptr, b_ptr, y_ptr, channels, height, width, PIXELS: tl.constexpr):
    plane = tl.program_id(0).to(tl.int64)
    channel = plane % channels
    pixel = tl.program_id(1) * PIXELS + tl.arange(0, PIXELS)
    row, column = pixel // width, pixel % width
    start = plane * height * width
    f = (
        _three(f_ptr + start, row - 1, column, height, width),
        _three(f_ptr + start, row, column, height, width),
        _three(f_ptr + start, row + 1, column, height, width),
    )
    total = tl.zeros((PIXELS,), tl.float32)
    for t in tl.static_range(9):
        tap = tl.zeros((PIXELS,), tl.float32) + tl.load(b_ptr + channel * 9 + t).to(tl.float32)
        for j in tl.static_range(9):
            tap += tl.load(w_ptr + channel * 81 + t * 9 + j).to(tl.float32) * f[j // 3][j % 3]
        total += tap * _near(x_ptr + start, row + (t // 3 - 1), column + (t % 3 - 1), height, width)
    tl.store(y_ptr + start + pixel, total, pixel < height * width)


@triton.jit
def _map_kernel(
    dy_ptr, other_ptr, w_ptr, b_ptr, dx_ptr, channels, height, width, OF_X: tl.constexpr, PIXELS: tl.constexpr
):
    """Gradient of x (``other`` the features) or of the features (``other`` x)."""
    plane = tl.program_id(0).to(tl.int64)
    channel = plane % channels
    pixel = tl.program_id(1) * PIXELS + tl.arange(0, PIXELS)
    row, column = pixel // width, pixel % width
    start = plane * height * width
    other = (
        _five(other_ptr + start, row - 2, column, height, width),
        _five(other_ptr + start, row - 1, column, height, width),
        _five(other_ptr + start, row, column, height, width),
        _five(other_ptr + start, row + 1, column, height, width),
        _five(other_ptr + start, row + 2, column, height, width),
    )
    total = tl.zeros((PIXELS,), tl.float32)
    for t in tl.static_range(9):
        tap = tl.zeros((PIXELS,), tl.float32)
        if OF_X:
            tap += tl.load(b_ptr + channel * 9 + t).to(tl.float32)
        for j in tl.static_range(9):
            if OF_X:
                weight = tl.load(w_ptr + channel * 81 + t * 9 + j).to(tl.float32)
            else:
                weight = tl.load(w_ptr + channel * 81 + j * 9 + t).to(tl.float32)
            tap += weight * other[j // 3 - t // 3 + 2][j % 3 - t % 3 + 2]
        total += tap * _near(dy_ptr + start, row - (t // 3 - 1), column - (t % 3 - 1), height, width)
    tl.store(dx_ptr + start + pixel, total, pixel < height * width)


@triton.jit
def _weight_kernel(dy_ptr, x_ptr, f_ptr, sums_ptr, channels, height, width, SUMMED: tl.constexpr, PIXELS: tl.constexpr):
    """Sums over a share of one map for one tap: the nine weights, then the bias."""
    plane = tl.program_id(0).to(tl.int64)
    part, parts, tap = tl.program_id(1), tl.num_programs(1), tl.program_id(2)
    start = plane * height * width
    s0 = tl.zeros((PIXELS,), tl.float32)
    s1, s2, s3, s4, s5, s6, s7, s8, s9 = s0, s0, s0, s0, s0, s0, s0, s0, s0
    for first in range(part * SUMMED, tl.minimum((part + 1) * SUMMED, height * width), PIXELS):
        pixel = first + tl.arange(0, PIXELS)
        row, column = pixel // width, pixel % width
        dy = tl.load(dy_ptr + start + pixel, pixel < height * width, other=0.0).to(tl.float32)
        product = dy * _near(x_ptr + start, row + (tap // 3 - 1), column + (tap % 3 - 1), height, width)
        s0 += product * _near(f_ptr + start, row - 1, column - 1, height, width)
        s1 += product * _near(f_ptr + start, row - 1, column, height, width)
        s2 += product * _near(f_ptr + start, row - 1, column + 1, height, width)
        s3 += product * _near(f_ptr + start, row, column - 1, height, width)
        s4 += product * _near(f_ptr + start, row, column, height, width)
        s5 += product * _near(f_ptr + start, row, column + 1, height, width)
        s6 += product * _near(f_ptr + start, row + 1, column - 1, height, width)
        s7 += product * _near(f_ptr + start, row + 1, column, height, width)
        s8 += product * _near(f_ptr + start, row + 1, column + 1, height, width)
        s9 += product
    at = sums_ptr + ((plane * parts + part) * 9 + tap) * 10
    tl.store(at, tl.sum(s0))
    tl.store(at + 1, tl.sum(s1))
    tl.store(at + 2, tl.sum(s2))
    tl.store(at + 3, tl.sum(s3))
    tl.store(at + 4, tl.sum(s4))
    tl.store(at + 5, tl.sum(s5))
    tl.store(at + 6, tl.sum(s6))
    tl.store(at + 7, tl.sum(s7))
    tl.store(at + 8, tl.sum(s8))
    tl.store(at + 9, tl.sum(s9))


def _forward(x: Tensor, features: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    x, features, weight, bias = (tensor.contiguous() for tensor in (x, features, weight, bias))
    b, c, h, w = x.shape
    y = torch.empty_like(x)
    grid = (b * c, triton.cdiv(h * w, PIXELS))
    launch(_forward_kernel, grid, x, features, weight, bias, y, c, h, w, PIXELS=PIXELS, num_warps=4)
    return y


def _backward(
    dy: Tensor, x: Tensor, features: Tensor, weight: Tensor, bias: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    dy, x, features, weight, bias = (tensor.contiguous() for tensor in (dy, x, features, weight, bias))
    b, c, h, w = x.shape
    dx, dfeatures = torch.empty_like(x), torch.empty_like(features)
    grid = (b * c, triton.cdiv(h * w, PIXELS))
    for other, gradient, of_x in ((features, dx, True), (x, dfeatures, False)):
        maps = (dy, other, weight, bias, gradient)
        launch(_map_kernel, grid, *maps, c, h, w, OF_X=of_x, PIXELS=PIXELS, num_warps=4)
    parts = triton.cdiv(h * w, SUMMED)
    sums = x.new_empty((b, c, parts, 9, 10), dtype=torch.float32)
    shares = (b * c, parts, 9)
    launch(_weight_kernel, shares, dy, x, features, sums, c, h, w, SUMMED=SUMMED, PIXELS=PIXELS, num_warps=4)
    of_weight, of_bias = sums.sum((0, 2)).to(weight.dtype).split((9, 1), -1)  # (c, 9, 9) and (c, 9, 1)
    return dx, dfeatures, of_weight.reshape(weight.shape).clone(), of_bias.reshape(bias.shape).clone()


def _keep(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _pull(ctx: Any, dy: Tensor) -> tuple[Tensor, ...]:
    return tuple(backward(dy, *ctx.saved_tensors))


def _empty_backward(dy: Tensor, *saved: Tensor) -> tuple[Tensor, ...]:
    return tuple(x.new_empty(x.shape) for x in saved)


backward = register("region_filter_backward", _backward, _empty_backward, None, None)
region_filter = register("region_filter", _forward, lambda x, *rest: x.new_empty(x.shape), _keep, _pull)
"""``x``, ``features`` (b, c, h, w), ``weight`` (c, 9, 1, 3, 3), ``bias`` (c, 9) -> (b, c, h, w)."""


def production() -> Iterator[tuple[str, Callable[[], Any]]]:
    """Yield launches at the sizes of published networks, by name; they are made under ``launch.noting``."""
    for dtype, name in ((torch.float32, "float32"), (torch.bfloat16, "bfloat16")):
        x = meta(8, 192, 64, 64, dtype=dtype)
        weight, bias = meta(192, 9, 1, 3, 3, dtype=dtype), meta(192, 9, dtype=dtype)
        yield f"region filter SegPIC {name} forward", partial(_forward, x, x, weight, bias)
        yield f"region filter SegPIC {name} backward", partial(_backward, x, x, x, weight, bias)
