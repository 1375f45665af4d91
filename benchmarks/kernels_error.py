"""How far each kernel's results are from float64: ``python benchmarks/kernels_error.py [--out FILE]``.

Values and gradients of the fused kernels and of plain PyTorch, on the same numbers, against the twins of
``kernels/reference.py`` in float64. The unit is the ulp: the spacing of the dtype at the exact number, or at the root
mean square of all of them where that is larger; a result that is only rounded is off by at most 0.5. On a machine
without a GPU, the kernels run in Triton's interpreter: its sums have another order, and it cuts float32 off to
bfloat16 where a GPU rounds, which doubles the error of bfloat16.
"""

import argparse
import json
import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest import mock

import torch
from torch import Tensor

os.environ.setdefault("TRITON_INTERPRET", "0" if torch.cuda.is_available() else "1")  # before triton is imported

import triton
from kernels import joined, streamed

import belvedere.kernels.triton  # noqa: F401  registers the ops
from belvedere import kernels
from belvedere.kernels import concat, depthwise, gates, norms, rays, reference, region, rope

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
CHANNELS, HEADS, HEAD = 1152, 4, 72
LENGTHS = torch.tensor([5, 1, 6])
Op = Callable[..., Tensor]
Case = tuple[str, Callable[[Any], Op], tuple[tuple[int, ...], ...]]
"""A name, the op from a module of ops, and the shapes of its inputs."""


def cases() -> Iterator[Case]:
    """Yield every op with the width of FiTv2-XL/2; packed where it can be."""
    n, c, s = int(LENGTHS.sum()), CHANNELS, len(LENGTHS)
    index = torch.arange(s).repeat_interleave(LENGTHS).to(DEVICE)
    rows, row, head = (n, c), (s, c), (n, HEADS, HEAD)
    angle = torch.linspace(0, 9, n * HEAD // 2, device=DEVICE).view(n, 1, -1)
    yield "gated_mlp, GELU", lambda ops: lambda x: ops.gated_mlp(x, "gelu"), (rows,)
    yield "gated_mlp, SiLU", lambda ops: lambda x: ops.gated_mlp(x, "silu"), (rows,)
    yield "modulate_norm", lambda ops: lambda x, a, b: ops.modulate_norm(x, a, b, index), (rows, row, row)
    yield "gated_residual", lambda ops: lambda x, y, g: ops.gated_residual(x, y, g, index), (rows, rows, row)
    yield (
        "gated_residual_norm",
        lambda ops: lambda x, y, *r: torch.cat(ops.gated_residual_norm(x, y, *r, index), -1),
        (rows, rows, row, row, row),
    )
    yield "time_norm, TD-LN", lambda ops: ops.time_norm, ((s, 4, c), row, row)
    yield "time_norm, TD-RMSN", lambda ops: ops.time_norm, ((s, 4, c), row)
    yield (
        "residual_time_norm, TD-RMSN",
        lambda ops: lambda x, y, w: torch.cat(ops.residual_time_norm(x, y, w), -1),
        ((s, 4, c), (s, 4, c), row),
    )
    yield "rms_norm", lambda ops: ops.rms_norm, ((s, 4, c), (s, 1, c))
    yield "rotate_pairs", lambda ops: lambda x: ops.rotate_pairs(x, angle.cos(), angle.sin()), (head,)
    yield "qk_norm_rope", lambda ops: _queries(ops, angle.cos(), angle.sin()), (head, head, (HEAD,), (HEAD,))
    yield (
        "concat",
        lambda ops: streamed if ops is kernels else joined,
        ((s, 4, c),) * 2
        + ((s, 2 * c),) * 2
        + (
            (8, 2 * c),
            (8,),
        ),
    )
    yield "depthwise_residual", lambda ops: ops.depthwise_residual, ((s, 8, 8, 24), (24, 1, 7, 7), (24,))
    yield "region_filter", lambda ops: ops.region_filter, ((s, 4, 8, 8),) * 2 + ((36, 1, 3, 3), (36,))
    volume = (2, 3, 32, 8, 8), (2, 3, 32, 8)
    yield "render_factored", _rays, (*volume, (64, 72), (64,), (64, 91), (64,), (3, 64), (3,))


def _queries(ops: Any, cos: Tensor, sin: Tensor) -> Op:
    def op(q: Tensor, k: Tensor, q_weight: Tensor, k_weight: Tensor) -> Tensor:
        return torch.cat(ops.qk_norm_rope(q, k, cos, sin, q_weight=q_weight, k_weight=k_weight), -1)

    return op


def _rays(ops: Any) -> Op:
    draw = torch.Generator().manual_seed(0)
    origins, ahead = torch.tensor([0.0, 0.0, -1.4]).expand(2, 8, 3), torch.rand(2, 8, 3, generator=draw) * 1.6 - 0.8
    encoded, edges = torch.randn(2, 8, 27, generator=draw), torch.linspace(0.4, 2.4, 9)
    given = [x.to(DEVICE) for x in (origins, torch.nn.functional.normalize(ahead - origins, dim=-1), encoded, edges)]

    def op(planes: Tensor, lines: Tensor, *decoder: Tensor) -> Tensor:
        wide = [x.to(torch.promote_types(planes.dtype, torch.float32)) for x in given]
        seen = ops.render_factored(
            planes, lines, kernels.Rays(*wide), decoder if ops is reference else kernels.RayDecoder(*decoder)
        )
        return torch.cat([part.flatten() for part in seen])

    return op


@contextmanager
def switched(modules: tuple[ModuleType, ...], on: bool) -> Iterator[None]:
    """Lead the public ops to their kernels, or to plain PyTorch."""
    with ExitStack() as stack:
        for module in modules:
            stack.enter_context(mock.patch.object(module, "fused", lambda x: on))
        yield


def results(op: Op, inputs: list[Tensor]) -> tuple[Tensor, ...]:
    """Return the value of ``op`` and its gradients, for one direction."""
    value = op(*inputs)
    direction = torch.randn(value.shape, generator=torch.Generator().manual_seed(9)).to(torch.bfloat16)
    return value.detach(), *torch.autograd.grad(value, inputs, direction.to(value))


def ulps(got: Tensor, exact: Tensor, dtype: torch.dtype) -> tuple[float, float]:
    """Return the largest and the mean distance in ulp."""
    ulp = torch.finfo(dtype).eps * 2 ** exact.abs().clamp(min=exact.square().mean().sqrt()).log2().floor()
    distance = (got.double() - exact).abs() / ulp
    return round(distance.max().item(), 2), round(distance.mean().item(), 3)


def measure(dtype: torch.dtype) -> Iterator[dict[str, Any]]:
    """Yield one row for each op: largest and mean error of the value and of the worst gradient."""
    for name, of, shapes in cases():
        generator = torch.Generator().manual_seed(0)
        inputs = [torch.randn(shape, generator=generator).to(DEVICE, dtype).requires_grad_() for shape in shapes]
        exact = results(of(reference), [x.detach().double().requires_grad_() for x in inputs])
        row: dict[str, Any] = {"op": name, "dtype": str(dtype).removeprefix("torch.")}
        for kind in ("kernel", "plain"):
            with switched((concat, depthwise, gates, norms, rays, region, rope), kind == "kernel"):
                errors = [ulps(*pair, dtype) for pair in zip(results(of(kernels), inputs), exact, strict=True)]
            row |= {f"{kind} value": errors[0], f"{kind} gradient": max(errors[1:])}
        yield row


def main() -> None:
    """Print the table and write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "kernels_error.json")
    options = parser.parse_args()
    rows = [row for dtype in (torch.float32, torch.bfloat16) for row in measure(dtype)]
    how = torch.cuda.get_device_name() if DEVICE == "cuda" else "Triton's interpreter on a CPU"
    print(f"Largest (mean) error in ulp; kernels run in {how}\n{'':32} {'value':28} worst gradient")
    for row in rows:
        cells = (f"{kind} {row[f'{kind} {part}']}" for part in ("value", "gradient") for kind in ("kernel", "plain"))
        print(f"{row['op']:21} {row['dtype']:9}", *(f"{cell:22}" for cell in cells))
    result = {"run_in": how, "torch": torch.__version__, "triton": triton.__version__, "ulp": rows}
    options.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
