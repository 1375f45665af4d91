"""The colour network of rays in registers: its weights as one table, and the layers that a program makes."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor

from belvedere.kernels.triton.launch import helper, launch

RAYS = 32
"""Whose directions a program takes."""
CHUNK = 16
"""Features and units that are multiplied at a time: the fewest that a product takes."""


@helper
def gelu(x):
    return x * 0.5 * (1.0 + tl.erf(x * 0.7071067811865476))


@triton.jit
def _direction_kernel(
    network_ptr, encoded_ptr, direction_ptr, n, ENCODED: tl.constexpr, WIDE: tl.constexpr, RAYS: tl.constexpr
):
    """What the direction and the bias add to the second layer, of so many rays."""
    ray, unit = tl.program_id(0).to(tl.int64) * RAYS + tl.arange(0, RAYS)[:, None], tl.arange(0, WIDE)[None, :]
    total = tl.full((RAYS, WIDE), 0, tl.float32) + tl.load(network_ptr + unit)
    for i in range(ENCODED):
        total += tl.load(encoded_ptr + ray * ENCODED + i, ray < n, 0.0) * tl.load(network_ptr + (1 + i) * WIDE + unit)
    tl.store(direction_ptr + ray * WIDE + unit, total, ray < n)


@helper
def second(
    network_ptr, direction_ptr, ray, seen, first, WIDE: tl.constexpr, RAYS: tl.constexpr, CHUNK: tl.constexpr,
    LEVELS: tl.constexpr,
):  # fmt: skip
    """Return the units of the second layer (rays, units) from those of the first.

    Those are cut into chunks by halves, the even and the odd ones, which lie in the same threads.
    """
    parts, numbers = (first,), (0,)
    for level in tl.static_range(LEVELS):
        halves, places = (), ()
        for i in tl.static_range(1 << level):
            even, odd = tl.split(tl.reshape(parts[i], (RAYS, WIDE >> (level + 1), 2)))
            halves += (even, odd)  # type: ignore[assignment]
            places += (numbers[i], numbers[i] + (1 << level))  # type: ignore[assignment]
        parts, numbers = halves, places  # type: ignore[assignment]
    unit = tl.arange(0, WIDE)[None, :]
    total = tl.load(direction_ptr + ray[:, None] * WIDE + unit, seen[:, None], 0.0)
    for i in tl.static_range(1 << LEVELS):
        weight = tl.load(network_ptr + (numbers[i] * CHUNK + tl.arange(0, CHUNK)[:, None]) * WIDE + unit)
        total = tl.dot(parts[i], weight, total, input_precision="ieee")
    return gelu(total)


@helper
def channel(network_ptr, bias_ptr, units, i, WIDE: tl.constexpr):
    """Return channel ``i`` of the colour (rays,)."""
    weight = tl.load(network_ptr + i * WIDE + tl.arange(0, WIDE))
    logits = tl.sum(units * weight[None, :], 1) + tl.load(bias_ptr + i)
    return 1.0 / (1.0 + tl.exp(-logits))


def network_of(decoder: Sequence[Tensor], wide: int) -> Tensor:
    """Return the weights of the colour network as rows of ``wide`` units, zeros where there are fewer.

    By features, whole chunks of them; by units of the first layer; to the three channels; the first bias; the second;
    by numbers of the encoded direction. Units of the first layer are in the order of their remainder when divided by
    how many chunks there are, in which ``second`` takes them.
    """
    inner, inner_bias, hidden, hidden_bias, outer, *_ = decoder
    h, inputs = inner.shape
    features = F.pad(inner.T, (0, 0, 0, -inputs % CHUNK))
    units = F.pad(hidden[:, :h].T, (0, 0, 0, wide - h)).view(CHUNK, -1, h).transpose(0, 1).flatten(0, 1)  # (wide, h)
    rows = torch.cat((features, units, outer, inner_bias[None], hidden_bias[None], hidden[:, h:].T))
    return F.pad(rows, (0, wide - h))


def of_directions(network: Tensor, encoded: Tensor) -> Tensor:
    """Return what directions (b, n, e) add to the second layer (b, n, wide), by rows of the bias and of each number."""
    b, n, encodings = encoded.shape
    total, blocks = encoded.new_empty((b, n, network.shape[1])), (triton.cdiv(b * n, RAYS),)
    sizes = {"ENCODED": encodings, "WIDE": network.shape[1], "RAYS": RAYS}
    launch(_direction_kernel, blocks, network, encoded, total, b * n, **sizes, num_warps=4)
    return total
