"""The region filter against its plain twin: values, gradients, and what it does not make."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.checkpoint import checkpoint

from belvedere.kernels import reference, region, region_filter
from tests.kernels.test_ops import DTYPES, agree, random

fewer = settings(max_examples=25, deadline=None)
SIDES = st.integers(1, 7)


def inputs(b: int, c: int, h: int, w: int, dtype: torch.dtype = torch.float32) -> tuple[Tensor, ...]:
    maps = random(b, c, h, w, dtype=dtype), random(b, c, h, w, dtype=dtype, seed=1)
    return *maps, random(9 * c, 1, 3, 3, dtype=dtype, seed=2), random(9 * c, dtype=dtype, seed=3)


class Sizes(TorchDispatchMode):
    """Remembers how many numbers each tensor that is made under it has."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[int] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        out = func(*args, **(kwargs or {}))
        self.seen += [
            x.untyped_storage().nbytes() // x.element_size() for x in tree_leaves(out) if isinstance(x, Tensor)
        ]
        return out


@fewer
@given(st.integers(1, 3), st.integers(1, 5), SIDES, SIDES, DTYPES)
def test_values_and_gradients(b: int, c: int, h: int, w: int, dtype: torch.dtype) -> None:
    agree(region_filter, reference.region_filter, *inputs(b, c, h, w, dtype))


@pytest.mark.parametrize("cached", [1, 60, 130])
def test_any_number_of_channels_at_a_time(cached: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(region, "CACHED", cached)
    agree(region_filter, reference.region_filter, *inputs(2, 5, 6, 5))


def test_other_strides() -> None:
    x, features, weight, bias = inputs(2, 4, 5, 6)
    last = [map_.detach().contiguous(memory_format=torch.channels_last).requires_grad_() for map_ in (x, features)]
    agree(region_filter, reference.region_filter, *last, weight, bias)
    turned = [map_.detach().transpose(2, 3).requires_grad_() for map_ in (x, features)]
    agree(region_filter, reference.region_filter, *turned, weight, bias)


def test_one_tap_shifts() -> None:
    x, weight = torch.arange(6.0).view(1, 1, 2, 3), torch.zeros(9, 1, 3, 3)
    bias = torch.zeros(9)
    bias[3] = 2  # the left neighbour: row 1, column 0 of the kernel
    assert region_filter(x, x, weight, bias).tolist() == [[[[0, 0, 2], [0, 6, 8]]]]


def test_taps_come_from_the_features_around() -> None:
    features, weight = torch.zeros(1, 1, 3, 3), torch.zeros(9, 1, 3, 3)
    features[0, 0, 0, 0] = 1
    weight[4, 0, 0, 0] = 5  # the middle tap of a pixel is 5 times the feature above to the left
    filtered = region_filter(torch.full((1, 1, 3, 3), 2.0), features, weight, torch.zeros(9))
    assert filtered.flatten().nonzero().flatten().tolist() == [4] and filtered[0, 0, 1, 1] == 10


def test_no_map_of_nine_times_the_channels() -> None:
    arguments = inputs(2, 8, 40, 40)
    with Sizes() as sizes:
        torch.autograd.grad(region_filter(*arguments).sum(), arguments)
    assert max(sizes.seen) <= 2 * 8 * 42 * 42
    with Sizes() as sizes:
        reference.region_filter(*arguments)
    assert max(sizes.seen) == 2 * 72 * 40 * 40  # what would be seen


def test_only_its_inputs_are_kept_for_backward() -> None:
    kept: list[int] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(x.numel()) or x, lambda x: x):
        region_filter(*inputs(1, 4, 16, 16))
    assert sum(kept) == 2 * 4 * 16 * 16 + 4 * 81 + 4 * 9


def test_checkpointing_changes_no_gradient() -> None:
    arguments = inputs(2, 3, 5, 4)
    kept = torch.autograd.grad(region_filter(*arguments).square().sum(), arguments)
    again = checkpoint(region_filter, *arguments, use_reentrant=False)
    pairs = zip(torch.autograd.grad(again.square().sum(), arguments), kept, strict=True)
    assert all(torch.equal(ours, theirs) for ours, theirs in pairs)


@pytest.mark.parametrize("features", [torch.float32, torch.bfloat16])
def test_under_autocast(features: torch.dtype) -> None:
    arguments = [x.detach().to(features).requires_grad_() for x in inputs(1, 4, 6, 6)]
    wide = [x.detach().requires_grad_() for x in inputs(1, 4, 6, 6)]
    with torch.autocast("cpu", torch.bfloat16):
        got = region_filter(*arguments)
    want = reference.region_filter(*wide)
    assert got.dtype == features
    pairs = zip(torch.autograd.grad(got.sum(), arguments), torch.autograd.grad(want.sum(), wide), strict=True)
    for ours, theirs in ((got, want), *pairs):
        assert (ours.float() - theirs).norm() < 0.02 * theirs.norm()


@pytest.mark.slow
def test_compiles_to_one_graph() -> None:
    compiled = torch.compile(region_filter, fullgraph=True, backend="aot_eager")
    agree(compiled, reference.region_filter, *inputs(1, 3, 4, 4))
