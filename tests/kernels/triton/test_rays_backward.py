"""Gradients of rays in Triton's interpreter beside those in plain PyTorch, and which of the two is taken."""

import random
from collections.abc import Iterator
from functools import partial
from typing import Any
from unittest import mock

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton", reason="triton is not installed: pip install 'belvedere[test]'")

from belvedere.kernels import rays
from belvedere.kernels.triton import rays_backward, rays_backward_colour, rays_plain
from belvedere.kernels.triton.launch import noting
from belvedere.kernels.triton.rays import production
from belvedere.kernels.triton.rays_grid import pull_table, tables
from belvedere.kernels.triton.rays_plain import Marching
from tests.kernels.test_rays import FORMS, Rays, leaves, parts, rendered
from tests.kernels.test_volume import PADDINGS
from tests.kernels.triton.fused import deterministic, gradients, routed, same


@pytest.fixture(scope="module", autouse=True)
def _few_programs() -> Iterator[None]:
    with mock.patch.object(rays_backward_colour, "PROGRAMS", 3):
        yield


def asked(form: str, rays: Rays, given: list[Tensor], **options: Any) -> tuple[Any, ...]:
    """Return the arguments of the backward operation, all four gradients among them."""
    b, n, s = *rays.origins.shape[:2], len(rays.edges) - 1
    planes, lines, decoder = parts(form, tuple(x.detach() for x in given))
    draw = torch.Generator().manual_seed(2)
    grads = [torch.randn((b, n, *last), generator=draw) for last in ((s,), (3,), (), ())]
    weights = [weight for weight in decoder if weight is not None]
    how = Marching(**{"half_side": 0.8, "padding": "zeros", "opaque": 0.0, "ends": False} | options)
    return grads, (planes, lines), rays, weights, how


def compare(arguments: tuple[Any, ...], loosest: float = 1e-4) -> None:
    for ours, theirs in zip(rays_backward.run(*arguments), rays_plain.run(*arguments), strict=True):
        assert ours.shape == theirs.shape and ours.is_contiguous()
        scale = max(1.0, theirs.abs().max().item()) if theirs.numel() else 1.0
        torch.testing.assert_close(ours, theirs, atol=loosest * scale, rtol=0)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("padding", PADDINGS)
@pytest.mark.parametrize("form", FORMS)
def test_any_sizes(form: str, padding: str, seed: int) -> None:
    draw = random.Random(f"{form} {padding} {seed}")
    b, e = draw.randint(1, 2), draw.randint(1, 20)
    sizes = {name: draw.randint(1, most) for name, most in (("r", 5), ("density", 9), ("colour", 7), ("h", 34))}
    given = leaves(form, b=b, e=e, seed=seed, **sizes)
    sight = Rays.some(b, draw.randint(1, 35), draw.randint(1, 4), e, seed)
    compare(asked(form, sight, given, padding=padding, opaque=draw.choice([0.0, 0.3]), ends=draw.random() < 0.5))


@pytest.mark.slow
@pytest.mark.parametrize("ends", [False, True])
@pytest.mark.parametrize("form", FORMS)
def test_behind_something_opaque(form: str, ends: bool) -> None:
    given = [2 * x.detach() for x in leaves(form, b=1)]
    compare(asked(form, Rays.some(1, 17, 5), given, padding="border", opaque=0.2, ends=ends))


def test_density_weights_without_planes() -> None:
    given = [*leaves("cp", b=1), torch.randn(1, 2), torch.ones(1)]
    compare(asked("cp", Rays.some(1, 3, 3), given, padding="border"))


def test_each_gradient_alone_and_none_of_the_colour() -> None:
    grads, *rest = asked("triplane", Rays.some(1, 3, 2), leaves("triplane", b=1), padding="border")
    for i in range(4):
        compare(([grad if j == i else None for j, grad in enumerate(grads)], *rest))


@pytest.mark.parametrize("form", ["vector_matrix", "cp"])
def test_many_rays_through_the_same_cells(form: str) -> None:
    few = Rays.some(1, 1, 2)
    many = Rays(*(x.expand(1, 20, -1) for x in few[:3]), few.edges)
    compare(asked(form, many, leaves(form, b=1)))


@pytest.mark.filterwarnings("ignore:invalid value encountered")
@pytest.mark.parametrize("form", ["vector_matrix", "triplane"])
def test_a_ray_that_is_not_a_number_has_no_gradient(form: str) -> None:
    sight, given = Rays.some(1, 4, 2), leaves(form, b=1)
    grads, volume, _, *rest = asked(form, sight, given, padding="border")
    want = rays_backward.run([x[:, :3] for x in grads], volume, sight.at(slice(None), slice(3)), *rest)
    sight.directions[0, 3] = torch.tensor([torch.nan, torch.inf, -torch.inf])
    for ours, theirs in zip(rays_backward.run(grads, volume, sight, *rest), want, strict=True):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("padding", PADDINGS)
def test_the_gradient_of_a_table_is_the_transpose_of_making_it(padding: str) -> None:
    given = [torch.randn(2, 3, 2, *side, requires_grad=True) for side in ((3, 3), (3,), (1, 1), (1,))]
    for planes, lines in (given[:2], given[2:]):
        for grid, table in zip((planes, lines), tables(planes, lines, padding), strict=True):
            grad = torch.randn_like(table)
            torch.testing.assert_close(pull_table(grad, padding), torch.autograd.grad(table, grid, grad)[0])


def test_deterministic_algorithms_take_the_plain_way(monkeypatch: pytest.MonkeyPatch) -> None:
    sight, given = Rays.some(1, 5, 3), leaves("vector_matrix", b=1)
    arguments = asked("vector_matrix", sight, given)
    with deterministic(), monkeypatch.context() as patch:
        patch.setattr(rays_backward, "run", lambda *_: pytest.fail("atomics"))
        grads, volume, *_, weights, how = arguments
        found = rays_backward.backward(*grads, *volume, *sight, weights, *how)
        assert same(tuple(found), tuple(rays_plain.run(*arguments)))
    monkeypatch.setattr(rays_plain, "run", lambda *_: pytest.fail("not asked for"))
    with routed(rays):
        gradients(rendered("vector_matrix", sight), *given)


def test_plainly_a_few_rays_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = asked("triplane", Rays.some(1, 7, 4), leaves("triplane", b=1))
    whole = rays_plain.run(*arguments)
    monkeypatch.setattr(rays_plain, "SAMPLES", 11)
    for ours, theirs in zip(rays_plain.run(*arguments), whole, strict=True):
        torch.testing.assert_close(ours, theirs)


def test_no_feature_of_a_sample_is_written() -> None:
    ways = dict(production())
    for name in ("NViST", "triplane", "CP"):
        call = ways[f"rays {name} backward"]
        assert isinstance(call, partial)
        samples, n = len(call.args[2].edges) - 1, call.args[2].origins.shape[1]
        with noting() as launches:
            call()
        counts = {x.numel() / (samples * n) for one in launches for x in one.arguments if isinstance(x, Tensor)}
        assert {count for count in counts if count.is_integer()} == {1}  # arrays of samples: a number each
