"""A linear beginning: analysis and synthesis as a pyramid of principal components, all that is beside them asleep.

A network of PyTorch's own initial weights spends its first tens of thousands of steps on becoming a transform at all.
This one begins as a good linear transform, and learns from there: every layer that halves the resolution takes the
principal components of 2x2 pixels of what it is given, every layer that doubles it their transpose, and affine layers,
attention modules and region-adaptive transforms begin as the identity.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from belvedere.compression import segpic
from belvedere.compression.layers import GDN, Affine, AttentionModule, Down, Up
from belvedere.compression.segpic import RegionAdaptiveTransform, SegPIC

GAMMA = 1e-4
"""Of GDN: almost none of it."""
ASLEEP = -4.0
"""Logit of an attention module's mask."""
STEP = 0.2
"""Step at which an orthonormal transform is best rounded at the middle rate: 1 / sqrt(2503 lambda), lambda 0.0093."""
CODING = ("channel_context", "hyper_", "means_rat", "scales_rat", "bottleneck", "prototypes", "gain")
"""Parts by first name that say how probable the latent is, and how finely it is rounded."""
CENTRE = slice(2, 4)
"""The taps of a 5x5 kernel that cover 2x2 pixels, each once."""


@torch.no_grad()
def begin_linear(model: SegPIC, pictures: Tensor) -> None:
    """Give a fresh network its linear beginning, by ``pictures`` (b, 3, h, w) in [0, 1], sides multiples of 16."""
    for module in model.modules():
        _calm(module)
    downs: list[Any] = [module for module in (*model.analysis1, *model.analysis2) if isinstance(module, Down)]
    ups: list[Any] = [module for module in (*model.synthesis1, *model.synthesis2) if isinstance(module, Up)]
    mean = pictures.mean((0, 2, 3))  # (3,)
    x = pictures - mean[:, None, None]
    for i, (down, up) in enumerate(zip(downs, reversed(ups), strict=True)):
        patches = F.pixel_unshuffle(x, 2)  # (b, 4 c, h, w)
        basis = _principal(patches, down.conv.out_channels)  # (o, 4 c)
        scale = 1 / STEP if down is downs[-1] else 1.0
        _set_kernels(down.conv, up.conv, basis, scale, inputs=x.shape[1])
        if i == 0:
            down.conv.bias[: len(basis)] = -basis @ mean.repeat_interleave(4)
        x = torch.einsum("oc,bchw->bohw", basis, patches)
    last: Any = model.synthesis2[-1]
    last.weight.copy_(torch.eye(3, last.in_channels)[:, :, None, None])
    last.bias.copy_(mean)


def _calm(module: Any) -> None:
    """Make a layer begin as the identity, if it is one that can."""
    if isinstance(module, GDN) and not module.inverse:
        module.gamma.copy_(torch.eye(len(module.gamma)) * GAMMA**0.5)
    elif isinstance(module, Affine | RegionAdaptiveTransform):
        _constant(module.out, 0.0)
    elif isinstance(module, AttentionModule):
        _constant(module.mask[-1], ASLEEP)


def _constant(layer: Any, value: float) -> None:
    layer.weight.zero_()
    layer.bias.fill_(value)


def _principal(patches: Tensor, most: int) -> Tensor:
    """Return the first principal components, as many as there are but at most ``most``, as rows: (o, c)."""
    rows = patches.transpose(0, 1).flatten(1).double()
    _, vectors = torch.linalg.eigh(rows @ rows.T)
    return vectors.flip(1).T[:most].float()


def _set_kernels(down: Any, up: Any, basis: Tensor, scale: float, inputs: int) -> None:
    """Give two layers the transform by ``basis`` (o, 4 c) and its transpose.

    Channels beyond those of the transform keep what they have as outputs, and weigh nothing as inputs.
    """
    outputs, kernel = len(basis), basis.unflatten(1, (-1, 2, 2))  # (o, c, 2, 2)
    for conv, live in ((down, outputs), (up, inputs)):
        conv.bias[:live] = 0
    down.weight[:outputs] = 0
    down.weight[:, inputs:] = 0
    down.weight[:outputs, :inputs, CENTRE, CENTRE] = kernel * scale
    up.weight[:, :inputs] = 0
    up.weight[outputs:] = 0
    up.weight[:outputs, :inputs, CENTRE, CENTRE] = kernel / scale


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Return Adam groups as ``segpic.parameter_groups``, for a network that begins linear.

    What codes the latent begins anywhere and learns three times as fast as what makes it, which begins well.
    """
    groups = segpic.parameter_groups(model, weight_decay)
    coding = {id(p) for name, p in model.named_parameters() if name.startswith(CODING)}
    made, quantiles = groups
    fast = [p for p in made["params"] if id(p) in coding]
    slow = [p for p in made["params"] if id(p) not in coding]
    return [made | {"params": slow}, made | {"params": fast, "lr_scale": 3.0}, quantiles]
