"""How close DiMR runs to the machine's ceiling: ``python benchmarks/dimr.py [--variant XL/2R-256] [--batch 2]``.

In one process and one run: the machine's GEMM peak (best over several shapes), the network in pure bfloat16, and its
plain float32 twin (every op from ``kernels/reference.py``: attention weights made, 38,400 channels concatenated).
Rounds are interleaved; the table gives median, fastest and slowest. FLOPs are counted by PyTorch, two a multiply-add.
"""

import argparse
import json
import platform
import resource
import statistics
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from timing import gemm_peak, seconds
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from belvedere import DiMR, kernels
from belvedere.kernels import reference

GEMM_SHAPES = ((512, 960, 3840), (2048, 1920, 960), (2048, 2048, 2048), (4096, 4096, 4096))


@contextmanager
def plain_ops() -> Iterator[None]:
    """Let models call the plain twins."""

    def begin(x: Tensor, gain: Tensor, weight: Tensor) -> list[Tensor]:
        return []

    def add(seen: list[Tensor], x: Tensor) -> list[Tensor]:
        return [*seen, x]

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return reference.attend(q, k, v)

    twins: dict[str, Callable[..., Any]] = {"attend": attend, "concat_begin": begin, "concat_add": add}
    twins["concat_end"] = reference.concat_norm_linear
    names = ("time_norm", "residual_time_norm", "rms_norm", "rotate_pairs", "qk_norm_rope", "gated_mlp")
    twins |= {name: getattr(reference, name) for name in names}
    before = {name: getattr(kernels, name) for name in twins}
    try:
        for name, twin in twins.items():
            setattr(kernels, name, twin)
        yield
    finally:
        for name, op in before.items():
            setattr(kernels, name, op)


def peak_memory() -> int:
    """Return the largest resident size of this process so far, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def measure(variant: str, batch: int, repeats: int) -> dict[str, Any]:
    """Run the benchmark and return its figures."""
    torch.manual_seed(0)
    before = peak_memory()
    torch.set_default_dtype(torch.bfloat16)
    fast = DiMR.from_variant(variant).eval()
    torch.set_default_dtype(torch.float32)
    weights = sum(p.numel() * p.element_size() for p in fast.parameters())
    side = fast.sizes[-1].height * fast.sizes[-1].ratio
    x, log_snr = torch.randn(batch, fast.config.channels, side, side), torch.zeros(1)
    y = torch.zeros(batch, dtype=torch.long)
    with torch.no_grad():
        got = fast(x.bfloat16(), log_snr, y)[-1].float()
    memory = peak_memory() - before - weights
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        fast(x.bfloat16(), log_snr, y)

    plain = DiMR.from_variant(variant).eval()
    plain.load_state_dict({name: tensor.float() for name, tensor in fast.state_dict().items()})

    @torch.no_grad()
    def run_plain() -> Tensor:
        with plain_ops():
            return plain(x, log_snr, y)[-1]

    @torch.no_grad()
    def run_float() -> Tensor:
        return plain(x, log_snr, y)[-1]

    @torch.no_grad()
    def run_fast() -> Tensor:
        return fast(x.bfloat16(), log_snr, y)[-1]

    want = run_plain()
    times: dict[str, list[float]] = {"bfloat16": [], "float32": [], "plain float32": []}
    peaks: dict[str, list[float]] = {"bfloat16": [], "float32": []}
    for _ in range(repeats):
        for name, run in (("bfloat16", run_fast), ("float32", run_float), ("plain float32", run_plain)):
            times[name].append(seconds(run))
        peaks["bfloat16"].append(gemm_peak(torch.bfloat16, GEMM_SHAPES, 3))
        peaks["float32"].append(gemm_peak(torch.float32, GEMM_SHAPES, 1))
    flops = counter.get_total_flops()
    return {
        "variant": variant,
        "batch": batch,
        "flops": flops,
        "seconds": times,
        "gemm_peak_flops": {name: max(values) for name, values in peaks.items()},
        "share_of_bf16_peak": flops / statistics.median(times["bfloat16"]) / max(peaks["bfloat16"]),
        "share_of_float32_peak": flops / statistics.median(times["float32"]) / max(peaks["float32"]),
        "speedup_over_plain_float32": statistics.median(times["plain float32"]) / statistics.median(times["bfloat16"]),
        "relative_error_bf16": ((got - want).norm() / want.norm()).item(),
        "relative_error_float32": ((run_float() - want).norm() / want.norm()).item(),
        "weights_bytes": weights,
        "memory_over_weights_bytes": memory,
        "threads": torch.get_num_threads(),
        "cpu": platform.processor() or platform.machine(),
        "torch": torch.__version__,
    }


def main() -> None:
    """Print the table and write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--variant", default="XL/2R-256")
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "dimr.json")
    options = parser.parse_args()
    result = measure(options.variant, options.batch, options.repeats)
    print(f"DiMR {options.variant}, batch {options.batch}: {result['flops'] / 1e9:.0f} GFLOP a call")
    for name, values in result["seconds"].items():
        print(f"  {name:14} {statistics.median(values):7.3f} s   ({min(values):.3f} to {max(values):.3f})")
    for name, peak in result["gemm_peak_flops"].items():
        print(f"  GEMM peak {name:9} {peak / 1e9:6.0f} GFLOP/s")
    print(f"  share of the bf16 peak     {result['share_of_bf16_peak']:.0%}")
    print(f"  share of the float32 peak  {result['share_of_float32_peak']:.0%}")
    print(f"  over the plain float32     {result['speedup_over_plain_float32']:.2f}x")
    print(f"  memory over the weights    {result['memory_over_weights_bytes'] / 1e6:.0f} MB")
    print(f"  relative error bf16 {result['relative_error_bf16']:.1e}, float32 {result['relative_error_float32']:.1e}")
    options.out.parent.mkdir(exist_ok=True)
    options.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
