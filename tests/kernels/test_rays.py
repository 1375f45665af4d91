"""Rays through a factored volume, by the public function where there is no kernel: against the ops it is made of."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from belvedere import kernels
from belvedere.kernels import (
    Composited,
    RayDecoder,
    composite,
    ray_weights,
    render_factored,
    renders_in_one_pass,
    sample_grid,
)
from tests.kernels.test_ops import agree
from tests.kernels.test_volume import PADDINGS

FORMS = ("vector_matrix", "triplane", "cp")


class Rays(kernels.Rays):
    """Rays from around (0, 0, -1.4) towards the box, some past it."""

    @classmethod
    def some(cls, b: int, n: int, s: int, e: int = 4, seed: int = 0) -> "Rays":
        draw = torch.Generator().manual_seed(seed)
        origins = torch.randn(b, n, 3, generator=draw) * 0.1 - torch.tensor([0, 0, 1.4])
        directions = F.normalize(torch.rand(b, n, 3, generator=draw) * 2.4 - 1.2 - origins, dim=-1)
        edges = 0.4 + 2 * torch.rand(s + 1, generator=draw).sort().values
        return cls(origins, directions, torch.randn(b, n, e, generator=draw), edges)

    def at(self, *place: Any) -> "Rays":
        """Return some scenes, or some rays of some scenes."""
        return Rays(*(x[place] for x in self[:3]), self.edges)

    def to(self, dtype: torch.dtype) -> "Rays":
        return Rays(*(x.to(dtype) for x in self))


def leaves(
    form: str, b: int = 2, r: int = 4, density: int = 2, colour: int = 3, h: int = 5, e: int = 4, seed: int = 0
) -> list[Tensor]:
    """Return what is learned, in the order of the arguments: planes, lines, the decoder's weights."""
    c, axes = density + colour, 1 if form == "cp" else 3
    shapes: list[tuple[int, ...]] = [] if form == "cp" else [(b, 3, c, r, r)]
    shapes += [] if form == "triplane" else [(b, 3, c, r)]
    shapes += [(h, axes * colour), (h,), (h, h + e), (h,), (3, h), (3,)]
    shapes += [(1, 3 * density), (1,)] if form == "triplane" else []
    draw = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=draw).requires_grad_() for shape in shapes]


def parts(form: str, given: tuple[Tensor, ...]) -> tuple[Tensor | None, Tensor | None, RayDecoder]:
    """Return planes, lines and the decoder."""
    rest = list(given)
    planes = None if form == "cp" else rest.pop(0)
    lines = None if form == "triplane" else rest.pop(0)
    return planes, lines, RayDecoder(*rest)


def joined(seen: Any) -> Tensor:
    return torch.cat([part.flatten() for part in seen])


def rendered(form: str, rays: Rays, **options: Any) -> Callable[..., Tensor]:
    """Return ``render_factored`` as a function of what is learned."""

    def function(*given: Tensor) -> Tensor:
        planes, lines, decoder = parts(form, given)
        return joined(render_factored(planes, lines, rays.to(given[0].dtype), decoder, **options))

    return function


def asked(form: str, given: tuple[Tensor, ...], rays: Rays, half_side: float, padding: str) -> Composited:
    """The same by the ops for volumes and a network of PyTorch's modules."""
    planes, lines, decoder = parts(form, given)
    middles = (rays.edges[1:] + rays.edges[:-1]) / 2
    points = rays.origins[:, :, None] + rays.directions[:, :, None] * middles[:, None]
    features = sample_grid(points.flatten(1, 2) / half_side, planes, lines, padding=padding).unflatten(
        1, points.shape[1:3]
    )
    count = decoder.inner.shape[1] // (1 if form == "cp" else 3)
    dense, painted = features[..., :-count], features[..., -count:]
    if form == "triplane":
        density = F.linear(dense.flatten(-2), decoder.density, decoder.density_bias)[..., 0]
    else:
        density = dense.prod(-2).sum(-1) if form == "cp" else dense.sum((-2, -1))
    x = F.gelu(painted.prod(-2) if form == "cp" else painted.flatten(-2))
    x = F.gelu(F.linear(x, decoder.inner, decoder.inner_bias))
    along = rays.encoded[:, :, None].expand(-1, -1, len(middles), -1)
    x = F.gelu(F.linear(torch.cat((x, along), -1), decoder.hidden, decoder.hidden_bias))
    return composite(F.relu(density), rays.edges, F.linear(x, decoder.outer, decoder.outer_bias).sigmoid())


@pytest.mark.parametrize("padding", PADDINGS)
@pytest.mark.parametrize("form", FORMS)
def test_it_is_sampling_decoding_and_compositing(form: str, padding: str) -> None:
    rays, given = Rays.some(2, 20, 6), leaves(form)
    how = {"half_side": 0.8, "padding": padding}
    agree(
        rendered(form, rays, **how),
        lambda *x: joined(asked(form, x, rays.to(torch.float64), 0.8, padding)),
        *given,
        loosest=1e-4,
    )
    assert joined(asked(form, tuple(given), rays, 0.8, padding))[: 2 * 20 * 6].any()


def test_what_is_behind_something_opaque() -> None:
    rays, given = Rays.some(1, 30, 12), leaves("vector_matrix", b=1)
    planes, lines, decoder = parts("vector_matrix", tuple(x.detach() * 2 for x in given))
    whole, dark, ended = (
        render_factored(planes, lines, rays, decoder, opaque=opaque, ends=ends)
        for opaque, ends in ((0.0, False), (0.3, False), (0.3, True))
    )
    for name in ("weights", "depth", "opacity"):
        assert torch.equal(getattr(whole, name), getattr(dark, name))
    assert 0 < (whole.colour - dark.colour).max() <= 0.3 and torch.equal(dark.colour, ended.colour)
    in_front = 1 - whole.weights.cumsum(-1) + whole.weights
    assert torch.equal(ended.weights > 0, (whole.weights > 0) & (in_front > 0.3))
    torch.testing.assert_close(ended.opacity, ended.weights.sum(-1))
    assert (whole.opacity - ended.opacity).max() <= 0.3 + 1e-6


def test_a_uniform_medium() -> None:
    lines, rays = torch.ones(1, 3, 2, 3), Rays.some(1, 7, 5)
    decoder = RayDecoder(*(torch.zeros(shape) for shape in ((4, 3), (4,), (4, 8), (4,), (3, 4), (3,))))
    seen = render_factored(torch.full((1, 3, 2, 3, 3), 0.5), lines, rays, decoder, padding="border")
    weights, _ = ray_weights(torch.full((1, 7, 5), 1.5), rays.edges)
    torch.testing.assert_close(seen.weights, weights)
    torch.testing.assert_close(seen.colour, seen.opacity[..., None].expand(-1, -1, 3) / 2)


def test_rays_get_no_gradient_and_half_precision_is_rendered_in_float32() -> None:
    rays, given = Rays.some(1, 4, 3), leaves("vector_matrix", b=1)
    for x in rays:
        x.requires_grad_()
    planes, lines, decoder = parts("vector_matrix", tuple(x.detach().bfloat16().requires_grad_() for x in given))
    seen = render_factored(planes, lines, rays, decoder)
    joined(seen).sum().backward()
    assert all(x.grad is None for x in rays) and seen.colour.dtype == torch.float32
    assert planes is not None and planes.grad is not None and planes.grad.dtype == torch.bfloat16


def test_nothing_is_in_one_pass_on_a_cpu() -> None:
    assert not renders_in_one_pass(*parts("cp", tuple(leaves("cp"))))


def test_wrong_arguments() -> None:
    rays = Rays.some(2, 4, 3)
    planes, lines, decoder = parts("vector_matrix", tuple(leaves("vector_matrix")))
    with pytest.raises(ValueError, match="choose zeros or border"):
        render_factored(planes, lines, rays, decoder, padding="reflection")
    with pytest.raises(ValueError, match="planes, lines or both"):
        render_factored(None, None, rays, decoder)
    with pytest.raises(ValueError, match="none of 5 channels are left"):
        render_factored(planes, lines, rays, decoder._replace(inner=torch.zeros(5, 15)))
    for name, wrong in (
        ("lines", (planes, torch.zeros(2, 3, 5, 3), rays, decoder)),
        ("origins", (planes, lines, rays._replace(origins=rays.origins[:1]), decoder)),
        ("directions", (planes, lines, rays._replace(directions=rays.directions[:, :2]), decoder)),
        ("encoded", (planes, lines, rays._replace(encoded=rays.encoded[:1]), decoder)),
        ("hidden", (planes, lines, rays, decoder._replace(hidden=decoder.hidden[:, :7]))),
        ("inner", (planes, lines, rays, decoder._replace(inner=torch.zeros(5, 8)))),
        ("density", (planes, lines, rays, decoder._replace(density=torch.zeros(1, 5)))),
    ):
        with pytest.raises(ValueError, match=name):
            render_factored(*wrong)
