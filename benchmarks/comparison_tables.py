"""The tables of docs/comparison.md, from ``results/comparison.json``."""

import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

MARK = "<!-- by benchmarks/comparison.py -->\n"
"""Lies before and behind the tables."""


def write_into(page: Path, result: dict[str, Any]) -> None:
    """Put the tables into a page, in place of what lies between its two marks."""
    before, _, behind = page.read_text().split(MARK)
    found = "\n\n".join(tables(result))
    page.write_text(f"{before}{MARK}\n{found}\n\n{MARK}{behind}")


def tables(result: dict[str, Any]) -> list[str]:
    """Return the tables in Markdown: of DiMR, then of FiTv2 by size. Each figure is a mean, ± half the range."""
    rows: dict[str, dict[str, list[dict[str, Any]]]] = {"dimr": {}, "fitv2": {}}
    for row in result["rows"]:
        rows[row["study"]].setdefault(row["arm"], []).append(row)
    return [_dimr(rows["dimr"], result["real"]), _fitv2(rows["fitv2"], result["real"])]


def _dimr(arms: dict[str, list[dict[str, Any]]], real: dict[str, float]) -> str:
    lines = []
    for name, rows in arms.items():
        size, work = f"{rows[0]['parameters']:,}", f"{rows[0]['flops'] / 1e6:.0f}"
        figures = [_spread([row[key] for row in rows], 3) for key in ("training", "held_out", "frechet")]
        lines.append([name, str(len(rows)), size, work, *figures])
    lines.append(["other real pictures", "", "", "", "", "", f"{real['cifar-10']:.3f}"])
    heads = ["network", "seeds", "parameters", "MFLOP a pass", "training loss", "held-out loss", "Fréchet"]
    return _table(heads, lines)


def _fitv2(arms: dict[str, list[dict[str, Any]]], real: dict[str, float]) -> str:
    names = list(arms)
    heads = ["pictures", *(f"{key}, {name}" for key in ("held-out loss", "Fréchet") for name in names), "Fréchet, real"]
    lines = [["training loss", *(_spread([row["training"] for row in arms[name]], 3) for name in names)]]
    lines[0] += [""] * (len(heads) - len(lines[0]))
    for size in next(iter(arms.values()))[0]["sizes"]:
        keys = [(key, name) for key in ("held_out", "frechet") for name in names]
        figures = [_spread([row["sizes"][size][key] for row in arms[name]], 3) for key, name in keys]
        lines.append([size, *figures, f"{real[size.split()[0]]:.3f}"])
    return _table(heads, lines)


def _spread(values: Sequence[float], digits: int) -> str:
    half = (max(values) - min(values)) / 2
    return f"{statistics.mean(values):.{digits}f} ± {half:.{digits}f}"


def _table(heads: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    rule = "|".join("---" for _ in heads)
    return "\n".join([f"| {' | '.join(heads)} |", f"|{rule}|", *(f"| {' | '.join(line)} |" for line in lines)])
