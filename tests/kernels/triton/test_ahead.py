"""Kernels compile for sm_80, sm_90a, sm_100a and, attention, sm_120a: no register spills, shared memory in bounds."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

pytest.importorskip("triton", reason="triton is not installed: pip install 'belvedere[test]'")


from belvedere.kernels.triton.ahead import TARGETS, Compiled, moved_table, table, wrong_with

ROOT = Path(__file__).parents[3]


BOUND_BY_MEMORY = ("gates.", "norms.", "residual.", "residual_norm.", "rope.", "concat.")
LEAST_MOVED = 6.0
"""Bytes an instruction: an H200 that copies at 4.25 TB/s moves 4 in every slot for one that its multiprocessors have
(132 of them, 4 a clock, 1.98 GHz), so a third of the slots stay free."""

RESIDENT = {"attention.forward": 4, "depthwise.filter": 3}
"""Programs that a multiprocessor of Hopper has room for at a time."""


def stored() -> list[Compiled]:
    rows = json.loads((ROOT / "benchmarks" / "results" / "kernels_compiled.json").read_text())
    return [Compiled(**row) for row in rows]


@pytest.mark.parametrize("of", [table, moved_table])
def test_the_tables_of_the_docs_are_those_of_the_stored_figures(of: Callable[[list[Compiled]], str]) -> None:
    assert of(stored()) in (ROOT / "docs" / "kernels.md").read_text()


def test_a_kernel_that_is_not_compiled_for_a_target_has_an_empty_cell() -> None:
    made = (("a", "x"), ("b", "x"), ("a", "y"))
    rows = [Compiled("n", kernel, target, 9, 0, 1024, 4, None) for kernel, target in made]
    assert table(rows).splitlines()[2:] == ["| a | 9, 1.0 KB | 9, 1.0 KB |", "| b | 9, 1.0 KB |  |"]


def test_a_block_of_an_rtx_has_less_shared_memory_than_others() -> None:
    wide = [Compiled("n", "a", target, 9, 0, 101_377, 4, None) for target in TARGETS]
    assert [one.target for one in wide if wrong_with(one)] == ["sm_120a"]


def kept_from_memory(rows: list[Compiled]) -> list[str]:
    """Return what has too many instructions for what it moves."""
    known = [row for row in rows if row.moved is not None and row.kernel.startswith(BOUND_BY_MEMORY)]
    assert {row.kernel.partition(".")[0] + "." for row in known} == set(BOUND_BY_MEMORY)
    return [f"{row.name} on {row.target}: {row.moved}" for row in known if row.moved and row.moved < LEAST_MOVED]


def too_few_on_a_multiprocessor(rows: list[Compiled]) -> list[str]:
    """Return which programs on Hopper, in 16 bits, are so large that fewer than those of ``RESIDENT`` fit."""
    known = [row for row in rows if row.target == "sm_90a" and row.kernel in RESIDENT and "float32" not in row.name]
    assert len(known) >= 8 and {row.kernel for row in known} == set(RESIDENT)
    large = [row for row in known if row.registers * 32 * row.warps > 65536 // RESIDENT[row.kernel]]
    return [f"{row.name}: {row.registers}" for row in large]


def test_stored_figures_leave_time_for_the_memory_and_room_for_enough_programs() -> None:
    assert not kept_from_memory(stored()) and not too_few_on_a_multiprocessor(stored())


@pytest.mark.slow
def test_everything_compiles_without_spills(tmp_path: Path) -> None:
    file = tmp_path / "compiled.json"
    plain = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-m", "belvedere.kernels.triton.ahead", "--json", str(file)]
    result = subprocess.run(command, env=plain, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    rows = json.loads(file.read_text())
    compiled = [Compiled(**row) for row in rows]
    assert not kept_from_memory(compiled) and not too_few_on_a_multiprocessor(compiled)
    by_target = {target: {row["kernel"] for row in rows if row["target"] == target} for target in TARGETS}
    assert by_target["sm_80"] == by_target["sm_90a"] == by_target["sm_100a"] != set()
    assert by_target["sm_120a"] == {kernel for kernel in by_target["sm_80"] if kernel.startswith("attention")}
    assert all(row["registers"] <= 255 and row["stack"] == 0 for row in rows)
