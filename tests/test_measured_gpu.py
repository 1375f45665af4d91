"""docs/kernels.md shows what was measured on GPUs: its rows are those of benchmarks/results."""

from typing import Any

import pytest

from tests.test_measured import page, results

KERNELS, CALLS, MODELS, SHARED = (
    results(f"{name}.json") for name in ("kernels", "kernels_calls", "models", "models_shared")
)
ATTENTION = [
    (kind, name)
    for kind in ("dense softmax", "packed softmax", "packed sigmoid")
    for name in ("DiMR-XL", "FiTv2-XL", "FiTv2-3B")
]

WAYS = ("triton", "sdpa", "flex")


def microseconds(case: str, way: str) -> str:
    """Return the GPU's time of a way to compute attention, and with its gradients; nothing where it has none."""
    rows = [row for row in KERNELS["rows"] if (row["case"], row["way"]) == (f"attention {case}", way)]
    return " / ".join(f"{row['seconds']['median'] * 1e6:.0f}" for row in rows)


def attention_row(kind: str, name: str) -> str:
    return f"| {kind}, {name} | " + " | ".join(microseconds(f"{kind} {name}", way) for way in WAYS) + " |"


def call_row(case: str) -> str:
    """Return the microseconds of a call of ours and of eager, with gradients the second of each, and our share."""
    ours, eager = (
        [row for row in CALLS["rows"] if (row["case"], row["way"]) == (case, way)] for way in ("ours", "eager")
    )
    told = [" / ".join(f"{row['called']['median'] * 1e6:.0f}" for row in rows) for rows in (ours, eager)]
    shares = " / ".join(f"{row['share of copy']:.0%}".replace("%", " %") for row in ours)
    return f"| {case} | {told[0]} | {told[1]} | {shares} |"


def model_row(row: dict[str, Any]) -> str:
    share = f"{row['share of gemm']:.1%}".replace("%", " %") if "share of gemm" in row else ""
    return f"| {row['name']} | {row['seconds']['median'] * 1e3:.1f} | {row['rate']:.1f} {row['unit']} | {share} |"


@pytest.mark.parametrize(("kind", "name"), ATTENTION)
def test_the_microseconds_of_attention(kind: str, name: str) -> None:
    assert attention_row(kind, name) in page("kernels.md")


@pytest.mark.parametrize("case", dict.fromkeys(row["case"] for row in CALLS["rows"]))
def test_the_microseconds_of_calls(case: str) -> None:
    assert call_row(case) in page("kernels.md")


@pytest.mark.parametrize("row", [*MODELS["rows"], *SHARED["rows"]], ids=lambda row: row["name"])
def test_the_milliseconds_of_models(row: dict[str, Any]) -> None:
    assert model_row(row) in page("kernels.md")


def test_the_gains_of_what_is_chosen() -> None:
    seconds = {row["name"]: row["seconds"]["median"] for row in MODELS["rows"]}
    steps = ("DiMR-XL/2R, sampler's step of 1", "FiTv2-XL/2, sampler's step of 1")
    gains = [seconds[f"{step}, eager"] / seconds[f"{step}, recorded"] for step in steps]
    assert f"{gains[0]:.1f} and {gains[1]:.1f} times as fast" in page("kernels.md")
    assert all(row["apart"] == 0 for row in MODELS["rows"] if "recorded" in row["name"])


def test_packed_sequences_are_fastest_in_what_is_chosen_for_them() -> None:
    rows = [row for row in KERNELS["rows"] if "packed" in row["case"] and "error" not in row]
    times = {(row["case"], row["way"], row["backward"]): row["seconds"]["median"] for row in rows}
    others = [(taken, times[case, "triton", pulled]) for (case, way, pulled), taken in times.items() if way in WAYS[1:]]
    assert len(others) == 24 and all(theirs > 3 * ours for theirs, ours in others)


def test_keys_in_parts_gain_nothing() -> None:
    shares = [split / whole for split, whole in alone("split")]
    assert len(shares) == 18
    assert f"({min(shares):.2f} to {max(shares):.2f} times the time)" in page("kernels.md")


def test_one_dense_row_takes_as_long_in_ours() -> None:
    pairs = alone("sdpa", "dense")
    assert len(pairs) == 4 and all(ours < 1.05 * theirs for theirs, ours in pairs)


def alone(way: str, kind: str = "") -> list[tuple[float, float]]:
    """Return the seconds of a way for one picture, beside those of our kernel."""
    rows = [row for row in KERNELS["rows"] if row["case"].endswith("batch 1") and "error" not in row]
    times = {
        (row["case"], row["way"], row["backward"]): row["seconds"]["median"] for row in rows if kind in row["case"]
    }
    return [(taken, times[case, "triton", pulled]) for (case, name, pulled), taken in times.items() if name == way]


def test_the_least_of_calls() -> None:
    ours = [row for row in CALLS["rows"] if row["way"] == "ours"]
    least = [
        min(row["called"]["median"] * 1e6 for row in ours if row["backward"] is pulled) for pulled in (False, True)
    ]
    assert f"A call took at least {least[0]:.0f} microseconds here, one with gradients at least {least[1]:.0f}" in page(
        "kernels.md"
    )
    assert sum(row["share of copy"] >= 0.8 for row in ours if not row["backward"]) == 2


def test_what_a_call_costs_the_processor() -> None:
    found = results("dispatch.json")
    costs = {name: each["median"] * 1e6 for name, each in found.items() if isinstance(each, dict)}
    first = f"{costs['direct, forward']:.0f} microseconds instead of {costs['custom op, forward']:.0f}"
    second = f"{costs['direct, with gradients']:.0f} instead of {costs['custom op, with gradients']:.0f}"
    assert f"{first}, with gradients {second}" in page("kernels.md")


def test_what_a_multiprocessor_has_time_for() -> None:
    clocks = 132 * 1.98e9
    assert f"moves {KERNELS['ceilings']['copy'] / clocks / 4:.0f} bytes in each of the slots" in page("kernels.md")
    pixel = [90 / 128 / clocks / (3 * size / CALLS["ceilings"]["copy"]) for size in (2, 4)]
    told = f"{pixel[0]:.1f} times as long as a copy's rate, measured, takes for the traffic in bfloat16"
    assert f"{told}, and {pixel[1]:.1f} times in float32" in page("kernels.md")


def test_what_failed_is_told() -> None:
    failed = {(row["case"], row["way"]) for row in KERNELS["rows"] if "error" in row}
    assert {way for _, way in failed} == {"sdpa", "chosen"} and all("dense" in case for case, _ in failed)
    assert all(row["apart"] < 1e-2 for row in KERNELS["rows"] if "apart" in row)
    assert "gradients of a batch of one row" in page("kernels.md")
