"""How different two pictures look, as losses: by their structure, which needs no weights, or by LPIPS, which does."""

from collections.abc import Iterator, Mapping
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor

from belvedere.errors import InputError
from belvedere.synthesis.vit import INPUT_NORMS

WINDOW = 7
"""Side of the window of SSIM in pixels, uniform."""
SCALES = 3
"""At which structures are compared, each half of the one before."""
SMALLEST = WINDOW * 2 ** (SCALES - 1)
"""Least side of the pictures of ``structure_loss``."""
CONSTANTS = 0.01**2, 0.03**2
"""C1 and C2 of SSIM for values in [0, 1]."""

STAGES = ((0, 2), (5, 7), (10, 12, 14), (17, 19, 21), (24, 26, 28))
"""The convolutions of VGG-16 (Simonyan and Zisserman, arXiv 1409.1556) between poolings, by torchvision's numbers."""
WIDTHS = (3, 64, 128, 256, 512, 512)
"""Channels of a picture and of each stage."""
DEEPEST = 16
"""Least side of the pictures of ``Lpips``: a pixel of the last stage stands for so many."""


def structure_loss(a: Tensor, b: Tensor) -> Tensor:
    """Return how much the structure of pictures (b, 3, h, w) in [0, 1] differs, from 0 to about 1: the batch's mean.

    1 - SSIM (Wang, Bovik, Sheikh and Simoncelli 2004, equation (13)), with uniform windows of 7 pixels where they fit,
    averaged over pixels, channels and three scales. Raises ``InputError`` for pictures below 28 pixels a side.
    """
    _check_pictures(a, b, SMALLEST)
    losses = []
    for _ in range(SCALES):
        losses.append(1 - _similarity(a, b).mean())
        a, b = F.avg_pool2d(a, 2), F.avg_pool2d(b, 2)
    return torch.stack(losses).mean()


def _similarity(a: Tensor, b: Tensor) -> Tensor:
    """Return the SSIM (b, c, h - 6, w - 6) of the windows of pictures."""
    mean_a, mean_b, square_a, square_b, product = (F.avg_pool2d(x, WINDOW, 1) for x in (a, b, a * a, b * b, a * b))
    c1, c2 = CONSTANTS
    variances, covariance = square_a + square_b - mean_a**2 - mean_b**2, product - mean_a * mean_b
    luminance = (2 * mean_a * mean_b + c1) / (mean_a**2 + mean_b**2 + c1)
    return luminance * (2 * covariance + c2) / (variances + c2)


class Lpips:
    """The distance of pictures in the features of VGG-16 (Zhang et al., CVPR 2018, arXiv 1801.03924, equation (1)).

    ``weights``: by their published names, of torchvision's VGG-16 (``features.0.weight``, ...) and of LPIPS, version
    0.1, for it (``lin0.model.1.weight``, ...). Others are ignored; missing ones, or ones of another shape, raise
    ``InputError``. The weights move to where the pictures are.
    """

    def __init__(self, weights: Mapping[str, Tensor]):
        for name, shape in _shapes():
            if name not in weights or weights[name].shape != shape:
                raise InputError(
                    f"LPIPS: no weights {name} {shape}; give those of torchvision's VGG-16 (vgg16-397923af.pth) and "
                    "of LPIPS 0.1 for it (vgg.pth)"
                )
        self.weights = {name: weights[name].float() for name, _ in _shapes()}

    def __call__(self, a: Tensor, b: Tensor) -> Tensor:
        """Return the mean distance of pictures (b, 3, h, w) in [0, 1], differentiable.

        Raises ``InputError`` for pictures below 16 pixels a side.
        """
        _check_pictures(a, b, DEEPEST)
        mean, deviation = (a.new_tensor(colour)[:, None, None] for colour in INPUT_NORMS["imagenet"])
        self.weights = {name: weight.to(a.device) for name, weight in self.weights.items()}
        x, total = (torch.cat((a, b)) - mean) / deviation, a.new_zeros(())
        for i, stage in enumerate(STAGES):
            x = F.max_pool2d(x, 2) if i else x
            for layer in stage:
                weight, bias = (self.weights[f"features.{layer}.{part}"] for part in ("weight", "bias"))
                x = F.relu(F.conv2d(x, weight, bias, padding=1))
            first, second = F.normalize(x.float(), dim=1, eps=1e-10).chunk(2)  # (b, c, h, w) each
            total = total + ((first - second).square() * self.weights[f"lin{i}.model.1.weight"]).sum(1).mean()
        return total

    def official(self, a: Tensor, b: Tensor) -> Tensor:
        """Return the distance as NViST's release has it, of pictures in [0, 1] that are taken for ones in [-1, 1]."""
        return self((a + 1) / 2, (b + 1) / 2)


def _shapes() -> Iterator[tuple[str, tuple[int, ...]]]:
    """Yield the name and the shape of each weight of LPIPS."""
    for i, (stage, (before, width)) in enumerate(zip(STAGES, pairwise(WIDTHS), strict=True)):
        for layer in stage:
            yield f"features.{layer}.weight", (width, before, 3, 3)
            yield f"features.{layer}.bias", (width,)
            before = width
        yield f"lin{i}.model.1.weight", (1, width, 1, 1)


def _check_pictures(a: Tensor, b: Tensor, smallest: int) -> None:
    if a.shape != b.shape or a.ndim != 4 or a.shape[1] != 3 or min(a.shape[2:]) < smallest:
        shapes = f"{tuple(a.shape)} and {tuple(b.shape)}"
        raise InputError(f"pictures {shapes} to compare: both (b, 3, h, w), {smallest} pixels a side or more")
