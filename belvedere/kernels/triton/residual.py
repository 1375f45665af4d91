"""x + gate[image] * y in one pass; backward too, with the sum over each image that its gate needs.

Without a gate it is x + y, which PyTorch adds slowly where their dtypes differ.
"""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from belvedere.kernels.triton.launch import launch, meta, register, rows_of
from belvedere.kernels.triton.reduce import add_chunks, chunk_of, image_of, partial_sums, segments_of
from belvedere.kernels.triton.rows import (
    SUMMED,
    check_rows,
    inside_of,
    load_image_row,
    load_image_rows,
    load_parts,
    plus_products,
    rows_at,
    rows_with_stride,
    store_sums,
    tile_of,
    zero_parts,
)


@triton.jit
def _forward_kernel(
    x_ptr, y_ptr, sum_ptr, gate_ptr, index_ptr, n, length, gate_stride,
    C: tl.constexpr, ROWS: tl.constexpr, PART: tl.constexpr, COUNT: tl.constexpr,
):  # fmt: skip
    row, there, column, place = rows_at(tl.program_id(0).to(tl.int64) * ROWS, n, C, ROWS, PART)
    if gate_ptr is not None:
        image = image_of(row, there, index_ptr, length)
        gate = load_image_rows(gate_ptr, image, gate_stride, there, column, C, PART, COUNT)
    x = load_parts(x_ptr, place, there, column, C, PART, COUNT)
    y = load_parts(y_ptr, place, there, column, C, PART, COUNT)
    for i in tl.static_range(COUNT):
        added = y[i]
        if gate_ptr is not None:
            added *= gate[i]
        tl.store(sum_ptr + place + i * PART, x[i] + added, inside_of(there, column, i, C, PART))


@triton.jit
def _backward_kernel(
    dsum_ptr, y_ptr, dy_ptr, gate_ptr, partial_ptr, starts_ptr, count, length, gate_stride,
    CHUNK: tl.constexpr,
    C: tl.constexpr, ROWS: tl.constexpr, PART: tl.constexpr, COUNT: tl.constexpr,
):  # fmt: skip
    slot = tl.program_id(0).to(tl.int64)
    image, first, last = chunk_of(slot, starts_ptr, count, length, CHUNK)
    gate = load_image_row(gate_ptr, image, gate_stride, C, PART, COUNT)
    dgate = zero_parts(ROWS, PART, COUNT)
    for begin in range(first, last, ROWS):
        _, there, column, place = rows_at(begin, last, C, ROWS, PART)
        dsum = load_parts(dsum_ptr, place, there, column, C, PART, COUNT)
        y = load_parts(y_ptr, place, there, column, C, PART, COUNT)
        dgate = plus_products(dgate, dsum, y, COUNT)
        for i in tl.static_range(COUNT):
            tl.store(dy_ptr + place + i * PART, gate[i] * dsum[i], inside_of(there, column, i, C, PART))
    store_sums(partial_ptr + slot * C, dgate, C, PART, COUNT)


def _forward(x: Tensor, y: Tensor, gate: Tensor | None, index: Tensor | None) -> Tensor:
    check_rows(x, index, gate)
    x, y = x.contiguous(), y.contiguous()
    gate = None if gate is None else rows_with_stride(gate)
    out = torch.empty_like(x)
    index = None if index is None else index.contiguous()
    n, c = rows_of(x), x.shape[-1]
    tile = tile_of(c)
    sizes = (n, 1, 0) if gate is None else (n, n // max(len(gate), 1), gate.stride(0))
    launch(_forward_kernel, (tile.programs(n),), x, y, out, gate, index, *sizes, **tile.constants(c))
    return out


def _backward(dsum: Tensor, y: Tensor, gate: Tensor, index: Tensor | None) -> tuple[Tensor, Tensor]:
    dsum, y, gate = dsum.contiguous(), y.contiguous(), rows_with_stride(gate)
    c = y.shape[-1]
    segments = segments_of(rows_of(y), len(gate), index)
    dy, chunks = torch.empty_like(y), partial_sums(segments, y, c)
    arguments = dsum, y, dy, gate, chunks, *segments.arguments, gate.stride(0)
    constants = {"CHUNK": segments.chunk} | tile_of(c, SUMMED).constants(c)
    launch(_backward_kernel, (segments.slots,), *arguments, **constants)
    return dy, add_chunks(chunks, segments, gate.dtype)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    _, y, gate, index = inputs
    ctx.added_type = y.dtype
    gated = None if gate is None else y  # it is the gradient of the gate that needs it
    ctx.save_for_backward(gated, gate, index)


def _pull(ctx: Any, dsum: Tensor) -> tuple[Tensor | None, ...]:
    y, gate, index = ctx.saved_tensors
    if gate is None:
        return dsum, dsum.to(ctx.added_type), None, None
    dy, sums = gated_residual_backward(dsum, y, gate, index)
    return dsum, dy, sums, None


gated_residual_backward = register(
    "gated_residual_backward",
    _backward,
    lambda dsum, y, gate, index: (y.new_empty(y.shape), gate.new_empty(gate.shape)),
    None,
    None,
)
gated_residual = register("gated_residual", _forward, lambda x, *_: x.new_empty(x.shape), _keep, _pull)
"""(x, y, gate, index) -> x + gate[image] * y, without a gate x + y; shapes as in ``norms.scaled_norm``."""


def production() -> Iterator[tuple[str, Callable[[], Any]]]:
    """Yield launches at the sizes of published networks, by name; they are made under ``launch.noting``."""
    for name, c, packed in (("FiTv2-XL/2", 1152, True), ("FiTv2-3B/2", 2304, True), ("NViST", 768, False)):
        x = meta(64 * 256, c) if packed else meta(64, 256, c)
        gate = meta(64, 6 * c)[:, :c]
        index = meta(64 * 256, dtype=torch.int64) if packed else None
        yield f"gate {name} forward", partial(_forward, x, x, gate, index)
        yield f"gate {name} backward", partial(_backward, x, x, gate, index)
    total, product = meta(64, 257, 1920, dtype=torch.float32), meta(64, 257, 1920)
    yield "sum DiMR-XL/2R", partial(_forward, total, product, None, None)
