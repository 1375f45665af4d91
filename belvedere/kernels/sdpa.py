"""Attention by PyTorch's ``scaled_dot_product_attention``: flash on the CPU and, by device, flash or cuDNN on a GPU."""

from itertools import groupby

import torch
import torch.nn.functional as F
from torch import Tensor

from belvedere.kernels.opaque import opaque


def attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    offsets: Tensor | None,
    bias: Tensor | None,
    scale: float | None,
    activation: str,
) -> Tensor:
    """See ``belvedere.kernels.attend``; softmax only, and no bias with ``offsets``."""
    if offsets is None:
        q, k, v = (x.transpose(1, 2) for x in (q, k, v))  # (b, h, n, d)
        return F.scaled_dot_product_attention(q, k, v, attn_mask=bias, scale=scale).transpose(1, 2)
    packed = _packed_op if torch.compiler.is_compiling() else _packed
    return packed(q, k, v, offsets, scale)


def _packed(q: Tensor, k: Tensor, v: Tensor, offsets: Tensor, scale: float | None) -> Tensor:
    """Return packed attention by one call for each run of sequences of one length: on a CPU 3x faster than padding with
    a mask, 10x faster than a block-diagonal mask."""
    runs = [(length, len(list(run))) for length, run in groupby(offsets.diff().tolist())]
    parts = (x.split([length * count for length, count in runs]) for x in (q, k, v))
    rows = []
    for (length, count), *part in zip(runs, *parts, strict=True):
        if not length:
            continue
        one_q, one_k, one_v = (x.unflatten(0, (count, length)) for x in part)  # (b, n, h, d)
        rows.append(attend(one_q, one_k, one_v, None, None, scale, "softmax").flatten(0, 1))  # (n, h, d)
    if len(rows) == 1:
        return rows[0]
    return torch.cat(rows) if rows else torch.empty_like(v)


_packed_op = opaque("packed_attention", _packed, like=2)
"""For a compiler, which cannot see into offsets."""
