"""Gradients of rays through a factored volume: samples are asked again, and no feature of one is written to memory.

Three kernels. The first walks along rays from front to back and writes the density and the transmittance in front of
each sample. The second (``rays_backward_colour``) goes back through the network where there is colour. The third walks
from back to front with the sum of what lies behind, which says what each density is worth (the reverse of compositing,
in O(s)), and goes back through the sampling. What samples are worth to one texel is added up by atomic additions, so
the last bits differ from run to run; gradients of weights are sums of each program, added up in a fixed order after.

Where PyTorch's deterministic algorithms are on, ``rays_plain`` does all of it instead, without atomics.
"""

from collections.abc import Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from belvedere.kernels.rays import Rays
from belvedere.kernels.triton import rays_backward_colour, rays_plain
from belvedere.kernels.triton.elementary import exp
from belvedere.kernels.triton.launch import launch, register
from belvedere.kernels.triton.rays_grid import (
    DENSE,
    cell_of,
    density_of,
    features,
    inside,
    place_of,
    pull_features,
    pull_table,
    tables,
)
from belvedere.kernels.triton.rays_plain import Marching
from belvedere.kernels.volume import FLOOR

RAYS = 32
"""Of a program."""


@triton.jit
def _density_kernel(
    planes_ptr, lines_ptr, origins_ptr, directions_ptr, edges_ptr, weight_ptr, bias_ptr, density_ptr, reaching_ptr,
    n, samples, r, scale, end_of_ray,
    DENSITY: tl.constexpr, C: tl.constexpr, BOUNDED: tl.constexpr, FLOOR: tl.constexpr, RAYS: tl.constexpr,
    DENSE: tl.constexpr,
):  # fmt: skip
    """Density and transmittance of samples, from front to back."""
    scene, ray = tl.program_id(1).to(tl.int64), tl.program_id(0) * RAYS + tl.arange(0, RAYS)
    there, side = ray < n, r + 2
    if planes_ptr is not None:
        planes_ptr += scene * 3 * side * side * C
    if lines_ptr is not None:
        lines_ptr += scene * 3 * side * C
    origins_ptr += scene * n * 3
    directions_ptr += scene * n * 3
    density_ptr += scene * samples * n
    reaching_ptr += scene * samples * n
    reaching = tl.full((RAYS,), 1, tl.float32)
    begin = tl.load(edges_ptr)
    for i in range(samples):
        end = tl.load(edges_ptr + i + 1)
        middle = (begin + end) / 2
        place_x = place_of(origins_ptr, directions_ptr, ray, there, 0, middle, scale, r)
        place_y = place_of(origins_ptr, directions_ptr, ray, there, 1, middle, scale, r)
        place_z = place_of(origins_ptr, directions_ptr, ray, there, 2, middle, scale, r)
        going = there & (reaching > end_of_ray)
        if BOUNDED:
            going = going & inside(place_x, place_y, place_z, r)
        density = tl.full((RAYS,), 0, tl.float32)
        before = reaching
        if tl.max(going.to(tl.int32), 0) > 0:
            x, u = cell_of(place_x, r)
            y, v = cell_of(place_y, r)
            z, w = cell_of(place_z, r)
            density = density_of(
                planes_ptr, lines_ptr, weight_ptr, bias_ptr, x, y, z, u, v, w, going, side, DENSITY, C, DENSE
            )  # fmt: skip
            reaching = reaching * (exp(-density * (end - begin)) + FLOOR)
        tl.store(density_ptr + ray, density, there)
        tl.store(reaching_ptr + ray, before, there)
        density_ptr += n
        reaching_ptr += n
        begin = end


@triton.jit
def _volume_kernel(
    planes_ptr, lines_ptr, dplanes_ptr, dlines_ptr, origins_ptr, directions_ptr, edges_ptr, weight_ptr, sums_ptr,
    density_ptr, reaching_ptr, worth_ptr, dweights_ptr, ddepth_ptr, dopacity_ptr, n, samples, r, scale,
    DENSITY: tl.constexpr, C: tl.constexpr, FLOOR: tl.constexpr, RAYS: tl.constexpr, DENSE: tl.constexpr,
):  # fmt: skip
    """What densities are worth, from back to front, and the gradients of the features that they are made of."""
    scene, ray = tl.program_id(1).to(tl.int64), tl.program_id(0) * RAYS + tl.arange(0, RAYS)
    there, side = ray < n, r + 2
    WIDTH: tl.constexpr = DENSITY if planes_ptr is None else 3 * DENSITY
    if planes_ptr is not None:
        planes_ptr += scene * 3 * side * side * C
        dplanes_ptr += scene * 3 * side * side * C
    if lines_ptr is not None:
        lines_ptr += scene * 3 * side * C
        dlines_ptr += scene * 3 * side * C
    if weight_ptr is not None:
        sums_ptr += (scene * tl.num_programs(0) + tl.program_id(0)) * (WIDTH + 1)
    origins_ptr += scene * n * 3
    directions_ptr += scene * n * 3
    nothing = tl.full((RAYS,), 0, tl.float32)
    common, depth, behind, of_bias = nothing, nothing, nothing, nothing
    if dopacity_ptr is not None:
        common = tl.load(dopacity_ptr + scene * n + ray, there, 0.0)
    if ddepth_ptr is not None:
        depth = tl.load(ddepth_ptr + scene * n + ray, there, 0.0)
    end = tl.load(edges_ptr + samples)
    for step in range(samples):
        i = samples - 1 - step
        begin = tl.load(edges_ptr + i)
        middle = (begin + end) / 2
        at = (scene * samples + i) * n + ray
        density = tl.load(density_ptr + at, there, 0.0)
        dense = density > 0
        if tl.max(dense.to(tl.int32), 0) > 0:
            worth = common + depth * middle
            if worth_ptr is not None:
                worth += tl.load(worth_ptr + at, there, 0.0)
            if dweights_ptr is not None:
                worth += tl.load(dweights_ptr + (scene * n + ray) * samples + i, there, 0.0)
            reaching = tl.load(reaching_ptr + at, there, 0.0)
            through = exp(-density * (end - begin))
            ddensity = (end - begin) * through * (worth * reaching - behind / (through + FLOOR))
            ddensity = tl.where(dense, ddensity, 0.0)
            behind += tl.where(dense, worth * (1.0 - through) * reaching, 0.0)
            of_bias += ddensity
            x, u = cell_of(place_of(origins_ptr, directions_ptr, ray, dense, 0, middle, scale, r), r)
            y, v = cell_of(place_of(origins_ptr, directions_ptr, ray, dense, 1, middle, scale, r), r)
            z, w = cell_of(place_of(origins_ptr, directions_ptr, ray, dense, 2, middle, scale, r), r)
            for first in range(0, WIDTH, DENSE):
                grad = tl.zeros((RAYS, DENSE), tl.float32) + ddensity[:, None]
                if weight_ptr is not None:
                    number = first + tl.arange(0, DENSE)
                    given = features(planes_ptr, lines_ptr, x, y, z, u, v, w, dense, side, first, 0, DENSITY, C, DENSE)
                    total = tl.load(sums_ptr + number, number < WIDTH, 0.0, volatile=True) + tl.sum(given * grad, 0)
                    tl.store(sums_ptr + number, total, number < WIDTH)
                    grad *= tl.load(weight_ptr + number, number < WIDTH, 0.0)[None, :]
                pull_features(
                    planes_ptr, lines_ptr, dplanes_ptr, dlines_ptr, x, y, z, u, v, w, dense, side, first, grad,
                    0, DENSITY, C, DENSE,
                )  # fmt: skip
            if weight_ptr is not None:
                tl.debug_barrier()  # another thread may read a sum than wrote it
        end = begin
    if weight_ptr is not None:
        tl.store(sums_ptr + WIDTH, tl.sum(of_bias, 0))


def run(
    grads: Sequence[Tensor | None],
    volume: Sequence[Tensor | None],
    rays: Rays,
    decoder: Sequence[Tensor],
    how: Marching,
) -> list[Tensor]:
    """Return the gradients, see ``backward``, by the three kernels."""
    c, r = next(grid.shape[2:4] for grid in volume if grid is not None)
    (b, n, _), samples, scale = rays.origins.shape, len(rays.edges) - 1, r / (2 * how.half_side)
    colours = decoder[0].shape[1] // (1 if volume[0] is None else 3)
    origins, directions, encoded, edges = (x.contiguous() for x in rays)
    along = origins, directions, edges
    dweights, dcolour, ddepth, dopacity = (None if x is None else x.contiguous() for x in grads)
    last = [*(weight.contiguous() for weight in decoder[6:]), None, None][:2]
    planes, lines = volume
    given = tables(planes, lines, how.padding)
    pulled = [None if table is None else torch.zeros_like(table) for table in given]
    density, reaching = origins.new_empty((2, b, samples, n))
    programs, sizes = triton.cdiv(n, RAYS), {"DENSITY": c - colours, "C": c, "FLOOR": FLOOR}
    launch(
        _density_kernel, (programs, b), *given, *along, *last, density, reaching,
        n, samples, r, scale, how.opaque if how.ends else 0.0, **sizes,
        BOUNDED=how.padding == "zeros" and lines is not None, RAYS=RAYS, DENSE=DENSE, num_warps=4, num_stages=1,
    )  # fmt: skip
    worth, network = None, [torch.zeros_like(weight) for weight in decoder[:6]]
    if dcolour is not None:
        asked = rays_backward_colour.Asked(density, reaching, dcolour)
        worth, network = rays_backward_colour.run(given, pulled, along, encoded, asked, decoder, r, scale, how.opaque)
    sums = None if last[0] is None else origins.new_zeros((b, programs, last[0].numel() + 1))
    launch(
        _volume_kernel, (programs, b), *given, *pulled, *along, last[0], sums, density, reaching, worth,
        dweights, ddepth, dopacity, n, samples, r, scale, **sizes, RAYS=RAYS, DENSE=DENSE, num_warps=4, num_stages=1,
    )  # fmt: skip
    of_density = [] if sums is None else [part.clone() for part in sums.sum((0, 1)).tensor_split((-1,))]
    grids = [pull_table(table, how.padding) for table in pulled if table is not None]
    return [*grids, *network, *(part.view(x.shape) for part, x in zip(of_density, decoder[6:], strict=True))]


def _backward(
    dweights: Tensor | None,
    dcolour: Tensor | None,
    ddepth: Tensor | None,
    dopacity: Tensor | None,
    planes: Tensor | None,
    lines: Tensor | None,
    origins: Tensor,
    directions: Tensor,
    encoded: Tensor,
    edges: Tensor,
    decoder: Sequence[Tensor],
    half_side: float,
    padding: str,
    opaque: float,
    ends: bool,
) -> list[Tensor]:
    way = rays_plain.run if torch.are_deterministic_algorithms_enabled() else run
    grads, rays = (dweights, dcolour, ddepth, dopacity), Rays(origins, directions, encoded, edges)
    return way(grads, (planes, lines), rays, decoder, Marching(half_side, padding, opaque, ends))


def _empty(dweights: Any, dcolour: Any, ddepth: Any, dopacity: Any, *given: Any) -> list[Tensor]:
    planes, lines, _, _, _, _, decoder, *_ = given
    return [x.new_empty(x.shape) for x in (planes, lines, *decoder) if x is not None]


backward = register("render_factored_backward", _backward, _empty, None, None)
"""Gradients of weights, colour, depth and opacity, or None, and what ``render_factored`` has been given -> those of
planes and lines, where there are any, and of the decoder's weights."""
