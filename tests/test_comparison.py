"""The page on the comparison shows what was measured."""

import importlib.util
import json
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_the_tables_of_the_page_are_those_of_the_results() -> None:
    spec = importlib.util.spec_from_file_location("comparison_tables", ROOT / "benchmarks/comparison_tables.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    result = json.loads((ROOT / "benchmarks/results/comparison.json").read_text())
    page = (ROOT / "docs/comparison.md").read_text()
    assert all(table in page for table in module.tables(result))


def test_networks_that_are_compared_are_of_one_size() -> None:
    rows = json.loads((ROOT / "benchmarks/results/comparison.json").read_text())["rows"]
    for study in ("dimr", "fitv2"):
        sizes = [row["parameters"] for row in rows if row["study"] == study]
        assert sizes and max(sizes) <= 1.02 * min(sizes)
