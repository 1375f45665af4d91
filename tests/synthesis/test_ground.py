"""The ground that a camera looks down at, in points made by hand, in true distances and in what a network makes."""

import math

import pytest
import torch
from torch import Tensor

from belvedere.checkpoints.views import SceneModel, open_scene_model
from belvedere.data.toybox.views import ToyboxViews
from belvedere.synthesis.cameras import input_camera
from belvedere.synthesis.ground import find_pitch, ground_pitch
from belvedere.synthesis.view_training import input_conditions

DISTANCE = 2.0


def seen(pitch: float, ground: int, thing: int) -> Tensor:
    """Return points of a ground 0.3 below the origin and of a box that stands on it, in the axes of a camera."""
    draw = torch.Generator().manual_seed(0)
    flat = torch.rand(ground, 3, generator=draw) * torch.tensor([1.4, 0.01, 1.4]) - torch.tensor([0.7, -0.3, 0.7])
    box = torch.rand(thing, 3, generator=draw) * torch.tensor([0.5, 0.6, 0.3]) - torch.tensor([0.25, 0.3, 0.15])
    x, y, z = torch.cat((flat, box)).unbind(1)
    c, s = math.cos(math.radians(pitch)), math.sin(math.radians(pitch))
    return torch.stack((x, c * y - s * z, s * y + c * z), 1)


@pytest.mark.parametrize("pitch", [0.0, 12.0, 26.5, 55.0])
def test_a_plane_with_a_box_on_it(pitch: float) -> None:
    assert ground_pitch(seen(pitch, 3000, 1500), DISTANCE) == pytest.approx(pitch, abs=1)


def test_the_unit_of_length_does_not_matter() -> None:
    points = seen(30.0, 3000, 1500)
    assert ground_pitch(points * 7, DISTANCE * 7) == ground_pitch(points, DISTANCE)


@pytest.mark.parametrize("points", [torch.zeros(0, 3), torch.randn(4000, 3, generator=torch.Generator()) * 0.2])
def test_without_a_ground(points: Tensor) -> None:
    assert ground_pitch(points, DISTANCE) is None


@pytest.fixture(scope="module")
def model() -> SceneModel:
    return open_scene_model("nvist-toybox")


def test_the_ground_of_toys(model: SceneModel) -> None:
    """Of true distances, and of the scene that the embedded network makes, which is nearer than the usual pitch."""
    batch = ToyboxViews(64, spread=(0.0,), seed=4321, distances=True).batch(range(12))
    conditions = input_conditions(batch["poses"], batch["intrinsics"], 64)
    pitches = -batch["poses"][:, 0, 1, 2].asin().rad2deg()  # y of the direction of view
    camera = input_camera((64, 64), distance=model.distance, fov=model.fov)
    origins, directions = (rays.float() for rays in camera.rays())
    with torch.no_grad():
        field = model.network((batch["image"] + 1) / 2, conditions)
    config = model.network.config
    options = {"near": config.near, "far": config.far, "samples": config.samples}
    errors = []
    for i, pitch in enumerate(pitches.tolist()):
        distance = batch["distances"][i, 0]
        shown = distance.isfinite()
        points = origins[shown] + directions[shown] * distance[shown].unsqueeze(-1)
        assert ground_pitch(points, model.distance) == pytest.approx(pitch, abs=1.5)
        found = find_pitch(field.scene(i), camera, **options)
        assert found is not None
        errors.append((abs(found - pitch), abs(model.pitch - pitch)))
    found, usual = torch.tensor(errors).mean(0).tolist()
    assert found < 1.5 and usual > 3
