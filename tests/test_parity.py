"""The golden files shipped with the tests, through the command researchers run; and the command's own honesty."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests import parity

GOLDEN = Path(__file__).parent / "golden"


@pytest.mark.parametrize("path", sorted(GOLDEN.glob("*.json")), ids=lambda path: path.stem)
def test_golden(path: Path) -> None:
    rows = list(parity.run_file(path))
    assert len(rows) > 10
    assert [row for row in rows if not row.passed] == []


@pytest.mark.slow
def test_command_fails_on_a_changed_number(tmp_path: Path) -> None:
    name = "dimr_2r_ln_areadown"
    shutil.copy(GOLDEN / f"{name}.json", tmp_path)
    tensors = load_file(GOLDEN / f"{name}.safetensors")
    tensors["mixed_t.out1"] = tensors["mixed_t.out1"] + 1e-3
    save_file(tensors, tmp_path / f"{name}.safetensors")
    result = subprocess.run([sys.executable, "-m", "tests.parity", str(tmp_path)], capture_output=True, text=True)
    assert result.returncode == 1
    assert "FAIL" in result.stdout and "1 failed" in result.stdout


def test_command_without_golden_files_does_not_pass(tmp_path: Path) -> None:
    assert parity.main([str(tmp_path)]) == 2


def test_nan_is_a_failure() -> None:
    row = parity.compare("f", "c", torch.tensor([float("nan")]), torch.tensor([0.0]), 1.0)
    assert not row.passed


def test_tolerances_come_from_the_file() -> None:
    description = json.loads('{"atol": {"smaller": 0.5}}')
    assert parity.tolerance(description, "smaller.out0") == 0.5
    assert parity.tolerance(description, "loss.mean") == parity.ATOL
    assert parity.tolerance({"suggested_tolerance": 1e-3}, "x") == 1e-3
