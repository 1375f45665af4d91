"""The plain vision transformer that NViST and its pre-training share: tokens of patches, sin-cos positions, blocks."""

import math
from functools import lru_cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from belvedere import kernels
from belvedere.errors import InputError

EPS = 1e-6
"""Of every layer norm."""
INPUT_NORMS = {
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "half": ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
}
"""Mean and standard deviation of the colours that pictures in [0, 1] are normalised by."""


def position_codes(rows: int, columns: int, dim: int, like: Tensor, start: float = 0.0) -> Tensor:
    """Return the sin-cos codes (rows columns, dim) of a grid's cells, row by row, in the dtype and place of ``like``.

    The first half of the channels is of the column, the second of the row; each half sin(p w_k), then cos(p w_k), with
    w_k = 10000^(-4 k / dim), k < dim / 4, and p counted from ``start`` (He et al., arXiv 2111.06377, appendix).
    """
    traced = torch.compiler.is_compiling()  # then tensors are not real ones, which a cache may not keep
    return (_codes.__wrapped__ if traced else _codes)(rows, columns, dim, start).to(like)


@lru_cache(maxsize=8)
def _codes(rows: int, columns: int, dim: int, start: float) -> Tensor:
    down, across = (torch.arange(count, dtype=torch.float64, device="cpu") + start for count in (rows, columns))
    return codes_at(down.repeat_interleave(columns), across.repeat(rows), dim)


def codes_at(rows: Tensor, columns: Tensor, dim: int) -> Tensor:
    """Return the codes (n, dim), float32, of places anywhere in a grid: ``rows`` and ``columns`` (n,), as above."""
    octaves = 10000 ** (torch.arange(dim // 4, dtype=torch.float64, device="cpu") / (-dim / 4))
    across, down = columns.double()[:, None] * octaves, rows.double()[:, None] * octaves  # (n, c/4)
    return torch.cat((across.sin(), across.cos(), down.sin(), down.cos()), -1).float()


def patchify(image: Tensor, patch: int) -> Tensor:
    """Return the pixels of square patches, row by row: (b, c, h, w) -> (b, n, patch patch c)."""
    cells = image.unflatten(3, (-1, patch)).unflatten(2, (-1, patch))  # (b, c, h, patch, w, patch)
    return cells.permute(0, 2, 4, 3, 5, 1).flatten(3).flatten(1, 2)  # (b, n, patch patch c)


def unpatchify(pixels: Tensor, grid: tuple[int, int]) -> Tensor:
    """Return the pictures of patches in ``grid`` (rows, columns), three colours each: the inverse of ``patchify``."""
    patch = math.isqrt(pixels.shape[-1] // 3)
    cells = pixels.unflatten(2, (patch, patch, 3)).unflatten(1, grid)  # (b, h, w, patch, patch, c)
    return cells.permute(0, 5, 1, 3, 2, 4).flatten(4).flatten(2, 3)


class SelfAttention(nn.Module):
    """Attention of all tokens (b, n, c) over one another, its three maps in one."""

    def __init__(self, dim: int, heads: int):
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(dim, 3 * dim)
        self.out = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).unbind(2)  # (b, n, h, d)
        return self.out(kernels.attend(q, k, v).flatten(-2))


class MLP(nn.Module):
    """Two linear maps and a GELU (erf) between them."""

    def __init__(self, dim: int, ratio: float):
        super().__init__()
        self.project_in = nn.Linear(dim, int(dim * ratio))
        self.project_out = nn.Linear(int(dim * ratio), dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.project_out(F.gelu(self.project_in(x)))


class Block(nn.Module):
    """x + attention(norm x), x + MLP(norm x) on tokens (b, n, c)."""

    def __init__(self, dim: int, heads: int, mlp_ratio: float):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(dim, EPS), nn.LayerNorm(dim, EPS)
        self.attention, self.mlp = SelfAttention(dim, heads), MLP(dim, mlp_ratio)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class Blocks(nn.ModuleList):
    """Blocks one after another; what they keep is computed again in the backward pass where that is switched on."""

    gradient_checkpointing = False
    _gradient_checkpointing_func: Any = None

    def forward(self, x: Tensor, *rest: Tensor) -> Tensor:
        for block in self:
            if self.gradient_checkpointing and torch.is_grad_enabled():
                x = self._gradient_checkpointing_func(block, x, *rest)
            else:
                x = block(x, *rest)
        return x


class Encoder(nn.Module):
    """Pictures -> a class token and a token a patch (Dosovitskiy et al., arXiv 2010.11929), with no norm at the end."""

    def __init__(self, *, patch: int, dim: int, depth: int, heads: int, mlp_ratio: float, input_norm: str):
        super().__init__()
        self.patch, self.colours = patch, INPUT_NORMS[input_norm]
        self.embed = nn.Conv2d(3, dim, patch, stride=patch)
        self.class_token = nn.Parameter(torch.zeros(1, 1, dim))
        self.blocks = Blocks(Block(dim, heads, mlp_ratio) for _ in range(depth))
        nn.init.normal_(self.class_token, std=0.02)
        initialise(self)

    def normalise(self, image: Tensor) -> Tensor:
        """Return pictures (b, 3, h, w) in [0, 1] less the mean of natural colours, by their deviation."""
        mean, deviation = (image.new_tensor(colour)[:, None, None] for colour in self.colours)
        return (image - mean) / deviation

    def forward(self, image: Tensor, visible: Tensor | None = None) -> Tensor:
        """Return tokens (b, 1 + n, c), the class token first, of pictures (b, 3, h, w) in [0, 1].

        ``h`` and ``w`` are any multiples of the patch; positions are evaluated for the grid. ``visible`` (b, m): the
        numbers of the patches that are looked at; then the tokens are (b, 1 + m, c), in that order.
        """
        if image.ndim != 4 or image.shape[1] != 3 or image.shape[2] % self.patch or image.shape[3] % self.patch:
            raise InputError(f"pictures {tuple(image.shape)}: give (b, 3, h, w), sides multiples of {self.patch}")
        maps = self.embed(self.normalise(image).to(self.embed.weight.dtype))  # (b, c, h, w)
        _, dim, rows, columns = maps.shape
        x = maps.flatten(2).mT + position_codes(rows, columns, dim, maps)  # (b, n, c)
        if visible is not None:
            x = x.gather(1, visible[..., None].expand(-1, -1, dim))  # (b, m, c)
        first = self.class_token.to(x.dtype).expand(len(x), -1, -1)  # its position code is 0
        return self.blocks(torch.cat((first, x), 1))


def initialise(module: nn.Module) -> None:
    """Initialise linear maps, and the embedding of patches as one, Xavier uniform, with biases of 0, as MAE does."""
    for layer in module.modules():
        if isinstance(layer, nn.Linear | nn.Conv2d):
            nn.init.xavier_uniform_(layer.weight.flatten(1))  # a view (o, c)
            nn.init.zeros_(layer.bias)  # type: ignore[arg-type]
