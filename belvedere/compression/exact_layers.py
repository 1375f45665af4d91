"""Layers on integers carried in float64: the same numbers on every machine, in any order of summation.

Activations are multiples of 2^-FRACTION within +-LIMIT of those, weights multiples of a power of two of their own for
each output channel. Every sum is an integer below 2^52, which is checked when a layer is made, so nothing is ever
rounded but where it says so: half up, to the activations again.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from belvedere.compression.exact_tables import FRACTION, LIMIT, REACH
from belvedere.compression.layers import GDN
from belvedere.errors import InputError

BITS = 14
"""The largest weight of an output channel has so many bits."""
MOST_SHIFT = 24
"""Weights are multiples of 2^-24 at the least."""
LARGEST = 2.0**52
"""Sums stay below it, so that they are exact, and their halves too."""
OUTPUTS = torch.tensor([[1.0, 1, 1, 0], [0, 1, -1, -1]], dtype=torch.float64, device="cpu")
"""Two sums next to each other from their four products, in Winograd's convolution."""
SLOPE = round(0.1 * 2**16)
"""Of the leaky ReLUs, times 2^16."""


def clamped(x: Tensor) -> Tensor:
    """Bring ``x`` within the bounds of activations, in place."""
    return x.clamp_(-LIMIT, LIMIT)


def rounded(x: Tensor, bits: int) -> Tensor:
    """Divide ``x`` by 2^``bits``, round it and bring it within the bounds, in place."""
    return clamped(x.mul_(2.0**-bits).add_(0.5).floor_())


def leaky(x: Tensor) -> Tensor:
    """Return the leaky ReLU of ``x``."""
    return torch.maximum(x, rounded(x * SLOPE, 16))


def integers(weight: Tensor, bits: int = BITS) -> tuple[Tensor, Tensor]:
    """Return weights (o, ...) as integers of ``bits`` bits in float64, and the bits after their point (o,)."""
    weight = weight.detach().double().cpu()
    largest = weight.flatten(1).abs().amax(1)
    shift = (bits - torch.frexp(largest).exponent.long()).clamp(1, MOST_SHIFT)
    scaled = torch.floor(_scaled(weight, shift) + 0.5)
    if not (scaled.abs() <= 2**bits).all():
        raise InputError(
            f"weights {tuple(weight.shape)} up to {largest.max()}: exact sums take up to {2 ** (bits - 1)}"
        )
    return scaled, shift


def check_sums(largest: Tensor) -> None:
    """Raise ``InputError`` unless sums, at most ``largest`` (o, ...), are exact."""
    if not (largest < LARGEST).all():
        raise InputError(f"weights make sums up to {largest.max()}: exact up to {LARGEST}")


def _power(shift: Tensor) -> Tensor:
    """Return 2^``shift``, which a library's power or exponential need not be."""
    return torch.ones_like(shift).bitwise_left_shift(shift).double()


def _scaled(x: Tensor, shift: Tensor) -> Tensor:
    """Return ``x`` (o, ...) times 2^``shift`` (o,)."""
    return x * _power(shift).view(-1, *[1] * (x.ndim - 1))


def _bias(conv: nn.Conv2d, shift: Tensor) -> Tensor:
    """Return the bias (o,) of sums with ``shift`` bits after the point, and half of the last bit of activations."""
    bias = conv.weight.new_zeros(conv.out_channels) if conv.bias is None else conv.bias.detach()
    return torch.floor(_scaled(bias.double().cpu(), shift + FRACTION) + 0.5) + _power(shift - 1)


class _Linear(nn.Module):
    """What linear layers have in common: a bias (o, 1) and a step (o, 1), by which sums become activations."""

    weight: Tensor
    bias: Tensor
    step: Tensor

    def __init__(self, weight: Tensor, bias: Tensor, step: Tensor):
        super().__init__()
        self.register_buffer("weight", weight)
        self.register_buffer("bias", bias[:, None])
        self.register_buffer("step", step[:, None])

    def activations(self, sums: Tensor) -> Tensor:
        """Return activations of ``sums`` (..., o, n), in place."""
        return clamped(sums.add_(self.bias).mul_(self.step).floor_())


class Pointwise(_Linear):
    """A convolution of 1x1."""

    def __init__(self, conv: nn.Conv2d):
        weight, shift = integers(conv.weight.flatten(1))  # (o, c)
        bias = _bias(conv, shift)
        check_sums(weight.abs().sum(1) * LIMIT + bias.abs())
        super().__init__(weight, bias, 1 / _power(shift))

    def forward(self, x: Tensor) -> Tensor:
        """(b, c, h, w) -> (b, o, h, w)"""
        return self.activations(self.weight @ x.flatten(2)).unflatten(2, x.shape[2:])


class Conv3x3(_Linear):
    """A convolution of 3x3, zeros around, in 4 products a pixel and channel instead of 9.

    That is Winograd's F(2x2, 3x3) (Lavin and Gray, arXiv 1509.09308), which in integers is exact: four times the sums.
    """

    combine: Tensor

    def __init__(self, conv: nn.Conv2d):
        weight, shift = integers(conv.weight)
        for dim in (2, 3):
            a, b, c = weight.unbind(dim)
            weight = torch.stack((2 * a, a + b + c, a - b + c, 2 * c), dim)
        bias = 4 * _bias(conv, shift)
        weight = weight.permute(2, 3, 0, 1)  # (4, 4, o, c)
        check_sums(weight.abs().sum((0, 1, 3)) * 4 * LIMIT + bias.abs())
        # As float32, which holds them, to save memory.
        super().__init__(weight.flatten(0, 1).float().contiguous(), bias, 1 / _power(shift + 2))
        self.register_buffer("combine", torch.kron(OUTPUTS, OUTPUTS))

    def forward(self, x: Tensor) -> Tensor:
        """(b, c, h, w) -> (b, o, h, w)"""
        return self.of_patches(patches(x), x.shape)

    def of_patches(self, x: Tensor, shape: torch.Size) -> Tensor:
        """Return the map (b, o, h, w) of patches (16, c, n) of a map of ``shape`` (b, ..., h, w)."""
        batch, height, width = shape[0], shape[-2], shape[-1]
        products = torch.bmm(self.weight.double(), x)  # (16, o, n)
        sums = (self.combine @ products.flatten(1)).view(2, 2, *products.shape[1:])  # (2 down, 2 across, o, n)
        blocks = self.activations(sums).unflatten(3, (batch, -(-height // 2), -(-width // 2)))
        whole = blocks.permute(3, 2, 4, 0, 5, 1).flatten(4, 5).flatten(2, 3)  # (b, o, h, w)
        return whole[:, :, :height, :width]


def patches(x: Tensor) -> Tensor:
    """Return the patches (16, c, n) of 4x4 around all blocks of 2x2 pixels of ``x`` (b, c, h, w), transformed."""
    height, width = x.shape[2:]
    x = F.pad(x.transpose(0, 1), (1, 1 + width % 2, 1, 1 + height % 2))  # (c, b, h, w)
    return _differences(_differences(x, 3), 3).flatten(3).flatten(0, 1)  # from (4 down, 4 across, c, b, h, w)


def _differences(x: Tensor, dim: int) -> Tensor:
    """Return, for every second row (or column), what its products are made of: (4, ...)."""
    a, b, c, d = x.unfold(dim, 4, 2).unbind(-1)
    result = x.new_empty(4, *a.shape)
    for out, left, right, sign in zip(result, (a, b, c, b), (c, c, b, d), (-1, 1, -1, -1), strict=True):
        torch.add(left, right, alpha=sign, out=out)
    return result


class RegionFilter(_Linear):
    """Every pixel and channel filtered with a 3x3 kernel of its own; the exact ``kernels.region_filter``."""

    PART = 32
    """Channels worked on together, to stay in a CPU's cache."""

    def __init__(self, conv: nn.Conv2d):
        """``conv``: depthwise, from each channel to its nine taps."""
        weight, shift = integers(conv.weight.flatten(1))  # (9 c, 9)
        bias = _bias(conv, shift)
        check_sums(weight.abs().sum(1) * LIMIT + bias.abs())
        super().__init__(weight, bias, 1 / _power(shift))

    def forward(self, x: Tensor, features: Tensor) -> Tensor:
        """Filter ``x`` (b, c, h, w) with kernels made from ``features`` (b, c, h, w)."""
        maps = [tensor.split(self.PART, 1) for tensor in (x, features)]
        rows = [tensor.unflatten(0, (-1, 9)).split(self.PART) for tensor in (self.weight, self.bias, self.step)]
        return torch.cat([_filtered(*part) for part in zip(*maps, *rows, strict=True)], 1)


def _filtered(x: Tensor, features: Tensor, weight: Tensor, bias: Tensor, step: Tensor) -> Tensor:
    """Return some channels; ``weight`` (c, 9, 9), ``bias`` and ``step`` (c, 9, 1)."""
    taps = clamped((weight @ _neighbours(features)).add_(bias).mul_(step).floor_())  # (b, c, 9, n)
    return rounded(taps.mul_(_neighbours(x)).sum(2), FRACTION).view(x.shape)


def _neighbours(x: Tensor) -> Tensor:
    """Return the neighbours (b, c, 9, n) of each pixel, itself among them, row by row, zeros around."""
    return F.unfold(x, 3, padding=1).unflatten(1, (-1, 9))


class InverseGDN(_Linear):
    """x sqrt(beta + gamma x^2). The square has FRACTION bits after the point, the sum below the root twice as many."""

    BITS = 10
    """Of gamma: squares are long."""

    def __init__(self, gdn: GDN):
        beta, gamma = (root.detach().double().cpu().clamp(min=0).square() for root in (gdn.beta, gdn.gamma))
        weight, shift = integers((gamma - gdn.PEDESTAL).clamp(min=0), self.BITS)
        bias = torch.floor(_scaled((beta - gdn.PEDESTAL).clamp(min=1e-6), shift + FRACTION) + 0.5)
        step = 2.0**FRACTION / _power(shift)
        check_sums((weight.sum(1) * (LIMIT**2 / 2**FRACTION) + bias) * step.clamp(min=1))
        super().__init__(weight, bias, step)

    def forward(self, x: Tensor) -> Tensor:
        """(b, c, h, w) -> the same"""
        square = x.square().mul_(2.0**-FRACTION).add_(0.5).floor_().flatten(2)
        root = (self.weight @ square).add_(self.bias).mul_(self.step).floor_().sqrt_().floor_()
        return rounded(root.mul_(x.flatten(2)), FRACTION).view(x.shape)


class Curve(nn.Module):
    """A function by its table, beyond its reach the value at its end."""

    REACH = REACH * 2**FRACTION
    table: Tensor

    def __init__(self, table: Tensor):
        super().__init__()
        self.register_buffer("table", table.double())

    def forward(self, x: Tensor) -> Tensor:
        places = x.clamp(-self.REACH, self.REACH).add_(self.REACH).int()
        return self.table.index_select(0, places.flatten()).view(x.shape)


class Gelu(Curve):
    """GELU, beyond the reach of its table x or 0."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).add_((x - self.REACH).clamp_(min=0))


class Leaky(nn.Module):
    """Leaky ReLU."""

    def forward(self, x: Tensor) -> Tensor:
        return leaky(x)


def exact(module: nn.Module, gelu: Gelu) -> nn.Module:
    """Return the exact layer of one of SegPIC's, or layers; ``gelu`` serves them all."""
    match module:
        case nn.Sequential():
            return nn.Sequential(*(exact(layer, gelu) for layer in module))
        case nn.Conv2d(kernel_size=(1, 1)):
            return Pointwise(module)
        case nn.Conv2d(kernel_size=(3, 3)):
            return Conv3x3(module)
        case GDN(inverse=True):
            return InverseGDN(module)
        case nn.GELU():
            return gelu
        case nn.LeakyReLU():
            return Leaky()
        case nn.PixelShuffle():
            return module
    raise TypeError(f"no exact layer for {type(module).__name__}")
