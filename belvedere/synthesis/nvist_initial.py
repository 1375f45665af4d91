"""Where a small NViST begins that has few steps to learn in: tokens look at what they stand for, space is thin haze.

The published network begins with random attention, and a volume whose planes and lines are near 0, so that so are the
gradients of their products. Here (1) positions of the volume's tokens are the codes of where in the picture their part
of the volume is seen, and queries and keys begin alike, so that attention begins by place; (2) every gate is open;
(3) lines are 1, so that the volume is the sum of its planes, and its density is a little above 0.
"""

from typing import Any

import torch
from torch import Tensor

from belvedere.errors import InputError
from belvedere.synthesis.nvist import AdaptiveBlock, NViST
from belvedere.synthesis.vit import codes_at, position_codes

HAZE = 0.2
"""Density of the volume, per unit of length, from each of its planes."""
FAINT = 0.1
"""Of the random weights that make density differ from place to place."""
KEPT = 0.3
"""Of the learned positions that each token began with: what tells those apart that are seen in one place."""


@torch.no_grad()
def begin_aligned(model: NViST, distance: float, focal: float) -> None:
    """Give ``model`` the beginning described above.

    ``distance`` of the cameras from the middle of the scenes and ``focal`` length in heights of the picture tell where
    things are seen. Raises ``InputError`` for a network whose positions are fixed.
    """
    decoder: Any = model.decoder
    config: Any = model.config
    if decoder.positions is None or config.form != "vector_matrix":
        raise InputError("an aligned start needs positions: learned and form: vector_matrix")
    rows, columns = (side // config.patch for side in config.image)
    edge = (torch.arange(decoder.side) + 0.5) / decoder.side * 2 - 1  # of the box
    seen = edge * config.half_side / distance * focal * rows  # patches from the picture's middle
    decoder.positions.mul_(KEPT).add_(_places(seen + (rows - 1) / 2, seen + (columns - 1) / 2, config.dim))
    decoder.memory_positions.add_(position_codes(rows, columns, config.dim, decoder.memory_positions))
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


def _places(rows: Tensor, columns: Tensor, dim: int) -> Tensor:
    """Return the codes (n, dim) of the volume's tokens: planes yx, xz and zy, then lines z, y and x.

    ``rows`` and ``columns`` (s,): where in the picture, in patches, each step along an axis of the box is seen. What
    lies along z is seen where the picture's middle is.
    """
    count, middle_row, middle_column = len(rows), rows.mean(), columns.mean()
    each = torch.ones(count)
    places = (
        (rows.repeat_interleave(count), columns.repeat(count)),
        (middle_row * each.repeat(count), columns.repeat_interleave(count)),
        (rows.repeat(count), middle_column * each.repeat(count)),
        (middle_row * each, middle_column * each),
        (rows, middle_column * each),
        (middle_row * each, columns),
    )
    return torch.cat([codes_at(*place, dim) for place in places])
