"""Attention backends on this CPU, forward and backward: ``python benchmarks/kernels_cpu.py [--threads 1]``.

Behind the choice of ``matmul`` for bfloat16 (``belvedere/kernels/backends.py``). Backends are checked
against each other before they are timed; rounds are interleaved; median, fastest and slowest in milliseconds.
"""

import argparse
import json
import statistics
import time
from pathlib import Path

import torch

from belvedere.kernels import attend

SHAPES = {"toybox": (32, 65, 8, 32), "DiMR-XL": (2, 257, 16, 60)}
BACKENDS = {torch.bfloat16: ("matmul", "sdpa", "reference"), torch.float32: ("sdpa", "reference")}


def once(backend: str, qkv: torch.Tensor, grad: torch.Tensor | None) -> float:
    """Return the seconds of one forward, with backward when ``grad`` is given."""
    start = time.perf_counter()
    with torch.set_grad_enabled(grad is not None):
        out = attend(*qkv.unbind(2), backend=backend)
        if grad is not None:
            out.backward(grad)
    return time.perf_counter() - start


def compare(shape: tuple[int, ...], dtype: torch.dtype, train: bool, repeats: int) -> dict[str, list[float]]:
    """Time every backend that can serve the call."""
    b, n, h, d = shape
    torch.manual_seed(0)
    qkv = torch.randn(b, n, 3, h, d).to(dtype).requires_grad_(train)
    grad = torch.randn(b, n, h, d).to(dtype) if train else None
    names = BACKENDS[dtype]
    with torch.set_grad_enabled(train):
        outputs = [attend(*qkv.unbind(2), backend=name).detach() for name in names]
    apart = max((out.float() - outputs[-1].float()).abs().max().item() for out in outputs)
    assert apart < (0.1 if dtype == torch.bfloat16 else 1e-4), f"backends differ by {apart}"
    times: dict[str, list[float]] = {name: [] for name in names}
    for name in list(names) * (repeats + 1):
        times[name].append(once(name, qkv, grad) * 1e3)
    return {name: values[1:] for name, values in times.items()}


def main() -> None:
    """Print the table and write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "kernels_cpu.json")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    rows = []
    for label, shape in SHAPES.items():
        for dtype in BACKENDS:
            for train in (False, True):
                for name, values in compare(shape, dtype, train, options.repeats).items():
                    what = f"{label} {tuple(shape)} {str(dtype)[6:]} {'forward+backward' if train else 'forward'}"
                    low, middle, high = min(values), statistics.median(values), max(values)
                    print(f"{what:58} {name:10} {middle:8.2f} ms  ({low:.2f} to {high:.2f})")
                    rows.append({"case": what, "backend": name, "milliseconds": values})
    options.out.parent.mkdir(exist_ok=True)
    options.out.write_text(json.dumps({"threads": options.threads, "torch": torch.__version__, "rows": rows}, indent=1))


if __name__ == "__main__":
    main()
