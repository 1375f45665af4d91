"""The plain twin of every op: slow, obvious, in the precision of its inputs; tests compare values and gradients."""

import itertools
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    offsets: Tensor | None = None,
    bias: Tensor | None = None,
    scale: float | None = None,
    activation: str = "softmax",
) -> Tensor:
    """Twin of ``belvedere.kernels.attend``; also its backend for what no faster one can do."""
    if offsets is not None:
        bounds = offsets.tolist()
        pairs = itertools.pairwise(bounds)
        rows = [attend(q[None, i:j], k[None, i:j], v[None, i:j], None, bias, scale, activation)[0] for i, j in pairs]
        return torch.cat(rows) if rows else torch.empty_like(v)
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    logits = torch.einsum("bnhd,bmhd->bhnm", q, k) * scale
    if bias is not None:
        logits = logits + bias
    if activation == "sigmoid":
        weights = torch.sigmoid(logits - torch.log(torch.tensor(float(max(k.shape[1], 1)), device="cpu")))
    else:
        weights = logits.softmax(-1)
    return torch.einsum("bhnm,bmhd->bnhd", weights, v)


def time_norm(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Twin of ``belvedere.kernels.time_norm``."""
    shape = (len(weight), *[1] * (x.ndim - 2), x.shape[-1])
    if bias is None:
        return x / (x.square().mean(-1, keepdim=True).sqrt() + 1e-8) * weight.reshape(shape)
    mean = x.mean(-1, keepdim=True)
    variance = (x - mean).square().mean(-1, keepdim=True)
    return (x - mean) / torch.sqrt(variance + 1e-5) * weight.reshape(shape) + bias.reshape(shape)


def rms_norm(x: Tensor, weight: Tensor, eps: float = 1e-6) -> Tensor:
    """Twin of ``belvedere.kernels.rms_norm``."""
    return x * weight / torch.sqrt(x.square().mean(-1, keepdim=True) + eps)


def normalise(x: Tensor, norm: str, weight: Tensor | None = None, eps: float = 1e-6) -> Tensor:
    """Twin of ``belvedere.kernels.normalise``."""
    if norm == "layer":
        x = x - x.mean(-1, keepdim=True)
    if norm in ("layer", "rms"):
        x = x / torch.sqrt(x.square().mean(-1, keepdim=True) + eps)
    return x if weight is None else x * weight


def modulate_norm(
    x: Tensor,
    shift: Tensor,
    scale: Tensor,
    index: Tensor | None = None,
    *,
    norm: str = "layer",
    weight: Tensor | None = None,
    eps: float = 1e-6,
) -> Tensor:
    """Twin of ``belvedere.kernels.modulate_norm``, one image at a time."""
    if index is None:
        return normalise(x, norm, weight, eps) * (1 + scale.unsqueeze(1)) + shift.unsqueeze(1)
    rows = [normalise(x[i], norm, weight, eps) * (1 + scale[s]) + shift[s] for i, s in enumerate(index.tolist())]
    return torch.stack(rows) if rows else torch.empty_like(x)


def gated_residual(x: Tensor, y: Tensor, gate: Tensor, index: Tensor | None = None) -> Tensor:
    """Twin of ``belvedere.kernels.gated_residual``."""
    return x + y * (gate.unsqueeze(1) if index is None else gate[index])


def gated_residual_norm(
    x: Tensor,
    y: Tensor,
    gate: Tensor,
    shift: Tensor,
    scale: Tensor,
    index: Tensor | None = None,
    *,
    norm: str = "layer",
    weight: Tensor | None = None,
    eps: float = 1e-6,
) -> tuple[Tensor, Tensor]:
    """Twin of ``belvedere.kernels.gated_residual_norm``."""
    x = gated_residual(x, y, gate, index)
    return x, modulate_norm(x, shift, scale, index, norm=norm, weight=weight, eps=eps)


def rotate_pairs(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Twin of ``belvedere.kernels.rotate_pairs``, the two channels of a pair written out."""
    a, b = x[..., 0::2], x[..., 1::2]
    return torch.stack((a * cos - b * sin, b * cos + a * sin), -1).flatten(-2)


def residual_time_norm(x: Tensor, y: Tensor, weight: Tensor, bias: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Twin of ``belvedere.kernels.residual_time_norm``."""
    return x + y, time_norm(x + y, weight, bias)


def qk_norm_rope(
    q: Tensor,
    k: Tensor,
    cos: Tensor,
    sin: Tensor,
    *,
    q_norm: str = "rms",
    k_norm: str = "rms",
    q_weight: Tensor | None = None,
    k_weight: Tensor | None = None,
    eps: float = 1e-6,
) -> tuple[Tensor, Tensor]:
    """Twin of ``belvedere.kernels.qk_norm_rope``."""
    q, k = normalise(q, q_norm, q_weight, eps), normalise(k, k_norm, k_weight, eps)
    return rotate_pairs(q, cos, sin), rotate_pairs(k, cos, sin)


def gated_mlp(x: Tensor, activation: str = "gelu") -> Tensor:
    """Twin of ``belvedere.kernels.gated_mlp``."""
    gate, value = x[..., : x.shape[-1] // 2], x[..., x.shape[-1] // 2 :]
    if activation == "silu":
        return gate / (1 + torch.exp(-gate)) * value
    return gate * 0.5 * (1 + torch.erf(gate / 2**0.5)) * value


def concat_norm_linear(
    parts: Sequence[Tensor],
    gain: Tensor,
    bias: Tensor,
    weight: Tensor,
    linear_bias: Tensor,
    eps: float = 1e-5,
) -> Tensor:
    """Twin of ``concat_begin``, ``concat_add`` and ``concat_end``: the concatenation is made, normalised, projected."""
    return time_norm(torch.cat(list(parts), -1), gain, bias) @ weight.T + linear_bias


def region_filter(x: Tensor, features: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Twin of ``belvedere.kernels.region_filter``: all taps and all neighbours as maps of 9 c channels."""
    shape = (len(x), x.shape[1], 9, *x.shape[2:])
    taps = F.conv2d(features, weight, bias, padding=1, groups=x.shape[1]).reshape(shape)
    return (taps * F.unfold(x, 3, padding=1).reshape(shape)).sum(2)


def depthwise_residual(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Twin of ``belvedere.kernels.depthwise_residual``, place by place of the filter."""
    side, (h, w) = weight.shape[-1], x.shape[1:3]
    padded = F.pad(x, (0, 0, *[side // 2] * 4))  # (b, h + s - 1, w + s - 1, c)
    total = x + bias
    for down in range(side):
        for right in range(side):
            total = total + padded[:, down : down + h, right : right + w] * weight[:, 0, down, right]
    return total


def sample_grid(points: Tensor, planes: Tensor | None, lines: Tensor | None, *, padding: str = "zeros") -> Tensor:
    """Twin of ``belvedere.kernels.sample_grid``, plane by plane; also its backend where there is no faster one."""
    x, y, z = points.unbind(-1)
    features: list[Tensor | float] = [1.0, 1.0, 1.0]
    for k, (column, row, along) in enumerate(((x, y, z), (z, x, y), (y, z, x))):
        if planes is not None:
            features[k] = features[k] * _grid_sample(planes[:, k], column, row, padding)
        if lines is not None:
            features[k] = features[k] * _grid_sample(lines[:, k, :, :, None], torch.zeros_like(along), along, padding)
    return torch.stack([torch.as_tensor(feature) for feature in features], 2)


def _grid_sample(image: Tensor, column: Tensor, row: Tensor, padding: str) -> Tensor:
    """Return an image (b, c, h, w) at places (b, n) -> (b, n, c)."""
    grid = torch.stack((column, row), -1).unsqueeze(2).to(image.dtype)  # (b, n, 1, 2)
    return F.grid_sample(image, grid, padding_mode=padding, align_corners=False).squeeze(3).transpose(1, 2)


def composite(density: Tensor, edges: Tensor, colour: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Twin of ``belvedere.kernels.composite``, sample by sample."""
    edges = edges.expand(*density.shape[:-1], -1)
    transmittance = torch.ones_like(density[..., 0])
    weights, seen, depth = [], torch.zeros_like(colour[..., 0, :]), torch.zeros_like(transmittance)
    for i in range(density.shape[-1]):
        start, end = edges[..., i], edges[..., i + 1]
        alpha = 1 - torch.exp(-density[..., i] * (end - start))
        weights.append(alpha * transmittance)
        seen = seen + weights[-1][..., None] * colour[..., i, :]
        depth = depth + weights[-1] * (start + end) / 2
        transmittance = transmittance * (1 - alpha + 1e-10)
    stacked = torch.stack(weights, -1)
    return stacked, seen, depth, stacked.sum(-1)


def distortion(weights: Tensor, edges: Tensor) -> Tensor:
    """Twin of ``belvedere.kernels.distortion``, the double sum written out."""
    middles, lengths = (edges[..., 1:] + edges[..., :-1]) / 2, edges.diff()
    distances = (middles[..., :, None] - middles[..., None, :]).abs()
    between = (weights[..., :, None] * weights[..., None, :] * distances).sum((-2, -1))
    return between + (weights.square() * lengths).sum(-1) / 3


def render_factored(
    planes: Tensor | None,
    lines: Tensor | None,
    rays: Sequence[Tensor],
    decoder: Sequence[Tensor],
    *,
    half_side: float = 1.0,
    padding: str = "zeros",
    opaque: float = 0.0,
    ends: bool = False,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Twin of ``belvedere.kernels.render_factored``, every sample asked; also its backend where there is no faster one.

    ``rays``: see ``Rays``. ``decoder``: the weights of a ``RayDecoder``, without those of density where it has none.
    """
    origins, directions, encoded, edges = rays
    inner, inner_bias, hidden, hidden_bias, outer, outer_bias, *density_weights = decoder
    middles = (edges[1:] + edges[:-1]) / 2
    points = origins[:, :, None] + directions[:, :, None] * middles[:, None]  # (b, n, s, 3)
    features = sample_grid(points.flatten(1, 2) / half_side, planes, lines, padding=padding)  # (b, n s, 3, c)
    if planes is None:
        features = features.prod(2, keepdim=True)
    colours = inner.shape[1] // features.shape[2]
    x, y = (part.flatten(2) for part in features.split((features.shape[-1] - colours, colours), -1))
    density = F.relu(F.linear(x, *density_weights).squeeze(-1) if density_weights else x.sum(-1))
    density = density.view(points.shape[:3])
    y = F.gelu(F.linear(F.gelu(y), inner, inner_bias))
    y = torch.cat((y, encoded.repeat_interleave(len(middles), 1)), -1)
    y = F.linear(F.gelu(F.linear(y, hidden, hidden_bias)), outer, outer_bias)
    through = torch.exp(-density.detach() * edges.diff()) + 1e-10
    lit = torch.cumprod(F.pad(through[..., :-1], (1, 0), value=1.0), -1) > opaque
    colour = y.sigmoid().view(points.shape) * lit[..., None]
    return composite(density * lit if ends else density, edges, colour)
