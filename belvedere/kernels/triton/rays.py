"""Rays through a factored volume in one pass: no feature of a sample is ever written to memory.

A program walks along a block of rays from front to back, a sample of each at a time: it reads the texels of planes and
lines, sums up the density, multiplies through the colour network, and adds what is seen. A block reads nothing where
all its samples lie outside the volume, or all its rays have ended, and makes no colour where none of its samples has
density. What the direction adds to the network's second layer is made once a ray, before: kept in registers it would
leave too few.

What a ray sees does not depend on the others of its block. Products are of float32, summed in float32.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from belvedere.kernels.rays import HIDDEN, INPUTS, Rays
from belvedere.kernels.triton import rays_backward
from belvedere.kernels.triton.elementary import exp
from belvedere.kernels.triton.launch import launch, meta, register
from belvedere.kernels.triton.rays_grid import DENSE, cell_of, density_of, features, inside, tables
from belvedere.kernels.triton.rays_network import (
    CHUNK,
    channel,
    chunks,
    gelu,
    matrix,
    network_of,
    of_directions,
    second,
    sizes_of,
)
from belvedere.kernels.triton.rays_plain import Marching
from belvedere.kernels.volume import FLOOR

RAYS = 32
"""Of a program."""
REGISTERS = 255
"""Of a thread, as many as there are: left to itself the assembler may spill some for the sake of one more block."""


@triton.jit
def _forward_kernel(
    planes_ptr, lines_ptr, origins_ptr, directions_ptr, edges_ptr, network_ptr, direction_ptr, outer_bias_ptr,
    density_ptr, density_bias_ptr, weights_ptr, colour_ptr, depth_ptr, opacity_ptr, n, samples, r, scale, opaque,
    end_of_ray,
    DENSITY: tl.constexpr, COLOUR: tl.constexpr, INPUTS: tl.constexpr, WIDE: tl.constexpr, BOUNDED: tl.constexpr,
    FLOOR: tl.constexpr, RAYS: tl.constexpr, CHUNK: tl.constexpr, LEVELS: tl.constexpr,
    DENSE: tl.constexpr,
):  # fmt: skip
    scene, ray = tl.program_id(1).to(tl.int64), tl.arange(0, RAYS)
    there = ray < n - tl.program_id(0) * RAYS
    first_ray = scene * n + tl.program_id(0) * RAYS
    C: tl.constexpr = DENSITY + COLOUR
    side = r + 2
    if planes_ptr is not None:
        planes_ptr += scene * 3 * side * side * C
    if lines_ptr is not None:
        lines_ptr += scene * 3 * side * C
    origins_ptr += first_ray * 3
    origin_x = tl.load(origins_ptr + ray * 3, there, 0.0)
    origin_y = tl.load(origins_ptr + ray * 3 + 1, there, 0.0)
    origin_z = tl.load(origins_ptr + ray * 3 + 2, there, 0.0)
    directions_ptr += first_ray * 3
    direction_x = tl.load(directions_ptr + ray * 3, there, 0.0)
    direction_y = tl.load(directions_ptr + ray * 3 + 1, there, 0.0)
    direction_z = tl.load(directions_ptr + ray * 3 + 2, there, 0.0)
    direction_ptr += first_ray * WIDE
    weights_ptr += first_ray * samples
    colour_ptr += first_ray * 3
    outer_ptr = network_ptr + (INPUTS + WIDE) * WIDE
    nothing = tl.full((RAYS,), 0, tl.float32)
    red, green, blue, depth, opacity, reaching = nothing, nothing, nothing, nothing, nothing, nothing + 1.0
    begin = tl.load(edges_ptr)
    for i in range(samples):
        end = tl.load(edges_ptr + i + 1)
        middle = (begin + end) / 2
        place_x = (origin_x + direction_x * middle) * scale + (r + 1) / 2
        place_y = (origin_y + direction_y * middle) * scale + (r + 1) / 2
        place_z = (origin_z + direction_z * middle) * scale + (r + 1) / 2
        going = there & (reaching > end_of_ray)
        if BOUNDED:  # no density outside the ring
            going = going & inside(place_x, place_y, place_z, r)
        weight = nothing
        if tl.max(going.to(tl.int32), 0) > 0:
            x, u = cell_of(place_x, r)
            y, v = cell_of(place_y, r)
            z, w = cell_of(place_z, r)
            density = density_of(
                planes_ptr, lines_ptr, density_ptr, density_bias_ptr, x, y, z, u, v, w, going, side, DENSITY, C, DENSE
            )  # fmt: skip
            through = exp(-density * (end - begin))
            weight = (1.0 - through) * reaching
            seen = going & (reaching > opaque) & (density > 0)
            if tl.max(seen.to(tl.int32), 0) > 0:
                units = tl.full((RAYS, WIDE), 0, tl.float32)
                units += tl.load(outer_ptr + 3 * WIDE + tl.arange(0, WIDE))[None, :]
                for start in range(0, INPUTS, CHUNK):
                    painted = features(
                        planes_ptr, lines_ptr, x, y, z, u, v, w, seen, side, start, DENSITY, COLOUR, C, CHUNK
                    )  # fmt: skip
                    weights = tl.load(matrix(network_ptr, start, WIDE, 0, CHUNK, WIDE))
                    units = tl.dot(gelu(painted), weights, units, input_precision="ieee")
                parts = chunks(gelu(units), WIDE, RAYS, LEVELS)
                units = gelu(second(network_ptr + INPUTS * WIDE, direction_ptr, ray, seen, parts, WIDE, CHUNK, LEVELS))
                bright = tl.where(seen, weight, 0.0)
                red += bright * channel(outer_ptr, outer_bias_ptr, units, 0, WIDE)
                green += bright * channel(outer_ptr, outer_bias_ptr, units, 1, WIDE)
                blue += bright * channel(outer_ptr, outer_bias_ptr, units, 2, WIDE)
            depth += weight * middle
            opacity += weight
            reaching *= through + FLOOR
        tl.store(weights_ptr + ray * samples, weight, there)
        weights_ptr += 1
        begin = end
    tl.store(colour_ptr + ray * 3, red, there)
    tl.store(colour_ptr + ray * 3 + 1, green, there)
    tl.store(colour_ptr + ray * 3 + 2, blue, there)
    tl.store(depth_ptr + first_ray + ray, depth, there)
    tl.store(opacity_ptr + first_ray + ray, opacity, there)


def _forward(
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
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    grid = lines if planes is None else planes
    assert grid is not None  # the public function has seen to it
    (b, n, _), r = origins.shape, grid.shape[-1]
    colours = decoder[0].shape[1] // (1 if planes is None else 3)
    origins, directions, encoded, edges = (x.contiguous() for x in (origins, directions, encoded, edges))
    levels, wide, rows = sizes_of(decoder)
    network = network_of(decoder, wide)
    direction = of_directions(network, rows, encoded)
    last = [*(weight.contiguous() for weight in decoder[5:]), None, None][:3]
    seen = _empty(planes, lines, origins, directions, encoded, edges)
    launch(
        _forward_kernel, (triton.cdiv(n, RAYS), b),
        *tables(planes, lines, padding), origins, directions, edges, network, direction, *last, *seen,
        n, len(edges) - 1, r, r / (2 * half_side), opaque, opaque if ends else 0.0,
        DENSITY=grid.shape[2] - colours, COLOUR=colours, INPUTS=rows, WIDE=wide,
        BOUNDED=padding == "zeros" and lines is not None, FLOOR=FLOOR, RAYS=RAYS, CHUNK=CHUNK,
        LEVELS=levels, DENSE=DENSE, num_warps=4, num_stages=1,
        maxnreg=REGISTERS,
    )  # fmt: skip
    return seen


def _empty(
    planes: Any, lines: Any, origins: Tensor, directions: Any, encoded: Any, edges: Tensor, *others: Any
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    rays, samples = origins.shape[:2], len(edges) - 1
    weights, colour, depth, opacity = (origins.new_empty((*rays, *last)) for last in ((samples,), (3,), (), ()))
    return weights, colour, depth, opacity


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    *tensors, decoder = inputs[:7]
    ctx.options = inputs[7:]
    ctx.save_for_backward(*tensors, *decoder)
    ctx.set_materialize_grads(False)


def _pull(ctx: Any, *grads: Tensor | None) -> tuple[Any, ...]:
    if all(grad is None for grad in grads):
        return (None,) * 11
    planes, lines, origins, directions, encoded, edges, *decoder = ctx.saved_tensors
    rays = origins, directions, encoded, edges
    pulled = rays_backward.backward(*grads, planes, lines, *rays, decoder, *ctx.options)
    volume = (None if grid is None else pulled.pop(0) for grid in (planes, lines))
    return *volume, None, None, None, None, pulled, None, None, None, None


render_factored = register("render_factored", _forward, _empty, _keep, _pull)
"""Planes, lines, origins, directions, encoded directions, edges, the weights of a ``RayDecoder``, half_side, padding,
opaque, ends, as for ``belvedere.kernels.render_factored``, all float32 -> weights, colour, depth and opacity."""


def production() -> Iterator[tuple[str, Callable[[], Any]]]:
    """Yield launches at the sizes of published networks, by name; they are made under ``launch.noting``."""
    for name, form, r, samples, density, colour, h, padding in (
        ("NViST", "vector_matrix", 48, 48, 8, 24, 64, "zeros"),
        ("NViST toybox", "vector_matrix", 56, 32, 6, 18, 32, "border"),
        ("triplane", "triplane", 48, 48, 8, 24, 64, "border"),
        ("CP", "cp", 48, 48, 8, 24, 64, "zeros"),
        ("widest", "vector_matrix", 48, 48, 8, INPUTS // 3, HIDDEN, "zeros"),
    ):
        c, n, axes = density + colour, 160 * 90, 1 if form == "cp" else 3
        planes = None if form == "cp" else meta(1, 3, c, r, r, dtype=torch.float32)
        lines = None if form == "triplane" else meta(1, 3, c, r, dtype=torch.float32)
        origins, directions, encoded = (meta(1, n, width, dtype=torch.float32) for width in (3, 3, 27))
        shapes = [(h, axes * colour), (h,), (h, h + 27), (h,), (3, h), (3,)]
        shapes += [(1, 3 * density), (1,)] if form == "triplane" else []
        decoder = [meta(*shape, dtype=torch.float32) for shape in shapes]
        rays = Rays(origins, directions, encoded, meta(samples + 1, dtype=torch.float32))
        how = Marching(0.8, padding, 1e-4, True)
        yield f"rays {name}", partial(_forward, planes, lines, *rays, decoder, *how)
        grads = [meta(1, n, *last, dtype=torch.float32) for last in ((samples,), (3,), (), ())]
        yield f"rays {name} backward", partial(rays_backward.run, grads, (planes, lines), rays, decoder, how)
