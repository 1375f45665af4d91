"""Masked autoencoding: published sizes, what is masked and what counts, training, the way into NViST."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from belvedere.errors import InputError
from belvedere.seeds import BatchRng
from belvedere.synthesis.mae import MAE, complete, loss, parameter_groups
from belvedere.synthesis.nvist import NViST
from belvedere.synthesis.nvist_config import MAE_VARIANTS, VARIANTS
from belvedere.synthesis.vit import patchify, unpatchify

SMALL: dict[str, Any] = {
    "patch": 4, "dim": 24, "encoder_depth": 2, "encoder_heads": 3, "encoder_mlp_ratio": 2.0, "decoder_dim": 16,
    "decoder_depth": 1, "decoder_heads": 2,
}  # fmt: skip


def small(**changes: Any) -> MAE:
    torch.manual_seed(0)
    return MAE(**(SMALL | changes))


def batch(count: int = 2, height: int = 16, width: int = 20) -> dict[str, Tensor]:
    """Pictures of smooth gradients, in [-1, 1]."""
    y, x = torch.linspace(-1, 1, height)[:, None], torch.linspace(-1, 1, width)
    rows = [torch.stack(((y * (i + 1)).sin() * x, x * y, y + 0 * x)) for i in range(count)]
    return {"image": torch.stack(rows)}


def seen(model: MAE, rng: BatchRng, ratio: float = 0.75) -> Tensor:
    """The numbers of the patches that a training step shows to the encoder."""
    given = []
    hook = model.encoder.register_forward_pre_hook(lambda module, inputs: given.append(inputs[1]))
    loss(model, batch(len(rng.samples)), rng, mask_ratio=ratio)
    hook.remove()
    return given[0]


@pytest.mark.parametrize("name", list(MAE_VARIANTS))
def test_a_variant_has_the_encoder_of_the_network_it_trains(name: str) -> None:
    assert MAE_VARIANTS.keys() == VARIANTS.keys()
    with torch.device("meta"):
        mae, nvist = MAE.from_variant(name), NViST.from_variant(name)
    assert {k: x.shape for k, x in mae.encoder.state_dict().items()} == {
        k: x.shape for k, x in nvist.encoder.state_dict().items()
    }


def test_the_published_network() -> None:
    """ViT-B and MAE's own decoder: 512 wide, 8 deep, 16 heads."""
    with torch.device("meta"):
        model, alone = MAE.from_variant("NViST"), MAE()
    parts = {name: sum(p.numel() for p in part.parameters()) for name, part in model.named_children()}
    assert parts["encoder"] == 85_113_600 and parts["decoder_blocks"] == 8 * 12 * 512**2 + 8 * 13 * 512
    assert parts["head"] == 513 * 75 and parts["decoder_embed"] == 769 * 512
    assert {key: alone.config[key] for key in MAE_VARIANTS["NViST"]} == MAE_VARIANTS["NViST"]


def test_the_encoder_goes_straight_into_nvist() -> None:
    fields = {key: value for key, value in SMALL.items() if not key.startswith("decoder_")}
    mae = small()
    nvist = NViST(image=[16, 20], **fields, decoder_depth=1, decoder_heads=2, resolution=6)
    nvist.encoder.load_state_dict(mae.encoder.state_dict())
    image = (batch()["image"] + 1) / 2
    with torch.no_grad():
        assert torch.equal(nvist.encode(image), mae.encoder(image))


def test_patches_are_rows_of_pixels_with_colours_together() -> None:
    image = torch.arange(2 * 3 * 8 * 12).view(2, 3, 8, 12)
    patches = patchify(image, 4)
    assert patches.shape == (2, 6, 48)
    want = [image[1, c, 4 + i, 8 + j] for i in range(4) for j in range(4) for c in range(3)]
    assert torch.equal(patches[1, 5], torch.stack(want))


@pytest.mark.parametrize(("ratio", "kept"), [(0.75, 5), (0.5, 10), (0.9, 2)])
def test_the_share_of_masked_patches_is_exact(ratio: float, kept: int) -> None:
    visible = seen(small(), BatchRng(0, 0, range(8)), ratio)
    assert visible.shape == (8, kept)
    assert all(len(set(row)) == kept and set(row) < set(range(20)) for row in visible.tolist())


def test_masks_are_of_the_sample_and_the_step() -> None:
    model = small()
    first, alone = seen(model, BatchRng(0, 3, [4, 5])), seen(model, BatchRng(0, 3, [5]))
    assert torch.equal(first[1:], alone) and not torch.equal(first[0], first[1])
    assert not torch.equal(seen(model, BatchRng(0, 4, [4, 5])), first)


def test_every_patch_is_as_likely_to_be_seen() -> None:
    shown = seen(small(), BatchRng(0, 0, range(400))).flatten()
    counts = torch.bincount(shown, minlength=20)  # of 100 expected, deviation 8.7
    assert counts.min() > 60 and counts.max() < 140


def test_only_masked_patches_count() -> None:
    model, rng = small(), BatchRng(0, 0, [0, 1])
    visible, want = seen(model, rng), loss(model, batch(), rng)[0]

    def change(module: Any, inputs: Any, output: Tensor) -> Tensor:
        rows = torch.zeros(2, 21, 1).scatter(1, visible[..., None] + 1, 1e3)  # the class token is before them
        rows[:, 0] = 1e3
        return output + rows

    model.head.register_forward_hook(change)
    assert torch.equal(loss(model, batch(), rng)[0], want)


def test_masked_pixels_reach_no_prediction() -> None:
    model, image, visible = small(), (batch()["image"] + 1) / 2, torch.tensor([[3, 11], [0, 19]])
    hidden = torch.ones(2, 20, 1).scatter(1, visible[..., None], 0)
    spoilt = image + hidden.view(2, 1, 4, 5).repeat_interleave(4, 2).repeat_interleave(4, 3)
    with torch.no_grad():
        assert torch.equal(model(spoilt, visible), model(image, visible))


def test_loss_by_hand() -> None:
    model, rng = small(input_norm="half"), BatchRng(0, 0, [0, 1])
    visible = seen(model, rng)
    with torch.no_grad():
        value, logs = loss(model, batch(), rng)
        prediction = model((batch()["image"] + 1) / 2, visible)
    errors = (prediction - patchify(batch()["image"], 4)).square().mean(-1)  # "half" normalises to [-1, 1]
    masked = [errors[i, j] for i in range(2) for j in range(20) if j not in visible[i].tolist()]
    torch.testing.assert_close(value, torch.stack(masked).mean())
    assert logs == {"loss": value.item()}


def test_order_of_the_visible_patches_does_not_matter() -> None:
    model, image, visible = small(), (batch()["image"] + 1) / 2, torch.tensor([[3, 11, 7], [0, 19, 4]])
    with torch.no_grad():
        torch.testing.assert_close(model(image, visible.flip(1)), model(image, visible), atol=1e-5, rtol=1e-4)


def test_loss_falls_and_every_parameter_trains() -> None:
    model = small()
    (group,) = parameter_groups(model, 0.0)
    optimizer = torch.optim.AdamW(group["params"], lr=3e-3, weight_decay=group["weight_decay"])
    seen = []
    for step in range(30):
        value, logs = loss(model, batch(4), BatchRng(0, step, range(4)))
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        seen.append(logs["loss"])
    assert [name for name, p in model.named_parameters() if p.grad is None] == []
    assert sum(seen[-5:]) < 0.5 * sum(seen[:5])


def test_autocast_keeps_the_loss_precise() -> None:
    model, rng = small(), BatchRng(0, 0, [0, 1])
    with torch.autocast("cpu", torch.bfloat16):
        value, _ = loss(model, batch(), rng)
    want, _ = loss(model, batch(), rng)
    assert value.dtype == torch.float32 and abs(value - want) < 0.02 * want


def test_saves_and_loads(tmp_path: Path) -> None:
    model, image, visible = small(), (batch()["image"] + 1) / 2, torch.tensor([[3, 11], [0, 19]])
    model.save_pretrained(tmp_path)
    with torch.no_grad():
        assert torch.equal(MAE.from_pretrained(tmp_path)(image, visible), model(image, visible))


@pytest.mark.parametrize("ratio", [0.0, 1.0, 0.99, -0.1])
def test_masks_of_nothing_or_everything(ratio: float) -> None:
    with pytest.raises(InputError, match=r"mask_ratio .*: leaves \d+ of 20 patches"):
        loss(small(), batch(), BatchRng(0, 0, [0, 1]), mask_ratio=ratio)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"patch": 0}, "patch 0: must be an integer from 1"),
        ({"dim": 26}, "dim 26: must be a multiple of the 3 encoder_heads"),
        ({"decoder_dim": 18}, "decoder_dim 18: must be a multiple of 4"),
        ({"decoder_heads": 3}, "decoder_dim 16: must be a multiple of the 3 decoder_heads"),
        ({"input_norm": "batch"}, "input_norm 'batch': choose from imagenet, half"),
    ],
)
def test_bad_configs_name_the_field(change: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        small(**change)


def test_pictures_that_are_no_multiple_of_the_patch() -> None:
    with pytest.raises(InputError, match=r"sides multiples of 4"):
        loss(small(), batch(1, 16, 18), BatchRng(0, 0, [0]))


def test_unknown_variant() -> None:
    with pytest.raises(InputError, match="no MAE variant 'XL': choose from NViST, "):
        MAE.from_variant("XL")


def test_a_sheet_shows_what_is_seen_and_what_is_made_of_it() -> None:
    torch.manual_seed(0)
    model, image = small(), batch(2)["image"] / 2 + 0.5
    left, made = complete(model, image)
    seen = (left == image).all(1, keepdim=True)
    assert left.shape == made.shape == image.shape and made.min() >= 0 and made.max() <= 1
    assert torch.equal(made * seen, image * seen) and not torch.allclose(made, image)
    assert seen.float().mean().item() == pytest.approx(0.25, abs=0.02)
    assert torch.equal(unpatchify(patchify(image, 4), (image.shape[2] // 4, image.shape[3] // 4)), image)
