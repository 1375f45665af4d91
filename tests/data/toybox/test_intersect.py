"""Entries, exits and normals against values worked by hand and against marching along the ray."""

import math

import pytest
import torch
from torch import Tensor

from belvedere.data.toybox.intersect import normal, span
from belvedere.data.toybox.shapes import BALL, BLOCK, CONE, RING

FORMS = {
    "ball": (BALL, (-1.0, 0.0)),
    "dome": (BALL, (0.2, 0.0)),
    "cylinder": (CONE, (1.0, 1.0)),
    "cone": (CONE, (1.0, 0.0)),
    "flared": (CONE, (0.3, 1.4)),
    "box": (BLOCK, (1.0, 1.0)),
    "prism": (BLOCK, (1.0, 0.0)),
    "hull": (BLOCK, (1.5, 0.4)),
    "ring": (RING, (0.25, 0.0)),
}


def depth_inside(shape: int, form: tuple[float, float], p: Tensor) -> Tensor:
    """Return a function of points (..., 3) that is positive inside the shape: its definition."""
    x, y, z = p.unbind(-1)
    if shape == BALL:
        return torch.minimum(1 - (p * p).sum(-1), y - form[0])
    if shape == RING:
        return form[0] ** 2 - ((x * x + z * z).sqrt() - 1) ** 2 - y * y
    share = (y + 1) / 2
    if shape == CONE:
        return torch.minimum(form[0] + (form[1] - form[0]) * share - (x * x + z * z).sqrt(), 1 - y.abs())
    sides = torch.minimum(1 + (form[0] - 1) * share - x.abs(), 1 + (form[1] - 1) * share - z.abs())
    return torch.minimum(sides, 1 - y.abs())


def ask(shape: int, form: tuple[float, float], q: Tensor, d: Tensor) -> tuple[Tensor, Tensor]:
    near, far = span(shape, list(q.T[:, None]), list(d.T[:, None]), torch.tensor(form)[:, None, None])
    return near[0], far[0]


@pytest.mark.parametrize("name", FORMS)
def test_entry_and_exit_agree_with_marching_along_the_ray(name: str) -> None:
    shape, form = FORMS[name]
    rng = torch.Generator().manual_seed(7)
    q = torch.nn.functional.normalize(torch.randn(300, 3, generator=rng), dim=1) * 3
    aim = torch.rand(300, 3, generator=rng) * 2.4 - 1.2
    d = torch.nn.functional.normalize(aim - q, dim=1)
    near, far = ask(shape, form, q, d)
    t = torch.linspace(1, 5, 2001, dtype=torch.float64)
    inside = depth_inside(shape, form, q[:, None].double() + d[:, None].double() * t[:, None]) > 0
    hit = inside.any(1)
    grazing = ((near < 100) != hit).sum()
    assert hit.sum() > 70
    assert grazing <= 3  # chords shorter than a step of the march
    both = hit & (near < 100)
    first = t[inside.int().argmax(1)]
    assert (near[both] - first[both]).abs().max() < 3e-3
    if shape != RING:  # the ring has up to two chords
        last = t[2000 - inside.flip(1).int().argmax(1)]
        assert (far[both] - last[both]).abs().max() < 3e-3


@pytest.mark.parametrize("name", FORMS)
def test_normals_point_outwards_and_stand_on_the_surface(name: str) -> None:
    shape, form = FORMS[name]
    rng = torch.Generator().manual_seed(8)
    q = torch.nn.functional.normalize(torch.randn(800, 3, generator=rng), dim=1) * 3
    d = torch.nn.functional.normalize(torch.rand(800, 3, generator=rng) * 1.6 - 0.8 - q, dim=1)
    near, _ = ask(shape, form, q, d)
    hit = near < 100
    p = (q + d * near[:, None])[hit]
    n = torch.stack(normal(shape, list(p.T[:, None]), torch.tensor(form)[:, None, None]), -1)[0]
    n = torch.nn.functional.normalize(n, dim=1)
    assert torch.isfinite(n).all()
    x = p.double().requires_grad_()
    (gradient,) = torch.autograd.grad(depth_inside(shape, form, x).sum(), x)
    outward = torch.nn.functional.normalize(-gradient, dim=1).float()
    cosine = (n * outward).sum(1)
    rounded = shape == BLOCK  # edges of blocks are shaded round on purpose
    assert (cosine > (0.9 if rounded else 0.999)).float().mean() > (0.8 if rounded else 0.99)


def test_a_ray_along_an_axis_meets_each_shape_where_it_should() -> None:
    q, down = torch.tensor([[0.0, 5.0, 0.0]]), torch.tensor([[0.0, -1.0, 0.0]])
    for shape, form, top, bottom in (
        (BALL, (-1.0, 0.0), 4, 6),
        (BALL, (0.5, 0.0), 4, 4.5),
        (CONE, (1.0, 1.0), 4, 6),
        (BLOCK, (1.0, 1.0), 4, 6),
        (BLOCK, (0.5, 0.5), 4, 6),
    ):
        near, far = ask(shape, form, q, down)
        assert near.item() == pytest.approx(top, abs=1e-5)
        assert far.item() == pytest.approx(bottom, abs=1e-5)
    side, along = torch.tensor([[-5.0, 0.0, 0.0]]), torch.tensor([[1.0, 0.0, 0.0]])
    assert ask(CONE, (1.0, 0.0), side, along)[0].item() == pytest.approx(4.5, abs=1e-5)
    assert ask(BLOCK, (0.0, 1.0), side, along)[0].item() == pytest.approx(4.5, abs=1e-5)
    assert ask(RING, (0.25, 0.0), side, along)[0].item() == pytest.approx(3.75, abs=1e-4)
    assert ask(RING, (0.25, 0.0), q, down)[0].item() > 1e6  # through the hole


def test_rays_parallel_to_a_face_outside_it_miss() -> None:
    q, d = torch.tensor([[-5.0, 1.5, 0.0]]), torch.tensor([[1.0, 0.0, 0.0]])
    for shape, form in FORMS.values():
        near, _ = ask(shape, form, q, d)
        assert near.item() > 1e6 and not math.isnan(near.item())
