"""Gated activations on a fused projection."""

import torch.nn.functional as F
from torch import Tensor

from belvedere.kernels.backends import OPERATIONS, fused


def gated_mlp(x: Tensor, activation: str = "gelu") -> Tensor:
    """Return activation(gate) * value for ``x`` (..., 2 c) holding gate, then value -> (..., c).

    ``activation``: "gelu" (GEGLU, exact erf GELU) or "silu" (SwiGLU). Shazeer, "GLU variants improve transformer",
    arXiv 2002.05202. Raises ``ValueError`` for another.
    """
    if activation not in ("gelu", "silu"):
        raise ValueError(f"activation {activation!r}: choose gelu or silu")
    if fused(x):
        return OPERATIONS["gated_mlp"](x, activation)
    gate, value = x.chunk(2, dim=-1)
    return (F.gelu(gate) if activation == "gelu" else F.silu(gate)) * value
