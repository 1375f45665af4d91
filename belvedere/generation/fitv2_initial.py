"""What a FiTv2 begins with, as published: blocks that change nothing, and a prediction of zero."""

from typing import Any

import torch
from torch import nn

HALVES = 2
"""Linear maps of a gated projection."""


@torch.no_grad()
def initialise(network: Any) -> None:
    """Give a fresh FiTv2 its first weights."""
    fused = _fused(network)
    for module in network.modules():
        if isinstance(module, nn.Linear):
            for part in module.weight.chunk(fused.get(module, 1)):
                nn.init.xavier_uniform_(part)
            nn.init.zeros_(module.bias)
    nn.init.normal_(network.class_embed.weight, std=network.config.class_std)
    for layer in network.time_embed:
        if isinstance(layer, nn.Linear):
            nn.init.normal_(layer.weight, std=0.02)
    modulation = network.modulation
    for module in (modulation.head, network.head, modulation.shared, modulation.refine):
        if module is not None:
            nn.init.zeros_(module.weight)
    if network.refinement is not None:
        nn.init.zeros_(network.refinement.head.weight)


def _fused(network: Any) -> dict[nn.Module, int]:
    """Return how many published linear maps lie behind one another in one of ours; Xavier's bounds are each map's."""
    modulation = network.modulation
    counts: dict[nn.Module, int] = {block.mlp.project_in: HALVES for block in network.blocks if block.mlp.gated}
    if modulation.kind == "lora":
        counts[modulation.down] = modulation.depth
    if modulation.kind == "swiglu":
        counts |= {modulation.down: HALVES * modulation.depth, modulation.head_down: HALVES}
    return counts
