"""Training of NViST: pixels and rays that are those of the cameras, and a loss that falls."""

import math

import pytest
import torch

from belvedere.data.cameras import Camera
from belvedere.data.toybox.views import ToyboxViews
from belvedere.errors import InputError
from belvedere.seeds import BatchRng
from belvedere.synthesis.cameras import conditions, relative_cameras
from belvedere.synthesis.nvist import NViST
from belvedere.synthesis.render import render_rays
from belvedere.synthesis.view_training import (
    choose_pixels,
    distance_loss,
    input_conditions,
    loss,
    parameter_groups,
    render_targets,
    view_rays,
)

BATCH = ToyboxViews(32, samples=1, distances=True).batch([0, 1])


def small() -> NViST:
    torch.manual_seed(0)
    return NViST(
        image=(32, 32), patch=8, dim=32, encoder_depth=1, encoder_heads=2, decoder_depth=2, decoder_heads=2,
        resolution=8, volume_patch=4, density=2, colour=4, hidden=16, near=1.0, far=3.0, samples=12,
    )  # fmt: skip


def test_pixels_are_a_patch_of_a_target_and_others_anywhere() -> None:
    pixels = choose_pixels(BatchRng(0, 0, range(40)), 3, (16, 20), (4, 5), 64)
    square, others = pixels[:, :20], pixels[:, 20:]
    view, row, column = square // 320, square // 20 % 16, square % 20
    assert (view == view[:, :1]).all() and set(view.unique().tolist()) == {1, 2}
    for places, side in ((row, 4), (column, 5)):
        assert (places.amax(1) - places.amin(1) == side - 1).all()
    assert square.unique(dim=1).shape == square.shape
    assert others.min() >= 0 and others.max() < 960 and {0, 1, 2} == set((others // 320).unique().tolist())


def test_rays_and_colours_are_those_of_the_cameras() -> None:
    truth = torch.cat((BATCH["image"][:, None], BATCH["views"]), 1)
    pixels = torch.randint(0, 3 * 32 * 32, (2, 50), generator=torch.Generator().manual_seed(0))
    found = view_rays(truth, BATCH["poses"], BATCH["intrinsics"], pixels)
    for scene in range(2):
        cameras = relative_cameras(
            [
                Camera(pose.double(), (lens[0].item(), lens[1].item()), (lens[2].item(), lens[3].item()), (32, 32))
                for pose, lens in zip(BATCH["poses"][scene], BATCH["intrinsics"][scene], strict=True)
            ]
        )
        for i, pixel in enumerate(pixels[scene].tolist()):
            view, place = divmod(pixel, 1024)
            origin, direction = cameras[view].rays(torch.tensor([place]))
            assert torch.allclose(found.origins[scene, i], origin[0], atol=1e-5)
            assert torch.allclose(found.directions[scene, i], direction[0], atol=1e-5)
            assert torch.equal(found.colours[scene, i], truth[scene, view, :, place // 32, place % 32])
        known = input_conditions(BATCH["poses"], BATCH["intrinsics"], 32)[scene]
        assert torch.allclose(known, conditions(cameras[:1])[0], atol=1e-5)


def test_loss_falls() -> None:
    model = small().train()
    groups = [group | {"lr": 3e-3 * group["lr_scale"]} for group in parameter_groups(model, 0.0)]
    optimizer, seen = torch.optim.AdamW(groups), []
    for _ in range(30):
        value, logs = loss(model, BATCH, BatchRng(0, 0, [0, 1]), patch=(28, 28), rays=64)
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        seen.append(logs)
    assert seen[-1]["loss"] < 0.7 * seen[0]["loss"] and seen[-1]["mse"] < seen[0]["mse"]
    assert set(seen[0]) == {"loss", "mse", "psnr", "perceptual", "distortion", "opacity"}


def test_without_a_perceptual_loss_there_is_no_patch() -> None:
    model, rng = small(), BatchRng(0, 0, [0, 1])
    value, logs = loss(model, BATCH, rng, perceptual=None, rays=200)
    assert "perceptual" not in logs and choose_pixels(rng, 3, (32, 32), None, 200).shape == (2, 200)
    assert value.item() == pytest.approx(logs["mse"] + 0.001 * logs["distortion"])


def test_distances_teach_where_rays_end() -> None:
    """The loss is what it says of given weights, and alone it moves a network's depth to the truth."""
    edges = torch.tensor([1.0, 2.0, 3.0, 4.0])
    weights = torch.tensor([[[0.7, 0.2, 0.1], [0.1, 0.6, 0.0]]])
    found = distance_loss(weights, edges, torch.tensor([[0.5, 2.5]]))
    assert found.item() == pytest.approx(-(math.log(0.7) + math.log(0.6)) / 2, abs=1e-5)
    beyond = distance_loss(weights[:, 1:], edges, torch.tensor([[torch.inf]]))
    assert beyond.item() == pytest.approx(-math.log(0.3), abs=1e-5)
    model = small().train()
    optimizer = torch.optim.AdamW(model.parameters(), 3e-3)
    seen = []
    for _ in range(40):
        value, logs = loss(model, BATCH, BatchRng(0, 0, [0, 1]), perceptual=None, rays=200, distance_weight=1.0)
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        seen.append(logs["distance"])
    assert seen[-1] < 0.8 * seen[0]


def test_targets_are_rendered_in_the_order_of_the_data() -> None:
    model = small().eval()
    truth, made, depth = render_targets(model, BATCH)
    assert torch.equal(truth, BATCH["views"] / 2 + 0.5) and made.shape == truth.shape == depth.shape
    target = view_rays(truth, BATCH["poses"][:, 1:], BATCH["intrinsics"][:, 1:], torch.zeros(2, 1, dtype=torch.long))
    assert target.colours.shape == (2, 1, 3) and depth.min() >= 0 and depth.max() <= 1
    conditions = input_conditions(BATCH["poses"], BATCH["intrinsics"], 32)
    with torch.no_grad():
        field = model(BATCH["image"] / 2 + 0.5, conditions)
        pixels = 2 * 1024 + torch.arange(0, 1024, 37).expand(2, -1)  # of the second target
        rays = view_rays(torch.cat((truth[:, :1], truth), 1), BATCH["poses"], BATCH["intrinsics"], pixels)
        seen = render_rays(field, rays.origins, rays.directions, near=1.0, far=3.0, samples=12)
    assert torch.allclose(made[:, 1].permute(0, 2, 3, 1).flatten(1, 2)[:, ::37], seen.colour, atol=1 / 128)


def test_a_batch_is_a_function_of_step_and_sample() -> None:
    model = small()
    values = [loss(model, BATCH, BatchRng(0, step, [0, 1]), patch=(28, 28), rays=8)[0].item() for step in (1, 1, 2)]
    assert values[0] == values[1] != values[2]


def test_groups_hold_every_parameter_once() -> None:
    model = small()
    groups = parameter_groups(model, 0.01, pretrained=True)
    found = [p for group in groups for p in group["params"]]
    assert len(found) == len({id(p) for p in found}) == len(list(model.parameters()))
    assert [group["lr_scale"] for group in groups] == [0.2, 1.0]


def test_a_patch_that_does_not_fit_is_refused() -> None:
    with pytest.raises(InputError, match="none fits"):
        choose_pixels(BatchRng(0, 0, [0]), 3, (16, 16), (17, 4), 8)
    with pytest.raises(InputError, match="none fits"):
        choose_pixels(BatchRng(0, 0, [0]), 1, (16, 16), (4, 4), 8)
