"""docs/kernels.md shows what was measured on GPUs: its rows are those of benchmarks/results."""

from typing import Any

import pytest

from tests.test_measured import page, percent, results

KERNELS, TUNED, MODELS, SHARED = (results(f"{name}.json") for name in ("kernels", "tuned", "models", "models_shared"))
COMPUTES = ("attention", "region_filter", "depthwise_residual")
"""Cases that arithmetic bounds, not memory."""
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


def as_set() -> dict[tuple[str, bool], dict[str, Any]]:
    """Return the row of each case, without and with its backward, with everything as it was set."""
    rows: dict[tuple[str, bool], dict[str, Any]] = {}
    for row in TUNED["rows"]:
        rows.setdefault((row["case"], row["backward"]), row)
    return rows


def op_row(case: str) -> str:
    """Return the microseconds of an op, and with gradients, and its shares of a copy."""
    rows = [as_set()[case, backward] for backward in (False, True)]
    times = " / ".join(f"{row['seconds']['median'] * 1e6:.0f}" for row in rows)
    return f"| {case} | {times} | " + " / ".join(percent(row["share of copy"]) for row in rows) + " |"


def model_row(row: dict[str, Any]) -> str:
    share = f"{row['share of gemm']:.1%}".replace("%", " %") if "share of gemm" in row else ""
    return f"| {row['name']} | {row['seconds']['median'] * 1e3:.1f} | {row['rate']:.1f} {row['unit']} | {share} |"


@pytest.mark.parametrize(("kind", "name"), ATTENTION)
def test_the_microseconds_of_attention(kind: str, name: str) -> None:
    assert attention_row(kind, name) in page("kernels.md")


@pytest.mark.parametrize("case", dict.fromkeys(case for case, _ in as_set() if not case.startswith("attention")))
def test_the_microseconds_of_other_ops(case: str) -> None:
    assert op_row(case) in page("kernels.md")


def test_how_many_ops_reach_the_rate_of_a_copy() -> None:
    bound = {key: row["share of copy"] for key, row in as_set().items() if not key[0].startswith(COMPUTES)}
    reached = [sum(share >= 0.8 for (_, pulled), share in bound.items() if pulled is way) for way in (False, True)]
    assert (len(bound), *reached) == (28, 10, 3)
    assert "ten of fourteen forward passes reach it, and with their backward three" in page("kernels.md")


def test_what_was_chosen_of_what_was_tried() -> None:
    """The tile of attention, fastest for all heads, and half the tokens a program in gradients of rotations."""
    tiles = [row for row in TUNED["rows"] if row["knob"] == "attention forward" and not row["backward"]]
    cases = {row["case"] for row in tiles}
    assert len(cases) == 3 and len({row["value"] for row in tiles}) == 11
    for case in cases:
        fastest = min((row for row in tiles if row["case"] == case), key=lambda row: row["seconds"]["median"])
        assert fastest["value"] == "(64, 32, 4, 3, None)"
    chunks = [row for row in TUNED["rows"] if row["knob"] == "rows of a chunk" and "qk_norm" in row["case"]]
    for case in {row["case"] for row in chunks}:
        times = {row["value"]: row["seconds"]["median"] for row in chunks if row["case"] == case and row["backward"]}
        assert times["16"] < 0.9 * min(times["32"], times["64"])


def test_the_rates_of_the_second_day() -> None:
    copy, product = (TUNED["ceilings"][name] / 1e12 for name in ("copy", "gemm"))
    assert f"were taken, at {copy:.2f} TB/s and {product:.0f} TFLOP/s" in page("kernels.md")


def test_rays() -> None:
    rows = {
        (row["case"], row["way"], row["backward"]): f"{row['seconds']['median'] * 1e3:.1f}"
        for row in KERNELS["rows"]
        if row["case"].startswith("rays")
    }
    views, trained = ([rows["rays NViST", way, pulled] for way in ("ours", "eager")] for pulled in (False, True))
    assert f"{views[0]} ms in one kernel against {views[1]} ms in plain PyTorch" in page("kernels.md")
    exact = rows["rays NViST, deterministic", "ours", True]
    told = f"{trained[0]} and {trained[1]} ms with gradients, {exact} ms with deterministic ones"
    assert told in page("kernels.md")


@pytest.mark.parametrize("row", [*MODELS["rows"], *SHARED["rows"]], ids=lambda row: row["name"])
def test_the_milliseconds_of_models(row: dict[str, Any]) -> None:
    assert model_row(row) in page("kernels.md")


def test_the_gains_of_what_is_chosen() -> None:
    seconds = {row["name"]: row["seconds"]["median"] for row in MODELS["rows"]}
    steps = ("DiMR-XL/2R, sampler's step of 1", "FiTv2-XL/2, sampler's step of 1")
    gains = [seconds[f"{step}, eager"] / seconds[f"{step}, recorded"] for step in steps]
    assert f"{gains[0]:.1f} and {gains[1]:.1f} times as fast" in page("kernels.md")
    assert all(row["apart"] == 0 for row in MODELS["rows"] if "recorded" in row["name"])


def test_the_share_of_the_matrix_product_at_64_pictures() -> None:
    share = {row["name"]: row["share of gemm"] for row in MODELS["rows"] if "share of gemm" in row}
    assert share["FiTv2-XL/2, 64 pictures, compiled"] > 0.55 > share["DiMR-XL/2R, 64 pictures, compiled"]
    told = f"DiMR-XL/2R, at {percent(share['DiMR-XL/2R, 64 pictures, compiled'])}, does not yet"
    assert told in page("kernels.md")


def test_what_kernels_of_a_network_take() -> None:
    """GEMMs of DiMR's compiled call, the depthwise kernel in it, copies, and the kernels of training steps in all."""
    rows = {row["name"]: row for row in MODELS["rows"]}
    busy = rows["DiMR-XL/2R, 64 pictures, compiled"]["kernels"]
    products = sum(each["seconds"] for each in busy if each["name"].startswith("nvjet")) * 1e3
    assert f"compiled call {products:.0f} of 50 milliseconds of kernels are matrix products" in page("kernels.md")
    ours = next(each for each in busy if each["name"].startswith("_filter"))
    copies = next(each for each in busy if "elementwise_kernel<128, 4" in each["name"])
    told = f"({copies['calls']} copies, {copies['seconds'] * 1e3:.1f} ms), and the depthwise kernel"
    eager = rows["DiMR-XL/2R, 64 pictures, eager"]["kernels"]
    mixed = next(
        each for each in eager if "unrolled_elementwise_kernel<at::native::CUDAFunctor_add<float>" in each["name"]
    )
    assert f"sums of two dtypes ({mixed['seconds'] * 1e3:.1f} ms) have a kernel" in page("kernels.md")
    steps = [sum(x["seconds"] for x in row["kernels"]) * 1e3 for name, row in rows.items() if "training" in name]
    assert f"24 busiest kernels take {steps[0]:.0f}, {steps[1]:.0f} and {steps[2]:.0f} ms" in page("kernels.md")
    assert told in page("kernels.md") and f"kernel ({ours['seconds'] * 1e3:.1f} ms)" in page("kernels.md")


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


def test_what_a_call_costs_the_processor() -> None:
    found = results("dispatch.json")
    costs = {name: each["median"] * 1e6 for name, each in found.items() if isinstance(each, dict)}
    first = f"{costs['direct, forward']:.0f} microseconds instead of {costs['custom op, forward']:.0f}"
    second = f"{costs['direct, with gradients']:.0f} instead of {costs['custom op, with gradients']:.0f}"
    assert f"{first}, with gradients {second}" in page("kernels.md")


def test_what_a_multiprocessor_has_time_for() -> None:
    clocks = 132 * 1.98e9
    assert f"moves {KERNELS['ceilings']['copy'] / clocks / 4:.0f} bytes in each of the slots" in page("kernels.md")
    pixel = [90 / 128 / clocks / (3 * size / TUNED["ceilings"]["copy"]) for size in (2, 4)]
    told = f"{pixel[0]:.1f} times as long as a copy's rate, measured, takes for the traffic in bfloat16"
    assert f"{told}, and {pixel[1]:.1f} times in float32" in page("kernels.md")
    output = 49 / 128 / clocks / (2 * 2 / TUNED["ceilings"]["copy"])
    assert f"49 multiply-adds an output take {output:.1f} times as long as a copy's rate" in page("kernels.md")


def test_what_failed_is_told() -> None:
    failed = {(row["case"], row["way"]) for row in KERNELS["rows"] if "error" in row}
    assert {way for _, way in failed} == {"sdpa", "chosen"} and all("dense" in case for case, _ in failed)
    assert all(row["apart"] < 1e-2 for row in KERNELS["rows"] if "apart" in row)
    assert "gradients of a batch of one row" in page("kernels.md")
