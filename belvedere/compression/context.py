"""Channel-wise context: each slice of the latent is coded given the slices before it.

Minnen and Singh, "Channel-wise autoregressive entropy models", arXiv 2007.08739 (ChARM).
"""

from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

Code = Callable[[int, Tensor, Tensor], Tensor]
"""``code(i, mean, scale)`` returns slice i (b, c, h, w) as a decoder sees it: integers + mean."""


class Context(nn.Module):
    """Mean and scale of each slice from the hyper decoders' maps and the first ``support`` slices.

    What rounding took away is predicted and added to each slice (latent residual prediction).
    """

    def __init__(self, config: Any):
        super().__init__()
        self.support, width = config.support, config.latent // config.slices

        def network(seen: int) -> nn.Sequential:
            return nn.Sequential(*_layers([config.latent + seen * width, *config.context, width]))

        seen = [min(i, self.support) for i in range(config.slices)]
        self.means = nn.ModuleList(network(count) for count in seen)
        self.scales = nn.ModuleList(network(count) for count in seen)
        self.residuals = nn.ModuleList(network(count + 1) for count in seen)

    def forward(self, means: Tensor, scales: Tensor, code: Code) -> Tensor:
        """Return the latent (b, c, h, w), its slices from ``code``, by maps ``means`` and ``scales`` of its shape."""
        slices: list[Tensor] = []
        for i, (mean, scale, residual) in enumerate(zip(self.means, self.scales, self.residuals, strict=True)):
            seen = slices[: self.support]
            known = code(i, mean(torch.cat((means, *seen), 1)), scale(torch.cat((scales, *seen), 1)))
            slices.append(known + 0.5 * torch.tanh(residual(torch.cat((means, *seen, known), 1))))
        return torch.cat(slices, 1)


def _layers(widths: list[int]) -> Iterator[nn.Module]:
    for i, (inputs, outputs) in enumerate(pairwise(widths)):
        if i:
            yield nn.GELU()
        yield nn.Conv2d(inputs, outputs, 3, padding=1)
