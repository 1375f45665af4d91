"""A finer stage for FiTv2 without an autoencoder (ours): convolutions over half patches correct its prediction.

    tokens after the last block ─► linear ─► 4 cells a token ─┐
    noisy picture ─► its cells, linear ───────────────────────┴─► blocks ─► linear ─► added to the head's prediction

A transformer on large patches is slow to learn that neighbouring patches must agree; a few convolutions know it. Cells
are kept token by token, (n, row, column), so that packed tokens stay packed; only a convolution sees an image's grid.
"""

from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from belvedere import kernels


class RefineBlock(nn.Module):
    """x + depthwise convolution, x + gate MLP(adaLN x), on packed cells (4 n, c) (ConvNeXt, arXiv 2201.03545)."""

    def __init__(self, dim: int):
        super().__init__()
        self.conv = nn.Conv2d(dim, dim, 7, padding=3, groups=dim)
        self.project_in, self.project_out = nn.Linear(dim, 6 * dim), nn.Linear(3 * dim, dim)

    def forward(self, x: Tensor, rows: Tensor, image: Tensor, sizes: Tensor) -> Tensor:
        shift, scale, gate = rows.chunk(3, -1)  # (s, c) each
        weight, bias = self.conv.weight, self.conv.bias
        x = x + kernels.depthwise_packed(x, weight, bias, sizes, cells=2)  # type: ignore[arg-type]  # it has a bias
        y = self.project_in(kernels.modulate_norm(x, shift, scale, image))
        return kernels.gated_residual(x, self.project_out(kernels.gated_mlp(y, "silu")), gate, image)


class Refinement(nn.Module):
    """The stage: from a token's features and its noisy pixels to what its prediction lacks."""

    def __init__(self, config: Any):
        super().__init__()
        self.channels, self.side, self.dim = config.channels, config.patch // 2, config.refine_dim
        cell = config.channels * self.side**2
        self.up = nn.Linear(config.dim, 4 * self.dim)
        self.embed = nn.Linear(cell, self.dim)
        self.blocks = nn.ModuleList(RefineBlock(self.dim) for _ in range(config.refine_depth))
        self.head = nn.Linear(self.dim, cell)

    def forward(self, features: Tensor, x: Tensor, rows: Tensor, image: Tensor, sizes: Tensor) -> Tensor:
        """Return the correction (n, c p p) for tokens' ``features`` (n, d) and their noisy pixels ``x`` (n, c p p).

        ``rows`` (s, 3 c depth): shift, scale and gate of each block for each image; ``sizes`` (s, 2) of it in tokens.
        """
        cells = self.up(features).view(-1, self.dim) + self.embed(to_cells(x, self.channels, self.side))  # (4 n, c)
        image = image.repeat_interleave(4)
        for block, part in zip(self.blocks, rows.chunk(len(self.blocks), -1), strict=True):
            cells = block(cells, part, image, sizes)
        return from_cells(self.head(F.layer_norm(cells, cells.shape[-1:])), self.channels, self.side)


def to_cells(tokens: Tensor, channels: int, side: int) -> Tensor:
    """Cut tokens (n, c p p), p = 2 ``side``, into quarters: (4 n, c p p / 4)."""
    cut = tokens.view(-1, channels, 2, side, 2, side)  # (n, c, 2, q, 2, q)
    return cut.permute(0, 2, 4, 1, 3, 5).reshape(-1, channels * side * side)  # (4 n, c q q)


def from_cells(cells: Tensor, channels: int, side: int) -> Tensor:
    """Put quarters (4 n, c q q) together again: (n, c p p)."""
    parts = cells.view(-1, 2, 2, channels, side, side)  # (n, 2, 2, c, q, q)
    return parts.permute(0, 3, 1, 4, 2, 5).reshape(-1, channels * 4 * side * side)  # (n, c p p)
