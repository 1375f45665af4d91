"""What learned transforms of pictures are made of: GDN, affine modulation by content, attention inside windows."""

from collections import OrderedDict
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from belvedere import kernels

ENDS = (slice(None, -1), slice(-1, None))
"""All windows of an axis but the last, and the last."""


class _LowerBound(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, bound: float) -> Tensor:
        ctx.save_for_backward(x)
        ctx.bound = bound
        return x.clamp(min=bound)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (x,) = ctx.saved_tensors
        return grad * ((x >= ctx.bound) | (grad < 0)), None


def lower_bound(x: Tensor, bound: float) -> Tensor:
    """Return max(x, bound), whose gradient also passes below the bound where a descent step raises x."""
    return _LowerBound.apply(x, bound)


class GDN(nn.Module):
    """Generalised divisive normalisation (Ballé et al., arXiv 1511.06281): x / sqrt(beta + gamma x^2) of (b, c, h, w).

    ``inverse`` multiplies by the root instead. Both parameters are stored as roots, which keeps them positive.
    """

    PEDESTAL = 2.0**-36

    def __init__(self, channels: int, inverse: bool = False):
        super().__init__()
        self.inverse = inverse
        self.beta = nn.Parameter(torch.sqrt(torch.ones(channels) + self.PEDESTAL))
        self.gamma = nn.Parameter(torch.sqrt(0.1 * torch.eye(channels) + self.PEDESTAL))

    def forward(self, x: Tensor) -> Tensor:
        beta = lower_bound(self.beta, (1e-6 + self.PEDESTAL) ** 0.5).square() - self.PEDESTAL
        gamma = lower_bound(self.gamma, self.PEDESTAL**0.5).square() - self.PEDESTAL
        norm = F.conv2d(x.square(), gamma[:, :, None, None], beta)
        return x * (norm.sqrt() if self.inverse else norm.rsqrt())


class Affine(nn.Module):
    """Scale and shift of every pixel and channel, predicted from the pixel: x (1 + scale) + shift."""

    def __init__(self, channels: int):
        super().__init__()
        self.hidden = nn.Conv2d(channels, channels, 1)
        self.out = nn.Conv2d(channels, 2 * channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        scale, shift = self.out(F.gelu(self.hidden(x))).chunk(2, 1)  # (b, c, h, w) each
        return torch.addcmul(x, x, scale) + shift


class Down(nn.Sequential):
    """Half the resolution: convolution, GDN, affine."""

    def __init__(self, inputs: int, outputs: int):
        conv = nn.Conv2d(inputs, outputs, 5, stride=2, padding=2)
        super().__init__(OrderedDict(conv=conv, gdn=GDN(outputs), affine=Affine(outputs)))


class Up(nn.Sequential):
    """Twice the resolution: affine, transposed convolution, GDN (not its inverse, as published)."""

    def __init__(self, inputs: int, outputs: int):
        conv = nn.ConvTranspose2d(inputs, outputs, 5, stride=2, padding=2, output_padding=1)
        super().__init__(OrderedDict(affine=Affine(inputs), conv=conv, gdn=GDN(outputs)))


class ResidualUnit(nn.Module):
    """GELU(x + a bottleneck of half the channels)."""

    def __init__(self, channels: int):
        super().__init__()
        half = channels // 2
        self.layers = nn.Sequential(
            nn.Conv2d(channels, half, 1),
            nn.GELU(),
            nn.Conv2d(half, half, 3, padding=1),
            nn.GELU(),
            nn.Conv2d(half, channels, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        return F.gelu(x + self.layers(x))


class WindowAttention(nn.Module):
    """x + attention inside windows of the map shifted cyclically by half a window; learned bias by relative position.

    (b, c, h, w) -> the same; h and w are multiples of ``window``. What the shift brings together from opposite edges
    does not see each other (Liu et al., "Swin transformer", arXiv 2103.14030, section 3.2).
    """

    def __init__(self, channels: int, heads: int, window: int):
        super().__init__()
        self.heads, self.window = heads, window
        self.qkv = nn.Linear(channels, 3 * channels)
        self.out = nn.Linear(channels, channels)
        self.position = nn.Parameter(torch.zeros((2 * window - 1) ** 2, heads))
        nn.init.trunc_normal_(self.position, std=0.02)

    def forward(self, x: Tensor) -> Tensor:
        side, shift = self.window, self.window // 2
        cells = x.roll((-shift, -shift), (2, 3)).unflatten(3, (-1, side)).unflatten(2, (-1, side))
        tokens = cells.permute(0, 2, 4, 3, 5, 1).flatten(3, 4)  # (b, h, w, n, c), one window at each (h, w)
        qkv = self.qkv(tokens).unflatten(-1, (3, self.heads, -1))  # (b, h, w, n, 3, heads, d)
        tokens = self.out(self._attend(qkv).flatten(-2))  # (b, h, w, n, c)
        cells = tokens.unflatten(3, (side, side)).permute(0, 5, 1, 3, 2, 4)  # (b, c, h, side, w, side)
        return x + cells.flatten(4, 5).flatten(2, 3).roll((shift, shift), (2, 3))

    def _attend(self, qkv: Tensor) -> Tensor:
        """Attend in four groups of windows, each of one mask: inside, last column, last row, corner."""
        y, x = _coordinates(self.window, qkv.device)
        bias = self._position(y, x).to(qkv.dtype)
        bands = []
        for down, rows in enumerate(ENDS):
            groups = [
                _attend_windows(qkv[:, rows, columns], bias + _mask(down * y, right * x, self.window))
                for right, columns in enumerate(ENDS)
            ]
            bands.append(torch.cat(groups, 2))
        return torch.cat(bands, 1)

    def _position(self, y: Tensor, x: Tensor) -> Tensor:
        """Return the bias (heads, n, n) between tokens of a window at rows ``y`` (n,) and columns ``x`` (n,)."""
        last = self.window - 1
        index = (y[:, None] - y + last) * (2 * self.window - 1) + (x[:, None] - x + last)  # (n, n)
        return self.position[index].permute(2, 0, 1)


def _coordinates(side: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return row and column of each token (n,) of a window."""
    token = torch.arange(side * side, device=device)
    return token // side, token % side


def _mask(y: Tensor, x: Tensor, window: int) -> Tensor:
    """Return -100 (n, n) between tokens on different sides of a seam, which runs half a window from the end."""
    seam = window - window // 2
    part = 2 * (y >= seam) + (x >= seam)  # (n,)
    return -100.0 * (part[:, None] != part)


def _attend_windows(qkv: Tensor, bias: Tensor) -> Tensor:
    """Return attention (b, h, w, n, heads, d) inside windows that share a bias (heads, n, n)."""
    q, k, v = qkv.flatten(0, 2).unbind(2)  # (windows, n, heads, d)
    return kernels.attend(q, k, v, bias=bias[None].to(q.dtype)).unflatten(0, qkv.shape[:3])


class AttentionModule(nn.Module):
    """x + trunk(x) sigmoid(mask(x)), the mask from attention inside windows (Zou et al., arXiv 2203.08450)."""

    def __init__(self, channels: int, heads: int, window: int):
        super().__init__()
        self.trunk = nn.Sequential(*(ResidualUnit(channels) for _ in range(3)))
        self.mask = nn.Sequential(
            WindowAttention(channels, heads, window),
            *(ResidualUnit(channels) for _ in range(3)),
            nn.Conv2d(channels, channels, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        return torch.addcmul(x, self.trunk(x), torch.sigmoid(self.mask(x)))
