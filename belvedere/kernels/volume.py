"""Volumes along rays: features of a factored grid at points, and what is seen of samples along a ray.

On a CPU an interpolation is a bag, a weighted sum of a few rows of a table with the channels last, which one pass over
the points makes (``F.embedding_bag``); its gradient is the same over the points of each cell. Elsewhere it is the twin.
"""

import functools
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from belvedere.kernels import reference

FLOOR = 1e-10
"""Added to what each sample lets through (NViST, arXiv 2312.08568), so that no transmittance is 0."""


class Composited(NamedTuple):
    """What is seen along rays of s samples each, in float32 at least."""

    weights: Tensor
    """How much of what is seen comes from each sample: (..., s), together at most 1."""
    colour: Tensor
    """(..., c), on black."""
    depth: Tensor
    """(...), the mean of the samples' middles by weight, not divided by the opacity."""
    opacity: Tensor
    """(...), the sum of the weights."""


class _Interpolate(torch.autograd.Function):
    """Weighted sums (m, c) of rows of a table (t, c): row j of ``weights`` (m, k) is for rows ``cells[j] + shifts``."""

    @staticmethod
    def forward(ctx: Any, table: Tensor, cells: Tensor, weights: Tensor, shifts: tuple[int, ...]) -> Tensor:
        ctx.save_for_backward(cells, weights)
        ctx.shifts, ctx.rows = shifts, len(table)
        taps = cells[:, None] + torch.tensor(shifts, dtype=cells.dtype, device=cells.device)
        return F.embedding_bag(taps, table, mode="sum", per_sample_weights=weights)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
        cells, weights = ctx.saved_tensors
        order, counts = cells.argsort(stable=True), torch.bincount(cells, minlength=ctx.rows)
        starts = counts.cumsum(0) - counts
        weights, grad = weights.index_select(0, order), grad.contiguous()
        table = grad.new_zeros(ctx.rows, grad.shape[1])
        for shift, weight in zip(ctx.shifts, weights.unbind(1), strict=True):
            sums = F.embedding_bag(order, grad, starts, mode="sum", per_sample_weights=weight.contiguous())
            table[shift:] += sums[: ctx.rows - shift]
        return table, None, None, None


def sample_grid(points: Tensor, planes: Tensor | None, lines: Tensor | None, *, padding: str = "zeros") -> Tensor:
    """Return the features (b, n, 3, c) of a factored volume at ``points`` (b, n, 3), x y z, its box being [-1, 1]^3.

    ``planes`` (b, 3, c, r, r), rows by columns, are yx, xz and zy; ``lines`` (b, 3, c, r), along z, y and x, each along
    the axis its plane lacks. Feature k is plane k times line k (the vector-matrix form of TensoRF, Chen et al., arXiv
    2203.09517, equation (5)), or the one of them that is given. Interpolation is linear between the centres of texels
    (``align_corners=False``); ``padding`` is what lies outside: "zeros", which is reached half a texel outside the box,
    or "border", the nearest texel. Half precision is sampled in float32 and returned so. Differentiable once in planes
    and lines, not in points. Raises ``ValueError`` for another padding or when both are None.
    """
    if padding not in ("zeros", "border"):
        raise ValueError(f"padding {padding!r}: choose zeros or border")
    if planes is None and lines is None:
        raise ValueError("a factored volume has planes, lines or both")
    points = points.detach()
    planes, lines = None if planes is None else _wide(planes), None if lines is None else _wide(lines)
    if points.device.type != "cpu":
        return reference.sample_grid(points, planes, lines, padding=padding)
    features = [] if planes is None else [_sample_planes(points, planes, padding)]
    features += [] if lines is None else [_sample_lines(points, lines, padding)]
    return functools.reduce(torch.mul, features)


def _sample_planes(points: Tensor, planes: Tensor, padding: str) -> Tensor:
    c, r = planes.shape[2:4]
    side = r + 2
    (x, y, z), (u, v, w) = _cells(points, r)
    cells = torch.stack((y * side + x, x * side + z, z * side + y), -1)  # (b, n, 3)
    down, right = torch.stack((v, u, w), -1), torch.stack((u, w, v), -1)  # (b, n, 3)
    both = down * right
    weights = torch.stack((1 - down - right + both, right - both, down - both, both), -1)  # (b, n, 3, 4)
    table = _pad(planes.flatten(0, 1), padding, 2).permute(0, 2, 3, 1)  # (b 3, r + 2, r + 2, c)
    return _interpolate(table.reshape(-1, c), side * side, cells, weights, (0, 1, side, side + 1))


def _sample_lines(points: Tensor, lines: Tensor, padding: str) -> Tensor:
    c, r = lines.shape[2:]
    (x, y, z), (u, v, w) = _cells(points, r)
    cells, place = torch.stack((z, y, x), -1), torch.stack((w, v, u), -1)  # (b, n, 3)
    weights = torch.stack((1 - place, place), -1)  # (b, n, 3, 2)
    table = _pad(lines.flatten(0, 1), padding, 1).transpose(1, 2)  # (b 3, r + 2, c)
    return _interpolate(table.reshape(-1, c), r + 2, cells, weights, (0, 1))


def _interpolate(table: Tensor, rows: int, cells: Tensor, weights: Tensor, shifts: tuple[int, ...]) -> Tensor:
    """Return (b, n, 3, c): cells (b, n, 3) count from the start of their own plane or line of so many ``rows``."""
    b, n, _ = cells.shape
    starts = torch.arange(3 * b, dtype=cells.dtype, device=cells.device).view(b, 1, 3) * rows
    flat = _Interpolate.apply(table, (cells + starts).view(-1), weights.to(table.dtype).flatten(0, 2), shifts)
    return flat.view(b, n, 3, table.shape[1])


def _cells(points: Tensor, r: int) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    """Return for x, y and z the cell among r + 1 between texel centres, a ring around them included, and where in it.

    Cells are int32 (b, n), 0 to r; places (b, n) in [0, 1], that of a point outside the ring on the ring.
    """
    position = ((points + 1) * (r / 2) + 0.5).clamp_(0, r + 1)
    cells = position.to(torch.int32).clamp_(0, r)  # twice, for what is not a number
    return cells.unbind(-1), (position - cells).unbind(-1)


def _pad(grid: Tensor, padding: str, axes: int) -> Tensor:
    """Return a grid with a ring of what is outside around its last axes."""
    return F.pad(grid, (1, 1) * axes, mode="constant" if padding == "zeros" else "replicate")


def ray_weights(density: Tensor, edges: Tensor) -> tuple[Tensor, Tensor]:
    """Return how much is seen of each of s samples, (..., s), and the transmittance behind the last, (...).

    ``density`` (..., s) of the samples; ``edges`` (..., s + 1), ascending, broadcast against it: sample i lies between
    edges i and i + 1. Alpha is 1 - exp(-density * length), the weight alpha times the product of 1 - alpha + 1e-10 of
    the samples in front (Max, "Optical models for direct volume rendering", 1995). Float32 at least; differentiable.
    """
    density = _wide(density)
    through = torch.exp(-density * _wide(edges).diff())
    reaching = torch.cumprod(F.pad(through + FLOOR, (1, 0), value=1.0), -1)  # (..., s + 1)
    return (1 - through) * reaching[..., :-1], reaching[..., -1]


def composite(density: Tensor, edges: Tensor, colour: Tensor, chosen: Tensor | None = None) -> Composited:
    """Return what is seen of samples along rays: ``density`` (..., s), ``edges`` as ``ray_weights`` takes them.

    ``colour`` (..., s, c) of the samples; or (k, c) of only those that have some, ``chosen`` being their numbers (k,),
    counted over all axes of ``density``. Computed in float32 whatever the inputs are, unless they are wider;
    differentiable in density and colour.
    """
    weights, _ = ray_weights(density, edges)
    if chosen is None:
        seen = (weights.unsqueeze(-1) * colour).sum(-2)  # (..., c)
    else:
        s = weights.shape[-1]
        parts = weights.flatten().index_select(0, chosen).unsqueeze(-1) * colour
        black = parts.new_zeros(weights.numel() // s, colour.shape[-1])
        seen = black.index_add(0, chosen // s, parts).view(*weights.shape[:-1], colour.shape[-1])  # (..., c)
    return Composited(weights, seen, (weights * _middles(edges)).sum(-1), weights.sum(-1))


def distortion(weights: Tensor, edges: Tensor) -> Tensor:
    """Return the distortion (...) of each ray: sum_ij w_i w_j |m_i - m_j| + 1/3 sum_i w_i^2 (length of i).

    ``weights`` (..., s), ``edges`` (..., s + 1) ascending, broadcast against them; m are the middles of samples
    (Barron et al., "Mip-NeRF 360", arXiv 2111.12077, equation (15)). Float32 at least; differentiable in the weights.
    By products with the distances between middles: sums over the samples in front would be fewer operations, but
    PyTorch has no deterministic form of them on GPUs.
    """
    weights, middles = _wide(weights), _middles(edges)
    apart = (middles.unsqueeze(-1) - middles.unsqueeze(-2)).abs().to(weights.dtype)  # (..., s, s)
    with torch.autocast(weights.device.type, enabled=False):
        between = (torch.matmul(weights.unsqueeze(-2), apart).squeeze(-2) * weights).sum(-1)
    return between + (weights.square() * _wide(edges).diff()).sum(-1) / 3


def _middles(edges: Tensor) -> Tensor:
    edges = _wide(edges)
    return (edges[..., 1:] + edges[..., :-1]) / 2


def _wide(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))
