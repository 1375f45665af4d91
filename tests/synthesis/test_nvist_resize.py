"""Weights for other texels and tokens: nothing changes where none does, and what changes is resampled in place."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from belvedere.errors import InputError
from belvedere.synthesis.nvist_resize import resize_volume
from tests.synthesis.test_nvist_initial import small


def grid(vectors: Tensor, side: int) -> Tensor:
    """Return the planes (3, c, side, side) of position embeddings that begin with those of planes."""
    return vectors[: 3 * side**2].view(3, side, side, -1).permute(0, 3, 1, 2)


def test_the_same_sizes_keep_every_bit() -> None:
    source = small()
    for name, tensor in resize_volume(source, small()).items():
        assert torch.equal(tensor, source.state_dict()[name]), name


@pytest.mark.parametrize(
    "changes",
    [{}, {"form": "triplane"}, {"form": "cp"}, {"positions": "sincos"}],
    ids=["vm", "triplane", "cp", "sincos"],
)
@pytest.mark.parametrize(("resolution", "patch"), [(24, 2), (32, 4), (12, 1), (8, 4)])
def test_another_volume_takes_them(changes: dict[str, object], resolution: int, patch: int) -> None:
    target = small(resolution=resolution, volume_patch=patch, **changes)
    target.load_state_dict(resize_volume(small(**changes), target))
    with torch.no_grad():
        volume = target.decode(torch.randn(1, 65, 64), torch.ones(1, 2))
    for part in (volume.planes, volume.lines):
        assert part is None or (part.shape[-1] == resolution and part.isfinite().all())


def test_positions_are_resampled_as_pictures_are() -> None:
    source, target = small(), small(resolution=24)
    old, new = source.decoder.positions, resize_volume(source, target)["decoder.positions"]
    assert old is not None
    wanted = F.interpolate(grid(old, 8), (12, 12), mode="bilinear")
    torch.testing.assert_close(grid(new, 12), wanted)
    lines = F.interpolate(old[3 * 64 :].view(3, 8, -1).transpose(1, 2), 12, mode="linear").transpose(1, 2)
    torch.testing.assert_close(new[3 * 144 :], lines.flatten(0, 1))


def test_more_texels_of_the_same_tokens_show_the_same() -> None:
    source, target = small(resolution=32, volume_patch=4), small(resolution=64, volume_patch=8)
    target.load_state_dict(resize_volume(source, target))
    latent, conditions = torch.randn(2, 65, 64), torch.ones(2, 2)
    with torch.no_grad():
        coarse, fine = (model.decode(latent, conditions) for model in (source, target))
    assert coarse.planes is not None and fine.planes is not None and coarse.lines is not None and fine.lines is not None
    tokens = coarse.planes.unflatten(-1, (8, 4)).unflatten(-3, (8, 4))  # (b, 3, c, 8, 4, 8, 4)
    cells = tokens.transpose(-3, -2).flatten(0, 4)[:, None]  # each token's own texels (n, 1, 4, 4)
    wanted = F.interpolate(cells, (8, 8), mode="bilinear").unflatten(0, (2, 3, 8, 8, 8))[:, :, :, :, :, 0]
    torch.testing.assert_close(fine.planes, wanted.transpose(-3, -2).flatten(-2).flatten(-3, -2))
    rows = F.interpolate(coarse.lines.flatten(0, 2).view(-1, 8, 4), 8, mode="linear")
    torch.testing.assert_close(fine.lines, rows.view_as(fine.lines))


def test_a_finer_token_makes_the_middle_of_what_a_coarse_one_did() -> None:
    source, target = small(resolution=32, volume_patch=4), small(resolution=64, volume_patch=4)
    name = "decoder.line_heads.linears.0.bias"
    ramp = torch.arange(4.0)[:, None].expand(4, 8)  # each channel grows along the token
    source.load_state_dict(source.state_dict() | {name: ramp.flatten()})
    bias = resize_volume(source, target)[name].view(4, 8)
    assert bias[:, 0].tolist() == [0.75, 1.25, 1.75, 2.25]


def test_another_form_is_refused() -> None:
    with pytest.raises(InputError, match="form triplane does not become one of form cp"):
        resize_volume(small(form="triplane"), small(form="cp"))
