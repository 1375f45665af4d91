"""DiMR's norms: their parameters depend on time, not on a time token (arXiv 2406.09416, section 3.2).

All take ``x`` (b, ..., d) and ``time``, the values of every ``TimeParameter`` of the model.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from belvedere import kernels

Values = Sequence[Tensor]
"""Of every ``TimeParameter`` of a model in turn: (b or 1, size) each."""


class TimeParameter(nn.Module):
    """A parameter that slides between a clean and a noisy value with time (section 3.2, equation 4).

    ``value(tau) = clean + sigmoid(nodecay_bias + tau (nodecay_weight + 1)) (noisy - clean)``, elementwise, with
    noisy = ``param0`` and clean = ``param1``. All of a model's are evaluated at once by ``DiMR.evaluate_time``;
    ``read`` takes this one's out.
    """

    def __init__(self, size: int, fill: float):
        super().__init__()
        self.param0 = nn.Parameter(torch.full((size,), fill))
        self.param1 = nn.Parameter(torch.full((size,), fill))
        self.nodecay_weight = nn.Parameter(torch.zeros(size))
        self.nodecay_bias = nn.Parameter(torch.zeros(size))
        self.place = 0
        """Among those of the model."""

    def read(self, time: Values) -> Tensor:
        """Return this parameter's values (b', size) from those of the whole model."""
        return time[self.place]


class Norm(nn.Module):
    """What the norms have in common."""

    def forward(self, x: Tensor, time: Values) -> Tensor:
        raise NotImplementedError

    def after(self, x: Tensor, y: Tensor, time: Values) -> tuple[Tensor, Tensor]:
        """Return ``x + y`` and the norm of it."""
        x = x + y
        return x, self(x, time)


class TimeLayerNorm(Norm):
    """TD-LN: layer norm whose weight and bias depend on time."""

    def __init__(self, dim: int):
        super().__init__()
        self.weight, self.bias = TimeParameter(dim, 1.0), TimeParameter(dim, 0.0)

    def forward(self, x: Tensor, time: Values) -> Tensor:
        return kernels.time_norm(x, self.weight.read(time), self.bias.read(time))

    def after(self, x: Tensor, y: Tensor, time: Values) -> tuple[Tensor, Tensor]:
        return kernels.residual_time_norm(x, y, self.weight.read(time), self.bias.read(time))


class TimeRMSNorm(Norm):
    """TD-RMSN, the published norm: root-mean-square norm whose scale depends on time."""

    def __init__(self, dim: int):
        super().__init__()
        self.scale = TimeParameter(dim, 1.0)

    def forward(self, x: Tensor, time: Values) -> Tensor:
        return kernels.time_norm(x, self.scale.read(time))

    def after(self, x: Tensor, y: Tensor, time: Values) -> tuple[Tensor, Tensor]:
        return kernels.residual_time_norm(x, y, self.scale.read(time))


class RMSNorm(Norm):
    """Root-mean-square norm, blind to time."""

    def __init__(self, dim: int):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(dim))

    def forward(self, x: Tensor, time: Values) -> Tensor:
        return kernels.time_norm(x, self.scale[None])

    def after(self, x: Tensor, y: Tensor, time: Values) -> tuple[Tensor, Tensor]:
        return kernels.residual_time_norm(x, y, self.scale[None])


class AdaptiveRMSNorm(Norm):
    """Root-mean-square norm scaled by a linear map of the first position: the class token, or the first image row."""

    def __init__(self, dim: int):
        super().__init__()
        self.linear = nn.Linear(dim, dim, bias=False)

    def forward(self, x: Tensor, time: Values) -> Tensor:
        return kernels.rms_norm(x, (1 + self.linear(x[:, 0])).unsqueeze(1))  # (b, 1, [w,] c)


def make_norm(kind: str, dim: int) -> Norm:
    """Return the norm called LN (time-dependent), RMSN, TDRMSN or ADARMSN; its forward takes ``x`` and ``time``."""
    return {"LN": TimeLayerNorm, "RMSN": RMSNorm, "TDRMSN": TimeRMSNorm, "ADARMSN": AdaptiveRMSNorm}[kind](dim)
