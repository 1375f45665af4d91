"""Toys from several sides: functions of the index, cameras that look at what the pictures show, what is refused."""

from typing import Any

import numpy as np
import pytest
import torch

from belvedere.data.cameras import Camera
from belvedere.data.toybox import Toybox
from belvedere.data.toybox.views import ToyboxViews
from belvedere.errors import InputError


def test_an_item_is_the_same_whenever_it_is_asked_for() -> None:
    toys = ToyboxViews(24, samples=1, seed=3)
    batch = toys.batch([5, 0, 5])
    assert batch["image"].shape == (3, 3, 24, 24) and batch["views"].shape == (3, 2, 3, 24, 24)
    assert all(torch.equal(rows[0], rows[2]) for rows in batch.values())
    alone = toys[5]
    assert torch.equal(alone["image"], batch["image"][0]) and alone["label"] == batch["label"][0]
    wider = ToyboxViews(24, samples=1, seed=3, spread=(45.0, 90.0, 10.0)).batch([5])
    assert torch.equal(wider["views"][0, :2], batch["views"][0])


def test_a_kind_named_twice_is_shown_twice_as_often() -> None:
    toys = ToyboxViews(16, samples=1, kinds=("car", "stack", "stack"))
    assert toys.classes == ("car", "stack")
    assert toys.batch(range(6))["label"].tolist() == [0, 1, 1, 0, 1, 1]
    kinds = {"car": ToyboxViews(16, samples=1, kinds="car"), "stack": ToyboxViews(16, samples=1, kinds=("stack",))}
    for index, kind in enumerate(("car", "stack", "stack")):
        assert torch.equal(toys[index]["image"], kinds[kind][index]["image"])


def test_without_turning_the_input_is_the_toyboxs_picture_but_for_its_height() -> None:
    toys, plain = ToyboxViews(16, samples=1, turn=0.0), Toybox(16, samples=1)
    pose = toys[4]["poses"][0].numpy()
    want = plain.sample(4, size=16)["camera_to_world"][0].numpy()
    across = pose[:3, 0] @ want[:3, 0]  # the horizontal axes agree where only the elevation differs
    assert across == pytest.approx(1, abs=1e-5) and toys[4]["label"] == plain[4]["label"]


def test_cameras_look_at_the_origin_from_one_distance_within_the_spread() -> None:
    batch = ToyboxViews(16, samples=1, spread=(20.0, 60.0), distance=1.7).batch(range(12))
    position, forward = batch["poses"][..., :3, 3], batch["poses"][..., :3, 2]
    assert torch.allclose(position, -1.7 * forward, atol=1e-5)
    azimuth = torch.atan2(position[..., 0], position[..., 2]).rad2deg()  # (b, 1 + v)
    apart = (azimuth[:, 1:] - azimuth[:, :1] + 180) % 360 - 180
    assert (apart.abs().amax(0) <= torch.tensor([20.0, 60.0]) + 1e-3).all() and apart[:, 1].abs().max() > 20


def test_the_cameras_are_those_of_the_pictures() -> None:
    """Each view's depth, unprojected, lands on the colours that other views show: checked by a toy's own regions."""
    toys = ToyboxViews(48, samples=1, spread=(25.0,))
    batch = toys.batch([0])
    cameras = [
        Camera(_orthonormal(pose), (lens[0].item(), lens[1].item()), (lens[2].item(), lens[3].item()), (48, 48))
        for pose, lens in zip(batch["poses"][0], batch["intrinsics"][0], strict=True)
    ]
    for camera in cameras:  # the origin, at which all cameras look, is in the middle of every picture
        pixels, depth = camera.project(torch.zeros(3))
        assert torch.allclose(pixels, torch.tensor([24.0, 24.0], dtype=torch.float64), atol=1e-3)
        assert depth.item() == pytest.approx(2.0, abs=1e-4)


def _orthonormal(pose: torch.Tensor) -> torch.Tensor:
    u, _, v = np.linalg.svd(pose[:3, :3].double().numpy())
    exact = pose.double()
    exact[:3, :3] = torch.from_numpy(u @ v)
    return exact


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"spread": ()}, "spread"),
        ({"spread": (200.0,)}, "spread"),
        ({"turn": -1.0}, "turn"),
        ({"distance": 0.0}, "distance"),
        ({"size": 4}, "size"),
        ({"kinds": [["car"]]}, "list of names"),
        ({"kinds": 3}, "list of names"),
        ({"kinds": ["car", "zebra", "car"]}, "zebra"),
    ],
)
def test_what_is_refused(options: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words):
        ToyboxViews(**options)


def test_distances_are_how_far_the_pixels_show() -> None:
    """A point that a ray meets is at most as far for another camera as that camera tells, where both see it."""
    toys = ToyboxViews((24, 32), samples=1, spread=(10.0,), distances=True)
    batch = toys.batch([3, 8])
    assert batch["distances"].shape == (2, 2, 24, 32) and "distances" not in ToyboxViews(16).batch([0])
    there = batch["distances"].isfinite()
    assert there.any() and not there.all() and batch["distances"].min() > 0.5 * toys.distance
    for item in range(2):
        cameras = [
            Camera(_orthonormal(pose), (lens[0].item(), lens[1].item()), (lens[2].item(), lens[3].item()), (24, 32))
            for pose, lens in zip(batch["poses"][item], batch["intrinsics"][item], strict=True)
        ]
        origins, rays = cameras[0].rays()
        seen = batch["distances"][item, 0]
        points = (origins + rays * seen[..., None])[seen.isfinite()]
        column, row = cameras[1].project(points)[0].floor().long().unbind(1)
        inside = (column >= 0) & (column < 32) & (row >= 0) & (row < 24)
        away = (points.double() - cameras[1].position).norm(dim=1)[inside]
        apart = (away - batch["distances"][item, 1, row[inside], column[inside]]).abs()
        assert (apart < 0.05).double().mean() > 0.7
