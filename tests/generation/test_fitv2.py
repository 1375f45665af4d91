from typing import Any
import torch
from belvedere.generation.fitv2 import FiTv2
def tiny(**changes: Any) -> FiTv2:
    torch.manual_seed(0)
    fields = {"dim": 32, "depth": 2, "heads": 2, "num_classes": 5, "adaln_rank": 8, "trained_side": 4}
    model = FiTv2(**(fields | changes))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return model.eval()
