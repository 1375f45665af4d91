"""Packed attention by xFormers' block-diagonal mask. Its attention needs a GPU and has not been run
on one.

The mask holds the lengths as Python numbers, so they are read from the device once for each tensor of offsets, not once
for each layer.
"""

from typing import Any

from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

_masks: WeakTensorKeyDictionary = WeakTensorKeyDictionary()


def attend(
    q: Tensor, k: Tensor, v: Tensor, offsets: Tensor, bias: None, scale: float | None, activation: str
) -> Tensor:
    """See ``belvedere.kernels.attend``; packed softmax only."""
    from xformers.ops import memory_efficient_attention

    if not len(q):
        return v.clone()
    q, k, v = (x[None] for x in (q, k, v))  # (1, n, h, d)
    return memory_efficient_attention(q, k, v, attn_bias=mask_of(offsets), scale=scale)[0]


def mask_of(offsets: Tensor) -> Any:
    """Return the block-diagonal mask of ``offsets``, made once as long as nobody writes into them."""
    from xformers.ops.fmha.attn_bias import BlockDiagonalMask

    version, mask = _masks.get(offsets, (None, None))
    if offsets.is_inference() or version != offsets._version:  # inference tensors do not count what is written
        lengths = [length for length in offsets.diff().tolist() if length]
        mask = BlockDiagonalMask.from_seqlens(lengths, device=offsets.device)
        if not offsets.is_inference():
            _masks[offsets] = offsets._version, mask
    return mask
