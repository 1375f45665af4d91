"""Gradients of the colour of rays' samples: the network forwards and backwards in registers, a tile at a time.

A tile is the i-th sample of neighbouring rays; one in which no sample has colour is passed over. Programs are as many
whatever the number of rays: each takes every so many-th tile and adds what weights are worth to sums of its own.
"""

from collections.abc import Sequence
from typing import NamedTuple

import triton
import triton.language as tl
from torch import Tensor

from belvedere.kernels.triton.elementary import exp
from belvedere.kernels.triton.launch import helper, launch
from belvedere.kernels.triton.rays_grid import cell_of, features, place_of, pull_features
from belvedere.kernels.triton.rays_network import (
    CHUNK,
    backward_of,
    channel,
    chunks,
    gelu,
    gelu_slope,
    matrix,
    network_of,
    of_directions,
    pull_network,
    second,
    sizes_of,
    through,
)

RAYS = 16
"""Of a tile: the fewest that a product takes."""
PROGRAMS = 512
"""Of all scenes together; each has its own sums of gradients of weights, 45 kB for 64 units."""
WARPS, REGISTERS = 8, 255
"""Of a program, and of a thread; see ``rays``. What the turns of a loop have in common is computed in each of them
(``disable_licm``): kept in registers it would leave too few."""


class Asked(NamedTuple):
    """What is known of samples: density and transmittance (b, s, n); and the gradient of rays' colour (b, n, 3)."""

    density: Tensor
    reaching: Tensor
    dcolour: Tensor


@helper
def _count(at, x):
    """Add to a program's own sums."""
    tl.store(at, tl.load(at, volatile=True) + x)


@helper
def _count_product(at, left, right):
    """Add what the rows (rays, i) and (rays, j) have in common, (i, j), to a program's own sums."""
    tl.store(at, tl.dot(tl.trans(left), right, tl.load(at, volatile=True), input_precision="ieee"))


@helper
def _channel_back(
    outer_ptr, outer_bias_ptr, dcolour_ptr, sums_ptr, last_ptr, units, dunits, worth, share, ray, seen, i,
    WIDE: tl.constexpr,
):  # fmt: skip
    """Go back through channel ``i``: return gradients of units, and what a sample's weight is worth, with its own."""
    value = channel(outer_ptr, outer_bias_ptr, units, i, WIDE)
    grad = tl.load(dcolour_ptr + ray * 3 + i, seen, 0.0)
    worth += grad * value
    grad *= share * value * (1.0 - value)
    unit = tl.arange(0, WIDE)
    _count(sums_ptr + i * WIDE + unit, tl.sum(units * grad[:, None], 0))
    _count(last_ptr + i, tl.sum(grad, 0))
    return dunits + grad[:, None] * tl.load(outer_ptr + i * WIDE + unit)[None, :], worth


@triton.jit
def _colour_kernel(
    planes_ptr, lines_ptr, dplanes_ptr, dlines_ptr, origins_ptr, directions_ptr, edges_ptr, encoded_ptr, direction_ptr,
    network_ptr, back_ptr, outer_bias_ptr, density_ptr, reaching_ptr, dcolour_ptr, worth_ptr, sums_ptr,
    n, samples, r, scale, opaque,
    FROM: tl.constexpr, COLOUR: tl.constexpr, INPUTS: tl.constexpr, WIDE: tl.constexpr, ENCODED: tl.constexpr,
    ROWS: tl.constexpr, RAYS: tl.constexpr, CHUNK: tl.constexpr, LEVELS: tl.constexpr,
):  # fmt: skip
    scene, side = tl.program_id(1).to(tl.int64), r + 2
    C: tl.constexpr = FROM + COLOUR
    OUTER: tl.constexpr = (INPUTS + WIDE) * WIDE
    if planes_ptr is not None:
        planes_ptr += scene * 3 * side * side * C
        dplanes_ptr += scene * 3 * side * side * C
    if lines_ptr is not None:
        lines_ptr += scene * 3 * side * C
        dlines_ptr += scene * 3 * side * C
    origins_ptr += scene * n * 3
    directions_ptr += scene * n * 3
    encoded_ptr += scene * n * ENCODED
    direction_ptr += scene * n * WIDE
    dcolour_ptr += scene * n * 3
    sums_ptr += (scene * tl.num_programs(0) + tl.program_id(0)) * ROWS * WIDE
    unit = tl.arange(0, WIDE)
    blocks = (n + RAYS - 1) // RAYS
    for tile in tl.range(tl.program_id(0), blocks * samples, tl.num_programs(0), disable_licm=True):
        i, ray = tile // blocks, tile % blocks * RAYS + tl.arange(0, RAYS)
        at = (scene * samples + i) * n + ray
        density, reaching = tl.load(density_ptr + at, ray < n, 0.0), tl.load(reaching_ptr + at, ray < n, 0.0)
        seen = (density > 0) & (reaching > opaque)
        if tl.max(seen.to(tl.int32), 0) > 0:
            begin, end = tl.load(edges_ptr + i), tl.load(edges_ptr + i + 1)
            share = tl.where(seen, (1.0 - exp(-density * (end - begin))) * reaching, 0.0)
            middle = (begin + end) / 2
            x, u = cell_of(place_of(origins_ptr, directions_ptr, ray, seen, 0, middle, scale, r), r)
            y, v = cell_of(place_of(origins_ptr, directions_ptr, ray, seen, 1, middle, scale, r), r)
            z, w = cell_of(place_of(origins_ptr, directions_ptr, ray, seen, 2, middle, scale, r), r)
            first = tl.zeros((RAYS, WIDE), tl.float32) + tl.load(network_ptr + OUTER + 3 * WIDE + unit)[None, :]
            for start in tl.range(0, INPUTS, CHUNK, disable_licm=True):
                given = features(planes_ptr, lines_ptr, x, y, z, u, v, w, seen, side, start, FROM, COLOUR, C, CHUNK)
                weight = tl.load(matrix(network_ptr, start, WIDE, 0, CHUNK, WIDE))
                first = tl.dot(gelu(given), weight, first, input_precision="ieee")
            parts = chunks(gelu(first), WIDE, RAYS, LEVELS)
            units = second(network_ptr + INPUTS * WIDE, direction_ptr, ray, seen, parts, WIDE, CHUNK, LEVELS)
            grad = tl.zeros((RAYS, WIDE), tl.float32)
            worth = tl.zeros((RAYS,), tl.float32)
            for c in tl.static_range(3):
                grad, worth = _channel_back(
                    network_ptr + OUTER, outer_bias_ptr, dcolour_ptr, sums_ptr + OUTER, sums_ptr + (ROWS - 1) * WIDE,
                    gelu(units), grad, worth, share, ray, seen, c, WIDE,
                )  # fmt: skip
            tl.store(worth_ptr + at, worth, seen)
            grad *= gelu_slope(units)
            _count(sums_ptr + OUTER + 4 * WIDE + unit, tl.sum(grad, 0))
            for start in tl.range(0, ENCODED, CHUNK, disable_licm=True):
                number = start + tl.arange(0, CHUNK)[None, :]
                given = tl.load(encoded_ptr + ray[:, None] * ENCODED + number, seen[:, None] & (number < ENCODED), 0.0)
                _count_product(matrix(sums_ptr + OUTER + 5 * WIDE, start, WIDE, 0, CHUNK, WIDE), given, grad)
            for j in tl.static_range(1 << LEVELS):
                _count_product(matrix(sums_ptr + INPUTS * WIDE, j * CHUNK, WIDE, 0, CHUNK, WIDE), parts[j], grad)
            parts = chunks(grad, WIDE, RAYS, LEVELS)
            grad = tl.zeros((RAYS, WIDE), tl.float32)
            grad = through(back_ptr, WIDE + INPUTS, parts, grad, 0, WIDE, CHUNK, LEVELS) * gelu_slope(first)
            _count(sums_ptr + OUTER + 3 * WIDE + unit, tl.sum(grad, 0))
            parts = chunks(grad, WIDE, RAYS, LEVELS)
            for start in tl.range(0, INPUTS, CHUNK, disable_licm=True):
                given = features(planes_ptr, lines_ptr, x, y, z, u, v, w, seen, side, start, FROM, COLOUR, C, CHUNK)
                _count_product(matrix(sums_ptr, start, WIDE, 0, CHUNK, WIDE), gelu(given), grad)
                back = tl.zeros((RAYS, CHUNK), tl.float32)
                back = through(back_ptr, WIDE + INPUTS, parts, back, WIDE + start, CHUNK, CHUNK, LEVELS)
                pull_features(
                    planes_ptr, lines_ptr, dplanes_ptr, dlines_ptr, x, y, z, u, v, w, seen, side, start,
                    back * gelu_slope(given), FROM, COLOUR, C, CHUNK,
                )  # fmt: skip
            tl.debug_barrier()  # another thread may read a sum than wrote it


def run(
    tables: Sequence[Tensor | None],
    dtables: Sequence[Tensor | None],
    rays: Sequence[Tensor],
    encoded: Tensor,
    asked: Asked,
    decoder: Sequence[Tensor],
    r: int,
    scale: float,
    opaque: float,
) -> tuple[Tensor, list[Tensor]]:
    """Return what the colour of samples makes their weights worth, (b, s, n), and gradients of six weights.

    ``tables`` of planes and lines, to whose gradients ``dtables`` those by way of the colour are added; ``rays``:
    origins, directions and edges.
    """
    b, samples, n = asked.density.shape
    colours = decoder[0].shape[1] // (1 if tables[0] is None else 3)
    levels, wide, features = sizes_of(decoder)
    network, encoded = network_of(decoder, wide), encoded.contiguous()
    direction = of_directions(network, features, encoded)
    worth, programs = asked.density.new_zeros(asked.density.shape), max(1, PROGRAMS // max(1, b))
    encodings = triton.cdiv(encoded.shape[-1], CHUNK) * CHUNK
    sums = network.new_zeros((b, programs, features + wide + 5 + encodings + 1, wide))
    launch(
        _colour_kernel, (programs if n else 0, b), *tables, *dtables, *rays, encoded, direction, network,
        backward_of(decoder, wide), decoder[5].contiguous(), *asked, worth, sums, n, samples, r, scale, opaque,
        FROM=next(x for x in tables if x is not None).shape[-1] - colours, COLOUR=colours, INPUTS=features, WIDE=wide,
        ENCODED=encoded.shape[-1], ROWS=sums.shape[2], RAYS=RAYS, CHUNK=CHUNK, LEVELS=levels,
        num_warps=WARPS, num_stages=1, maxnreg=REGISTERS,
    )  # fmt: skip
    return worth, pull_network(sums.sum((0, 1)), decoder)
