"""The page on training shows the costs that were counted."""

import json
from pathlib import Path

from belvedere.apps.config import load_config

ROOT = Path(__file__).parents[1]


def test_the_costs_of_the_page_are_those_of_the_results() -> None:
    page = (ROOT / "docs/training.md").read_text()
    for row in json.loads((ROOT / "benchmarks/results/training_cost.json").read_text())["rows"]:
        config = load_config(row["recipe"])
        assert (row["steps"], row["batch"]) == (config.steps, config.batch)
        assert row["flops"] == row["sample_flops"] * config.steps * config.batch
        figures = f"{row['sample_flops'] / 1e9:,.0f} | {row['flops'] / 1e18:,.1f} | {row['h100_hours']:,.1f} |"
        assert f"| `{row['recipe']}` | {config.steps:,} x {config.batch:,} | {figures}" in page
