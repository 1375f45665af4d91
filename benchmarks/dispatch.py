"""What a call of a kernel costs the processor besides the kernel: ``python benchmarks/dispatch.py``.

The norm of adaLN on 8 rows of 8 channels, its launches left out: as the custom op that compilers see, and as it is
called outside of them (``kernels/triton/launch.py``), without gradients and with them, in turn. A second; no GPU.
"""

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from timing import measure

from belvedere.apps.record import processor
from belvedere.kernels.triton.launch import noting
from belvedere.kernels.triton.norms import scaled_norm

CALLS, ROUNDS = 500, 7


def many(call: Callable[[], Any]) -> Callable[[], None]:
    """Return ``CALLS`` calls, whose launches are only noted down."""

    def run() -> None:
        with noting():
            for _ in range(CALLS):
                call()

    return run


def calls() -> dict[str, Callable[[], Any]]:
    """Return the calls by name."""
    x, shift, scale = (torch.randn(shape).requires_grad_() for shape in ((8, 1, 8), (8, 8), (8, 8)))
    grad, fixed = torch.randn(8, 1, 8), (None, None, "layer", 1e-6, 1.0)

    def forward(norm: Callable[..., Any]) -> None:
        with torch.no_grad():
            norm(x, shift, scale, *fixed)

    def both(norm: Callable[..., Any]) -> None:
        torch.autograd.grad(norm(x, shift, scale, *fixed)[0], (x, shift, scale), grad)

    ways = {"custom op": torch.ops.belvedere.scaled_norm, "direct": scaled_norm}
    parts = {"forward": forward, "with gradients": both}
    return {
        f"{name}, {part}": lambda call=call, way=way: call(way)
        for part, call in parts.items()
        for name, way in ways.items()
    }


def main() -> None:
    """Measure, store, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path(__file__).with_name("results") / "dispatch.json")
    options = parser.parse_args()
    torch.set_num_threads(1)
    taken = measure({name: many(call) for name, call in calls().items()}, ROUNDS)
    found = {name: {key: value / CALLS for key, value in each.items()} for name, each in taken.items()}
    options.out.write_text(json.dumps({"machine": processor(), "torch": torch.__version__} | found, indent=1) + "\n")
    for name, each in found.items():
        print(f"{name:28} {each['median'] * 1e6:7.1f} us  ({each['fastest'] * 1e6:.1f} to {each['slowest'] * 1e6:.1f})")


if __name__ == "__main__":
    main()
