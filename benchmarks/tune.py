"""Block sizes of the kernels, tried one setting at a time: ``python benchmarks/tune.py [--only A,B] [--out FILE]``.

For each setting of ``KNOBS`` every candidate is put in its place, the cases of ``kernels.py`` that depend on it run,
are compared with their twins and timed (the GPU's seconds, of a recording), and the table says how each compares with
what is set now. Nothing is chosen: the constants stand in the files of ``belvedere/kernels/triton``. A candidate that
does not compile or is wrong is stored with the reason; the JSON is written after each.

``--device cpu`` only tries the script, at small sizes in Triton's interpreter, two candidates a setting: it stores
nothing.
"""

import argparse
import json
import os
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

if "cpu" in sys.argv:
    os.environ.setdefault("TRITON_INTERPRET", "1")  # before triton is imported

import gpu
import kernels as bench
import torch
from kernels_error import switched
from torch import Tensor

import belvedere.kernels.triton  # noqa: F401  registers the ops
from belvedere.kernels import backends, concat, norms, region, rope
from belvedere.kernels import depthwise as public_depthwise
from belvedere.kernels import gates as public_gates
from belvedere.kernels.triton import (
    attention_tiles,
    depthwise,
    gates,
    reduce,
    residual,
    residual_norm,
    rope_backward,
    rows,
)
from belvedere.kernels.triton import concat as concat_kernels
from belvedere.kernels.triton import norms as norm_kernels
from belvedere.kernels.triton import region as region_kernels
from belvedere.kernels.triton.attention_tiles import Tile


class Knob(NamedTuple):
    """A setting: where it stands (more than one place where modules have their own name for it), what it may be, and
    parts of the names of the cases that depend on it."""

    places: tuple[tuple[Any, str], ...]
    candidates: dict[str, Any]
    cases: tuple[str, ...]
    directions: tuple[bool, ...] = (False, True)
    """Whether the cases are timed without their backward, and with it."""


def attention(kind: str, *candidates: Tile) -> Knob:
    """Return the tile of one kernel of attention, of all heads in bfloat16."""
    places = tuple((attention_tiles, name) for name in ("TILES", "TILES_HOPPER", "TILES_AMPERE", "TILES_RTX"))
    tables = {str(tuple(tile)): attention_tiles.TILES_HOPPER | {kind: {128: tile}} for tile in candidates}
    cases = ("attention packed softmax", "attention dense softmax DiMR-XL")
    return Knob(places, {"set": None} | tables, cases, (kind != "forward",))


def sizes(
    places: tuple[tuple[Any, str], ...],
    candidates: tuple[int, ...],
    cases: tuple[str, ...],
    directions: tuple[bool, ...] = (False, True),
) -> Knob:
    """Return a number, the first candidate what is set."""
    return Knob(places, {str(candidate): candidate for candidate in candidates}, cases, directions)


ROWS = ("modulate_norm", "gated_residual", "TD-", "concat")
KNOBS = {
    "attention forward": attention(
        "forward",
        *(Tile(64, 32, 4, stages) for stages in (2, 4)),
        Tile(64, 32, 4, 3, 128),
        Tile(128, 32, 8, 3),
        Tile(128, 32, 8, 3, 128),
        Tile(64, 64, 4, 3),
        Tile(128, 64, 4, 2),
        Tile(128, 64, 8, 3, 128),
    ),
    "attention queries": attention("queries", Tile(64, 64, 4, 3), Tile(64, 32, 4, 2), Tile(64, 32, 4, 3)),
    "attention keys": attention("keys", Tile(64, 64, 4, 3), Tile(64, 32, 4, 2), Tile(64, 32, 4, 3)),
    "numbers a thread": sizes(((rows, "NUMBERS"),), (40, 20, 80), ROWS, (False,)),
    "numbers a thread, summed": sizes(
        tuple((module, "SUMMED") for module in (norm_kernels, residual, residual_norm, concat_kernels)),
        (20, 40),
        ROWS,
        (True,),
    ),
    "rows of a chunk": sizes(((reduce, "CHUNK"),), (32, 16, 64), ROWS, (True,)),
    "tokens of a chunk": sizes(((rope_backward, "CHUNK"),), (16, 8, 32), ("qk_norm_rope DiMR",), (True,)),
    "channels of gates": sizes(((gates, "COLUMNS"),), (1024, 512, 2048), ("gated_mlp",)),
    "rows of the region filter": sizes(((region_kernels, "ROWS"),), (8, 4, 6), ("region_filter",)),
    "rows of its gradients": sizes(((region_kernels, "GRADIENT_ROWS"),), (4, 2, 6), ("region_filter",)),
    "columns of the region filter": sizes(((region_kernels, "COLUMNS"),), (128, 256), ("region_filter",)),
    "shares of its sums": sizes(((region_kernels, "SHARES"),), (4, 8, 2), ("region_filter",)),
    "rows of the depthwise filter": sizes(((depthwise, "ROWS"),), (8, 16), ("depthwise_residual",)),
    "columns of the depthwise filter": sizes(((depthwise, "COLUMNS"),), (16, 8, 32), ("depthwise_residual",)),
    "channels of the depthwise filter": sizes(((depthwise, "CHANNELS"),), (32, 64), ("depthwise_residual",)),
    "rows of its sums": sizes(((depthwise, "SUMMED_ROWS"),), (8, 4, 16), ("depthwise_residual",)),
    "tiles of its sums": sizes(((depthwise, "TILES"),), (16, 8, 32), ("depthwise_residual",)),
}
"""By name; the first candidate is what is set."""
PUBLIC = (concat, public_depthwise, public_gates, norms, region, rope)


@contextmanager
def put(knob: Knob, value: Any) -> Iterator[None]:
    """Have a candidate in its place; None: what is set."""
    with ExitStack() as stack:
        for module, name in () if value is None else knob.places:
            stack.enter_context(mock.patch.object(module, name, value))
        yield


def attend(q: Tensor, k: Tensor, v: Tensor, offsets: Tensor | None = None, activation: str = "softmax") -> Tensor:
    """Return what our kernel gives, whichever backend is chosen."""
    return backends.OPERATIONS["attention"](q, k, v, offsets, q.shape[-1] ** -0.5, activation == "sigmoid")[0]


def tried(name: str, knob: Knob, device: str, repeats: int) -> Iterator[dict[str, Any]]:
    """Yield a row for every candidate, case and direction."""
    found = [case for case in bench.cases(device) if any(part in case.name for part in knob.cases)]
    for case in (case for case in found if "batch 1" not in case.name):
        ours = case.ways["ours"] if "ours" in case.ways else partial(attend, **case.twin.keywords)
        case.ways = {"ours": ours}
        for label in list(knob.candidates)[: 2 if device == "cpu" else None]:
            with put(knob, knob.candidates[label]):
                yield from (
                    {"knob": name, "value": label} | row
                    for row in bench.measure(case, device, repeats, knob.directions)
                )


def told(row: dict[str, Any], first: dict[str, Any]) -> str:
    """Return a row as text, beside that of what is set."""
    way = "backward" if row.get("backward") else "forward"
    head = f"{row['knob']:32} {row['case']:36} {way:8} {row['value']:18}"
    if "error" in row:
        return f"{head} failed: {row['error'].splitlines()[0]}"
    share = row["seconds"]["median"] / first["seconds"]["median"] if "seconds" in first else float("nan")
    return f"{head} {row['seconds']['median'] * 1e6:9.1f} us {share:6.2f}"


def main() -> None:
    """Measure, store, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--only", default="", help="settings whose name contains one of these: A,B,C")
    parser.add_argument("--out", type=Path, default=Path(__file__).with_name("results") / "tuned.json")
    options = parser.parse_args()
    if options.device == "cuda" and (reason := backends.why_not_fused("cuda")):
        parser.error(f"{reason}; --device cpu tries the script")
    ceilings = gpu.ceilings(options.device)
    result: list[dict[str, Any]] = []
    first: dict[tuple[str, str, bool], dict[str, Any]] = {}
    with switched(PUBLIC, True) if options.device == "cpu" else nullcontext():
        for name, knob in KNOBS.items():
            if not any(part in name for part in options.only.split(",")):
                continue
            for row in tried(name, knob, options.device, options.repeats):
                if "seconds" in row:
                    row["share of copy"] = row["bytes"] / row["seconds"]["median"] / ceilings["copy"]
                result.append(row)
                print(told(row, first.setdefault((name, row["case"], bool(row.get("backward"))), row)), flush=True)
                if options.device == "cuda":
                    about = {"device": torch.cuda.get_device_name(), "torch": torch.__version__, "ceilings": ceilings}
                    options.out.write_text(json.dumps(about | {"rows": result}, indent=1) + "\n")


if __name__ == "__main__":
    main()
