"""Compare Belvedere with golden files of the official models: ``python -m tests.parity FOLDER``.

A golden file is a pair NAME.json + NAME.safetensors; the prefix of NAME up to the first underscore is the system,
everything else comes from the JSON. One row per case; exit code 1 when a case is off by more than
rtol 1e-4 plus the file's own absolute tolerance (2e-5 where it names none), 2 when nothing could be compared.
"""

import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import load_file
from torch import Tensor

from tests import parity_dimr, parity_fitv2, parity_neti, parity_nvist, parity_segpic

RTOL = 1e-4
ATOL = 2e-5

Cases = Iterator[tuple[str, Tensor, Tensor]]
SYSTEMS: dict[str, Callable[[dict[str, Any], dict[str, Tensor]], Cases]] = {
    "dimr": parity_dimr.run,
    "fitv2": parity_fitv2.run,
    "neti": parity_neti.run,
    "nvist": parity_nvist.run,
    "segpic": parity_segpic.run,
}


@dataclass(frozen=True)
class Row:
    """The outcome of one case."""

    file: str
    case: str
    max_error: float
    relative_l2: float
    passed: bool


def tolerance(description: dict[str, Any], case: str) -> float:
    """Return the absolute tolerance of a case: its own, its file's, or the default."""
    named = description.get("atol", description.get("suggested_tolerance", ATOL))
    if isinstance(named, dict):
        named = named.get(case, named.get(case.rpartition(".")[0], named.get(case.split(".")[0], ATOL)))
    return float(named) if isinstance(named, int | float) else ATOL


def compare(file: str, case: str, got: Tensor, want: Tensor, atol: float) -> Row:
    """Compare two tensors of one shape in float64."""
    if got.shape != want.shape:
        return Row(file, f"{case} {tuple(got.shape)} is not {tuple(want.shape)}", float("inf"), float("inf"), False)
    got, want = got.detach().double(), want.double()
    error = (got - want).abs()
    passed = bool((error <= RTOL * want.abs() + atol).all())  # False for NaN too
    relative = (error.norm() / want.norm().clamp(min=1e-30)).item()
    return Row(file, case, error.max().item() if error.numel() else 0.0, relative, passed)


def run_file(path: Path) -> Iterator[Row]:
    """Run every case of one golden pair."""
    description = json.loads(path.read_text())
    tensors = load_file(path.with_suffix(".safetensors"))
    for case, got, want in SYSTEMS[path.stem.split("_")[0]](description, tensors):
        yield compare(path.stem, case, got, want, tolerance(description, case))


def run_folder(folder: Path) -> Iterator[Row]:
    """Run every golden pair in a folder whose system this version has."""
    for path in sorted(folder.glob("*.json")):
        if path.stem.split("_")[0] not in SYSTEMS:
            print(f"{path.stem}: this version has no such system, left out")
        elif path.with_suffix(".safetensors").exists():
            yield from run_file(path)


def main(arguments: list[str]) -> int:
    """Print a row per case; return the exit code."""
    if len(arguments) != 1 or not Path(arguments[0]).is_dir():
        print("usage: python -m tests.parity FOLDER", file=sys.stderr)
        return 2
    rows = []
    for row in run_folder(Path(arguments[0])):
        rows.append(row)
        mark = "ok  " if row.passed else "FAIL"
        print(f"{mark} {row.file:28} {row.case:52} max {row.max_error:8.1e}  rel L2 {row.relative_l2:8.1e}")
    failed = sum(not row.passed for row in rows)
    print(f"{len(rows) - failed} passed, {failed} failed")
    return 1 if failed else 0 if rows else 2


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
