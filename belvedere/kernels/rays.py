"""Rays through a factored volume whose features a small network turns into density and colour."""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from belvedere.kernels import reference
from belvedere.kernels.backends import fused
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
    origins: Tensor,
    directions: Tensor,
    encoded: Tensor,
    edges: Tensor,
    decoder: RayDecoder,
    *,
    half_side: float = 1.0,
    padding: str = "zeros",
    opaque: float = 0.0,
    ends: bool = False,
) -> Composited:
    """Return what rays see of a factored volume on black: sampling, density, colour and compositing.

    ``planes`` and ``lines`` as for ``sample_grid``, the density's channels first, in a box of [-half_side,
    half_side]^3; ``origins``, ``directions`` (b, n, 3), those of row i through scene i, directions of unit length, and
    ``encoded`` (b, n, e) for the colour network. ``edges`` (s + 1,) of all rays' samples, ascending: each is asked in
    its middle. What a sample lets through is that of ``ray_weights``.

    A sample has colour only where the transmittance in front of it is above ``opaque``; with ``ends`` the ray ends
    there: neither has it weight. Float32 at least; differentiable once in planes, lines and decoder, not in rays.
    Raises ``ValueError`` where the shapes do not fit together and for a padding of another name.
    """
    if padding not in ("zeros", "border"):
        raise ValueError(f"padding {padding!r}: choose zeros or border")
    _check(planes, lines, origins, directions, encoded, edges, decoder)
    dtype = torch.promote_types(_grid(planes, lines).dtype, torch.float32)
    volume = [None if grid is None else grid.to(dtype) for grid in (planes, lines)]
    rays = [x.detach().to(dtype) for x in (origins, directions, encoded, edges)]
    given: tuple[Any, ...] = (*volume, *rays, [weight.to(dtype) for weight in decoder if weight is not None])
    options: dict[str, Any] = {"half_side": half_side, "padding": padding, "opaque": opaque, "ends": ends}
    if renders_in_one_pass(planes, lines, decoder):
        return Composited(*torch.ops.belvedere.render_factored(*given, *options.values()))
    return Composited(*reference.render_factored(*given, **options))


def _grid(planes: Tensor | None, lines: Tensor | None) -> Tensor:
    """Return either, for its sizes."""
    grid = lines if planes is None else planes
    if grid is None:
        raise ValueError("a factored volume has planes, lines or both")
    return grid


def _check(
    planes: Tensor | None,
    lines: Tensor | None,
    origins: Tensor,
    directions: Tensor,
    encoded: Tensor,
    edges: Tensor,
    decoder: RayDecoder,
) -> None:
    """Refuse shapes that do not fit together: a kernel would read past an end."""
    grid = _grid(planes, lines)
    (b, _, c), r = grid.shape[:3], grid.shape[-1]
    (h, inputs), e = decoder.inner.shape, encoded.shape[-1]
    axes = 1 if planes is None else 3
    rays, width = (b, *origins.shape[1:2]), axes * c - inputs
    shapes = {"planes": (b, 3, c, r, r), "lines": (b, 3, c, r), "origins": (*rays, 3), "directions": (*rays, 3)}
    shapes |= {"encoded": (*rays, e), "edges": (len(edges),), "inner": (h, inputs // axes * axes), "inner_bias": (h,)}
    shapes |= {"hidden": (h, h + e), "hidden_bias": (h,), "outer": (3, h), "outer_bias": (3,)}
    shapes |= {"density": (1, max(width, 1)), "density_bias": (1,)}
    given = {"planes": planes, "lines": lines, "origins": origins, "directions": directions, "encoded": encoded}
    given |= {"edges": edges} | decoder._asdict()
    for name, shape in shapes.items():
        x = given[name]
        if x is not None and x.shape != shape:
            raise ValueError(f"{name} {tuple(x.shape)}: {shape} goes with the rest")
    if width < 1:
        raise ValueError(f"inner {tuple(decoder.inner.shape)}: none of {c} channels are left for the density")
