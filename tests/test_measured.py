"""Pages show what was measured: their tables and figures are those of benchmarks/results."""

import json
import re
import statistics
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]


def page(name: str) -> str:
    """Return a page of the docs, its lines joined where only they end."""
    return re.sub(r"(?<!\n)\n(?![\n|])", " ", (ROOT / "docs" / name).read_text())


def results(name: str) -> dict[str, Any]:
    return json.loads((ROOT / "benchmarks" / "results" / name).read_text())


def test_the_seconds_of_the_studio() -> None:
    spreads = {name: spread for name, spread in results("studio.json").items() if isinstance(spread, dict)}
    assert spreads
    for name, spread in spreads.items():
        row = f"| {name} | " + " | ".join(f"{spread[kind]:.1f}" for kind in ("median", "fastest", "slowest")) + " |"
        assert row in page("studio.md"), f"docs/studio.md lacks the row {row}"


PRECISION = results("precision_cost.json")


@pytest.mark.parametrize("model", PRECISION["results"])
def test_the_cost_of_fewer_bits(model: str) -> None:
    for dtype, found in PRECISION["results"][model].items():
        row = f"| {model} | {dtype} | {precision_row(dtype, found)} |"
        assert row in page("checkpoints.md"), f"docs/checkpoints.md lacks the row {row}"


def precision_row(dtype: str, found: dict[str, Any]) -> str:
    """Return the cells of a number format: megabytes, PSNR of all and of the farthest, what else was measured."""
    if "refused" in found:
        return "refused | | |"
    same = "" if dtype == "float32" else "the same"
    far = [same if found[key] is None else f"{found[key]:.1f}" for key in ("psnr", "worst")]
    facts = {
        "recognised": "recognised {:.2f}",
        "bits_per_pixel": "{:.4f} bits a pixel",
        "truth": "{:.2f} dB to the truth",
    }
    told = ", ".join(text.format(found[key]) for key, text in facts.items() if key in found)
    return f"{found['bytes'] / 1e6:.1f} | {far[0]} | {far[1]} | {told}"


def test_the_sizes_of_what_is_compared_for_it() -> None:
    machine = PRECISION["machine"]
    assert f"{machine['count']} pictures of each generator at {machine['steps']} steps" in page("checkpoints.md")


@pytest.mark.parametrize(
    ("run", "words"),
    [
        ("model, float32, full check", "{copies:.2f} times the result in float32"),
        ("model, float32, fast check", "({copies:.2f} with `fast`)"),
        ("model, bfloat16, full check", "{copies:.2f} of the half as large bfloat16"),
        ("shards, bfloat16, full check", "(in shards {copies:.2f})"),
        ("int8, float32, full check", "{copies:.2f} from int8 to float32"),
        ("import model_ema.safetensors, float32", "({result_mb:.0f} MB) takes {copies:.2f} times its bytes"),
        ("import model_ema.bin, bfloat16", "the child that reads it holds {child_mb:.0f} MB"),
    ],
)
def test_the_memory_that_opening_takes(run: str, words: str) -> None:
    assert words.format(**results("store.json")["results"][run]) in page("checkpoints.md")


def test_the_seconds_of_conditioning() -> None:
    found = results("neti.json")["conditioning"]
    names = {"one by one": "16 layers one by one, as published", "one batch": "one batch"}
    names |= {"start shared": "and the tokens before the placeholder once"}
    for name, words in names.items():
        seconds = found["seconds"][name]
        median, least, most = statistics.median(seconds), min(seconds), max(seconds)
        row = f"| {words} | {median:.2f} | {least:.2f} to {most:.2f} | {found['gain'][name]:.2f} |"
        assert row in page("personalization.md"), f"docs/personalization.md lacks the row {row}"


def test_the_figures_of_scenes() -> None:
    card = json.loads((ROOT / "belvedere/checkpoints/embedded/nvist-toybox/card.json").read_text())
    for name in ("toys", "toys of unseen kinds"):
        found = card["quality"][name]
        cells = [f"{found[key]:.1f} dB" for key in ("psnr", "copied_psnr", "mean_psnr")]
        cells += [f"{found[key]:.2f}" for key in ("ssim", "copied_ssim", "depth_rank")]
        row = f"| {name} | {' | '.join(cells)} |"
        assert row in page("nvist.md"), f"docs/nvist.md lacks the row {row}"
