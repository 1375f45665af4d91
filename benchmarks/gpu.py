"""What the benchmarks of a GPU share: seconds of calls on it, and its own ceilings, measured in the same run."""

import statistics
import time
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

CLOSE = 3e-2
"""How far results in bfloat16 may be from others, relative to the largest number."""
COLD = 256 * 2**20
"""Bytes of inputs to go through before one is used again, so that no cache holds it."""


def copies(inputs: Sequence[Tensor], device: str) -> list[tuple[Tensor, ...]]:
    """Return the inputs several times over: together ``COLD`` bytes on a GPU, once on a CPU."""
    size = sum(x.nbytes for x in inputs) or 1
    count = min(32, COLD // size + 2) if device == "cuda" else 1
    return [tuple(x.detach().clone().requires_grad_(x.requires_grad) for x in inputs) for _ in range(count)]


def apart(got: Sequence[Tensor], want: Sequence[Tensor]) -> float:
    """Return how far tensors are from others, relative to the largest number of each; ``ValueError``: too far."""
    farthest = max(float((x.float() - y).abs().max() / y.abs().max()) for x, y in zip(got, want, strict=True))
    if not farthest <= CLOSE:
        raise ValueError(f"{farthest:.1e} from what it should be, at most {CLOSE:g} is taken")
    return farthest


def timed(call: Callable[..., Any], inputs: Sequence[tuple[Tensor, ...]], repeats: int) -> list[float]:
    """Return the seconds of each of ``repeats`` calls, the inputs taken in turn, after three that do not count."""
    for i in range(3):
        call(*inputs[i % len(inputs)])
    if inputs[0] and inputs[0][0].device.type != "cuda":
        taken = []
        for i in range(repeats):
            began = time.perf_counter()
            call(*inputs[i % len(inputs)])
            taken.append(time.perf_counter() - began)
        return taken
    marks = [torch.cuda.Event(enable_timing=True) for _ in range(repeats + 1)]
    marks[0].record()
    for i in range(repeats):
        call(*inputs[i % len(inputs)])
        marks[i + 1].record()
    torch.cuda.synchronize()
    return [begin.elapsed_time(end) / 1e3 for begin, end in pairwise(marks)]


def replayed(call: Callable[..., Any], inputs: Sequence[tuple[Tensor, ...]], repeats: int) -> list[float]:
    """Return the seconds of a call in each of ``repeats`` replays of a CUDA graph with one call of all inputs in turn:
    the GPU's time alone, without that of the launches. Raises ``RuntimeError`` where a call cannot be recorded."""
    aside, graph = torch.cuda.Stream(), torch.cuda.CUDAGraph()
    aside.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(aside):
        for _ in range(2):
            call(*inputs[0])
    torch.cuda.current_stream().wait_stream(aside)
    with torch.cuda.graph(graph):
        for each in inputs:
            call(*each)
    return [taken / len(inputs) for taken in timed(graph.replay, [()], repeats)]


def ceilings(device: str, repeats: int = 20) -> dict[str, float]:
    """Return the bytes a second of a copy (read and written) and the FLOP/s of a bfloat16 matrix product."""
    numbers, side = (2**29, 8192) if device == "cuda" else (2**22, 512)
    source = torch.empty(numbers, dtype=torch.bfloat16, device=device)
    target = torch.empty_like(source)
    copy = statistics.median(timed(lambda x: target.copy_(x), [(source,)], repeats))
    a, b = (torch.randn(side, side, device=device).to(torch.bfloat16) for _ in range(2))
    product = statistics.median(timed(torch.mm, [(a, b)], repeats))
    return {"copy": 2 * source.nbytes / copy, "gemm": 2 * side**3 / product}
