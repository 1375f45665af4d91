"""Sampling of factored volumes and compositing against their plain twins, and what is known of them by hand."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from belvedere.kernels import composite, distortion, ray_weights, reference, sample_grid
from tests.kernels.test_ops import DTYPES, agree, random
from tests.kernels.test_region import Sizes

fewer = settings(max_examples=25, deadline=None)
PADDINGS = ("zeros", "border")


def points_of(b: int, n: int, r: int, seed: int = 0) -> Tensor:
    """Return points inside and around the box; some coordinates lie on faces, texel centres and where padding ends."""
    draw = torch.Generator().manual_seed(seed)
    points = torch.rand(b, n, 3, generator=draw) * 2.8 - 1.4
    special = torch.tensor([-1.0, 1.0, 1 / r - 1, 1 - 1 / r, -1 - 1 / r, 1 + 1 / r, 0.0, -5.0, 5.0])
    chosen = special[torch.randint(len(special), (b, n, 3), generator=draw)]
    return torch.where(torch.rand(b, n, 3, generator=draw) < 0.3, chosen, points)


def grids(b: int, c: int, r: int, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    return random(b, 3, c, r, r, dtype=dtype), random(b, 3, c, r, dtype=dtype, seed=1)


@fewer
@given(st.integers(1, 3), st.integers(0, 40), st.integers(1, 9), st.integers(1, 9), DTYPES, st.sampled_from(PADDINGS))
def test_planes_times_lines(b: int, n: int, c: int, r: int, dtype: torch.dtype, padding: str) -> None:
    points = points_of(b, n, r, seed=n)
    agree(
        lambda *x: sample_grid(points, *x, padding=padding),
        lambda *x: reference.sample_grid(points.double(), *x, padding=padding),
        *grids(b, c, r, dtype),
    )


@pytest.mark.parametrize("padding", PADDINGS)
def test_planes_or_lines_alone(padding: str) -> None:
    planes, lines = grids(2, 5, 7)
    points = points_of(2, 60, 7)
    for which in (lambda x: (x, None), lambda x: (None, x)):
        agree(
            lambda x, which=which: sample_grid(points, *which(x), padding=padding),
            lambda x, which=which: reference.sample_grid(points.double(), *which(x), padding=padding),
            planes if which(1)[0] else lines,
        )


def test_other_strides_and_many_points_in_one_cell() -> None:
    planes, lines = grids(2, 8, 6)
    points = torch.cat((points_of(2, 50, 6), torch.full((2, 500, 3), 0.05)), 1)
    last = planes.detach().contiguous().permute(0, 1, 3, 4, 2).contiguous().permute(0, 1, 4, 2, 3).requires_grad_()
    agree(
        lambda *x: sample_grid(points, *(g[:, :, 2:7] for g in x)),
        lambda *x: reference.sample_grid(points.double(), *(g[:, :, 2:7] for g in x)),
        last,
        lines,
    )


def test_which_axis_is_which() -> None:
    r = 4
    centres = (torch.arange(r) + 0.5) / r * 2 - 1
    x, y, z = 0, 1, 3
    point = torch.stack((centres[x], centres[y], centres[z])).view(1, 1, 3)
    planes, lines = torch.rand(1, 3, 2, r, r), torch.rand(1, 3, 2, r)
    features = sample_grid(point, planes, lines)[0, 0]
    expected = torch.stack(
        (
            planes[0, 0, :, y, x] * lines[0, 0, :, z],
            planes[0, 1, :, x, z] * lines[0, 1, :, y],
            planes[0, 2, :, z, y] * lines[0, 2, :, x],
        )
    )
    torch.testing.assert_close(features, expected)


def test_what_lies_outside() -> None:
    lines = torch.ones(1, 3, 1, 4)
    x = torch.tensor([0.75, 1.0, 1.125, 1.25, 9.0])  # the last centre, the face, half a texel outside at 1.25
    points = torch.stack((x, torch.zeros(5), torch.zeros(5)), -1)[None]
    assert sample_grid(points, None, lines)[0, :, 2, 0].tolist() == [1, 0.5, 0.25, 0, 0]
    assert sample_grid(points, None, lines, padding="border")[0, :, 2, 0].tolist() == [1, 1, 1, 1, 1]


def test_coordinates_get_no_gradient_and_not_a_number_harms_no_other() -> None:
    planes, lines = grids(1, 3, 5)
    points = points_of(1, 20, 5).requires_grad_()
    sample_grid(points, planes, lines).sum().backward()
    assert points.grad is None
    wrong = points.detach().clone()
    wrong[0, 3, 1], wrong[0, 4] = torch.nan, torch.inf
    kept = [i for i in range(20) if i not in (3, 4)]
    assert torch.equal(sample_grid(wrong, planes, lines)[:, kept], sample_grid(points, planes, lines)[:, kept])
    assert torch.equal(sample_grid(wrong, planes, lines)[:, 4], torch.zeros(1, 3, 3))


def test_wrong_arguments() -> None:
    with pytest.raises(ValueError, match="choose zeros or border"):
        sample_grid(torch.zeros(1, 1, 3), *grids(1, 1, 2), padding="reflection")
    with pytest.raises(ValueError, match="planes, lines or both"):
        sample_grid(torch.zeros(1, 1, 3), None, None)


def test_texels_are_not_gathered_before_they_are_summed() -> None:
    planes, lines = grids(1, 24, 8)
    with Sizes() as sizes:
        torch.autograd.grad(sample_grid(points_of(1, 4000, 8), planes, lines).sum(), (planes, lines))
    assert max(sizes.seen) == 4000 * 3 * 24


def rays(n: int, s: int, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Return density (n, s), colour (n, s, 3) and the edges (n, s + 1) of rays from clear to opaque."""
    draw = torch.Generator().manual_seed(seed)
    density = torch.randn(n, s, generator=draw).relu() * torch.logspace(-1, 2, n).unsqueeze(1)
    edges = torch.rand(n, s + 1, generator=draw).cumsum(-1)
    return density.requires_grad_(), torch.rand(n, s, 3, generator=draw).requires_grad_(), edges


@fewer
@given(st.integers(0, 5), st.integers(1, 20), st.integers(0, 99), st.booleans())
def test_composite(n: int, s: int, seed: int, shared: bool) -> None:
    density, colour, edges = rays(n, s, seed)
    edges = torch.linspace(0.5, 2, s + 1) if shared else edges
    agree(
        lambda d, c: torch.cat([part.flatten() for part in composite(d, edges, c)]),
        lambda d, c: torch.cat([part.flatten() for part in reference.composite(d, edges.double(), c)]),
        density,
        colour,
    )


def test_composite_of_chosen_samples() -> None:
    density, colour, edges = (x.view(2, 3, *x.shape[1:]) for x in rays(6, 10))
    chosen = (density > 0).flatten().nonzero().squeeze(1)
    dense = composite(density, edges, colour)
    sparse = composite(density, edges, colour.reshape(-1, 3)[chosen], chosen)
    for ours, theirs in zip(sparse, dense, strict=True):
        torch.testing.assert_close(ours, theirs)
    grads = [torch.autograd.grad(seen.colour.square().sum(), (density, colour)) for seen in (sparse, dense)]
    through = density.detach() > 0  # elsewhere a ReLU lets no gradient through
    torch.testing.assert_close(grads[0][0][through], grads[1][0][through])
    torch.testing.assert_close(grads[0][1], grads[1][1])


def test_composite_of_nothing_chosen_is_black() -> None:
    seen = composite(torch.zeros(2, 4), torch.arange(5.0), torch.zeros(0, 3), torch.zeros(0, dtype=torch.int64))
    assert seen.colour.tolist() == [[0, 0, 0]] * 2 and seen.opacity.tolist() == [0, 0]


def test_composite_is_computed_in_float32() -> None:
    density, colour, edges = rays(5, 12)
    narrow = density.bfloat16(), edges.float(), colour.bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        got = composite(*narrow)
    want = reference.composite(*(x.double() for x in narrow))
    for ours, theirs in zip(got, want, strict=True):
        assert ours.dtype == torch.float32 and (ours - theirs).abs().max() < 1e-5


def test_an_opaque_sample_hides_what_is_behind() -> None:
    density = torch.tensor([[0.0, 1e4, 1e4, 3.0]], requires_grad=True)
    weights, left = ray_weights(density, torch.arange(5.0))
    torch.testing.assert_close(weights, torch.tensor([[0.0, 1, 0, 0]]))
    assert left.item() == pytest.approx(1e-20 * math.exp(-3), rel=1e-3)  # as much as the official 1e-10 leaves
    (grad,) = torch.autograd.grad(weights.square().sum() + left.sum(), density)
    assert grad.isfinite().all()


def test_weights_block_by_block() -> None:
    density, _, edges = rays(4, 12)
    whole, left = ray_weights(density, edges)
    first, between = ray_weights(density[:, :5], edges[:, :6])
    second, behind = ray_weights(density[:, 5:], edges[:, 5:])
    torch.testing.assert_close(torch.cat((first, second * between.unsqueeze(1)), 1), whole)
    torch.testing.assert_close(behind * between, left)


@fewer
@given(st.integers(0, 5), st.integers(1, 20), st.integers(0, 99), st.booleans())
def test_distortion(n: int, s: int, seed: int, shared: bool) -> None:
    weights, _, edges = rays(n, s, seed)
    edges = torch.linspace(0.5, 2, s + 1) if shared else edges
    weights = (weights.detach() / (weights.detach().sum(-1, keepdim=True) + 1)).requires_grad_()
    agree(lambda w: distortion(w, edges), lambda w: reference.distortion(w, edges.double()), weights)


def test_distortion_of_two_samples() -> None:
    weights, edges = torch.tensor([0.5, 0.25]), torch.tensor([0.0, 1, 3])  # middles 0.5 and 2
    assert distortion(weights, edges).item() == pytest.approx(2 * 0.5 * 0.25 * 1.5 + (0.25 * 1 + 0.0625 * 2) / 3)


def test_distortion_has_a_deterministic_form_on_every_device() -> None:
    """PyTorch has none of cumsum of floats on a GPU, ``torch.use_deterministic_algorithms`` says."""
    weights, edges = torch.rand(5, 8, requires_grad=True), torch.linspace(0, 1, 9)
    with torch.profiler.profile() as called:
        distortion(weights, edges).sum().backward()
    names = {event.key for event in called.key_averages()}
    assert "aten::mm" in names and "aten::cumsum" not in names


def test_distortion_stays_float32_under_autocast() -> None:
    weights, edges = torch.rand(5, 8), torch.linspace(0, 1, 9)
    with torch.autocast("cpu", torch.bfloat16):
        inside = distortion(weights, edges)
    assert torch.equal(inside, distortion(weights, edges))


@pytest.mark.slow
def test_compiles_to_one_graph() -> None:
    points, (density, colour, edges) = points_of(1, 30, 5), rays(3, 8)
    sample = torch.compile(sample_grid, fullgraph=True, backend="aot_eager")
    agree(lambda *x: sample(points, *x), lambda *x: reference.sample_grid(points.double(), *x), *grids(1, 4, 5))
    seen = torch.compile(composite, fullgraph=True, backend="aot_eager")
    agree(
        lambda d, c: seen(d, edges, c).colour,
        lambda d, c: reference.composite(d, edges.double(), c)[1],
        density,
        colour,
    )
