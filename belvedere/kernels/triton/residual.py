"""x + gate[image] * y in one pass; backward too, with the sum over each image that its gate needs."""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from belvedere.kernels.triton.launch import launch, meta, register, rows_of
from belvedere.kernels.triton.reduce import CHUNK, add_chunks, chunk_of, image_of, partial_sums, segments_of
from belvedere.kernels.triton.rows import chunk_tile_of, row_of_image, rows_with_stride, span_of, tile_at, tile_of


@triton.jit
def _forward_kernel(
    x_ptr, y_ptr, sum_ptr, gate_ptr, index_ptr, n, c, length, gate_stride, ROWS: tl.constexpr, BLOCK: tl.constexpr
):
    first, last = span_of(n, ROWS)
    column = tl.arange(0, BLOCK)[None, :]
    for tile in range(first, last):
        row, there, inside, place = tile_at(tl.cast(tile, tl.int64) * ROWS, n, column, c, ROWS)
        image = image_of(row, there, index_ptr, length)[:, None]
        x = tl.load(x_ptr + place, inside, 0.0).to(tl.float32)
        y = tl.load(y_ptr + place, inside, 0.0).to(tl.float32)
        tl.store(sum_ptr + place, x + row_of_image(gate_ptr, image, gate_stride, column, inside) * y, inside)


@triton.jit
def _backward_kernel(
    dsum_ptr,
    y_ptr,
    dy_ptr,
    gate_ptr,
    partial_ptr,
    starts_ptr,
    count,
    c,
    gate_stride,
    CHUNK: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    slot = tl.program_id(0).to(tl.int64)
    image, first, last = chunk_of(slot, starts_ptr, count, CHUNK)
    column = tl.arange(0, BLOCK)[None, :]
    gate = row_of_image(gate_ptr, image, gate_stride, column, column < c)
    gated = tl.zeros((ROWS, BLOCK), tl.float32)
    for begin in tl.range(first, last, ROWS, num_stages=3):  # two tiles are on their way
        _, _, inside, place = tile_at(begin, last, column, c, ROWS)
        dsum = tl.load(dsum_ptr + place, inside, 0.0).to(tl.float32)
        gated += dsum * tl.load(y_ptr + place, inside, 0.0).to(tl.float32)
        tl.store(dy_ptr + place, gate * dsum, inside)
    column = tl.arange(0, BLOCK)
    tl.store(partial_ptr + slot * c + column, tl.sum(gated, 0), column < c)


def _forward(x: Tensor, y: Tensor, gate: Tensor, index: Tensor | None) -> Tensor:
    x, y, gate = x.contiguous(), y.contiguous(), rows_with_stride(gate)
    out = torch.empty_like(x)
    index = None if index is None else index.contiguous()
    n, c = rows_of(x), x.shape[-1]
    tile = tile_of(c)
    sizes = n, c, n // max(len(gate), 1), gate.stride(0)
    constants = {"ROWS": tile.rows, "BLOCK": tile.block, "num_warps": tile.warps}
    launch(_forward_kernel, (tile.programs(n),), x, y, out, gate, index, *sizes, **constants)
    return out


def _backward(dsum: Tensor, y: Tensor, gate: Tensor, index: Tensor | None) -> tuple[Tensor, Tensor]:
    dsum, y, gate = dsum.contiguous(), y.contiguous(), rows_with_stride(gate)
    c = y.shape[-1]
    segments = segments_of(rows_of(y), len(gate), index, y)
    dy, chunks = torch.empty_like(y), partial_sums(segments, c)
    tile = chunk_tile_of(c)
    launch(
        _backward_kernel,
        (segments.slots,),
        dsum,
        y,
        dy,
        gate,
        chunks,
        segments.starts,
        segments.images,
        c,
        gate.stride(0),
        CHUNK=CHUNK,
        ROWS=tile.rows,
        BLOCK=tile.block,
        num_warps=tile.warps,
    )
    return dy, add_chunks(chunks, segments)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs[1:])


def _pull(ctx: Any, dsum: Tensor) -> tuple[Tensor | None, ...]:
    y, gate, index = ctx.saved_tensors
    dy, sums = gated_residual_backward(dsum, y, gate, index)
    return dsum, dy, sums.to(gate.dtype), None


gated_residual_backward = register(
    "gated_residual_backward",
    _backward,
    lambda dsum, y, gate, index: (y.new_empty(y.shape), gate.new_empty(gate.shape, dtype=torch.float32)),
    None,
    None,
)
gated_residual = register("gated_residual", _forward, lambda x, *_: x.new_empty(x.shape), _keep, _pull)
"""(x, y, gate, index) -> x + gate[image] * y; shapes as in ``norms.scaled_norm``."""


def production() -> Iterator[tuple[str, Callable[[], Any]]]:
    """Yield launches at the sizes of published networks, by name; they are made under ``launch.noting``."""
    for name, c, packed in (("FiTv2-XL/2", 1152, True), ("FiTv2-3B/2", 2304, True), ("NViST", 768, False)):
        x = meta(64 * 256, c) if packed else meta(64, 256, c)
        gate = meta(64, 6 * c)[:, :c]
        index = meta(64 * 256, dtype=torch.int64) if packed else None
        yield f"gate {name} forward", partial(_forward, x, x, gate, index)
        yield f"gate {name} backward", partial(_backward, x, x, gate, index)
