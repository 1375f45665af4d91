"""Where a small NViST begins that has few steps to learn in: tokens look at what they stand for, space is thin haze.

The published network begins with random attention, positions that hardly tell neighbours apart, and a volume whose
planes and lines are near 0, so that so are the gradients of their products. Here

1. every row and every column of the picture's patches has a random vector. A patch has the sum of its two, and so has a
   token of the volume, of where its part is seen; queries and keys begin alike, so that attention goes by place;
2. every token of the volume has a random vector besides, and all gates are open;
3. lines are 1, so that the volume is the sum of its planes, and its density is a little above 0.

``benchmarks/nvist_start.py`` measures what that is worth.
"""

from typing import Any

import torch
from torch import Tensor

from belvedere.errors import InputError
from belvedere.synthesis.nvist import AdaptiveBlock, NViST

HAZE = 0.2
"""Density of the volume, per unit of length, from each of its planes."""
FAINT = 0.1
"""Of the random weights that make density differ from place to place."""
OWN = 2.0
"""Standard deviation of each token's own vector, where that of a row or column is 1."""


@torch.no_grad()
def begin_aligned(model: NViST, distance: float, focal: float) -> None:
    """Give ``model`` the beginning described above, by random numbers of torch's own generator.

    ``distance`` of the cameras from the middle of the scenes and ``focal`` length in heights of the picture tell where
    things are seen. Raises ``InputError`` for a network whose positions are fixed, or of another form.
    """
    decoder: Any = model.decoder
    config: Any = model.config
    if decoder.positions is None or config.form != "vector_matrix":
        raise InputError("an aligned start needs positions: learned and form: vector_matrix")
    rows, columns = (torch.randn(side // config.patch, config.dim) for side in config.image)
    patches = rows[:, None] + columns  # (h, w, c)
    decoder.memory_positions.copy_(patches.flatten(0, 1)[None])
    box = ((torch.arange(decoder.side) + 0.5) / decoder.side * 2 - 1) * config.half_side
    seen = box / distance * focal * config.image[0] / config.patch  # patches from the picture's middle
    places = _places(between(rows, seen), between(columns, seen))
    decoder.positions.normal_(std=OWN).add_(places)
    for block in decoder.blocks:
        block.attention.k.load_state_dict(block.attention.q.state_dict())
        if isinstance(block, AdaptiveBlock):
            _, _, gate1, _, _, gate2 = block.modulation.bias.chunk(6)
            gate1.fill_(1.0)
            gate2.fill_(1.0)
    for line, plane in zip(decoder.line_heads.linears, decoder.plane_heads.linears, strict=True):
        line.bias.fill_(1.0)
        for parameter in plane.parameters():
            parameter.unflatten(0, (config.volume_patch**2, -1))[:, : config.density] *= FAINT
        plane.bias.unflatten(0, (config.volume_patch**2, -1))[:, : config.density] = HAZE / config.density


def between(vectors: Tensor, places: Tensor) -> Tensor:
    """Return vectors (s, c) at ``places`` (s,) from the middle of ``vectors`` (n, c), linear between two."""
    places = (places + (len(vectors) - 1) / 2).clamp(0, len(vectors) - 1)
    lower = places.long().clamp(max=max(0, len(vectors) - 2))
    upper = (lower + 1).clamp(max=len(vectors) - 1)
    return torch.lerp(vectors[lower], vectors[upper], (places - lower)[:, None])


def _places(rows: Tensor, columns: Tensor) -> Tensor:
    """Return the vectors (n, c) of the volume's tokens, planes yx, xz and zy, then lines z, y and x.

    ``rows`` and ``columns`` (s, c): of each step along y and x. What lies along z tells nothing of the picture.
    """
    yx = rows[:, None] + columns  # (y, x, c)
    xz, zy = columns[:, None].expand_as(yx), rows.expand_as(yx)
    planes = torch.stack((yx, xz, zy)).flatten(0, 2)
    return torch.cat((planes, torch.zeros_like(rows), rows, columns))
