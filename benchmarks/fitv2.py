"""How close FiTv2 runs to the machine's ceiling, and what packing costs and saves: ``python benchmarks/fitv2.py``.

In one process and one run, rounds interleaved; the table gives median, fastest and slowest:

- XL/2, two images of 256 tokens: bfloat16 and float32 against the GEMM peak of the same round;
- a batch of 16x16, 10x20 and 8x8 patches: packed, and in the official padded form (dense mask made in every block),
  against what its tokens cost in a batch of equal images;
- 25 guided steps with the work of a step done once (modulation of all blocks for the whole grid of times, rotary
  tables kept, both guidance halves in one call) and without.

FLOPs are counted by PyTorch, two a multiply-add.
"""

import argparse
import json
import statistics
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from timing import gemm_peak, seconds
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from belvedere import FiTv2, kernels
from belvedere.apps.record import processor
from belvedere.generation.extrapolation import grid_rotations
from belvedere.generation.flow_sampling import Plan, solve, visited
from belvedere.generation.packed_sampling import Guidance, PackedCall

GEMM_SHAPES = ((512, 1152, 3456), (512, 1152, 6144), (2048, 2048, 2048), (4096, 4096, 4096))
MIXED = [(16, 16), (10, 20), (8, 8)]
CAPACITY = 256


def make(variant: str, dtype: torch.dtype) -> FiTv2:
    """Return a network of random weights, none of them zero."""
    torch.manual_seed(0)
    network = FiTv2.from_variant(variant).eval()
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.02)
    return network.to(dtype)


def rounds(runs: dict[str, Callable[[], Any]], repeats: int) -> dict[str, list[float]]:
    """Return the seconds of each run, taken in turn ``repeats`` times after one that is not counted."""
    for run in runs.values():
        run()
    times: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(repeats):
        for name, run in runs.items():
            times[name].append(seconds(run))
    return times


def inputs(sizes: list[tuple[int, int]], network: FiTv2) -> tuple[Tensor, Tensor, Tensor]:
    """Return tokens, times and labels of images of these sizes."""
    count = sum(height * width for height, width in sizes)
    x = torch.randn(count, network.embed.in_features, generator=torch.Generator().manual_seed(1))
    return x.to(network.dtype), torch.linspace(0.2, 0.8, len(sizes)), torch.arange(len(sizes))


@torch.no_grad()
def network_speed(variant: str, repeats: int) -> dict[str, Any]:
    """Two images of 256 tokens in both number formats, and the GEMM peaks of the same minutes."""
    dtypes = {"bfloat16": torch.bfloat16, "float32": torch.float32}
    sizes = [(16, 16)] * 2
    result: dict[str, Any] = {"variant": variant, "sizes": sizes}
    outputs = {}
    for name, dtype in dtypes.items():
        network = make(variant, dtype)
        x, t, y = inputs(sizes, network)
        with FlopCounterMode(display=False) as counter:
            outputs[name] = network(x, t, y, sizes=sizes).float()
        peaks: list[float] = []
        times = rounds(
            {
                "run": lambda n=network, x=x, t=t, y=y: n(x, t, y, sizes=sizes),
                "peak": lambda p=peaks, d=dtype: p.append(gemm_peak(d, GEMM_SHAPES)),
            },
            repeats,
        )["run"]
        flops = counter.get_total_flops()
        share = flops / statistics.median(times) / max(peaks)
        result[name] = {"seconds": times, "flops": flops, "gemm_peak_flops": max(peaks), "share_of_peak": share}
    error = (outputs["bfloat16"] - outputs["float32"]).norm() / outputs["float32"].norm()
    return result | {"relative_error_bf16": error.item()}


@contextmanager
def padded_attention(lengths: list[int], longest: int) -> Iterator[None]:
    """Let models attend as the official code does: padded, with a boolean mask made for every call."""
    real = torch.zeros(len(lengths), longest, dtype=torch.bool)
    for row, length in enumerate(lengths):
        real[row, :length] = True

    def attend(q: Tensor, k: Tensor, v: Tensor, *, offsets: Tensor) -> Tensor:
        mask = real[:, None, :, None] == real[:, None, None, :]  # (b, 1, n, n)
        q, k, v = (x.unflatten(0, real.shape).transpose(1, 2) for x in (q, k, v))  # (b, h, n, d)
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2)
        return (out * real[..., None, None]).flatten(0, 1)

    before = kernels.attend
    kernels.attend = attend
    try:
        yield
    finally:
        kernels.attend = before


@torch.no_grad()
def packing(variant: str, repeats: int) -> dict[str, Any]:
    """The mixed batch packed and padded, and equal images of 512 tokens, which say what a token costs."""
    network = make(variant, torch.float32)
    x, t, y = inputs(MIXED, network)
    lengths = [height * width for height, width in MIXED]
    longest = max(lengths)
    padded = torch.cat([F.pad(part, (0, 0, 0, longest - len(part))) for part in x.split(lengths)])
    tables = [network.layout([size], "none", "cpu") for size in MIXED]
    cos, sin = (
        torch.cat(
            [
                F.pad(getattr(table, part), (0, 0, 0, 0, 0, longest - length))
                for table, length in zip(tables, lengths, strict=True)
            ]
        )
        for part in ("cos", "sin")
    )
    square = network.layout([(longest, 1)] * len(MIXED), "none", "cpu")
    layout = square._replace(cos=cos, sin=sin)
    rows = network.modulate(t, y)

    def run_padded() -> Tensor:
        with padded_attention(lengths, longest):
            return network.run(padded, network.modulate(t, y), layout)

    def run_packed() -> Tensor:
        return network(x, t, y, sizes=MIXED)

    equal = [(16, 16)] * 2
    equal_x, equal_t, equal_y = inputs(equal, network)
    real = torch.cat([part[:length] for part, length in zip(run_padded().split(longest), lengths, strict=True)])
    difference = (real - run_packed()).abs().max().item()
    times = rounds(
        {
            "packed": run_packed,
            "padded": run_padded,
            "equal images": lambda: network(equal_x, equal_t, equal_y, sizes=equal),
        },
        repeats,
    )
    middle = {name: statistics.median(values) for name, values in times.items()}
    tokens = sum(lengths)
    return {
        "sizes": MIXED,
        "tokens": tokens,
        "fill_of_padded": tokens / (longest * len(MIXED)),
        "seconds": times,
        "packed_over_token_sum": middle["packed"] / (middle["equal images"] * tokens / len(equal_x)),
        "padded_over_packed": middle["padded"] / middle["packed"],
        "largest_difference": difference,
        "rows": len(rows),
    }


@torch.no_grad()
def sampling(variant: str, repeats: int, steps: int = 25) -> dict[str, Any]:
    """25 guided Euler steps of one image of 256 tokens, with and without the work of a step done once."""
    network = make(variant, torch.float32)
    size, label, weight = (16, 16), 7, 1.5
    noise = torch.randn(256, network.embed.in_features, generator=torch.Generator().manual_seed(3))
    plan = Plan(steps, Guidance(weight), "euler")

    def once() -> Tensor:
        call = PackedCall(network, [size], [label], ["none"], plan.guidance, CAPACITY, visited(plan, True))
        return solve(call, noise, plan, lambda step: noise, lambda *state: None)

    def each_step() -> Tensor:
        x = noise
        for i in range(steps):
            t = torch.tensor([i / steps])
            halves = []
            for y in (label, network.null_class):
                grid_rotations.cache_clear()
                halves.append(network(x, t, torch.tensor([y]), sizes=[size]))
            x = x + torch.lerp(halves[1], halves[0], weight) / steps
        return x

    difference = (once() - each_step()).abs().max().item()
    times = rounds({"once": once, "each step": each_step}, repeats)
    gain = statistics.median(times["each step"]) / statistics.median(times["once"])
    return {"variant": variant, "steps": steps, "seconds": times, "gain": gain, "largest_difference": difference}


def spread(values: list[float]) -> str:
    """Return median, fastest and slowest in words."""
    return f"{statistics.median(values):7.3f} s   ({min(values):.3f} to {max(values):.3f})"


def show_network(row: dict[str, Any]) -> None:
    """Print what ``network_speed`` found."""
    for name in ("bfloat16", "float32"):
        part = row[name]
        print(
            f"{row['variant']} 2 x 256 tokens, {name:9} {spread(part['seconds'])}  {part['share_of_peak']:.0%} of "
            f"{part['gemm_peak_flops'] / 1e9:.0f} GFLOP/s ({part['flops'] / 1e9:.0f} GFLOP)"
        )


def show_packing(row: dict[str, Any]) -> None:
    """Print what ``packing`` found."""
    print(f"sizes {MIXED}: {row['tokens']} tokens, padded form {row['fill_of_padded']:.0%} full")
    for name, values in row["seconds"].items():
        print(f"  {name:14} {spread(values)}")
    print(
        f"  packed / token sum {row['packed_over_token_sum']:.3f}, padded / packed {row['padded_over_packed']:.2f}, "
        f"largest difference {row['largest_difference']:.1e}"
    )


def show_sampling(row: dict[str, Any]) -> None:
    """Print what ``sampling`` found."""
    for name, values in row["seconds"].items():
        print(f"{row['variant']}, {row['steps']} guided steps, work {name:9} {spread(values)}")
    print(f"  gain {row['gain']:.3f}, largest difference {row['largest_difference']:.1e}")


def main() -> None:
    """Print the tables and write the JSON after each part."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--variant", default="XL/2")
    parser.add_argument("--sampling-variant", default="S/2")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--parts", default="network,packing,sampling")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "fitv2.json")
    options = parser.parse_args()
    parts = {
        "network": lambda: (network_speed(options.variant, options.repeats), show_network),
        "packing": lambda: (packing(options.variant, options.repeats), show_packing),
        "sampling": lambda: (sampling(options.sampling_variant, options.repeats), show_sampling),
    }
    machine = {"cpu": processor(), "instructions": torch.backends.cpu.get_cpu_capability()}
    machine |= {"threads": torch.get_num_threads(), "torch": torch.__version__}
    for name in options.parts.split(","):
        result, show = parts[name]()
        show(result)
        before = json.loads(options.out.read_text()) if options.out.exists() else {}
        options.out.parent.mkdir(exist_ok=True)
        options.out.write_text(json.dumps(before | {name: machine | result}, indent=1) + "\n")


if __name__ == "__main__":
    main()
