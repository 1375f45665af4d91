"""Inception-v3 as pictures are measured with it: the network of 2015 behind FID, sFID and the Inception Score.

Architecture: Szegedy et al. 2016, "Rethinking the Inception Architecture", arXiv 1512.00567, table 1, in the form of
the graph that TensorFlow published on 2015-12-05. It differs from other releases of Inception-v3 in three ways: 1008
classes, average pooling that does not count the padding, and a maximum in the pooling branch of the last block.
Parameters have the names under which these weights are republished for PyTorch.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

SIDE = 299
"""Pixels along the side of what the network looks at."""
POOL = 2048
"""Features of a picture, whose statistics are FID."""
SPATIAL = 17 * 17 * 7
"""Features of sFID."""
CLASSES = 1008
_SPATIAL_CHANNELS = 7


class Seen(NamedTuple):
    """What the network sees in n pictures, float32."""

    pool: Tensor
    """The mean over the last 8 x 8 features: (n, 2048)."""
    spatial: Tensor
    """The first 7 channels of ``mixed_6/conv`` in TensorFlow's names, by rows, columns and channels: (n, 2023)."""
    logits: Tensor
    """Of the classes, without the bias, as the ADM suite has them: (n, 1008)."""


class Unit(nn.Module):
    """Convolution, batch norm, ReLU: (b, c_in, h, w) to (b, c_out, h', w')."""

    def __init__(self, c_in: int, c_out: int, kernel: int | tuple[int, int], stride: int = 1, *, pad: bool = True):
        super().__init__()
        high, wide = (kernel, kernel) if isinstance(kernel, int) else kernel
        padding = (high // 2, wide // 2) if pad else 0
        self.conv = nn.Conv2d(c_in, c_out, (high, wide), stride, padding, bias=False)
        self.bn = nn.BatchNorm2d(c_out, eps=1e-3)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.bn(self.conv(x)))


def _average(x: Tensor) -> Tensor:
    """Return the mean of each 3 x 3 neighbourhood, of as many pixels as there are."""
    return F.avg_pool2d(x, 3, 1, 1, count_include_pad=False)


class Mixed35(nn.Module):
    """The block on 35 x 35 features: figure 5."""

    def __init__(self, c_in: int, pooled: int):
        super().__init__()
        self.branch1x1 = Unit(c_in, 64, 1)
        self.branch5x5_1, self.branch5x5_2 = Unit(c_in, 48, 1), Unit(48, 64, 5)
        self.branch3x3dbl_1, self.branch3x3dbl_2 = Unit(c_in, 64, 1), Unit(64, 96, 3)
        self.branch3x3dbl_3 = Unit(96, 96, 3)
        self.branch_pool = Unit(c_in, pooled, 1)

    def forward(self, x: Tensor) -> Tensor:
        wide = self.branch5x5_2(self.branch5x5_1(x))
        twice = self.branch3x3dbl_3(self.branch3x3dbl_2(self.branch3x3dbl_1(x)))
        return torch.cat((self.branch1x1(x), wide, twice, self.branch_pool(_average(x))), 1)


class Reduce35(nn.Module):
    """From 35 x 35 to 17 x 17 features: figure 10."""

    def __init__(self, c_in: int):
        super().__init__()
        self.branch3x3 = Unit(c_in, 384, 3, 2, pad=False)
        self.branch3x3dbl_1, self.branch3x3dbl_2 = Unit(c_in, 64, 1), Unit(64, 96, 3)
        self.branch3x3dbl_3 = Unit(96, 96, 3, 2, pad=False)

    def forward(self, x: Tensor) -> Tensor:
        twice = self.branch3x3dbl_3(self.branch3x3dbl_2(self.branch3x3dbl_1(x)))
        return torch.cat((self.branch3x3(x), twice, F.max_pool2d(x, 3, 2)), 1)


class Mixed17(nn.Module):
    """The block on 17 x 17 features, whose 7 x 7 convolutions are done along one axis at a time: figure 6."""

    def __init__(self, inner: int):
        super().__init__()
        across, down = (1, 7), (7, 1)
        self.branch1x1 = Unit(768, 192, 1)
        self.branch7x7_1, self.branch7x7_2 = Unit(768, inner, 1), Unit(inner, inner, across)
        self.branch7x7_3 = Unit(inner, 192, down)
        self.branch7x7dbl_1, self.branch7x7dbl_2 = Unit(768, inner, 1), Unit(inner, inner, down)
        self.branch7x7dbl_3, self.branch7x7dbl_4 = Unit(inner, inner, across), Unit(inner, inner, down)
        self.branch7x7dbl_5 = Unit(inner, 192, across)
        self.branch_pool = Unit(768, 192, 1)

    def forward(self, x: Tensor) -> Tensor:
        once = self.branch7x7_3(self.branch7x7_2(self.branch7x7_1(x)))
        twice = self.branch7x7dbl_3(self.branch7x7dbl_2(self.branch7x7dbl_1(x)))
        twice = self.branch7x7dbl_5(self.branch7x7dbl_4(twice))
        return torch.cat((self.branch1x1(x), once, twice, self.branch_pool(_average(x))), 1)


class Reduce17(nn.Module):
    """From 17 x 17 to 8 x 8 features."""

    def __init__(self) -> None:
        super().__init__()
        self.branch3x3_1, self.branch3x3_2 = Unit(768, 192, 1), Unit(192, 320, 3, 2, pad=False)
        self.branch7x7x3_1, self.branch7x7x3_2 = Unit(768, 192, 1), Unit(192, 192, (1, 7))
        self.branch7x7x3_3, self.branch7x7x3_4 = Unit(192, 192, (7, 1)), Unit(192, 192, 3, 2, pad=False)

    def forward(self, x: Tensor) -> Tensor:
        small = self.branch3x3_2(self.branch3x3_1(x))
        large = self.branch7x7x3_4(self.branch7x7x3_3(self.branch7x7x3_2(self.branch7x7x3_1(x))))
        return torch.cat((small, large, F.max_pool2d(x, 3, 2)), 1)


class Mixed8(nn.Module):
    """The block on 8 x 8 features, whose branches end side by side: figure 7. ``maximum``: how the last one pools."""

    def __init__(self, c_in: int, *, maximum: bool):
        super().__init__()
        across, down = (1, 3), (3, 1)
        self.maximum = maximum
        self.branch1x1 = Unit(c_in, 320, 1)
        self.branch3x3_1 = Unit(c_in, 384, 1)
        self.branch3x3_2a, self.branch3x3_2b = Unit(384, 384, across), Unit(384, 384, down)
        self.branch3x3dbl_1, self.branch3x3dbl_2 = Unit(c_in, 448, 1), Unit(448, 384, 3)
        self.branch3x3dbl_3a, self.branch3x3dbl_3b = Unit(384, 384, across), Unit(384, 384, down)
        self.branch_pool = Unit(c_in, 192, 1)

    def forward(self, x: Tensor) -> Tensor:
        once, twice = self.branch3x3_1(x), self.branch3x3dbl_2(self.branch3x3dbl_1(x))
        pooled = F.max_pool2d(x, 3, 1, 1) if self.maximum else _average(x)
        parts = (
            self.branch1x1(x),
            self.branch3x3_2a(once),
            self.branch3x3_2b(once),
            self.branch3x3dbl_3a(twice),
            self.branch3x3dbl_3b(twice),
            self.branch_pool(pooled),
        )
        return torch.cat(parts, 1)


class InceptionV3(nn.Module):
    """The network: 94 convolutions, 23.9 million parameters. Use it in evaluation mode."""

    def __init__(self) -> None:
        super().__init__()
        self.Conv2d_1a_3x3 = Unit(3, 32, 3, 2, pad=False)
        self.Conv2d_2a_3x3 = Unit(32, 32, 3, pad=False)
        self.Conv2d_2b_3x3 = Unit(32, 64, 3)
        self.Conv2d_3b_1x1 = Unit(64, 80, 1)
        self.Conv2d_4a_3x3 = Unit(80, 192, 3, pad=False)
        self.Mixed_5b, self.Mixed_5c, self.Mixed_5d = Mixed35(192, 32), Mixed35(256, 64), Mixed35(288, 64)
        self.Mixed_6a = Reduce35(288)
        self.Mixed_6b, self.Mixed_6c, self.Mixed_6d, self.Mixed_6e = map(Mixed17, (128, 160, 160, 192))
        self.Mixed_7a = Reduce17()
        self.Mixed_7b, self.Mixed_7c = Mixed8(1280, maximum=False), Mixed8(2048, maximum=True)
        self.fc = nn.Linear(POOL, CLASSES)

    def forward(self, pictures: Tensor) -> Seen:
        """Return what is seen in pictures (n, 3, h, w), uint8, of any size."""
        x = to_input(pictures).contiguous(memory_format=torch.channels_last)  # half again as fast on a CPU
        x = self.Conv2d_2b_3x3(self.Conv2d_2a_3x3(self.Conv2d_1a_3x3(x)))  # (n, 64, 147, 147)
        x = self.Conv2d_4a_3x3(self.Conv2d_3b_1x1(F.max_pool2d(x, 3, 2)))  # (n, 192, 71, 71)
        x = self.Mixed_5d(self.Mixed_5c(self.Mixed_5b(F.max_pool2d(x, 3, 2))))  # (n, 288, 35, 35)
        x = self.Mixed_6d(self.Mixed_6c(self.Mixed_6b(self.Mixed_6a(x))))  # (n, 768, 17, 17)
        spatial = x[:, :_SPATIAL_CHANNELS].permute(0, 2, 3, 1).flatten(1)  # (n, h w c)
        x = self.Mixed_7c(self.Mixed_7b(self.Mixed_7a(self.Mixed_6e(x))))  # (n, 2048, 8, 8)
        pool = x.mean((2, 3))  # (n, c)
        return Seen(pool, spatial, F.linear(pool, self.fc.weight))


def to_input(pictures: Tensor) -> Tensor:
    """Return pictures (n, 3, h, w), uint8, as the graph of 2015 prepares them: (n, 3, 299, 299), float32 in [-1, 1)."""
    return (resize(pictures.float(), SIDE) - 128) / 128


def resize(x: Tensor, side: int) -> Tensor:
    """Return float32 pictures (n, c, h, w) as (n, c, side, side), bilinear as TensorFlow 1 does it by default.

    Pixel i lies at i * h / side of the picture: neither are the corners aligned nor the centres of pixels used, and
    what is made smaller is not smoothed.
    """
    low, high, part = _neighbours(x.shape[3], side, x.device)
    x = torch.lerp(x[..., low], x[..., high], part)  # (n, c, h, side)
    low, high, part = _neighbours(x.shape[2], side, x.device)
    return torch.lerp(x[:, :, low], x[:, :, high], part[:, None])  # (n, c, side, side)


def _neighbours(length: int, side: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Return for each new pixel (side,) the old ones below and above it, and how far it lies between them."""
    at = torch.arange(side, dtype=torch.float32, device=device) * (length / side)
    low = at.long().clamp(max=length - 1)
    return low, (low + 1).clamp(max=length - 1), at - low
