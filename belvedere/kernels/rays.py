"""Rays through a factored volume whose features a small network turns into density and colour."""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from belvedere.kernels import reference
from belvedere.kernels.backends import OPERATIONS, fused
from belvedere.kernels.volume import Composited

INPUTS, HIDDEN = 96, 64
"""Features and units of the colour network up to which there is a kernel: one of more would not fit in registers."""


class RayDecoder(NamedTuple):
    """The weights, as ``nn.Linear`` has them, that turn features into density and colour.

    Density is ReLU(density x + density_bias) of the density's features x, or ReLU(sum of x) where there are no such
    weights. Colour is sigmoid(outer GELU(hidden [GELU(inner GELU(x)), e])), with biases, of the colour's features x
    and of the encoded direction e. Features are x of all three axes one after another, or their product where the
    volume has no planes (the CP decomposition of TensoRF, Chen et al., arXiv 2203.09517, equation (3)).
    """

    inner: Tensor
    """(h, features of colour)."""
    inner_bias: Tensor
    """(h,)."""
    hidden: Tensor
    """(h, h + e)."""
    hidden_bias: Tensor
    """(h,)."""
    outer: Tensor
    """(3, h)."""
    outer_bias: Tensor
    """(3,)."""
    density: Tensor | None = None
    """(1, features of density)."""
    density_bias: Tensor | None = None
    """(1,)."""


class Rays(NamedTuple):
    """Rays (b, n), those of row i through scene i, and where along them samples lie."""

    origins: Tensor
    """(b, n, 3), x y z."""
    directions: Tensor
    """(b, n, 3), of unit length."""
    encoded: Tensor
    """(b, n, e), of the directions, for the colour network."""
    edges: Tensor
    """(s + 1,) of all rays' samples, distances from the origins, ascending."""


def renders_in_one_pass(planes: Tensor | None, lines: Tensor | None, decoder: RayDecoder) -> bool:
    """Return whether ``render_factored`` is one pass over the samples for such a volume, which skips what is not seen.

    Else it asks every sample for density and colour, and choosing samples beforehand saves much.
    """
    grid, (h, inputs) = _grid(planes, lines), decoder.inner.shape
    numbers = 3 * grid.shape[2] * (grid.shape[-1] + 2) ** 2
    return fused(grid) and fused(decoder.inner) and h <= HIDDEN and inputs <= INPUTS and numbers < 2**31


def render_factored(
    planes: Tensor | None,
    lines: Tensor | None,
    rays: Rays,
    decoder: RayDecoder,
    *,
    half_side: float = 1.0,
    padding: str = "zeros",
    opaque: float = 0.0,
    ends: bool = False,
) -> Composited:
    """Return what rays see of a factored volume on black: sampling, density, colour and compositing.

    ``planes`` and ``lines`` as for ``sample_grid``, the density's channels first, in a box of [-half_side,
    half_side]^3. Each sample is asked in its middle; what it lets through is that of ``ray_weights``.

    A sample has colour only where the transmittance in front of it is above ``opaque``; with ``ends`` the ray ends
    there: neither has it weight. Float32 at least; differentiable once in planes, lines and decoder, not in rays. On a
    GPU gradients of planes and lines are added up by atomic additions, in no fixed order, unless PyTorch's
    deterministic algorithms are on.
    Raises ``ValueError`` where the shapes do not fit together and for a padding of another name.
    """
    if padding not in ("zeros", "border"):
        raise ValueError(f"padding {padding!r}: choose zeros or border")
    _check(planes, lines, rays, decoder)
    dtype = torch.promote_types(_grid(planes, lines).dtype, torch.float32)
    planes, lines = (None if grid is None else grid.to(dtype) for grid in (planes, lines))
    fixed = Rays(*(x.detach().to(dtype) for x in rays))
    weights = [weight.to(dtype) for weight in decoder if weight is not None]
    options: dict[str, Any] = {"half_side": half_side, "padding": padding, "opaque": opaque, "ends": ends}
    if renders_in_one_pass(planes, lines, decoder):
        return Composited(*OPERATIONS["render_factored"](planes, lines, *fixed, weights, *options.values()))
    return Composited(*reference.render_factored(planes, lines, fixed, weights, **options))


def _grid(planes: Tensor | None, lines: Tensor | None) -> Tensor:
    """Return either, for its sizes."""
    grid = lines if planes is None else planes
    if grid is None:
        raise ValueError("a factored volume has planes, lines or both")
    return grid


def _check(planes: Tensor | None, lines: Tensor | None, rays: Rays, decoder: RayDecoder) -> None:
    """Refuse shapes that do not fit together: a kernel would read past an end."""
    grid = _grid(planes, lines)
    (b, _, c), r = grid.shape[:3], grid.shape[-1]
    (h, inputs), e = decoder.inner.shape, rays.encoded.shape[-1]
    axes = 1 if planes is None else 3
    each, width = (b, *rays.origins.shape[1:2]), axes * c - inputs
    shapes = {"planes": (b, 3, c, r, r), "lines": (b, 3, c, r), "origins": (*each, 3), "directions": (*each, 3)}
    shapes |= {
        "encoded": (*each, e),
        "edges": (len(rays.edges),),
        "inner": (h, inputs // axes * axes),
        "inner_bias": (h,),
    }
    shapes |= {"hidden": (h, h + e), "hidden_bias": (h,), "outer": (3, h), "outer_bias": (3,)}
    shapes |= {"density": (1, max(width, 1)), "density_bias": (1,)}
    given = {"planes": planes, "lines": lines} | rays._asdict() | decoder._asdict()
    for name, shape in shapes.items():
        x = given[name]
        if x is not None and x.shape != shape:
            raise ValueError(f"{name} {tuple(x.shape)}: {shape} goes with the rest")
    if width < 1:
        raise ValueError(f"inner {tuple(decoder.inner.shape)}: none of {c} channels are left for the density")
