"""Gated activations on a fused projection."""

import torch.nn.functional as F
from torch import Tensor


def geglu(x: Tensor) -> Tensor:
    """Return GELU(gate) * value for ``x`` (..., 2 c) holding gate, then value -> (..., c); exact (erf) GELU.

    Shazeer, "GLU variants improve transformer", arXiv 2002.05202.
    """
    gate, value = x.chunk(2, dim=-1)
    return F.gelu(gate) * value
