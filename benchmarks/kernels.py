"""Every op of the backbone on a GPU beside what else there is: ``python benchmarks/kernels.py``.

Each op at training sizes in bfloat16, forward, and forward with backward: ours, the plain twin as it stands (eager) and
through ``torch.compile``; attention by every backend that can serve the call. Values and gradients of each way are
compared with those of the twin in float32 before it is timed, inputs are taken in turn so that no cache holds them, and
the shares are of this GPU's own copy and matrix product in the same run. Seconds are the GPU's (a CUDA graph is played
again; where a call cannot be recorded, those of the call), beside those of a call as it is made, launches and all.
Bytes are what has to be moved: inputs and outputs; with gradients also those of the outputs, the inputs once more that
they need, and the gradients of the inputs.

A way that fails, or is too far from the twin, is stored with the reason, and the others are timed: the JSON is written
after each case. ``--device cpu`` only tries the script, at small sizes: it stores nothing.
"""

import argparse
import json
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import gpu
import torch
from timing import spread
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from belvedere import kernels
from belvedere.kernels import reference
from belvedere.kernels.backends import BACKENDS, Request, why_not_fused

os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # or deterministic products are refused
os.environ.pop("BELVEDERE_KERNELS", None)  # here the ways are named


@dataclass
class Case:
    """An op at one size, and the ways to compute it; ``twin`` is the one that the others must agree with."""

    name: str
    inputs: tuple[Tensor, ...]
    twin: Callable[..., Any]
    ways: dict[str, Callable[..., Any]] = field(default_factory=dict)
    deterministic: bool = False
    """Whether the ways are timed with PyTorch's deterministic algorithms on; the twin never is."""
    added: tuple[int, ...] = ()
    """Inputs that are only added: gradients do not need them, and theirs are those of the result."""
    products: float = 3
    """FLOPs of matrix products with backward, in those of forward."""

    def moved(self, results: tuple[Tensor, ...], train: bool) -> int:
        """Return the bytes that have to be read and written."""
        size = sum(x.nbytes for x in (*self.inputs, *results))
        if train:
            size += sum(x.nbytes for x in results)
            size += sum(2 * x.nbytes for i, x in enumerate(self.inputs) if i not in self.added)
        return size


def parts(result: Any) -> tuple[Tensor, ...]:
    """Return the tensors that an op gives."""
    return (result,) if isinstance(result, Tensor) else tuple(result)


def cases(device: str) -> Iterator[Case]:
    """Yield every op at the sizes of the published networks, or small ones for a CPU."""
    b, n = (64, 256) if device == "cuda" else (2, 16)
    for images in (b, 1):
        yield from attentions(device, images, n)
    yield from bound_by_memory(device, b, n)
    yield from rays(device)


def bound_by_memory(device: str, b: int, n: int) -> Iterator[Case]:
    """Yield the ops of ``b`` pictures of ``n`` tokens that do little with what they read, and the region filter."""

    def random(*shape: int, dtype: torch.dtype = torch.bfloat16) -> Tensor:
        return torch.randn(shape, device=device).to(dtype).requires_grad_()

    def case(name: str, op: Callable[..., Any], twin: Callable[..., Any], *inputs: Tensor, **rest: Any) -> Case:
        ways = {"ours": op, "eager": twin, "compile": torch.compile(twin, dynamic=False)}
        return Case(name, inputs, twin, ways, **rest)

    for name, d, activation in (("DiMR-XL", 1920, "gelu"), ("FiTv2-3B", 6144, "silu")):
        op = partial(kernels.gated_mlp, activation=activation)
        yield case(f"gated_mlp {name}", op, partial(reference.gated_mlp, activation=activation), random(b, n, 2 * d))
    for name, d in (("FiTv2-XL", 1152), ("FiTv2-3B", 2304)):
        x, rows = random(b, n, d), (random(b, d), random(b, d))
        yield case(f"modulate_norm {name}", kernels.modulate_norm, reference.modulate_norm, x, *rows)
        gated = x, random(b, n, d), rows[0]
        yield case(f"gated_residual {name}", kernels.gated_residual, reference.gated_residual, *gated, added=(0,))
        yield case(
            f"gated_residual_norm {name}",
            kernels.gated_residual_norm,
            reference.gated_residual_norm,
            x,
            random(b, n, d),
            random(b, d),
            *rows,
        )
    for name, d, tokens in (("DiMR-XL", 960, n + 1), ("DiMR-XL fine", 480, 4 * n)):
        x = random(b, tokens, d)
        yield case(f"TD-LN {name}", kernels.time_norm, reference.time_norm, x, random(b, d), random(b, d))
        yield case(f"TD-RMSN {name}", kernels.time_norm, reference.time_norm, x, random(b, d))
    x = random(b, n + 1, 960), random(b, n + 1, 960), random(b, 960)
    yield case("sum, TD-RMSN DiMR-XL", kernels.residual_time_norm, reference.residual_time_norm, *x, added=(1,))
    c, outputs = (960, 1920) if device == "cuda" else (8, 16)  # a group of the upsampler's 40 activations
    parameters = random(b, 8 * c), random(b, 8 * c), random(outputs, 8 * c), random(outputs)
    activations = [random(b, n + 1, c) for _ in range(8)]
    yield case("concat DiMR-XL", streamed, joined, *parameters, *activations)
    for name, h, d, own in (("FiTv2-XL", 16, 72, 1), ("DiMR-XL", 16, 60, 16)):  # angles of each head, or of all
        angle = torch.rand(n, own, d // 2, device=device)
        turn = angle.cos(), angle.sin()
        op, twin = (partial(_normed_and_turned, module, *turn) for module in (kernels, reference))
        gains = [random(h, 1), random(h, 1)] if own > 1 else []
        yield case(f"qk_norm_rope {name}", op, twin, random(b, n, h, d), random(b, n, h, d), *gains)
    c, side = (480, 32) if device == "cuda" else (4, 8)
    ours = kernels.depthwise_residual
    filters = random(c, 1, 7, 7), random(c)
    dense = case("depthwise_residual DiMR-XL", ours, reference.depthwise_residual, random(b, side, side, c), *filters)
    dense.ways = {"ours": ours, "cudnn": convolved, "compile": torch.compile(convolved, dynamic=False)}
    yield dense
    c, side = (192, 64) if device == "cuda" else (4, 8)
    maps = random(b // 2, c, side, side), random(b // 2, c, side, side)
    weights = random(9 * c, 1, 3, 3), random(9 * c)
    yield case("region_filter SegPIC", kernels.region_filter, reference.region_filter, *maps, *weights)


def _normed_and_turned(
    module: Any, cos: Tensor, sin: Tensor, q: Tensor, k: Tensor, *gains: Tensor
) -> tuple[Tensor, Tensor]:
    weights = dict(zip(("q_weight", "k_weight"), gains, strict=False))
    return module.qk_norm_rope(q, k, cos, sin, **weights)


def streamed(gain: Tensor, bias: Tensor, weight: Tensor, linear_bias: Tensor, *xs: Tensor) -> Tensor:
    """Return a linear map of the norm of activations (b, n, c), folded in as they appear."""
    seen = kernels.concat_begin(xs[0], gain, weight)
    for x in xs:
        seen = kernels.concat_add(seen, x)
    return kernels.concat_end(seen, gain, bias, weight, linear_bias)


def joined(gain: Tensor, bias: Tensor, weight: Tensor, linear_bias: Tensor, *xs: Tensor) -> Tensor:
    """Return the same of their concatenation."""
    return reference.concat_norm_linear(xs, gain, bias, weight, linear_bias)


def convolved(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Return the depthwise convolution and the residual sum as PyTorch has them, by cuDNN on a GPU."""
    image = x.permute(0, 3, 1, 2)  # channels last in memory
    return x + torch.nn.functional.conv2d(image, weight, bias, padding="same", groups=x.shape[-1]).permute(0, 2, 3, 1)


def rays(device: str) -> Iterator[Case]:
    """Yield rays through the planes and lines of NViST, those of whole views; features alone would be 1 GB.

    With deterministic algorithms the backward of ours is in plain PyTorch. To compile the twin takes minutes: left out.
    """
    b, n, s, r = (4, 160 * 90, 48, 48) if device == "cuda" else (1, 32, 4, 8)
    origins = torch.tensor([0.0, 0.0, -1.4], device=device).expand(b, n, 3)
    directions = torch.nn.functional.normalize(torch.rand(b, n, 3, device=device) * 1.6 - 0.8 - origins, dim=-1)
    encoded, edges = torch.randn(b, n, 27, device=device), torch.linspace(0.4, 2.4, s + 1, device=device)
    given = kernels.Rays(origins, directions, encoded, edges)
    shapes = (b, 3, 32, r, r), (b, 3, 32, r), (64, 72), (64,), (64, 91), (64,), (3, 64), (3,)
    inputs = tuple(torch.randn(shape, device=device).requires_grad_() for shape in shapes)

    def ours(planes: Tensor, lines: Tensor, *decoder: Tensor) -> kernels.Composited:
        return kernels.render_factored(planes, lines, given, kernels.RayDecoder(*decoder))

    def twin(planes: Tensor, lines: Tensor, *decoder: Tensor) -> tuple[Tensor, ...]:
        return reference.render_factored(planes, lines, given, decoder)

    yield Case("rays NViST", inputs, twin, {"ours": ours, "eager": twin})
    yield Case("rays NViST, deterministic", inputs, twin, {"ours": ours}, deterministic=True)


def attentions(device: str, b: int, n: int) -> Iterator[Case]:
    """Yield attention dense and over mixed lengths, by every backend that can serve it; "split" divides one image."""
    for name, h, d in (("DiMR-XL", 16, 60), ("FiTv2-XL", 16, 72), ("FiTv2-3B", 24, 96)):
        for kind, activation in (("dense", "softmax"), ("packed", "softmax"), ("packed", "sigmoid")):
            lengths = [n] if b == 1 else [n, n // 2, n - 7, n // 4 + 3] * (b // 2)
            tokens = n + 1 if name == "DiMR-XL" else n  # with that of the class
            shape = (b, tokens, h, d) if kind == "dense" else (sum(lengths), h, d)
            offsets = torch.tensor([0, *lengths], device=device).cumsum(0).to(torch.int32)
            fixed: dict[str, Any] = {"activation": activation} | ({} if kind == "dense" else {"offsets": offsets})
            inputs = tuple(torch.randn(shape, device=device).bfloat16().requires_grad_() for _ in range(3))
            request = Request(device, activation, kind == "packed", False, torch.bfloat16, shape[-3], d)
            ways = {
                backend.name: partial(kernels.attend, backend=backend.name, **fixed)
                for backend in BACKENDS
                if backend.name not in (("reference",) if b == 1 else ("reference", "split"))
                and backend.refuse(request) is None
            }
            ways["chosen"] = partial(kernels.attend, **fixed)
            title = f"attention {kind} {activation} {name}" + (", batch 1" if b == 1 else "")
            yield Case(title, inputs, partial(reference.attend, **fixed), ways, products=3.5)  # scores are made anew


def distance(case: Case, way: Callable[..., Any], grad: tuple[Tensor, ...] | None) -> float:
    """Return how far a way is from the twin in float32; ``grad``, that of the results: its gradients are."""
    wide = None if grad is None else tuple(x.float() for x in grad)
    want = outcome(case.twin, wide, *(x.float() for x in case.inputs))
    return gpu.apart(outcome(way, grad, *case.inputs), want)


def outcome(way: Callable[..., Any], grad: tuple[Tensor, ...] | None, *inputs: Tensor) -> tuple[Tensor, ...]:
    """Return the results, or with their gradients ``grad`` those of the inputs."""
    with torch.set_grad_enabled(grad is not None):
        out = parts(way(*inputs))
        return out if grad is None else torch.autograd.grad(out, inputs, grad)


def measure(case: Case, device: str, repeats: int, directions: Sequence[bool] = (False, True)) -> list[dict[str, Any]]:
    """Return a row for each way and direction (True: with backward); of a way that fails one with the error."""
    inputs = gpu.copies(case.inputs, device)
    with torch.no_grad():
        out = tuple(x.to(case.inputs[0].dtype) for x in parts(case.twin(*case.inputs)))
        with FlopCounterMode(display=False) as counter:
            case.twin(*case.inputs)
    grad, rows = tuple(torch.randn_like(x) for x in out), list[dict[str, Any]]()
    for name, way in case.ways.items():
        row: dict[str, Any] = {"case": case.name, "way": name}
        try:
            for train in directions:
                pull = grad if train else None
                row = {"case": case.name, "way": name, "backward": train}
                apart = distance(case, way, pull)
                taken = seconds(case, partial(outcome, way, pull), inputs, repeats)
                counted = {
                    "bytes": case.moved(out, train),
                    "flops": counter.get_total_flops() * (case.products if train else 1),
                }
                rows.append(row | taken | {"apart": apart} | counted)
        except Exception as error:  # whatever a GPU and its compilers raise must not cost the other rows
            rows.append(row | {"error": f"{type(error).__name__}: {error}"[:500]})
    return rows


def seconds(
    case: Case, call: Callable[..., Any], inputs: list[tuple[Tensor, ...]], repeats: int
) -> dict[str, dict[str, float]]:
    """Return the spreads of the seconds of a call: as it is made, and where it can be recorded of the GPU alone."""
    torch.use_deterministic_algorithms(case.deterministic)
    try:
        taken = {"called": spread(gpu.timed(call, inputs, repeats))}
        recordable = not case.deterministic  # that reads on the host, and what follows a failed recording may fail too
        if inputs[0][0].is_cuda and recordable:
            try:
                taken["seconds"] = spread(gpu.replayed(call, inputs, repeats))
            except RuntimeError:
                torch.cuda.synchronize()
        return {"seconds": taken["called"]} | taken
    finally:
        torch.use_deterministic_algorithms(False)


def told(row: dict[str, Any]) -> str:
    """Return a row as text."""
    way = row["way"] + (" + backward" if row.get("backward") else "")
    if "error" in row:
        return f"{row['case']:36} {way:22} failed: {row['error'].splitlines()[0]}"
    called = f"called {row['called']['median'] * 1e6:9.1f} us"
    shares = f"copy {row['share of copy']:6.1%}  gemm {row['share of gemm']:6.1%}"
    taken = f"{row['seconds']['median'] * 1e6:10.1f} us"
    return f"{row['case']:36} {way:22} {taken}  {called}  {shares}  apart {row['apart']:.0e}"


def main() -> None:
    """Measure, store, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--repeats", type=int, default=30)
    parser.add_argument("--only", default="", help="cases whose name contains one of these: A,B,C")
    parser.add_argument("--ways", default="", help="only these ways, A,B,C: ours, eager, compile, names of backends")
    parser.add_argument("--out", type=Path, default=Path(__file__).with_name("results") / "kernels.json")
    options = parser.parse_args()
    if options.device == "cuda" and (reason := why_not_fused("cuda")):
        parser.error(f"{reason}; --device cpu tries the script")
    ceilings = gpu.ceilings(options.device)
    rows: list[dict[str, Any]] = []
    for case in cases(options.device):
        if not any(part in case.name for part in options.only.split(",")):
            continue
        if options.ways:
            case.ways = {name: way for name, way in case.ways.items() if name in options.ways.split(",")}
        for row in measure(case, options.device, options.repeats):
            if "seconds" in row:
                row["share of copy"] = row["bytes"] / row["seconds"]["median"] / ceilings["copy"]
                row["share of gemm"] = row["flops"] / row["seconds"]["median"] / ceilings["gemm"]
            rows.append(row)
        if options.device == "cuda":
            about = {"device": torch.cuda.get_device_name(), "torch": torch.__version__, "ceilings": ceilings}
            options.out.write_text(json.dumps(about | {"rows": rows}, indent=1) + "\n")
    print("\n".join(told(row) for row in rows))
    sys.exit(any("error" in row for row in rows))


if __name__ == "__main__":
    main()
