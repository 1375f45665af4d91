"""Rays through a radiance field: what they see of it, for training and for views.

A ray is cut into samples between near and far, and the field is asked in the middle of each (Mildenhall et al., "NeRF",
arXiv 2003.08934, equation (3); even samples as in NViST, arXiv 2312.08568). Training renders rays with gradients; a
view skips what cannot be seen.
"""

import math
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from belvedere import kernels
from belvedere.data.cameras import Camera
from belvedere.errors import InputError
from belvedere.synthesis.field import Field, encode_directions
from belvedere.synthesis.occupancy import MAX_NODES, Occupancy, density_nodes, interpolate, node_count

MAX_SAMPLES = 4096
CHUNK = 2**18
"""Samples of a view that are worked on at a time."""
COLOURED = 2**15
"""Of them, how many are coloured at a time; one takes about 2 kB. Exact views take so many samples at a time."""
IN_ONE_PASS = 2**24
"""Samples that are worked on at a time where each takes 4 bytes (``kernels.renders_in_one_pass``)."""
BLOCK = 12
"""Samples of a ray between two looks at whether it goes on."""
TOLERANCE = 1 / 255
"""The most by which a channel of a view may differ from the exact one."""
OPAQUE = 1e-4
"""The transmittance at which a ray of a view ends."""
NODE_COST = 1 / 32
"""What a node of a density table costs, in points at which density is asked of planes and lines."""


class Rendered(NamedTuple):
    """What rays (b, n), or the pixels of a view (h, w), see."""

    colour: Tensor
    """(..., 3) in [0, 1], over the background."""
    depth: Tensor
    """(...), the mean distance of what is seen by weight, not divided by the opacity; of the scene's unit of length."""
    opacity: Tensor
    """(...) in [0, 1]: 1 where nothing of the background is seen."""
    distortion: Tensor
    """The mean over all rays of ``kernels.distortion``, a loss that gathers what is seen: ()."""
    weights: Tensor | None = None
    """(b, n, s) of the samples of rays; None for a view."""


def sample_edges(
    near: float, far: float, samples: int, jitter: Tensor | None = None, device: torch.device | None = None
) -> Tensor:
    """Return the edges (samples + 1,) of a ray's samples, evenly spaced from ``near`` to ``far``.

    ``jitter`` (samples,), in [0, 1), moves every edge but the last towards ``far`` by that share of a sample. Raises
    ``InputError`` for distances or numbers out of range.
    """
    if not 0 <= near < far < math.inf:
        raise InputError(f"near {near} and far {far}: distances along a ray, 0 <= near < far")
    if not 1 <= samples <= MAX_SAMPLES:
        raise InputError(f"{samples} samples a ray: 1 to {MAX_SAMPLES} allowed")
    edges = torch.linspace(near, far, samples + 1, dtype=torch.float32, device=device)
    if jitter is None:
        return edges
    if jitter.shape != (samples,):
        raise InputError(f"jitter {tuple(jitter.shape)}: must be ({samples},), one number a sample")
    return edges + F.pad(jitter.to(edges), (0, 1)) * ((far - near) / samples)


def render_rays(
    field: Field,
    origins: Tensor,
    directions: Tensor,
    *,
    near: float,
    far: float,
    samples: int,
    jitter: Tensor | None = None,
    background: float | None = None,
    exact: bool = False,
    opaque: float = 0.0,
) -> Rendered:
    """Return what rays see: ``origins`` and ``directions`` (b, n, 3), those of row i of scene i; differentiable.

    Directions are normalised here; distances are along them. ``jitter``: see ``sample_edges``; the same for all rays.
    ``background``: the grey, 0 black and 1 white, behind everything; None: the field's own. Where density is 0 colour
    is not asked for: it has no part in what is seen, nor in any gradient. ``exact``: always ask planes and lines for
    the density. Else many points are read from a table (``density_nodes``) that is equal but for rounding, and quicker.
    ``opaque``: samples behind a transmittance below it are taken to be black; their weights sum up to no more than it.
    """
    if origins.shape != directions.shape or origins.ndim != 3 or origins.shape[::2] != (field.scenes, 3):
        shapes = f"{tuple(origins.shape)} and {tuple(directions.shape)}"
        raise InputError(f"origins and directions {shapes}: must both be ({field.scenes}, n, 3)")
    behind = _behind(field, background)
    edges = sample_edges(near, far, samples, jitter, origins.device)
    directions = F.normalize(directions, dim=-1)
    return _rendered(_seen(field, origins, directions, edges, exact, opaque), edges, behind)


def _rendered(seen: kernels.Composited, edges: Tensor, behind: Tensor | float) -> Rendered:
    loss = kernels.distortion(seen.weights, edges).sum() / max(1, seen.opacity.numel())
    return Rendered(_over(seen.colour, seen.opacity, behind), seen.depth, seen.opacity, loss, seen.weights)


def _in_one_pass(field: Field) -> bool:
    """Return whether rays need neither a table nor a choice of samples to be quick."""
    return kernels.renders_in_one_pass(field.planes, field.lines, field.decoder.weights())


def _seen(
    field: Field, origins: Tensor, directions: Tensor, edges: Tensor, exact: bool, opaque: float, ends: bool = False
) -> kernels.Composited:
    """Return what rays (b, n, 3) see on black; ``ends``: also weights behind ``opaque`` may be left out.

    Directions are of unit length.
    """
    if _in_one_pass(field):
        encoded = encode_directions(directions, field.decoder.sizes["frequencies"])
        given, decoder = kernels.Rays(origins, directions, encoded, edges), field.decoder.weights()
        box: dict[str, Any] = {"half_side": field.half_side, "padding": field.padding}
        return kernels.render_factored(field.planes, field.lines, given, decoder, **box, opaque=opaque, ends=ends)
    middles = (edges[1:] + edges[:-1]) / 2
    points = origins.unsqueeze(2) + directions.unsqueeze(2) * middles.unsqueeze(1)  # (b, n, s, 3)
    density = _density(field, points.flatten(1, 2), exact)  # (b, n s)
    dense = _to_colour(density.detach().view(points.shape[:3]), edges, opaque)
    chosen = [row.nonzero().squeeze(1) for row in dense]
    rays = zip(chosen, origins, directions, strict=True)
    colour = torch.cat([_colour(field.scene(i), o, d, middles, row) for i, (row, o, d) in enumerate(rays)])
    flat = dense.flatten().nonzero().squeeze(1)
    return kernels.composite(density.view(points.shape[:3]), edges, colour, flat)


def _to_colour(density: Tensor, edges: Tensor, opaque: float) -> Tensor:
    """Return which samples (b, n s) have any part in what is seen, by their density (b, n, s)."""
    dense = density > 0
    if opaque:
        thickness = density * edges.diff()
        dense &= thickness.cumsum(-1) - thickness < -math.log(opaque)  # of what is before each
    return dense.flatten(1)


def _density(field: Field, points: Tensor, exact: bool) -> Tensor:
    """Return the density (b, n) at ``points`` (b, n, 3), by whichever way is quicker."""
    nodes = node_count(field)
    if exact or nodes > MAX_NODES or nodes * NODE_COST > points.shape[1]:
        return field.density(points)
    return interpolate(density_nodes(field), points, field)


def _colour(scene: Field, origins: Tensor, directions: Tensor, middles: Tensor, chosen: Tensor) -> Tensor:
    """Return the colour (k, 3) of ``chosen`` samples (k,), counted ray by ray, of rays (n, 3) through one scene."""
    ray, sample = chosen // len(middles), chosen % len(middles)
    along = directions.index_select(0, ray)
    points = origins.index_select(0, ray) + along * middles[sample].unsqueeze(1)
    return scene.colour(points[None], along[None])[0].to(middles.dtype)


def _behind(field: Field, background: float | None) -> Tensor | float:
    """Return what is behind everything: a grey, or the field's own colours (b, 1, 3)."""
    if background is None:
        return 0.0 if field.background is None else field.background.unsqueeze(1)
    if not 0 <= background <= 1:
        raise InputError(f"background {background}: must be from 0 (black) to 1 (white)")
    return background


def _over(colour: Tensor, opacity: Tensor, behind: Tensor | float) -> Tensor:
    """Return colours (b, n, 3), or (h, w, 3) of one scene, laid over what is behind."""
    return colour if isinstance(behind, float) and not behind else colour + (1 - opacity).unsqueeze(-1) * behind


def occupancy_for_views(field: Field) -> Occupancy | None:
    """Return what many views of a field of one scene share, for ``render_view``.

    None where rays are rendered in one pass, which has no use for it. Raises ``InputError`` for more than one scene.
    """
    return None if _in_one_pass(field) else Occupancy.of(field)


@torch.no_grad()
def render_view(
    field: Field,
    camera: Camera,
    *,
    near: float,
    far: float,
    samples: int,
    background: float | None = None,
    exact: bool = False,
    occupancy: Occupancy | None = None,
) -> Rendered:
    """Return what a camera sees of a field of one scene: maps (h, w, ...), no gradients, in bounded memory.

    Arguments as for ``render_rays``. Density is asked only inside the box that holds all of it, and on a ray only
    until its transmittance is below ``OPAQUE``; colour only of samples with some weight. No channel of the colour
    differs from that of ``exact`` by more than ``TOLERANCE``, opacity by more than ``OPAQUE`` and depth by more than
    ``far`` times that, rounding aside. ``occupancy``: of this field; for many views of it, make it once, with
    ``occupancy_for_views``.
    """
    if field.scenes != 1:
        raise InputError(f"a field of {field.scenes} scenes: choose the one to see, with field.scene(i)")
    behind = _behind(field, background)
    origins, directions = (rays.to(field.device).reshape(-1, 3) for rays in camera.rays())
    edges = sample_edges(near, far, samples, device=field.device)
    in_one_pass = _in_one_pass(field)
    occupancy = None if exact or in_one_pass else occupancy or Occupancy.of(field)
    step = max(1, (IN_ONE_PASS if in_one_pass else COLOURED if exact else CHUNK) // samples)
    parts = []
    for o, d in zip(origins.split(step), directions.split(step), strict=True):
        if occupancy is None:
            opaque, along = 0.0 if exact else OPAQUE, F.normalize(d[None], dim=-1)
            seen = _rendered(_seen(field, o[None], along, edges, True, opaque, ends=True), edges, 0.0)
            parts.append(Rendered(seen.colour[0], seen.depth[0], seen.opacity[0], seen.distortion))
        else:
            parts.append(_view_rays(occupancy, o, F.normalize(d, dim=-1), edges))
    return _join(parts, camera.size, behind)


def _join(parts: list[Rendered], size: tuple[int, int], behind: Tensor | float) -> Rendered:
    """Return the view of ``size`` whose rays the parts hold, row by row."""
    pieces = zip(*(part[:3] for part in parts), strict=True)
    colour, depth, opacity = (torch.cat(piece).unflatten(0, size) for piece in pieces)  # (h, w, ...)
    loss = torch.stack([part.distortion * len(part.depth) for part in parts]).sum() / depth.numel()
    return Rendered(_over(colour, opacity, behind), depth, opacity, loss)


def _view_rays(occupancy: Occupancy, origins: Tensor, directions: Tensor, edges: Tensor) -> Rendered:
    """Return what rays (n, 3) see on black, skipping what they cannot."""
    samples, middles = len(edges) - 1, (edges[1:] + edges[:-1]) / 2
    weights = _view_weights(occupancy, origins, directions, edges, middles)
    colour = origins.new_zeros(len(origins), 3)
    chosen = (weights > (TOLERANCE - OPAQUE) / samples).flatten().nonzero().squeeze(1)
    for part in chosen.split(COLOURED):
        values = _colour(occupancy.field, origins, directions, middles, part)
        colour.index_add_(0, part // samples, values * weights.view(-1)[part].unsqueeze(1))
    return Rendered(colour, weights @ middles, weights.sum(-1), kernels.distortion(weights, edges).mean())


def _view_weights(occupancy: Occupancy, origins: Tensor, directions: Tensor, edges: Tensor, middles: Tensor) -> Tensor:
    """Return the weights (n, s) of samples, a block of each ray at a time, of those rays that go on."""
    weights, transmittance = origins.new_zeros(len(origins), len(middles)), origins.new_ones(len(origins))
    enter, leave = occupancy.crossing(origins, directions)
    for start in range(0, len(middles), BLOCK):
        end = min(start + BLOCK, len(middles))
        going = (enter < edges[end]) & (leave > edges[start]) & (transmittance >= OPAQUE)
        live = going.nonzero().squeeze(1)
        along = directions[live].unsqueeze(1) * middles[start:end].unsqueeze(1)  # (k, s, 3)
        block, left = kernels.ray_weights(occupancy.density(origins[live].unsqueeze(1) + along), edges[start : end + 1])
        weights[live, start:end] = block * transmittance[live].unsqueeze(1)
        transmittance[live] *= left
    return weights
