"""The aligned beginning: attention goes by place, space is thin haze, and what is not ours to set stays."""

import pytest
import torch

from belvedere.errors import InputError
from belvedere.synthesis.nvist import NViST
from belvedere.synthesis.nvist_initial import HAZE, begin_aligned


def small(**changes: object) -> NViST:
    torch.manual_seed(0)
    sizes = {"image": (32, 32), "patch": 4, "dim": 64, "encoder_depth": 1, "encoder_heads": 2, "decoder_depth": 2}
    sizes |= {"decoder_heads": 2, "resolution": 16, "volume_patch": 2, "density": 4, "colour": 4, "hidden": 16}
    return NViST(**(sizes | {"positions": "learned", "half_side": 0.5} | changes))  # type: ignore[arg-type]


def test_tokens_look_at_where_they_are_seen() -> None:
    model = small()
    begin_aligned(model, 2.0, 2.0)  # the picture is as wide as the box, 8 patches as 8 tokens
    attention = model.decoder.blocks[0].attention
    keys = attention.k(model.decoder.memory_positions[0])  # (64, c)
    queries = attention.q(model.decoder.positions)
    found = (queries[:64] @ keys.T).argmax(1)  # those of the plane yx
    row, column = found // 8, found % 8
    y, x = torch.arange(64) // 8, torch.arange(64) % 8
    assert ((row - y).abs() + (column - x).abs()).float().mean() < 1.5
    shuffled = ((row - y[torch.randperm(64)]).abs() + (column - x).abs()).float().mean()
    assert shuffled > 2


def test_the_volume_begins_as_haze() -> None:
    model = small(padding="border").eval()
    begin_aligned(model, 2.0, 2.0)
    with torch.no_grad():
        field = model(torch.rand(1, 3, 32, 32), torch.tensor([[2.0, 2.0]]))
        points = torch.rand(1, 2000, 3) - 0.5
        density = field.density(points)
    assert density.mean().item() == pytest.approx(3 * HAZE, abs=0.5) and (density > 0).float().mean() > 0.5


def test_only_learned_positions_can_be_aligned() -> None:
    for changes in ({"positions": "sincos"}, {"form": "triplane"}):
        with pytest.raises(InputError, match="positions: learned and form: vector_matrix"):
            begin_aligned(small(**changes), 2.0, 2.0)
