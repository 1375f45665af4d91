"""What pipelines record: calls that need nothing of the host, few kinds of them, and the same pictures as ever.

A GPU is not needed: tensors without memory (``meta``) stand for those of one, and the kernels' operations know what
they would give. What is mixed with a tensor of the host, or read from one without memory, fails.
"""

from collections import Counter
from collections.abc import Callable, Hashable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from belvedere.generation.fitv2_pipeline import FiTv2Pipeline
from belvedere.generation.packed_sampling import Guidance
from belvedere.kernels import backends, concat, gates, norms, rope
from belvedere.kernels.graphs import Graphs, kind_of
from tests.generation.test_fitv2 import tiny as tiny_fitv2
from tests.generation.test_packed_sampling import packed_call, tokens
from tests.generation.test_pipelines import generators, pipeline, pixels

pytest.importorskip("triton", reason="triton is not installed: pip install 'belvedere[test]'")

from tests.kernels.triton.fused import routed

MODULES = concat, gates, norms, rope
"""Whose ops have kernels that these networks use."""


class OnDevice(TorchDispatchMode):
    """Fails on an operation that takes anything from the host; remembers the names of all."""

    def __init__(self) -> None:
        super().__init__()
        self.names = set[str]()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.add(func.name())
        out = func(*args, **(kwargs or {}))
        places = {x.device.type for x in tree_leaves((args, kwargs, out)) if isinstance(x, Tensor)}
        assert places <= {"meta"}, f"{func.name()} on {places}"
        return out


class Call(nn.Module):
    """A call of a network whose weights are elsewhere while it runs."""

    def __init__(self, network: nn.Module, call: Callable[..., Tensor]):
        super().__init__()
        self.network, self.call = network, call

    def forward(self, *inputs: Tensor) -> Tensor:
        return self.call(*inputs)


class Noted(Graphs):
    """Makes each call as it stands, and counts those of each kind."""

    def __init__(self) -> None:
        super().__init__()
        self.kinds = Counter[Hashable]()

    def __call__(self, function: Callable[..., Tensor], *inputs: Tensor, fixed: Hashable = ()) -> Tensor:
        self.kinds[kind_of(inputs, fixed)] += 1
        return function(*inputs)


class Watched(Noted):
    """Makes the calls of ``network`` also where there is no memory, by the kernels; ``names`` are the operations."""

    def __init__(self, network: nn.Module):
        super().__init__()
        self.network, self.names = network, set[str]()

    def __call__(self, function: Callable[..., Tensor], *inputs: Tensor, fixed: Hashable = ()) -> Tensor:
        there = tuple(x.to("meta") for x in inputs)
        weights = {f"network.{name}": x.to("meta") for name, x in self.network.named_parameters()}
        with OnDevice() as watched, routed(*MODULES):
            made = torch.func.functional_call(Call(self.network, function), weights, there)
        self.names |= watched.names
        out = super().__call__(function, *inputs, fixed=fixed)
        assert (made.shape, made.dtype) == (out.shape, out.dtype)
        return out


@pytest.fixture
def kernels_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let attention without memory go to the kernel."""
    monkeypatch.setattr(backends, "why_not_fused", lambda device, dtype: None if device == "meta" else "no GPU")
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda device: False)  # which would not know it


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("change", [{}, {"position": "Axial_RoPE", "norm": "LN"}, {"norm": "ADARMSN"}], ids=str)
def test_a_call_of_dimr_needs_nothing_of_the_host(
    change: dict[str, Any], dtype: torch.dtype, kernels_run: None
) -> None:
    made = pipeline(**change)
    made.network.to(dtype)
    watched = made._graphs = Watched(made.network)
    pixels(made, [0], num_inference_steps=1)
    assert {"belvedere::gated_mlp", "belvedere::scaled_norm", "belvedere::concat_scale"} <= watched.names


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    "change", [{}, {"rotate_v": True, "mlp": "gelu"}, {"refine_depth": 1, "refine_dim": 8}], ids=str
)
def test_a_call_of_fitv2_needs_nothing_of_the_host(
    change: dict[str, Any], dtype: torch.dtype, kernels_run: None
) -> None:
    network = tiny_fitv2(**change).to(dtype)
    watched = Watched(network)
    with torch.no_grad():
        packed_call(network, Guidance(2.0), graphs=watched).velocity(torch.cat(tokens()), 0.3)
    assert {"belvedere::attention", "belvedere::qk_norm_rope", "belvedere::gated_residual_norm"} <= watched.names


@pytest.mark.parametrize("capacity", [32, 1024])
@pytest.mark.parametrize(("change", "kinds"), [({}, 1), ({"refine_depth": 1, "refine_dim": 8}, 2)], ids=str)
def test_pictures_of_other_sizes_are_of_one_kind_unless_convolutions_go_by_them(
    change: dict[str, Any], kinds: int, capacity: int
) -> None:
    network, noted = tiny_fitv2(**change), Noted()
    for sizes in ([(2, 3), (4, 4), (1, 5)], [(1, 1), (3, 3), (2, 2)]):
        call = packed_call(network, Guidance(2.0), sizes=sizes, graphs=noted, capacity=capacity)
        for t in (0.2, 0.4):
            call.velocity(torch.cat(tokens(call.lengths)), t)
    assert list(noted.kinds.values()) == [4 // kinds] * kinds


def test_steps_and_requests_of_dimr_are_of_one_kind() -> None:
    made = pipeline()
    noted = made._graphs = Noted()
    for indices in ([0], list(range(made.micro_batch() + 1))):
        pixels(made, indices, num_inference_steps=3)
    assert list(noted.kinds.values()) == [9]


def test_switching_graphs_off_changes_nothing_on_a_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = pixels(pipeline(), [0, 1]), fitv2_pixels()
    monkeypatch.setenv("BELVEDERE_GRAPHS", "0")
    assert torch.equal(pixels(pipeline(), [0, 1]), plain[0]) and torch.equal(fitv2_pixels(), plain[1])


def fitv2_pixels() -> Tensor:
    made = FiTv2Pipeline(tiny_fitv2(channels=1, patch=4), default_steps=2)
    made.set_progress_bar_config(disable=True)
    return made([0, 1], generator=generators([0, 1]), output_type="pt").images
