"""What holds for every kernel with gradients: checkpointing changes none, and all of what is made is written."""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any
from unittest import mock

import pytest
import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

pytest.importorskip("triton", reason="triton is not installed: pip install 'belvedere[test]'")

from belvedere.kernels import concat, rays
from belvedere.kernels.backends import OPERATIONS
from belvedere.kernels.triton import region
from belvedere.kernels.triton.launch import Operation
from tests.kernels import test_depthwise
from tests.kernels.test_ops import random
from tests.kernels.test_rays import Rays, joined, leaves, rendered
from tests.kernels.triton import test_concat
from tests.kernels.triton.fused import deterministic, gradients, routed, same


def op(name: str, *fixed: Any, results: int = 1) -> Callable[..., Tensor]:
    """Return the operation of tensors and what is ``fixed``, its differentiable results in one tensor."""

    def function(*given: Tensor) -> Tensor:
        made = OPERATIONS[name](*given, *fixed)
        return made if isinstance(made, Tensor) else joined(made[:results])

    return function


def norm(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    return op("scaled_norm", None, None, "layer", 1e-6, 1.0)(x, shift, scale)


def sum_and_norm(x: Tensor, y: Tensor, gate: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    made = op("gated_residual_norm", None, None, "layer", 1e-6, 1.0, results=2)
    return made(x, y, gate, shift, scale)


def turned(q: Tensor, k: Tensor, weight: Tensor) -> Tensor:
    angle = random(3, 1, 4).detach()
    return op("qk_norm_rope", "rms", "layer", 1e-6, results=2)(q, k, angle.cos(), angle.sin(), weight, weight)


def rotated(x: Tensor) -> Tensor:
    angle = random(3, 1, 4).detach()
    return op("rotate_pairs", 1.0)(x, angle.cos(), angle.sin())


ATTENDED = [random(5, 2, 16, seed=seed) for seed in range(3)]
OFFSETS = torch.tensor([0, 2, 5], dtype=torch.int32)
ROWS = [random(2, 3, 8, seed=seed) for seed in range(2)]
OF_IMAGES = [random(2, 8, seed=seed) for seed in range(3)]
MAPS, TAPS = (random(1, 2, 3, 4), random(1, 2, 3, 4, seed=1)), (random(2, 9, 1, 3, 3), random(2, 9))
CALLS: dict[str, tuple[Callable[..., Tensor], list[Tensor]]] = {
    "attention": (op("attention", OFFSETS, 0.25, False), ATTENDED),
    "attention, sigmoid": (op("attention", OFFSETS, 0.25, True), ATTENDED),
    "attention_split": (op("attention_split", OFFSETS, 0.25, False), ATTENDED),
    "gated_mlp": (op("gated_mlp", "gelu"), ROWS[:1]),
    "scaled_norm": (norm, [ROWS[0], *OF_IMAGES[:2]]),
    "gated_residual": (op("gated_residual", None), [*ROWS, OF_IMAGES[0]]),
    "gated_residual_norm": (sum_and_norm, [*ROWS, *OF_IMAGES]),
    "qk_norm_rope": (turned, [random(3, 2, 8), random(3, 2, 8, seed=1), random(2, 1)]),
    "rotate_pairs": (rotated, [random(3, 2, 8)]),
    "concat_scale": (test_concat.streamed, [x for part in test_concat.inputs(2, 3, 2, 4, 2) for x in part]),
    "depthwise_residual": (op("depthwise_residual"), [*test_depthwise.inputs(1, 2, 3, 2, 3)]),
    "region_filter": (op("region_filter"), [*MAPS, *TAPS]),
    "render_factored": (rendered("vector_matrix", Rays.some(1, 3, 2)), leaves("vector_matrix", b=1)),
}


@pytest.fixture(scope="module", autouse=True)
def _routed() -> Iterator[None]:
    with routed(concat, rays), mock.patch.multiple(region, ROWS=2, GRADIENT_ROWS=2, SHARES=2):
        yield


@pytest.mark.slow
@pytest.mark.parametrize("name", CALLS)
def test_checkpointing_changes_no_gradient(name: str) -> None:
    function, given = CALLS[name]
    assert same(gradients(partial(checkpoint, function, use_reentrant=False), *given), gradients(function, *given))


@pytest.mark.slow
@pytest.mark.parametrize("name", CALLS)
def test_what_memory_held_before_does_not_matter(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    function, given = CALLS[name]
    want = gradients(function, *given)
    with deterministic():  # then PyTorch fills what is empty
        assert torch.empty(3).isnan().all() and torch.empty(3).new_empty(2).isnan().all()
        monkeypatch.setattr(torch, "are_deterministic_algorithms_enabled", lambda: False)  # rays too have a kernel then
        assert same(gradients(function, *given), want)


@pytest.mark.slow
def test_every_operation_is_asked() -> None:
    asked = set()
    call = Operation.__call__

    def noted(self: Operation, *given: Any) -> Any:
        asked.add(self.name)
        return call(self, *given)

    with mock.patch.object(Operation, "__call__", noted):
        for function, given in CALLS.values():
            gradients(function, *given)
    assert asked == set(OPERATIONS)
