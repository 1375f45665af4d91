"""benchmarks/kernels.py and tune.py: what their cases count, what is timed of them, and that settings have cases."""

import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

pytestmark = pytest.mark.slow  # all cases are made, and a compiler is imported
BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture(scope="module")
def bench() -> Iterator[ModuleType]:
    """The script as a module; what it puts into the environment and imports from beside it is gone afterwards."""
    before = set(sys.modules)
    with pytest.MonkeyPatch.context() as patch:
        for name in ("CUBLAS_WORKSPACE_CONFIG", "BELVEDERE_KERNELS"):
            patch.setenv(name, "")
        patch.syspath_prepend(BENCHMARKS)
        import kernels

        yield kernels
    for name in set(sys.modules) - before:
        if Path(getattr(sys.modules[name], "__file__", None) or "").parent == BENCHMARKS:
            del sys.modules[name]


@pytest.fixture(scope="module")
def cases(bench: ModuleType) -> dict[str, Any]:
    return {case.name: case for case in bench.cases("cpu")}


# In tensors of activations, called and with gradients.
MOVED = {
    "modulate_norm FiTv2-XL": (2, 5),
    "gated_residual FiTv2-XL": (3, 6),
    "gated_residual_norm FiTv2-XL": (4, 10),
    "TD-LN DiMR-XL": (2, 5),
    "sum, TD-RMSN DiMR-XL": (4, 8),  # the sum is read again, not what was added, and both have one gradient
    "qk_norm_rope FiTv2-XL": (4, 10),
}


@pytest.mark.parametrize("name", MOVED)
def test_the_bytes_that_have_to_be_moved(bench: ModuleType, cases: dict[str, Any], name: str) -> None:
    case = cases[name]
    with torch.no_grad():
        out = tuple(x.to(case.inputs[0].dtype) for x in bench.parts(case.twin(*case.inputs)))
    counts = tuple(case.moved(out, train) // case.inputs[0].nbytes for train in (False, True))  # rows are less than one
    assert counts == MOVED[name]


class Names(TorchDispatchMode):
    """Remembers the names of operations."""

    def __init__(self) -> None:
        super().__init__()
        self.names = set[str]()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.add(func.name())
        return func(*args, **(kwargs or {}))


def test_angles_are_made_before_rotations_are_timed(cases: dict[str, Any]) -> None:
    rotations = [case for name, case in cases.items() if "rope" in name]
    assert len(rotations) == 2
    for case in rotations:
        for way in (case.ways["ours"], case.ways["eager"]):
            with Names() as seen:
                way(*case.inputs)
            assert not {"aten::cos", "aten::sin"} & seen.names


def test_each_size_is_compiled_for_itself(bench: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []
    monkeypatch.setattr(torch, "compile", lambda function, dynamic=None: asked.append(dynamic) or function)
    compiled = [case for case in bench.cases("cpu") if "compile" in case.ways]
    assert len(asked) > len(compiled) > 10 and not any(asked) and None not in asked


def test_activations_folded_in_are_compared_with_their_concatenation(bench: ModuleType, cases: dict[str, Any]) -> None:
    case = cases["concat DiMR-XL"]
    assert bench.distance(case, case.ways["ours"], None) < 1e-2
    grad = tuple(torch.ones_like(x) for x in bench.parts(case.twin(*case.inputs)))
    assert bench.distance(case, case.ways["ours"], grad) < 3e-2


def test_flops_of_scores_made_anew_count_in_attention_alone(cases: dict[str, Any]) -> None:
    assert {case.products for name, case in cases.items() if name.startswith("attention")} == {3.5}
    assert {case.products for name, case in cases.items() if not name.startswith("attention")} == {3}


def test_every_module_whose_setting_is_tried_has_a_case(bench: ModuleType, cases: dict[str, Any]) -> None:
    pytest.importorskip("triton", reason="triton is not installed: pip install 'belvedere[test]'")
    import tune

    for knob in tune.KNOBS.values():
        assert all(any(part in name for name in cases) for part in knob.cases)
    summed = tune.KNOBS["numbers a thread, summed"]
    assert (tune.concat_kernels, "SUMMED") in summed.places and "concat" in summed.cases
