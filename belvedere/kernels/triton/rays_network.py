"""The colour network of rays in registers: its weights as one table, and the layers that a program makes."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor

from belvedere.kernels.triton.elementary import exp, logistic, normal_tail
from belvedere.kernels.triton.launch import helper, launch

RAYS = 32
"""Whose directions a program takes."""
CHUNK = 16
"""Features and units that are multiplied at a time: the fewest that a product takes."""


@helper
def gelu(x):
    tail, _ = normal_tail(x)
    return tl.maximum(x, 0.0) - tl.abs(x) * tail


@helper
def gelu_slope(x):
    # By erf: what it would share with ``gelu`` takes more registers than there are.
    return 0.5 * (1.0 + tl.erf(x * 0.7071067811865476)) + x * 0.3989422804014327 * exp(x * x * -0.5)


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
def chunks(x, WIDE: tl.constexpr, RAYS: tl.constexpr, LEVELS: tl.constexpr):
    """Return units (rays, WIDE) in chunks: the i-th has those whose number leaves i when divided by their count.

    They are cut by halves, the even and the odd ones, which lie in the same threads.
    """
    parts = (x,)
    for level in tl.static_range(LEVELS):
        evens, odds = (), ()
        for i in tl.static_range(1 << level):
            even, odd = tl.split(tl.reshape(parts[i], (RAYS, WIDE >> (level + 1), 2)))
            evens += (even,)  # type: ignore[assignment]
            odds += (odd,)  # type: ignore[assignment]
        parts = evens + odds  # type: ignore[assignment]
    return parts


@helper
def matrix(ptr, row, step, first, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """Return where the ``ROWS`` from ``row`` on of a table with rows of ``step`` numbers lie, from column ``first``."""
    return ptr + (row + tl.arange(0, ROWS)[:, None]) * step + first + tl.arange(0, COLUMNS)[None, :]


@helper
def through(ptr, step, parts, total, first, COLUMNS: tl.constexpr, CHUNK: tl.constexpr, LEVELS: tl.constexpr):
    """Return ``total`` and the product of ``chunks`` with some columns of a table whose rows are in their order."""
    for i in tl.static_range(1 << LEVELS):
        weight = tl.load(matrix(ptr, i * CHUNK, step, first, CHUNK, COLUMNS))
        total = tl.dot(parts[i], weight, total, input_precision="ieee")
    return total


@helper
def second(network_ptr, direction_ptr, ray, seen, parts, WIDE: tl.constexpr, CHUNK: tl.constexpr, LEVELS: tl.constexpr):
    """Return the second layer (rays, units), before its activation, from ``chunks`` of the first after it."""
    total = tl.load(direction_ptr + ray[:, None] * WIDE + tl.arange(0, WIDE)[None, :], seen[:, None], 0.0)
    return through(network_ptr, WIDE, parts, total, 0, WIDE, CHUNK, LEVELS)


@helper
def channel(network_ptr, bias_ptr, units, i, WIDE: tl.constexpr):
    """Return channel ``i`` of the colour (rays,)."""
    weight = tl.load(network_ptr + i * WIDE + tl.arange(0, WIDE))
    logits = tl.sum(units * weight[None, :], 1) + tl.load(bias_ptr + i)
    return logistic(logits)


def sizes_of(decoder: Sequence[Tensor]) -> tuple[int, int, int]:
    """Return how often units are halved to ``chunks``, and how many units and features there are in whole chunks."""
    h, inputs = decoder[0].shape
    levels = (triton.cdiv(h, CHUNK) - 1).bit_length()
    return levels, CHUNK << levels, triton.cdiv(inputs, CHUNK) * CHUNK


def network_of(decoder: Sequence[Tensor], wide: int) -> Tensor:
    """Return the weights of the colour network as rows of ``wide`` units, zeros where there are fewer.

    By features, whole chunks of them; by units of the first layer, in the order of ``chunks``; to the three channels;
    the first bias; the second; by numbers of the encoded direction.
    """
    inner, inner_bias, hidden, hidden_bias, outer, *_ = decoder
    h, inputs = inner.shape
    features = F.pad(inner.T, (0, 0, 0, -inputs % CHUNK))
    units = _in_chunks(hidden[:, :h].T, wide)
    rows = torch.cat((features, units, outer, inner_bias[None], hidden_bias[None], hidden[:, h:].T))
    return F.pad(rows, (0, wide - h))


def backward_of(decoder: Sequence[Tensor], wide: int) -> Tensor:
    """Return the rows that gradients go through, by units in the order of ``chunks``, zeros where there are fewer.

    A row has what a unit of the second layer is of those of the first, ``wide`` numbers; then what a unit of the first
    layer is of the features, whole chunks of them.
    """
    inner, hidden = decoder[0], decoder[2]
    h, inputs = inner.shape
    units, features = F.pad(hidden[:, :h], (0, wide - h)), F.pad(inner, (0, -inputs % CHUNK))
    return torch.cat((_in_chunks(units, wide), _in_chunks(features, wide)), 1)


def pull_network(rows: Tensor, decoder: Sequence[Tensor]) -> list[Tensor]:
    """Return the gradients of the six weights for that of the rows of ``network_of``, one more for the outer bias."""
    (h, inputs), wide, encodings = decoder[0].shape, rows.shape[1], decoder[2].shape[1] - len(decoder[0])
    sizes = inputs + -inputs % CHUNK, wide, 3, 2, encodings + -encodings % CHUNK, 1
    features, units, outer, biases, encoded, last = rows.split(sizes)
    units = units.view(-1, CHUNK, wide).transpose(0, 1).flatten(0, 1)  # (wide, wide)
    hidden = torch.cat((units[:h], encoded[:encodings]))[:, :h].T
    inner_bias, hidden_bias = biases[:, :h].unbind()
    found = features[:inputs, :h].T, inner_bias, hidden, hidden_bias, outer[:, :h], last[0, :3]
    return [gradient.clone(memory_format=torch.contiguous_format) for gradient in found]


def _in_chunks(rows: Tensor, wide: int) -> Tensor:
    """Return rows by unit, ``wide`` of them, in the order of ``chunks``."""
    return F.pad(rows, (0, 0, 0, wide - len(rows))).view(CHUNK, -1, rows.shape[1]).transpose(0, 1).flatten(0, 1)


def of_directions(network: Tensor, features: int, encoded: Tensor) -> Tensor:
    """Return what directions (b, n, e) and the bias add to the second layer (b, n, wide), by ``network_of``."""
    (b, n, encodings), wide = encoded.shape, network.shape[1]
    rows = network[features + wide + 4 :]  # from the second bias on
    total, blocks = encoded.new_empty((b, n, wide)), (triton.cdiv(b * n, RAYS),)
    sizes = {"ENCODED": encodings, "WIDE": wide, "RAYS": RAYS}
    launch(_direction_kernel, blocks, rows, encoded, total, b * n, **sizes, num_warps=4)
    return total
