"""A linear beginning: analysis and synthesis as a pyramid of principal components, all that is beside them asleep.

A network of PyTorch's own initial weights spends its first tens of thousands of steps on becoming a transform at all.
This one begins as a good linear transform, and learns from there: every layer that halves the resolution takes the
principal components of 2x2 pixels of what it is given, every layer that doubles it their transpose, and affine layers,
attention modules and region-adaptive transforms begin as the identity.

Side information begins loud: PyTorch's initial weights would make a hyper latent so small that all of it rounds to 0,
and one that is always 0 is never learned to be read. So the layers on its way there and back are scaled, by examples,
to put out numbers of a given spread ("All you need is a good init", Mishkin and Matas, arXiv 1511.06422).
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from belvedere.compression import segpic
from belvedere.compression.layers import GDN, Affine, AttentionModule, Down, Up
from belvedere.compression.regions import places
from belvedere.compression.segpic import RegionAdaptiveTransform, SegPIC

GAMMA = 1e-4
"""Of GDN: almost none of it."""
ASLEEP = -4.0
"""Logit of an attention module's mask."""
STEP = 0.2
"""Step at which an orthonormal transform is best rounded at the middle rate: 1 / sqrt(2503 lambda), lambda 0.0093."""
READING = (
    "channel_context",
    "hyper_means",
    "hyper_scales",
    "bottleneck",
    "prototypes1.bottleneck",
    "prototypes2.bottleneck",
    "prototypes1.decoder",
    "prototypes2.decoder",
    "gain",
)
"""Parts by first name that say how probable the latent is, and how finely it is rounded."""
CENTRE = slice(2, 4)
"""The taps of a 5x5 kernel that cover 2x2 pixels, each once."""
LOUD = 3.0
"""Standard deviation of side information before it is rounded."""
QUIET = 0.1
"""Standard deviation of what the context networks add to their biases."""


@torch.no_grad()
def begin_linear(model: SegPIC, pictures: Tensor) -> None:
    """Give a fresh network its linear beginning, by ``pictures`` (b, 3, h, w) in [0, 1], sides multiples of 64."""
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
    _calibrate_coding(model, pictures)


def _calibrate_coding(model: SegPIC, pictures: Tensor) -> None:
    """Scale the layers that code the latent by ``pictures`` (b, 3, h, w), sides multiples of 64, of all rates."""
    quarter, sixteenth = places(pictures, None, model.config.grid)
    rates = torch.linspace(0, model.config.rates - 1, len(pictures)).to(pictures) if model.config.rates else None
    features = model.analysis1(pictures)
    y = model.analysis2(features) * model.gains(rates)[0]
    for coder, x, place in ((model.prototypes1, features, quarter), (model.prototypes2, y, sixteenth)):
        code = _calibrate(coder.encoder, place.pool(x), LOUD)
        _calibrate(coder.decoder, code.round(), 1.0)
    z = _calibrate(model.hyper_analysis, y, LOUD).round()
    means, scales = _calibrate(model.hyper_means, z, 1.0), _calibrate(model.hyper_scales, z, 1.0)
    context: Any = model.channel_context
    seen: list[Tensor] = []
    for i, part in enumerate(y.chunk(model.config.slices, 1)):
        _calibrate(context.means[i], torch.cat((means, *seen), 1), QUIET)
        _calibrate(context.scales[i], torch.cat((scales, *seen), 1), QUIET)
        context.scales[i][-1].bias.copy_(part.std((0, 2, 3)))
        seen = [*seen, part][: model.config.support]


def _calibrate(layers: Any, x: Tensor, spread: float) -> Tensor:
    """Scale the convolutions of ``layers`` so that on ``x`` each channel has mean 0, and standard deviation 1 but at
    the end ``spread``; return what comes out."""
    flat = [layer for group in layers for layer in (group if isinstance(group, nn.Sequential) else [group])]
    last = max(i for i, layer in enumerate(flat) if isinstance(layer, nn.Conv2d))
    for i, layer in enumerate(flat):
        x = layer(x)
        if isinstance(layer, nn.Conv2d) and layer.bias is not None:
            deviation, mean = torch.std_mean(x, (0, 2, 3))  # (c,) each
            factor = (spread if i == last else 1.0) / deviation.clamp(min=1e-6)
            layer.weight.mul_(factor[:, None, None, None])
            layer.bias.sub_(mean).mul_(factor)
            x = (x - mean[:, None, None]) * factor[:, None, None]
    return x


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

    What reads the side information, and what says how probable the latent is, begins anywhere and learns three times
    as fast as what makes the latent and the side information, which begin well. Region-adaptive transforms, even those
    that read, begin as the identity and learn slowly: fast, one grew until its map passed 10^6; files end at 2048.
    """
    groups = segpic.parameter_groups(model, weight_decay)
    reading = {id(p) for name, p in model.named_parameters() if name.startswith(READING)}
    made, quantiles = groups
    fast = [p for p in made["params"] if id(p) in reading]
    slow = [p for p in made["params"] if id(p) not in reading]
    return [made | {"params": slow}, made | {"params": fast, "lr_scale": 3.0}, quantiles]
