"""Gradients of rays through a factored volume in plain PyTorch, the same bits each time.

Samples are asked again, so many of a scene at a time, and pulled back, in bounded memory and in a fixed order: what
several samples add to one texel is summed as the gradient of an embedding is, by sorting, without atomics. A scene's
gradient does not depend on those beside it. Only samples that have density are pulled back, and only those that have
colour go through the network.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from belvedere.kernels.rays import Rays
from belvedere.kernels.volume import FLOOR

SAMPLES = 2**17
"""That are asked at a time; one that has colour takes about 4 kB."""


class Marching(NamedTuple):
    """How rays go through a volume: see ``belvedere.kernels.render_factored``."""

    half_side: float
    padding: str
    opaque: float
    ends: bool


class _Taps(NamedTuple):
    """Which texels an interpolation takes, of each axis' plane or line: numbers of rows and shares, (m, 3, k)."""

    rows: Tensor
    shares: Tensor

    def of(self, points: Tensor) -> "_Taps":
        return _Taps(self.rows[points], self.shares[points])


class _Grid:
    """The planes (3, c, r, r) or lines (3, c, r) of a scene as rows of channels, and the gradient of the rows."""

    def __init__(self, grid: Tensor):
        self.last = grid.movedim(1, -1)
        self.rows = self.last.flatten(0, -2)  # (3 r r, c) or (3 r, c)
        self.gradient = self.rows.new_zeros(self.rows.shape)

    def sample(self, taps: _Taps, channels: slice) -> Tensor:
        """Return the interpolated channels (m, 3, c)."""
        return (self.rows[:, channels][taps.rows] * taps.shares.unsqueeze(-1)).sum(2)

    def pull(self, grad: Tensor, taps: _Taps, channels: slice) -> None:
        """Add what the gradient (m, 3, c) of interpolated channels is for the rows."""
        parts = (grad.unsqueeze(2) * taps.shares.unsqueeze(-1)).flatten(0, 2)  # (m 3 k, c)
        numbers = taps.rows.flatten()
        self.gradient[:, channels] += torch.ops.aten.embedding_dense_backward(parts, numbers, len(self.rows), -1, False)

    def result(self) -> Tensor:
        """Return the gradient in the shape of the grid."""
        return self.gradient.view(self.last.shape).movedim(-1, 1)


class _Sampled:
    """Features of some channels at m points, as the decoder takes them."""

    def __init__(self, grids: Sequence[_Grid], taps: Sequence[_Taps], channels: slice, product: bool):
        self.grids, self.taps, self.channels, self.product = grids, taps, channels, product
        self.parts = [grid.sample(at, channels) for grid, at in zip(grids, taps, strict=True)]
        features = self.parts[0] if len(grids) == 1 else self.parts[0] * self.parts[1]  # (m, 3, c)
        self.x = features.prod(1) if product else features.flatten(1)

    def pull(self, dx: Tensor) -> None:
        """Add the gradient of x to that of the grids."""
        first, *other = self.parts
        if self.product:  # with what the two other axes have
            grads = [dx.unsqueeze(1) * first.roll(1, 1) * first.roll(2, 1)]
        else:
            grad = dx.reshape(first.shape)
            grads = [grad * other[0], grad * first] if other else [grad]
        for grid, at, grad in zip(self.grids, self.taps, grads, strict=True):
            grid.pull(grad, at, self.channels)


class _Rays(NamedTuple):
    """Some rays of a scene, and the gradients of what they see; see ``Composited``."""

    origins: Tensor
    directions: Tensor
    encoded: Tensor
    dweights: Tensor | None
    dcolour: Tensor | None
    ddepth: Tensor | None
    dopacity: Tensor | None


class _Decoder:
    """The weights of a ``RayDecoder`` and the sums of their gradients."""

    def __init__(self, weights: Sequence[Tensor]):
        self.weights = weights
        self.sums = [weight.new_zeros(weight.shape) for weight in weights]

    def density(self, x: Tensor) -> Tensor:
        """Return the density (m,) of features."""
        return F.relu(F.linear(x, *self.weights[6:]).squeeze(1) if self.weights[6:] else x.sum(1))

    def pull_density(self, x: Tensor, ddensity: Tensor) -> Tensor:
        """Return the gradient of features that have density; adds that of weights."""
        if not self.weights[6:]:
            return ddensity.unsqueeze(1).expand(x.shape)
        self._pull(6, x, ddensity.unsqueeze(1))
        return ddensity.unsqueeze(1) * self.weights[6]

    def pull_colour(self, x: Tensor, encoded: Tensor, dcolour: Tensor) -> tuple[Tensor, Tensor]:
        """Return the colour of features and, for its gradient, that of the features; adds that of weights."""
        inner, inner_bias, hidden, hidden_bias, outer, outer_bias = self.weights[:6]
        active = F.gelu(x)
        first = F.linear(active, inner, inner_bias)
        joined = torch.cat((F.gelu(first), encoded), 1)
        second = F.linear(joined, hidden, hidden_bias)
        units = F.gelu(second)
        colour = F.linear(units, outer, outer_bias).sigmoid()
        grad = dcolour * colour * (1 - colour)
        self._pull(4, units, grad)
        grad = torch.ops.aten.gelu_backward(grad @ outer, second)
        self._pull(2, joined, grad)
        grad = torch.ops.aten.gelu_backward(grad @ hidden[:, : len(inner)], first)
        self._pull(0, active, grad)
        return colour, torch.ops.aten.gelu_backward(grad @ inner, x)

    def _pull(self, i: int, x: Tensor, grad: Tensor) -> None:
        """Add the gradients of a linear map's weight ``i`` and of the bias after it."""
        self.sums[i] += grad.T @ x
        self.sums[i + 1] += grad.sum(0)


class _Scene:
    """A scene's volume, and how rays go through it."""

    def __init__(self, volume: Sequence[Tensor | None], edges: Tensor, how: Marching):
        self.grids = [_Grid(grid) for grid in volume if grid is not None]
        self.given = [grid is not None for grid in volume]
        self.product = volume[0] is None
        self.middles, self.lengths = (edges[1:] + edges[:-1]) / 2, edges.diff()
        self.how = how
        self.channels, self.r = self.grids[0].last.shape[-1], self.grids[0].last.shape[1]

    def pull(self, rays: _Rays, decoder: _Decoder) -> None:
        """Add the gradients of rays to those of the volume and the decoder."""
        colours = decoder.weights[0].shape[1] // (1 if self.product else 3)
        dense, painted = slice(0, self.channels - colours), slice(self.channels - colours, None)
        taps = self._taps(rays)
        density = decoder.density(_Sampled(self.grids, taps, dense, self.product).x).view(len(rays.origins), -1)
        through = torch.exp(-density * self.lengths)
        reaching = F.pad(through[:, :-1] + FLOOR, (1, 0), value=1.0).cumprod(1)
        lit = reaching > self.how.opaque
        if self.how.ends:
            density = density * lit
        weights = torch.where(density > 0, (1 - through) * reaching, 0.0)
        dweights = self._of_weights(rays)
        if rays.dcolour is not None:
            chosen = ((density > 0) & lit).flatten().nonzero().squeeze(1)
            ray = chosen // len(self.middles)
            seen = _Sampled(self.grids, [at.of(chosen) for at in taps], painted, self.product)
            dcolour = rays.dcolour[ray]
            share = weights.flatten()[chosen].unsqueeze(1)
            colour, dx = decoder.pull_colour(seen.x, rays.encoded[ray], dcolour * share)
            seen.pull(dx)
            dweights.view(-1)[chosen] += (dcolour * colour).sum(1)
        behind = (dweights * weights) @ through.new_ones(weights.shape[1], weights.shape[1]).tril(-1)
        ddensity = self.lengths * through * (dweights * reaching - behind / (through + FLOOR))
        chosen = (density > 0).flatten().nonzero().squeeze(1)
        asked = _Sampled(self.grids, [at.of(chosen) for at in taps], dense, self.product)
        asked.pull(decoder.pull_density(asked.x, ddensity.flatten()[chosen]))

    def _of_weights(self, rays: _Rays) -> Tensor:
        """Return the gradient (n, s) of the weights, but for what they are worth in colour."""
        total = rays.origins.new_zeros(len(rays.origins), len(self.middles))
        if rays.dweights is not None:
            total += rays.dweights
        if rays.ddepth is not None:
            total += rays.ddepth.unsqueeze(1) * self.middles
        if rays.dopacity is not None:
            total += rays.dopacity.unsqueeze(1)
        return total

    def _taps(self, rays: _Rays) -> list[_Taps]:
        """Return what all samples (n s) of rays take of each grid."""
        points = rays.origins.unsqueeze(1) + rays.directions.unsqueeze(1) * self.middles.unsqueeze(1)  # (n, s, 3)
        r = self.r
        place = (points.flatten(0, 1) * (r / (2 * self.how.half_side)) + (r + 1) / 2).clamp(0, r + 1)
        cell = place.to(torch.int64).clamp_(0, r)
        share = place - cell
        rows, shares = torch.stack((cell - 1, cell), -1), torch.stack((1 - share, share), -1)  # (n s, 3, 2)
        if self.how.padding == "zeros":
            shares = shares * ((rows >= 0) & (rows < r))
        (x, y, z), (u, v, w) = rows.clamp(0, r - 1).unbind(1), shares.unbind(1)
        axis = torch.arange(3, device=x.device)
        down, right = torch.stack((y, x, z), 1), torch.stack((x, z, y), 1)  # (n s, 3, 2)
        across = ((axis.view(3, 1, 1) * r + down.unsqueeze(3)) * r + right.unsqueeze(2)).flatten(2)
        both = (torch.stack((v, u, w), 1).unsqueeze(3) * torch.stack((u, w, v), 1).unsqueeze(2)).flatten(2)
        along = axis.view(3, 1) * r + torch.stack((z, y, x), 1)
        taps = _Taps(across, both), _Taps(along, torch.stack((w, v, u), 1))
        return [at for at, given in zip(taps, self.given, strict=True) if given]


def run(
    grads: Sequence[Tensor | None],
    volume: Sequence[Tensor | None],
    rays: Rays,
    weights: Sequence[Tensor],
    how: Marching,
) -> list[Tensor]:
    """Return the gradients of planes and lines and of the decoder's ``weights``; see ``rays_backward.backward``."""
    decoder = _Decoder(weights)
    gradients = [grid.new_empty(grid.shape) for grid in volume if grid is not None]
    *of_rays, edges = rays
    step = max(1, SAMPLES // (len(edges) - 1))
    for i in range(len(rays.origins)):
        scene = _Scene([None if grid is None else grid[i] for grid in volume], edges, how)
        for start in range(0, rays.origins.shape[1], step):
            part: Any = (None if x is None else x[i, start : start + step] for x in (*of_rays, *grads))
            scene.pull(_Rays(*part), decoder)
        for gradient, grid in zip(gradients, scene.grids, strict=True):
            gradient[i] = grid.result()
    return gradients + decoder.sums
