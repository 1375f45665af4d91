"""The moving average of a model's weights (EMA), of a model that is here or of one in shards."""

import copy

import torch
from torch import Tensor, nn

from belvedere.apps.sharding import local
from belvedere.apps.task import copy_with


class Ema:
    """A float32 moving average of a model's parameters, kept as a second model (Polyak averaging).

    ``warmup`` bounds the decay by (1 + step) / (10 + step). Buffers are copied, not averaged.
    """

    def __init__(self, model: nn.Module, decay: float, warmup: bool):
        self.model = copy.deepcopy(model).requires_grad_(False).float().eval()
        self.decay, self.warmup = decay, warmup
        self._averages: list[Tensor] = list(self.model.parameters())
        self._follow(model)

    def _follow(self, model: nn.Module) -> None:
        """Average the weights of ``model`` from now on."""
        self._sources: list[Tensor] = list(model.parameters())
        self._buffers = list(zip(self.model.buffers(), model.buffers(), strict=True))

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Fold in the weights after ``step`` (from 0): average += (1 - decay) (weights - average)."""
        decay = min(self.decay, (1 + step) / (10 + step)) if self.warmup else self.decay
        torch._foreach_lerp_(local(self._averages), local(self._sources), 1 - decay)
        for mine, theirs in self._buffers:
            mine.copy_(theirs)

    def state(self) -> dict[str, Tensor]:
        """Return the tensors of the averaged model by name, which share its memory."""
        return self.model.state_dict()

    def whole(self) -> nn.Module:
        """Return the averaged model, which can be called, saved and exported.

        Of one in shards every process asks; the first gets it, on the CPU, the others get one without weights.
        """
        return self.model


class ShardedEma(Ema):
    """The average of a model whose parameters are sharded: each process averages its rows.

    Make it before the model is sharded, ``follow`` the model afterwards.
    """

    def __init__(self, model: nn.Module, decay: float, warmup: bool):
        self.model = copy_with(model, lambda weight: weight.to("meta")).requires_grad_(False).float().eval()
        self.decay, self.warmup = decay, warmup

    def follow(self, model: nn.Module) -> None:
        """Begin with the weights of ``model``, and average them from now on."""
        self._named = {name: p.detach().float().clone() for name, p in model.named_parameters()}
        self._averages = list(self._named.values())
        self._follow(model)

    def state(self) -> dict[str, Tensor]:
        return {name: self._named.get(name, tensor) for name, tensor in self.model.state_dict().items()}

    def whole(self) -> nn.Module:
        first, weights = torch.distributed.get_rank() == 0, {}
        for name, average in self._named.items():
            weight = average.full_tensor()  # type: ignore[attr-defined]
            if first:
                weights[name] = weight.cpu()
        whole = copy.deepcopy(self.model)
        whole.load_state_dict(weights, strict=False, assign=True)
        return whole
