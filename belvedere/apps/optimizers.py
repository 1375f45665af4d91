"""Who changes the weights: AdamW; or Muon, which changes the matrices of a network's blocks, and AdamW the rest."""

from typing import Any

import torch
from torch import Tensor, nn

from belvedere.apps.config import OptimizerConfig
from belvedere.apps.task import Task, blocks
from belvedere.errors import InputError

Groups = list[dict[str, Any]]


class Together(torch.optim.Optimizer):
    """Several optimizers, each of parameters of its own, as one: their groups behind one another, and one state."""

    def __init__(self, *optimizers: torch.optim.Optimizer):
        super().__init__([group for optimizer in optimizers for group in optimizer.param_groups], {})
        self.optimizers = optimizers
        for optimizer in optimizers:
            optimizer.state = self.state

    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Let each do its step."""
        for optimizer in self.optimizers:
            optimizer.step()


def check_optimizer(task: Task, config: OptimizerConfig) -> None:
    """Raise ``InputError`` for Muon where a network's blocks have no linear layers that learn."""
    if config.name == "muon" and not _matrices(task.model):
        raise InputError(
            "config optimizer.name muon is for the linear layers of blocks, and this network has none that learn: "
            "choose adamw"
        )


def make_optimizer(task: Task, config: OptimizerConfig) -> torch.optim.Optimizer:
    """Return the optimizer of a task's parameter groups: AdamW in one fused kernel a tensor, or Muon beside it.

    Muon (Jordan et al., "Muon", 2024) makes the singular values of a step equal. Its steps are as long as AdamW's are
    (Liu et al., "Muon is Scalable for LLM Training", arXiv 2502.16982, equation (4)), so they share the learning rate
    and ``weight_decay``; ``betas`` and ``eps`` are AdamW's alone. ``config`` is one that ``check_optimizer`` takes.
    """
    groups = task.groups(task.model, config.weight_decay)
    if config.name == "adamw":
        return _adamw(groups, config)
    matrices = {id(weight) for weight in _matrices(task.model)}
    hidden, rest = (_choose(groups, matrices, inside) for inside in (True, False))
    muon = torch.optim.Muon(hidden, config.lr, adjust_lr_fn="match_rms_adamw")
    return Together(muon, _adamw(rest, config))


def _adamw(groups: Groups, config: OptimizerConfig) -> torch.optim.AdamW:
    return torch.optim.AdamW(groups, lr=config.lr, betas=config.betas, eps=config.eps, fused=True)


def _matrices(model: nn.Module) -> list[Tensor]:
    """Return those weights of the linear layers inside a network's blocks that learn."""
    layers = (layer for block in blocks(model) for layer in block.modules())
    return [layer.weight for layer in layers if isinstance(layer, nn.Linear) and layer.weight.requires_grad]


def _choose(groups: Groups, chosen: set[int], inside: bool) -> Groups:
    """Return the groups with those parameters only that are among ``chosen``, or are not; none that is empty."""
    parts = [group | {"params": [p for p in group["params"] if (id(p) in chosen) is inside]} for group in groups]
    return [part for part in parts if part["params"]]
