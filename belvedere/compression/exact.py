"""SegPIC's entropy path in exact integers: what a decoder must compute as the encoder did, to the last bit.

From the symbols of the second prototypes and of z come the maps of means and scales, from them slice by slice, with
the slices before, the mean and the table of every number of y. A table off by one is garbage from there on, and floats
differ between machines; here are none. Activations are integers, in float64: multiples of 2^-FRACTION.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from belvedere.compression.context import Context
from belvedere.compression.entropy import MAX_VALUE
from belvedere.compression.exact_layers import (
    Conv3x3,
    Curve,
    Gelu,
    RegionFilter,
    clamped,
    exact,
    leaky,
    patches,
    rounded,
)
from belvedere.compression.exact_tables import FRACTION, GATE, ExactTables
from belvedere.compression.segpic import RegionAdaptiveTransform, SegPIC

Code = Callable[[int, Tensor, Tensor], Tensor]
"""``code(i, mean, index)`` returns the symbols, int64, of slice i: integers ``mean``, int64 ``index`` of its tables."""


def floats(x: Tensor) -> Tensor:
    """Return the numbers, float32, that integers of the path stand for."""
    return (x / 2**FRACTION).float()


def quantise(residual: Tensor) -> Tensor:
    """Return the symbols, int64, of numbers less their means or medians."""
    return torch.round(residual).clamp(-MAX_VALUE, MAX_VALUE).long()


def spread(prototypes: Tensor, height: int, width: int) -> Tensor:
    """Return the prototype (b, c, h, w) of each pixel, of those (b, c, side, side) of a grid's cells."""
    side = prototypes.shape[-1]
    rows, columns = (torch.arange(n, device=prototypes.device) * side // n for n in (height, width))
    return prototypes[:, :, rows[:, None], columns]


class ExactTransform(nn.Module):
    """A region-adaptive transform."""

    def __init__(self, transform: RegionAdaptiveTransform, gelu: Gelu, sigmoid: Curve):
        super().__init__()
        names = ("features", "from_features", "from_prototypes", "blend", "gate", "out")
        self.layers = nn.ModuleDict({name: exact(getattr(transform, name), gelu) for name in names})
        self.filter, self.sigmoid = RegionFilter(transform.taps), sigmoid

    def forward(self, x: Tensor, prototypes: Tensor) -> Tensor:
        """Return the transform of ``x`` (b, c, h, w) by ``prototypes`` (b, c, side, side)."""
        layers = self.layers
        features = layers["features"](x)
        added = spread(layers["from_prototypes"](prototypes), *x.shape[2:])
        mixed = leaky(clamped(layers["from_features"](features) + added))
        filtered = self.filter(features, leaky(layers["blend"](mixed)))
        gate = self.sigmoid(layers["gate"](mean_of_map(filtered)))  # (b, c, 1, 1)
        return clamped(layers["out"](rounded(filtered * gate, GATE)) + x)


def mean_of_map(x: Tensor) -> Tensor:
    """Return the rounded mean (b, c, 1, 1) of each channel."""
    count = x.shape[2] * x.shape[3]
    total = x.sum((2, 3), keepdim=True).long()
    return torch.div(2 * total + count, 2 * count, rounding_mode="floor").double()


class ExactContext(nn.Module):
    """Mean, table and decoded value of each slice. Maps stay transformed for the networks that share them."""

    bounds: Tensor

    def __init__(self, context: Context, tables: ExactTables, gelu: Gelu):
        super().__init__()
        self.support = context.support
        self.means, self.scales, self.residuals = (
            nn.ModuleList(exact(network, gelu) for network in networks)
            for networks in (context.means, context.scales, context.residuals)
        )
        self.half_tanh = Curve(tables.curves["half_tanh"])
        self.register_buffer("bounds", tables.scales.double())

    def forward(self, means: Tensor, scales: Tensor, code: Code) -> Tensor:
        """Return the latent (b, c, h, w) with its predicted residual, by maps ``means`` and ``scales`` of its shape."""
        shape, width = means.shape, means.shape[1] // len(self.means)
        by_mean, by_scale = self._inputs(means, self.support + 1), self._inputs(scales, self.support)
        slices: list[Tensor] = []
        for i, (mean, scale, residual) in enumerate(zip(self.means, self.scales, self.residuals, strict=True)):
            seen = shape[1] + min(i, self.support) * width
            here = slice(seen, seen + width)
            middle, spreads = _network(mean, by_mean[:, :seen], shape), _network(scale, by_scale[:, :seen], shape)
            symbols = code(i, middle, torch.searchsorted(self.bounds, spreads))
            known = clamped(symbols.double() * 2**FRACTION + middle)
            by_mean[:, here] = patches(known)
            rest = self.half_tanh(_network(residual, by_mean[:, : here.stop], shape))
            slices.append(clamped(known + rest))
            if i < self.support:
                by_mean[:, here] = by_scale[:, here] = patches(slices[-1])
        return torch.cat(slices, 1)

    def _inputs(self, x: Tensor, slices: int) -> Tensor:
        """Return the patches of ``x`` (b, c, h, w) with room for those of so many slices: (16, c + slices, n)."""
        return F.pad(patches(x), (0, 0, 0, slices * (x.shape[1] // len(self.means))))


def _network(layers: nn.Module, seen: Tensor, shape: torch.Size) -> Tensor:
    """Apply a context network to the patches of what it sees of maps of ``shape``."""
    assert isinstance(layers, nn.Sequential) and isinstance(layers[0], Conv3x3)
    return layers[1:](layers[0].of_patches(seen, shape))


class ExactPath(nn.Module):
    """The path of a model, on its device. Symbols are integers within +-``MAX_VALUE``, whatever a stream says."""

    def __init__(self, model: SegPIC, tables: ExactTables):
        """Raises ``InputError`` where the weights are too large for exact sums."""
        super().__init__()
        gelu, sigmoid = Gelu(tables.curves["gelu"]), Curve(tables.curves["sigmoid"])
        self.decoder = exact(model.prototypes2.decoder, gelu)
        self.hyper_means, self.hyper_scales = exact(model.hyper_means, gelu), exact(model.hyper_scales, gelu)
        self.means_rat = ExactTransform(model.means_rat, gelu, sigmoid)
        self.scales_rat = ExactTransform(model.scales_rat, gelu, sigmoid)
        self.context = ExactContext(model.channel_context, tables, gelu)
        for name in ("z", "prototypes2"):
            self.register_buffer(f"median_{name}", tables.medians[name].double()[:, None, None])
        self.to(model.device)

    @torch.no_grad()
    def prototypes(self, symbols: Tensor) -> Tensor:
        """Return the prototypes (b, c, side, side) of ``symbols``, int64 (b, code, side, side), about the medians."""
        return self.decoder(_about(symbols, self.get_buffer("median_prototypes2")))

    @torch.no_grad()
    def hyper(self, z: Tensor, prototypes: Tensor) -> tuple[Tensor, Tensor]:
        """Return the maps (b, c, 4 h, 4 w) that means and scales are made from, of symbols ``z``, int64 (b, c, h, w).

        ``prototypes``: those of ``prototypes``.
        """
        values = _about(z, self.get_buffer("median_z"))
        means = self.means_rat(self.hyper_means(values), prototypes)
        return means, self.scales_rat(self.hyper_scales(values), prototypes)

    @torch.no_grad()
    def latent(self, means: Tensor, scales: Tensor, code: Code) -> Tensor:
        """Return y (b, c, h, w) as a decoder has it, the residual prediction included, by the maps of ``hyper``."""
        return self.context(means, scales, code)


def _about(symbols: Tensor, median: Tensor) -> Tensor:
    return clamped(symbols.double() * 2**FRACTION + median)
