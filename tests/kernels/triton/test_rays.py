"""Rays through a factored volume in Triton's interpreter, by the public function, against the plain twin in float64."""

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton", reason="triton is not installed: pip install 'belvedere[test]'")

from belvedere.kernels import Composited, RayDecoder, rays, reference, render_factored, renders_in_one_pass
from belvedere.kernels.triton import rays_backward_colour
from belvedere.synthesis import render
from belvedere.synthesis.field import Field
from belvedere.synthesis.render import OPAQUE, TOLERANCE, render_rays, render_view
from tests.kernels import test_ops
from tests.kernels.test_rays import FORMS, Rays, joined, leaves, parts, rendered
from tests.kernels.test_volume import PADDINGS
from tests.kernels.triton.fused import agree, deterministic, gradients, routed, same
from tests.synthesis.test_field import make
from tests.synthesis.test_render import NEAR_FAR, blobs, view
from tests.synthesis.test_render import rays as camera_rays

BOX: dict[str, Any] = {"half_side": 0.8}


@pytest.fixture(scope="module", autouse=True)
def _routed() -> Iterator[None]:
    with routed(rays), mock.patch.object(rays_backward_colour, "PROGRAMS", 3):
        yield


def twin(form: str, given_rays: Rays, **options: Any) -> Callable[..., Tensor]:
    """The plain twin as a function of what is learned."""

    def function(*given: Tensor) -> Tensor:
        planes, lines, decoder = parts(form, given)
        weights = [weight for weight in decoder if weight is not None]
        return joined(reference.render_factored(planes, lines, given_rays.to(given[0].dtype), weights, **options))

    return function


def compare(form: str, given_rays: Rays, given: list[Tensor], **options: Any) -> None:
    agree(rendered(form, given_rays, **options), twin(form, given_rays, **options), *given, loosest=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("padding", PADDINGS)
@pytest.mark.parametrize("form", FORMS)
def test_values_and_gradients(form: str, padding: str) -> None:
    compare(form, Rays.some(2, 3, 3), leaves(form), **BOX, padding=padding)


@pytest.mark.parametrize("form", ["vector_matrix", "cp"])
def test_more_than_one_block_of_rays_features_and_units(form: str) -> None:
    compare(form, Rays.some(1, 33, 1), leaves(form, b=1, density=9, colour=18, h=20), **BOX)


@pytest.mark.parametrize("ends", [False, True])
def test_what_is_behind_something_opaque(ends: bool) -> None:
    given = [(2 * x).detach().requires_grad_() for x in leaves("vector_matrix", b=1)]
    compare("vector_matrix", Rays.some(1, 8, 6), given, **BOX, padding="border", opaque=0.2, ends=ends)


def test_one_texel_one_ray_no_rays() -> None:
    for padding in PADDINGS:
        compare("vector_matrix", Rays.some(1, 1, 3), leaves("vector_matrix", b=1, r=1), **BOX, padding=padding)
    given = leaves("vector_matrix", b=1)
    value = rendered("vector_matrix", Rays.some(1, 0, 3))(*given)
    assert value.shape == (0,)
    assert not any(grad.any() for grad in torch.autograd.grad(value.sum(), given))


def test_rays_that_miss_the_box_and_empty_scenes() -> None:
    past, through = Rays.some(1, 3, 4), Rays.some(1, 3, 4)
    past.directions.copy_(torch.tensor([0.0, 0, -1]))
    planes, lines, *decoder = leaves("vector_matrix", b=1)
    empty = -planes.detach().abs().requires_grad_(), lines.detach().abs().requires_grad_()
    for given_rays, volume in ((past, (planes, lines)), (through, empty)):
        value = rendered("vector_matrix", given_rays, **BOX)(*volume, *decoder)
        assert not value.any()
        assert not any(grad.any() for grad in torch.autograd.grad(value.sum(), (*volume, *decoder)))


def test_a_ray_and_a_scene_have_the_same_bits_alone_and_among_others() -> None:
    many, given = Rays.some(2, 33, 2), [x.detach() for x in leaves("vector_matrix")]
    grids, decoder = given[:2], given[2:]

    def seen(scenes: slice, some: slice) -> Composited:
        return render_factored(*(x[scenes] for x in grids), many.at(scenes, some), RayDecoder(*decoder), **BOX)

    whole = seen(slice(None), slice(None))
    assert same(whole, seen(slice(None), slice(None)))
    one, last = slice(1, 2), slice(32, 33)
    assert same(tuple(x[one, last] for x in whole), seen(one, last))

    @deterministic()
    def pulled(scenes: slice) -> tuple[Tensor, ...]:
        inputs = [x[scenes].clone().requires_grad_() for x in grids]
        seen = render_factored(*inputs, many.at(scenes, slice(0, 5)), RayDecoder(*decoder), **BOX)
        return torch.autograd.grad(sum(part.square().sum() for part in seen), inputs)

    both = pulled(slice(None))
    assert same(both, pulled(slice(None))) and same(tuple(x[one] for x in both), pulled(one))


@pytest.mark.parametrize("name", Composited._fields)
def test_each_result_alone(name: str) -> None:
    given_rays, (planes, lines, *decoder) = Rays.some(1, 4, 4), leaves("vector_matrix", b=1)
    grids = planes, lines

    def ours(*x: Tensor) -> Tensor:
        return getattr(render_factored(*x, given_rays.to(x[0].dtype), RayDecoder(*decoder)), name)

    def theirs(*x: Tensor) -> Tensor:
        weights = [weight.to(x[0].dtype) for weight in decoder]
        return Composited(*reference.render_factored(*x, given_rays.to(x[0].dtype), weights))._asdict()[name]

    agree(ours, theirs, *grids, loosest=1e-4)


def test_other_strides_and_narrow_volumes() -> None:
    given_rays, (planes, lines, *decoder) = Rays.some(1, 3, 3), leaves("vector_matrix", b=1)
    last = planes.detach().permute(0, 1, 3, 4, 2).contiguous().permute(0, 1, 4, 2, 3).requires_grad_()
    compare("vector_matrix", given_rays, [last, lines, *decoder])
    narrow = [x.detach().bfloat16().requires_grad_() for x in (planes, lines, *decoder)]
    value = rendered("vector_matrix", Rays(*given_rays))(*narrow)
    wide = rendered("vector_matrix", given_rays.to(torch.bfloat16))(*(x.float() for x in narrow))
    assert torch.equal(value, wide)


def test_a_ray_that_is_not_a_number_harms_no_other() -> None:
    given_rays, given = Rays.some(1, 5, 3), [x.detach() for x in leaves("vector_matrix", b=1)]
    good = render_factored(*given[:2], given_rays, RayDecoder(*given[2:]))
    given_rays.directions[0, 2] = torch.tensor([torch.nan, torch.inf, -torch.inf])
    wrong = render_factored(*given[:2], given_rays, RayDecoder(*given[2:]))
    others = [0, 1, 3, 4]
    assert same(tuple(x[:, others] for x in good), tuple(x[:, others] for x in wrong))


def test_nothing_of_a_sample_is_kept() -> None:
    saved: list[Tensor] = []
    given_rays, given = Rays.some(1, 6, 4), leaves("vector_matrix", b=1)

    def pack(tensor: Tensor) -> Tensor:
        saved.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        torch.ops.belvedere.render_factored(*given[:2], *given_rays, given[2:], 1.0, "zeros", 0.0, False)
    assert {tensor.data_ptr() for tensor in saved} == {x.data_ptr() for x in (*given, *given_rays)}


def test_registration() -> None:
    for form in FORMS:
        planes, lines, decoder = parts(form, tuple(leaves(form, b=1)))
        weights = [weight for weight in decoder if weight is not None]
        fixed = (planes, lines, *Rays.some(1, 1, 1), weights, 0.8, "zeros", 0.0, False)
        cheap = ("test_schema", "test_autograd_registration", "test_faketensor")
        torch.library.opcheck(torch.ops.belvedere.render_factored, fixed, test_utils=cheap)
        grads = torch.ones(1, 1, 1), None, torch.ones(1, 1), None
        with torch.no_grad():
            torch.library.opcheck(torch.ops.belvedere.render_factored_backward, (*grads, *fixed), test_utils=cheap)


def test_compiles_whole() -> None:
    op = rendered("triplane", Rays.some(1, 2, 2), **BOX)
    given = [x.detach() for x in leaves("triplane", b=1)]
    assert same(gradients(torch.compile(op, fullgraph=True, backend="aot_eager"), *given), gradients(op, *given))


def test_networks_that_are_too_wide_are_rendered_plainly() -> None:
    for sizes in ({"h": rays.HIDDEN + 1}, {"colour": rays.INPUTS // 3 + 1}):
        given = leaves("vector_matrix", b=1, **sizes)
        assert not renders_in_one_pass(*parts("vector_matrix", tuple(given)))
        few = Rays.some(1, 2, 2)
        test_ops.agree(rendered("vector_matrix", few), twin("vector_matrix", few), *given, loosest=1e-4)


@pytest.fixture
def plain(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[], Any]], Any]:
    """Return what runs a function as if there were no kernels."""

    def run(function: Callable[[], Any]) -> Any:
        with monkeypatch.context() as patch:
            patch.setattr(rays, "fused", lambda x: False)
            return function()

    return run


@pytest.mark.parametrize("form", FORMS)
def test_rays_of_a_field(form: str, plain: Callable[[Callable[[], Any]], Any]) -> None:
    field = dataclasses.replace(make(form, padding="border"), background=torch.rand(2, 3))
    learned = [x.requires_grad_() for x in (field.planes, field.lines, *field.decoder.parameters()) if x is not None]

    def run() -> tuple[Tensor, ...]:
        seen = render_rays(field, *camera_rays(2, 9), **(NEAR_FAR | {"samples": 4}), opaque=1e-3)
        loss = seen.colour.square().mean() + 0.1 * seen.distortion + seen.depth.mean() + seen.weights.square().sum()
        return *seen, *torch.autograd.grad(loss, learned)

    for ours, theirs in zip(run(), plain(run), strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-4)


def test_views_of_a_field(monkeypatch: pytest.MonkeyPatch, plain: Callable[[Callable[[], Any]], Any]) -> None:
    field, camera, options = blobs(3, haze=1.0), view(5, 5), NEAR_FAR | {"samples": 6, "background": 1.0}
    exact, fast = (render_view(field, camera, **options, exact=exact) for exact in (True, False))
    want = plain(lambda: render_view(field, camera, **options, exact=True))
    for ours, theirs in zip(exact[:4], want[:4], strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-4)
    assert (fast.colour - want.colour).abs().max() <= OPAQUE + 1e-5 <= TOLERANCE
    assert not torch.equal(fast.opacity, exact.opacity)  # rays have ended
    monkeypatch.setattr(render, "IN_ONE_PASS", 80)
    cut = render_view(field, camera, **options)
    for ours, theirs in zip(cut[:4], fast[:4], strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=0)


def test_a_view_is_made_without_a_table(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("Occupancy", "density_nodes", "_colour"):
        monkeypatch.delattr(render, name)
    empty = Field(-blobs(1).planes.abs(), blobs(1).lines.abs(), blobs(1).decoder)
    assert render_view(empty, view(2, 2), **NEAR_FAR).opacity.max() == 0
