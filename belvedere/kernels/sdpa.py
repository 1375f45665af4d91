"""Attention by PyTorch's ``scaled_dot_product_attention``: flash on the CPU and, by device, flash or cuDNN on a GPU."""

import torch
import torch.nn.functional as F
from torch import Tensor


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
    # One call per sequence: on a CPU 3x faster than padding with a mask, 10x faster than a block-diagonal mask.
    rows = []
    for start, stop in zip(offsets[:-1].tolist(), offsets[1:].tolist(), strict=True):
        one_q, one_k, one_v = (x[start:stop].transpose(0, 1)[None] for x in (q, k, v))  # (1, h, n, d)
        rows.append(F.scaled_dot_product_attention(one_q, one_k, one_v, scale=scale)[0].transpose(0, 1))  # (n, h, d)
    return torch.cat(rows) if rows else torch.empty_like(v)
