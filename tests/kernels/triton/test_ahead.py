"""Every kernel compiles for sm_80, sm_90a and sm_100a: no register spills, shared memory within bounds."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton", reason="triton is not installed: pip install 'belvedere[test]'")


from belvedere.kernels.triton.ahead import Compiled, table

ROOT = Path(__file__).parents[3]


def test_the_table_of_the_docs_is_that_of_the_stored_figures() -> None:
    rows = json.loads((ROOT / "benchmarks" / "results" / "kernels_compiled.json").read_text())
    assert table([Compiled(**row) for row in rows]) in (ROOT / "docs" / "kernels.md").read_text()


@pytest.mark.slow
def test_everything_compiles_without_spills(tmp_path: Path) -> None:
    file = tmp_path / "compiled.json"
    plain = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-m", "belvedere.kernels.triton.ahead", "--json", str(file)]
    result = subprocess.run(command, env=plain, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    rows = json.loads(file.read_text())
    by_target = {target: {row["kernel"] for row in rows if row["target"] == target} for target in ("sm_80", "sm_90a")}
    assert by_target["sm_80"] == by_target["sm_90a"] != set()
    assert all(row["registers"] <= 255 and row["stack"] == 0 for row in rows)
