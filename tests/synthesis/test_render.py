"""Rendering against every point asked and composited plainly; views against exact ones; what is skipped."""

import dataclasses
import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from belvedere.data.cameras import Camera
from belvedere.errors import InputError
from belvedere.kernels import reference
from belvedere.synthesis import occupancy as occupancy_module
from belvedere.synthesis import render
from belvedere.synthesis.field import FORMS, PADDINGS, Field, FieldDecoder
from belvedere.synthesis.occupancy import Occupancy, density_nodes, interpolate
from belvedere.synthesis.render import OPAQUE, TOLERANCE, Rendered, render_rays, render_view, sample_edges
from tests.kernels.test_region import Sizes
from tests.synthesis.test_field import SIZES, make, points, unit

NEAR_FAR: dict[str, Any] = {"near": 0.4, "far": 2.4, "samples": 10}


def rays(b: int, n: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Return rays (b, n, 3) from around (0, 0, -1.4) towards the box, their directions not of unit length."""
    draw = torch.Generator().manual_seed(seed)
    origins = torch.randn(b, n, 3, generator=draw) * 0.1 - torch.tensor([0, 0, 1.4])
    return origins, (torch.rand(b, n, 3, generator=draw) * 1.6 - 0.8 - origins) * 0.7


def blobs(seed: int, haze: float = 0.0, r: int = 12, **keywords: Any) -> Field:
    """Return a scene of some dense blobs in space that is empty but for the haze."""
    draw = torch.Generator().manual_seed(seed)
    x = (torch.arange(r) + 0.5) / r * 2 - 1
    middle, width = torch.rand(3, 3, 4, 1, generator=draw) - 0.5, 0.1 + 0.2 * torch.rand(3, 3, 4, 1, generator=draw)
    bumps = torch.exp(-(((x - middle) / width) ** 2))  # (3, 3, c, r)
    planes, lines = 150 * bumps[0, ..., None] * bumps[1, ..., None, :], bumps[2]
    planes[:, 3], lines[:, 3] = 10 * (haze - 0.5), 1.0
    planes = torch.cat((planes, torch.randn(3, 6, r, r, generator=draw)), 1)
    lines = torch.cat((lines, torch.randn(3, 6, r, generator=draw)), 1)
    torch.manual_seed(seed)
    decoder = FieldDecoder(density=4, colour=6, hidden=16)
    for parameter in decoder.parameters():
        parameter.data *= 3
    return Field(planes[None], lines[None], decoder, **keywords)


def view(height: int = 16, width: int = 9, distance: float = 1.4) -> Camera:
    pose = torch.eye(4, dtype=torch.float64)
    pose[2, 3] = -distance
    return Camera(pose, (1.2 * height, 1.2 * height), (width / 2, height / 2), (height, width))


def plain(field: Field, origins: Tensor, directions: Tensor, edges: Tensor) -> Rendered:
    """Ask every point for density and colour, by the twins of the kernels."""
    directions = directions / directions.norm(dim=-1, keepdim=True)
    places = origins[:, :, None] + directions[:, :, None] * ((edges[1:] + edges[:-1]) / 2)[:, None]
    features = reference.sample_grid(
        places.flatten(1, 2) / field.half_side, field.planes, field.lines, padding=field.padding
    )
    dense = field.decoder.sizes["density"]
    density = field.decoder.density(features[..., :dense]).view(places.shape[:3])
    along = directions[:, :, None].expand(places.shape).flatten(1, 2)
    colour = field.decoder.logits(features[..., dense:], along).sigmoid().view(places.shape)
    weights, seen, depth, opacity = reference.composite(density, edges, colour)
    return Rendered(seen, depth, opacity, reference.distortion(weights, edges).mean())


def close(ours: Rendered, theirs: Rendered, atol: float = 2e-5) -> None:
    for mine, other in zip(ours[:4], theirs[:4], strict=True):
        torch.testing.assert_close(mine, other, atol=atol, rtol=1e-4)


@pytest.mark.parametrize("exact", [True, False])
@pytest.mark.parametrize("padding", PADDINGS)
@pytest.mark.parametrize("form", FORMS)
def test_values_and_gradients(form: str, padding: str, exact: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(render, "NODE_COST", 0.0)  # the table wherever it is allowed
    field = make(form, r=5, padding=padding)
    leaves = [grid.requires_grad_() for grid in (field.planes, field.lines) if grid is not None]
    leaves += list(field.decoder.parameters())
    got = render_rays(field, *rays(2, 40), **NEAR_FAR, exact=exact)
    want = plain(field, *rays(2, 40), sample_edges(**NEAR_FAR))
    close(got, want)
    grads = []
    for seen in (got, want):
        loss = seen.colour.square().mean() + 0.1 * seen.distortion + 0.3 * seen.depth.mean() + seen.opacity.mean()
        grads.append(torch.autograd.grad(loss, leaves))
    for ours, theirs in zip(*grads, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-3)


def test_a_uniform_medium_absorbs_exponentially() -> None:
    decoder = FieldDecoder(**SIZES)
    field = Field(torch.full((1, 3, 5, 4, 4), 0.5), torch.ones(1, 3, 5, 4), decoder, padding="border")
    origins, directions = rays(1, 30)
    seen = render_rays(field, origins, directions, near=0.5, far=1.5, samples=7)
    opacity = torch.tensor(1 - math.exp(-3.0))  # 3 planes, 2 channels of 0.5, over a length of 1
    torch.testing.assert_close(seen.opacity, opacity.expand(1, 30))
    colour = field.colour(origins, directions / directions.norm(dim=-1, keepdim=True))
    torch.testing.assert_close(seen.colour, colour * opacity)


def test_background() -> None:
    field = blobs(0)
    black, white, grey = (render_rays(field, *rays(1, 50), **NEAR_FAR, background=x) for x in (0.0, 1.0, 0.5))
    torch.testing.assert_close(white.colour, black.colour + 1 - black.opacity[..., None])
    torch.testing.assert_close(grey.colour * 2, black.colour + white.colour)
    assert 0.1 < black.opacity.mean() < 0.95
    black, white = (render_view(field, view(), **NEAR_FAR, background=x) for x in (0.0, 1.0))
    torch.testing.assert_close(white.colour, black.colour + 1 - black.opacity[..., None])


def test_a_field_has_a_background_of_its_own() -> None:
    field, seen_by = blobs(2), view()
    blue = dataclasses.replace(field, background=torch.tensor([[0.0, 0.25, 1.0]]))
    for own, black in (
        (render_rays(blue, *rays(1, 50), **NEAR_FAR), render_rays(field, *rays(1, 50), **NEAR_FAR)),
        (render_view(blue, seen_by, **NEAR_FAR), render_view(field, seen_by, **NEAR_FAR)),
        (render_view(blue, seen_by, **NEAR_FAR, exact=True), render_view(field, seen_by, **NEAR_FAR, exact=True)),
    ):
        through = (1 - black.opacity)[..., None] * torch.tensor([0.0, 0.25, 1.0])
        assert torch.allclose(own.colour, black.colour + through, atol=1e-6) and through.max() > 0.5
    given = render_rays(blue, *rays(1, 50), **NEAR_FAR, background=0.0)
    assert torch.equal(given.colour, render_rays(field, *rays(1, 50), **NEAR_FAR).colour)


def test_edges() -> None:
    torch.testing.assert_close(sample_edges(1, 3, 4), torch.tensor([1, 1.5, 2, 2.5, 3]))
    jittered = sample_edges(1, 3, 4, torch.tensor([0.0, 0.5, 0.9, 0.2]))
    torch.testing.assert_close(jittered, torch.tensor([1, 1.75, 2.45, 2.6, 3]))


def test_only_jitter_is_random() -> None:
    field, jitter = blobs(0), torch.rand(10, generator=torch.Generator().manual_seed(0))
    first, second = (render_rays(field, *rays(1, 50), **NEAR_FAR, jitter=jitter) for _ in range(2))
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(first, second, strict=True))
    close(first, plain(field, *rays(1, 50), sample_edges(**NEAR_FAR, jitter=jitter)))
    assert (first.colour - render_rays(field, *rays(1, 50), **NEAR_FAR).colour).abs().max() > 0.01


def test_scenes_of_a_batch_do_not_mix() -> None:
    field = make(b=3, r=5)
    origins, directions = rays(3, 20)
    together = render_rays(field, origins, directions, **NEAR_FAR)
    for i in range(3):
        alone = render_rays(field.scene(i), origins[i : i + 1], directions[i : i + 1], **NEAR_FAR)
        torch.testing.assert_close(together.colour[i : i + 1], alone.colour)
        torch.testing.assert_close(together.depth[i : i + 1], alone.depth)


def test_no_rays() -> None:
    seen = render_rays(make(), torch.zeros(2, 0, 3), torch.zeros(2, 0, 3), **NEAR_FAR)
    assert seen.colour.shape == (2, 0, 3) and seen.depth.shape == (2, 0) and seen.distortion == 0


def test_empty_space_is_black_and_teaches_nothing() -> None:
    field = make()
    planes, lines = -field.planes.abs().requires_grad_(), field.lines.abs().requires_grad_()
    seen = render_rays(Field(planes, lines, field.decoder), *rays(2, 30), **NEAR_FAR)
    assert seen.colour.abs().max() == 0 == seen.opacity.max()
    leaves = (planes, lines, *field.decoder.parameters())
    assert all(grad.abs().max() == 0 for grad in torch.autograd.grad((seen.colour - 1).square().sum(), leaves))


def test_what_is_behind_something_opaque_is_not_coloured(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    original = render._colour

    def counted(*given: Any) -> Tensor:
        asked.append(len(given[-1]))
        return original(*given)

    monkeypatch.setattr(render, "_colour", counted)
    field, (o, d) = blobs(2, haze=4.0), rays(1, 200)
    options: dict[str, Any] = {"near": 0.4, "far": 2.4, "samples": 48}
    whole, cut = (render_rays(field, o, d, **options, opaque=opaque) for opaque in (0.0, 1e-2))
    assert 0 < asked[1] < 0.9 * asked[0]
    assert 0 < (whole.colour - cut.colour).amax() <= 1e-2
    assert torch.equal(whole.opacity, cut.opacity) and torch.equal(whole.depth, cut.depth)


def test_under_autocast_compositing_stays_in_float32() -> None:
    field = blobs(1)
    with torch.autocast("cpu", torch.bfloat16):
        narrow = render_rays(field, *rays(1, 200), **NEAR_FAR)
    wide = render_rays(field, *rays(1, 200), **NEAR_FAR)
    torch.testing.assert_close(narrow.depth, wide.depth)
    assert narrow.colour.dtype == torch.float32 and (narrow.colour - wide.colour).abs().max() < 0.02


@settings(max_examples=30, deadline=None)
@given(st.sampled_from(FORMS), st.sampled_from(PADDINGS), st.integers(1, 9), st.integers(0, 9))
def test_nodes_hold_the_density(form: str, padding: str, r: int, seed: int) -> None:
    field = make(form, r=r, seed=seed, padding=padding)
    places = torch.cat((points(2, 200, seed=seed), points(2, 50, seed=seed + 1) * 3), 1)
    nodes = density_nodes(field)
    assert nodes.shape == (2, r + 2, r + 2, r + 2)
    torch.testing.assert_close(interpolate(nodes, places, field), field.density(places), atol=1e-5, rtol=1e-4)


@settings(max_examples=30, deadline=None)
@given(st.sampled_from(FORMS), st.sampled_from(PADDINGS), st.integers(1, 9), st.integers(0, 9), st.floats(0, 1))
def test_no_density_is_missed_outside_the_box(form: str, padding: str, r: int, seed: int, share: float) -> None:
    field = make(form, b=1, r=r, seed=seed, padding=padding)
    for grid in (field.planes, field.lines):
        if grid is not None:  # much of it negative, or cut away
            grid[:, :, 0] *= -1
            grid[..., int(share * r) :] = -grid[..., int(share * r) :].abs()
    found = Occupancy.of(field)
    places = points(1, 3000, seed=seed) * 1.5
    density = field.density(places)[0]
    outside = ((places[0] < found.lower) | (places[0] > found.upper)).any(-1)
    assert density[outside].max() < 1e-5 if outside.any() else True
    edges = sample_edges(0.1, 3, 40)
    middles = (edges[1:] + edges[:-1]) / 2
    origins, directions = rays(1, 60, seed)[0][0], unit(60, seed=seed)
    directions[:6] = torch.cat((torch.eye(3), -torch.eye(3)))
    enter, leave = found.crossing(origins, directions)
    along = field.density((origins[:, None] + directions[:, None] * middles[:, None]).view(1, -1, 3)).view(60, 40)
    skipped = (middles < enter[:, None]) | (middles > leave[:, None])
    assert along[skipped].max() < 1e-5 if skipped.any() else True


def test_the_box_is_tight() -> None:
    r = 8
    planes, lines = torch.zeros(1, 3, 5, r, r), torch.ones(1, 3, 5, r)
    planes[:, 0, 0, 3, 5] = 1  # x of texel 5, y of texel 3, any z
    found = Occupancy.of(Field(planes, lines, FieldDecoder(**SIZES)))
    texel = 1.6 / r
    torch.testing.assert_close(found.lower, torch.tensor([4.5, 2.5, -0.5]) * texel - 0.8)
    torch.testing.assert_close(found.upper, torch.tensor([6.5, 4.5, 8.5]) * texel - 0.8)


def test_crossing_of_the_box() -> None:
    found = Occupancy(make(b=1), None, torch.tensor([-1.0, -1, -1]), torch.tensor([1.0, 1, 1]))
    origins = torch.tensor([[0.0, 0, -3], [0, 0, 0], [2, 0, -3], [0, 0, -3]])
    enter, leave = found.crossing(origins, torch.tensor([[0.0, -0.0, 1], [1, 0, 0], [0, 0, 1], [0, 0, -1]]))
    assert enter[:2].tolist() == [2, -1] and leave[:2].tolist() == [4, 1]
    assert enter[2] > leave[2] and leave[3] < 0


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 99), st.floats(0, 0.8), st.integers(1, 30), st.floats(0.2, 2.0), st.sampled_from([0.0, 1.0]))
def test_a_view_is_within_its_tolerance(
    seed: int, haze: float, samples: int, distance: float, background: float
) -> None:
    field, camera = blobs(seed, haze), view(distance=distance)
    where = {"near": 0.1, "far": 3.0, "samples": samples, "background": background}
    fast, exact = render_view(field, camera, **where), render_view(field, camera, **where, exact=True)
    assert (fast.colour - exact.colour).abs().max() <= TOLERANCE + 1e-5
    assert (fast.opacity - exact.opacity).abs().max() <= OPAQUE + 1e-5
    assert (fast.depth - exact.depth).abs().max() <= 3 * OPAQUE + 1e-5


def test_an_exact_view_is_its_rays() -> None:
    field, camera = blobs(3), view()
    origins, directions = (x.reshape(1, -1, 3) for x in camera.rays())
    want = plain(field, origins, directions, sample_edges(**NEAR_FAR))
    got = render_view(field, camera, **NEAR_FAR, exact=True, occupancy=Occupancy.of(blobs(4)))
    assert got.colour.shape == (16, 9, 3) and got.depth.shape == got.opacity.shape == (16, 9)
    assert not got.colour.requires_grad
    close(Rendered(*(x.flatten(0, 1)[None] for x in got[:3]), got.distortion), want)


def test_views_do_not_depend_on_how_they_are_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    field, camera = blobs(5), view()
    whole = [render_view(field, camera, **NEAR_FAR, exact=exact) for exact in (False, True)]
    monkeypatch.setattr(render, "CHUNK", 170)
    monkeypatch.setattr(render, "COLOURED", 30)
    for exact in (False, True):
        close(render_view(field, camera, **NEAR_FAR, exact=exact), whole[exact], atol=1e-6)


def test_a_view_takes_bounded_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(render, "CHUNK", 600)
    monkeypatch.setattr(render, "COLOURED", 200)
    field = blobs(6, haze=0.8, r=4)
    for exact in (False, True):
        with Sizes() as sizes:
            render_view(field, view(30, 20), **NEAR_FAR, exact=exact)
        assert max(sizes.seen) <= 200 * (16 + 27)  # the last layers' inputs; all points are 18,000 numbers


def test_colour_is_asked_only_where_it_is_seen() -> None:
    asked: list[int] = []
    field, camera = blobs(7), view(40, 30)
    field.decoder.colour_in.register_forward_hook(
        lambda module, inputs, output: asked.append(inputs[0][..., 0].numel())
    )
    render_view(field, camera, **NEAR_FAR)
    fast = sum(asked)
    asked.clear()
    render_view(field, camera, **NEAR_FAR, exact=True)
    exact, everywhere = sum(asked), 40 * 30 * NEAR_FAR["samples"]
    assert 0 < fast < 0.7 * exact and exact < 0.7 * everywhere
    asked.clear()
    empty = Field(-field.planes.abs(), field.lines.abs(), field.decoder)
    seen = render_view(empty, camera, **NEAR_FAR, background=1.0)
    assert sum(asked) == 0 and (seen.colour == 1).all() and seen.opacity.max() == 0 == seen.distortion


def test_rays_end_where_nothing_more_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(render, "BLOCK", 2)
    asked: list[int] = []

    class Counting(Occupancy):
        def density(self, places: Tensor) -> Tensor:
            asked.append(len(places))
            return super().density(places)

    wall = Field(torch.full((1, 3, 5, 4, 4), 4.0), torch.ones(1, 3, 5, 4), FieldDecoder(**SIZES))
    render_view(wall, view(), **NEAR_FAR, occupancy=Counting.of(wall))
    assert asked[:2] == [16 * 9] * 2 and asked[2:] == [0] * 3  # a sample lets less than 1 % through


def test_many_texels_are_asked_without_a_table(monkeypatch: pytest.MonkeyPatch) -> None:
    field, camera = blobs(8), view()
    want = render_view(field, camera, **NEAR_FAR)
    monkeypatch.setattr(occupancy_module, "MAX_NODES", 1)
    found = Occupancy.of(field)
    assert found.nodes is None and found.upper.tolist() == pytest.approx([0.8 * (1 + 1 / 12)] * 3)
    close(render_view(field, camera, **NEAR_FAR, occupancy=found), want)
    for form, padding in (("triplane", "zeros"), ("vector_matrix", "border")):
        assert Occupancy.of(make(form, b=1, padding=padding)).upper.tolist() == [math.inf] * 3


def test_wrong_arguments() -> None:
    field, (origins, directions) = make(), rays(2, 4)
    for keywords, message in (
        ({"near": -0.1}, "near -0.1"),
        ({"near": 3}, "near 3 and far 2.4"),
        ({"far": math.inf}, "far inf"),
        ({"far": math.nan}, "far nan"),
        ({"samples": 0}, "0 samples"),
        ({"samples": 5000}, "5000 samples"),
        ({"jitter": torch.zeros(9)}, "jitter"),
        ({"background": 1.5}, "background 1.5"),
    ):
        with pytest.raises(InputError, match=message):
            render_rays(field, origins, directions, **(NEAR_FAR | keywords))
    for wrong in ((origins[:1], directions[:1]), (origins[0], directions[0]), (origins, directions[:, :2])):
        with pytest.raises(InputError, match="origins and directions"):
            render_rays(field, *wrong, **NEAR_FAR)
    with pytest.raises(InputError, match="2 scenes"):
        render_view(field, view(), **NEAR_FAR)
    with pytest.raises(InputError, match="2 scenes"):
        Occupancy.of(field)
