"""Packed attention by PyTorch's FlexAttention with a document mask, compiled. Its compiled form needs a GPU and has not
been run on one; the mask and the layout are tested without compiling."""

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


@functools.cache
def _compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    return torch.compile(function, dynamic=True)


def _run(function: Callable[..., Any], *arguments: Any, **named: Any) -> Any:
    if torch.compiler.is_compiling():  # then it is compiled with what is around it
        return function(*arguments, **named)
    return _compiled(function)(*arguments, **named)


def attend(
    q: Tensor, k: Tensor, v: Tensor, offsets: Tensor, bias: None, scale: float | None, activation: str
) -> Tensor:
    """See ``belvedere.kernels.attend``; packed softmax only. Reads ``offsets`` on their device."""
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    n = len(q)
    if not n:
        return v.clone()
    token = torch.arange(n, device=q.device, dtype=offsets.dtype)
    document = torch.searchsorted(offsets[1:].contiguous(), token, right=True)

    def same(batch: Tensor, head: Tensor, row: Tensor, column: Tensor) -> Tensor:
        return document[row] == document[column]

    mask = _run(create_block_mask, same, None, None, n, n, device=q.device)
    q, k, v = (x.transpose(0, 1)[None] for x in (q, k, v))  # (1, h, n, d)
    return _run(flex_attention, q, k, v, block_mask=mask, scale=scale)[0].transpose(0, 1)  # (n, h, d)
