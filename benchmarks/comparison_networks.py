"""The networks of ``comparison.py`` that are nobody's product: DiMR with other norms, FiTv2 with absolute positions.

They change one thing each. In DiMR's blocks TD-LN becomes layer norm, or adaLN; upsampler and heads keep TD-LN, so time
reaches the former by these alone. In FiTv2 the rotation of queries and keys becomes a sine-cosine table that is added
to the tokens, as in DiT (Peebles & Xie, arXiv 2212.09748).
"""

import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from belvedere import kernels
from belvedere.generation.dimr import DiMR, Stage
from belvedere.generation.dimr_norms import TimeParameter
from belvedere.generation.fitv2 import FiTv2, Layout

WAVES = 64
"""Sines and cosines of the time that adaLN is made from."""


def embed(positions: Tensor, channels: int, period: float = 10000.0) -> Tensor:
    """Return cosines and sines (n, channels) of ``positions`` (n,), at frequencies from 1 to 1 / ``period``."""
    count = channels // 2
    turns = positions[:, None] * torch.exp(-math.log(period) * torch.arange(count) / count)
    return torch.cat((turns.cos(), turns.sin()), -1)


class LayerNorm(nn.Module):
    """Layer norm with a weight and a bias, blind to time."""

    def __init__(self, dim: int):
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(dim)), nn.Parameter(torch.zeros(dim))

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        return kernels.time_norm(x, self.weight[None], self.bias[None])


class AdaptiveLayerNorm(nn.Module):
    """Layer norm whose scale and shift are columns ``start`` to ``start + 2 dim`` of ``time`` (b, total)."""

    def __init__(self, dim: int, start: int):
        super().__init__()
        self.dim, self.start = dim, start

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        scale, shift = time[:, self.start : self.start + 2 * self.dim].chunk(2, -1)
        return kernels.time_norm(x, 1 + scale, shift)


def _norms(model: DiMR) -> Iterator[tuple[nn.Module, int]]:
    """Yield what holds a norm in a block, and its channels."""
    for stage, sizes in zip(model.stages, model.sizes, strict=True):
        assert isinstance(stage, Stage)
        for block in stage.blocks:
            holders = [block.attention, block.mlp] if sizes.kind == "transformer" else [block.mlp]
            yield from ((holder, sizes.dim) for holder in holders)


class OtherNorms(DiMR):
    """DiMR, the norms of its blocks replaced: the base of the two below."""

    def _replace(self, norms: Sequence[nn.Module]) -> None:
        for (holder, _), norm in zip(_norms(self), norms, strict=True):
            holder.norm = norm
        self.times = [module for module in self.modules() if isinstance(module, TimeParameter)]
        for place, parameter in enumerate(self.times):
            parameter.start = sum(len(other.param0) for other in self.times[:place])


class PlainDiMR(OtherNorms):
    """Layer norm in the blocks."""

    def __init__(self, **fields: Any):
        super().__init__(**fields)
        self._replace([LayerNorm(dim) for _, dim in _norms(self)])


class AdaptiveDiMR(OtherNorms):
    """adaLN in the blocks: their scales and shifts are one linear map of a small network of the time, zero at first."""

    def __init__(self, **fields: Any):
        super().__init__(**fields)
        dims, width = [dim for _, dim in _norms(self)], self.sizes[0].dim
        self._replace([AdaptiveLayerNorm(dim, 2 * sum(dims[:place])) for place, dim in enumerate(dims)])
        head = 2 * sum(dims)
        for parameter in self.times:
            parameter.start += head
        self.time_embed = nn.Sequential(nn.Linear(WAVES, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU())
        self.rows = nn.Linear(width, head)
        nn.init.zeros_(self.rows.weight)
        nn.init.zeros_(self.rows.bias)

    def evaluate_time(self, log_snr: Tensor) -> Tensor:
        """Return adaLN's rows and, behind them, the parameters of upsampler and heads: (b, total)."""
        waves = embed(1000 * (log_snr.float() + 4) / 8, WAVES)
        return torch.cat((self.rows(self.time_embed(waves)), super().evaluate_time(log_snr)), -1)


class _PlacedTokens(nn.Linear):
    """A linear map of the first channels, to which the last ones, a position, are added."""

    def forward(self, x: Tensor) -> Tensor:
        tokens, positions = x.split([self.in_features, self.out_features], -1)
        return super().forward(tokens) + positions


class AbsoluteFiTv2(FiTv2):
    """FiTv2 with DiT's positions. Beyond the trained grid they go on, or with ``squeezed`` are pressed into it."""

    squeezed = False

    def __init__(self, **fields: Any):
        super().__init__(**fields)
        embedding = _PlacedTokens(self.embed.in_features, self.embed.out_features)
        embedding.load_state_dict(self.embed.state_dict())
        self.embed = embedding

    def layout(self, sizes: Sequence[tuple[int, int]], extrapolation: str | Sequence[str], device: Any) -> Layout:
        """Return the layout of packed images, without any rotation."""
        shape = [(height * width, 1, self.config.dim // self.config.heads // 2) for height, width in sizes]
        return Layout.of(sizes, [(torch.ones(s), torch.zeros(s)) for s in shape], device)

    def run(self, x: Tensor, modulation: Tensor, layout: Layout) -> Tensor:
        """Return the prediction (n, c) of packed tokens ``x`` (n, c)."""
        places = torch.cat([self._positions(*size) for size in layout.sizes.tolist()])
        return super().run(torch.cat((x, places), -1), modulation, layout)

    def _positions(self, height: int, width: int) -> Tensor:
        """Return the positions (h w, dim) of a grid, row by row: half of the channels for rows, half for columns."""
        rows, columns = (self._axis(length) for length in (height, width))
        grid = rows[:, None].expand(-1, width, -1), columns[None].expand(height, -1, -1)
        return torch.cat(grid, -1).flatten(0, 1)

    def _axis(self, length: int) -> Tensor:
        trained = self.config.trained_side
        step = min(1.0, trained / length) if self.squeezed else 1.0
        return embed(torch.arange(length) * step, self.config.dim // 2)
