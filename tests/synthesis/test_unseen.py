"""What the input shows of a sphere, a wall and a field, by geometry."""

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from belvedere.data.cameras import Camera
from belvedere.errors import InputError
from belvedere.synthesis.camera_paths import orbit
from belvedere.synthesis.cameras import input_camera
from belvedere.synthesis.render import Rendered, render_view
from belvedere.synthesis.unseen import TOLERANCE, surface_depth, unseen
from tests.synthesis.test_render import blobs

RADIUS = 0.5
INPUT = input_camera((80, 60), distance=1.5, fov=50)


def sphere(camera: Camera) -> Tensor:
    """Return the distance (h, w) at which the rays of a camera meet the sphere; infinity where they do not."""
    origins, directions = (rays.double() for rays in camera.rays())
    middle = -(origins * directions).sum(-1)
    square = middle**2 - (origins**2).sum(-1) + RADIUS**2
    return torch.where(square >= 0, middle - square.clamp(min=0).sqrt(), math.inf)


def view_of(depth: Tensor, opacity: float = 1.0) -> Rendered:
    """Return an opaque view, or one of another opacity, of a surface at this depth."""
    opaque = depth.isfinite() * opacity
    mean = torch.where(depth.isfinite(), depth * opaque, 0).float()
    return Rendered(torch.zeros(*depth.shape, 3), mean, opaque.float(), torch.zeros(()))


def test_depth_of_what_is_seen() -> None:
    depth, opacity = torch.tensor([[1.2, 0.3, 0.0]]), torch.tensor([[0.6, 0.4, 0.0]])
    view = Rendered(torch.zeros(1, 3, 3), depth, opacity, torch.zeros(()))
    assert surface_depth(view).tolist() == [[pytest.approx(2), math.inf, math.inf]]
    assert surface_depth(view, 0.3).tolist() == [[pytest.approx(2), pytest.approx(0.75), math.inf]]


def test_the_input_view_is_seen() -> None:
    found = unseen(view_of(sphere(INPUT)), INPUT, sphere(INPUT), INPUT)
    assert found.shape == INPUT.size and found.dtype == torch.float32
    assert found.max() < 1e-4


@pytest.mark.parametrize("angle", [30, 90, 150, 180, 270])
def test_the_far_side_of_a_sphere_is_unseen(angle: float) -> None:
    camera = orbit(INPUT, 1, start=angle, stop=angle, elevation=10)[0].scaled((64, 64))
    depth = sphere(camera)
    found = unseen(view_of(depth), camera, sphere(INPUT), INPUT)
    origins, directions = (rays.double() for rays in camera.rays())
    hit = depth.isfinite()
    points = origins + directions * torch.where(hit, depth, 0).unsqueeze(-1)
    away = torch.nn.functional.normalize(points - INPUT.position, dim=-1)
    slant = (points * away).sum(-1)  # below 0 on the near side; on the far side half of what lies in between
    near, far = hit & (slant < -0.15), hit & (slant > 0.15)
    assert near.sum() + far.sum() > 0.55 * hit.sum() and near.any() == (angle in (30, 90, 270))
    assert found[near].sum() <= 1e-3 * near.sum() and not (found[near] > 0.1).any()
    assert found[far].sum() >= 0.999 * far.sum() and not (found[far] < 0.8).any()
    assert found[~hit].max() == 0


def test_edges_are_soft() -> None:
    camera = orbit(INPUT, 1, start=90, stop=90)[0]
    found = unseen(view_of(sphere(camera)), camera, sphere(INPUT), INPUT)
    assert (((found > 0.1) & (found < 0.9)).sum(1) > 0).sum() > 20


def test_what_is_behind_by_a_little_is_seen() -> None:
    wall = torch.full(INPUT.size, 1.0, dtype=torch.float64)
    for behind, share in ((0.9, 0.0), (1.5, 0.5), (2.1, 1.0)):
        found = unseen(view_of(wall + behind * TOLERANCE), INPUT, wall, INPUT)
        torch.testing.assert_close(found, torch.full(INPUT.size, share), atol=1e-5, rtol=0)
    assert unseen(view_of(wall / 2), INPUT, wall, INPUT).max() < 1e-4  # in front of all that the input shows
    nothing = torch.full(INPUT.size, math.inf)
    assert unseen(view_of(wall), INPUT, nothing, INPUT).max() < 1e-4  # where the input looked through


def test_outside_the_input_picture() -> None:
    wide = Camera(INPUT.pose, INPUT.focal, (60.0, 40.0), (80, 120))  # 30 columns more on either side
    wall = 1.5 / wide.rays()[1][..., 2].double()  # a plane
    found = unseen(view_of(wall), wide, 1.5 / INPUT.rays()[1][..., 2].double(), INPUT)
    assert found[:, :30].min() > 1 - 1e-5 and found[:, 90:].min() > 1 - 1e-5
    assert found[:, 30:90].max() < 1e-5
    half = replace(wide, principal=(59.75, 40.0))
    edge = unseen(view_of(wall), half, torch.full(INPUT.size, math.inf), INPUT)
    torch.testing.assert_close(
        edge[:, [29, 30, 89, 90]], torch.tensor([0.75, 0, 0.25, 1]).expand(80, 4), atol=1e-4, rtol=0
    )


def test_behind_the_input_camera() -> None:
    camera = orbit(INPUT, 1, start=180, stop=180)[0]
    found = unseen(view_of(torch.full(camera.size, 4.0)), camera, torch.full(INPUT.size, math.inf), INPUT)
    assert found.min() == 1
    at_it = unseen(view_of(torch.zeros(INPUT.size)), INPUT, torch.full(INPUT.size, math.inf), INPUT)
    assert at_it.isfinite().all()


def test_what_is_hardly_there_hardly_counts() -> None:
    camera = orbit(INPUT, 1, start=180, stop=180)[0]
    found = unseen(view_of(sphere(camera), 0.25), camera, sphere(INPUT), INPUT)
    assert found.max() == 0.25 and (found == 0.25).sum() > 0.8 * sphere(camera).isfinite().sum()


def test_of_a_field() -> None:
    field, where = blobs(2), {"near": 0.5, "far": 2.5, "samples": 64}
    input_depth = surface_depth(render_view(field, INPUT, **where))
    shares = []
    for angle in (0, 60, 180):
        camera = orbit(INPUT, 1, start=angle, stop=angle)[0]
        view = render_view(field, camera, **where)
        found = unseen(view, camera, input_depth, INPUT)
        assert ((found >= 0) & (found <= view.opacity)).all()
        shares.append((found.sum() / view.opacity.sum()).item())
    assert shares[0] < 0.03 < shares[1] < shares[2] and shares[2] > 0.5


def test_wrong_arguments() -> None:
    view, depth = view_of(sphere(INPUT)), sphere(INPUT)
    with pytest.raises(InputError, match=r"a view of \(80, 60\)"):
        unseen(view, INPUT.scaled((40, 30)), depth, INPUT)
    with pytest.raises(InputError, match=r"the input depth of \(80, 60\)"):
        unseen(view, INPUT, depth, INPUT.scaled((40, 30)))
    with pytest.raises(InputError, match="tolerance"):
        unseen(view, INPUT, depth, INPUT, tolerance=0)
