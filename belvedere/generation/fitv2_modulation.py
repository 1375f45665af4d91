"""What conditions FiTv2: the adaLN rows of all its blocks from time and class, in one product."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from belvedere import kernels


class Modulation(nn.Module):
    """The adaLN rows of all blocks and of the head from one condition, in one product (section 3.3, adaLN-LoRA).

    ``normal``: a linear map a block. ``lora``: a map through ``rank`` channels a block, and one map that all blocks
    share. ``swiglu``: a small SwiGLU a block.
    """

    def __init__(self, config: Any):
        super().__init__()
        dim, depth, self.kind = config.dim, config.depth, config.adaln
        self.depth, rows = depth, 6 * dim
        inner = {"normal": dim, "lora": config.adaln_rank, "swiglu": 3 * (dim // 4)}[self.kind]
        if self.kind != "normal":
            self.down = nn.Linear(dim, depth * inner * (2 if self.kind == "swiglu" else 1))
        self.up_weight = nn.Parameter(torch.zeros(depth, rows, inner))
        self.up_bias = nn.Parameter(torch.zeros(depth, rows))
        self.shared = nn.Linear(dim, rows) if self.kind == "lora" else None
        self.head_down = nn.Linear(dim, 2 * (dim // 2)) if self.kind == "swiglu" else None
        self.head = nn.Linear(dim // 2 if self.kind == "swiglu" else dim, 2 * dim)
        self.refine = nn.Linear(dim, 3 * config.refine_dim * config.refine_depth) if config.refine_depth else None

    def forward(self, condition: Tensor) -> Tensor:
        """Return rows (b, 6 c depth + 2 c), and those of the refinement behind them, for conditions (b, c)."""
        active = condition if self.kind == "swiglu" else F.silu(condition)
        inner = active[:, None] if self.kind == "normal" else self.down(active).unflatten(-1, (self.depth, -1))
        if self.head_down is not None:
            inner, active = kernels.gated_mlp(inner, "silu"), kernels.gated_mlp(self.head_down(active), "silu")
        rows = torch.einsum("bli,loi->blo", inner.expand(-1, self.depth, -1), self.up_weight) + self.up_bias
        if self.shared is not None:
            rows = rows + self.shared(active)[:, None]  # (b, depth, 6 c)
        parts = [rows.flatten(1), self.head(active)]
        if self.refine is not None:
            parts.append(self.refine(F.silu(condition)))
        return torch.cat(parts, -1)
