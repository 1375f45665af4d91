"""SegPIC's published weights under our names; their widths are read from their shapes."""

import re
from collections.abc import Mapping
from math import isqrt
from typing import Any

import torch
from torch import Tensor

from belvedere.errors import InputError

_NAMES = (
    (r"^basic_E\.([01])\.", r"analysis1.\1."),
    (r"^basic_E\.2\.", "analysis2.0."),
    (r"^basic_E\.3\.", "analysis2.1."),
    (r"^basic_D\.0\.", "synthesis1.1."),
    (r"^basic_D\.1\.", "synthesis1.2."),
    (r"^basic_D\.2\.", "synthesis2.1."),
    (r"^basic_D\.3\.", "synthesis2.2."),
    (r"^g_a([12])\.", r"analysis\1."),
    (r"^g_s0\.", "synthesis1."),
    (r"^g_s1\.", "synthesis2."),
    (r"^g_ab\.", "prototypes1.encoder."),
    (r"^g_sb\.", "prototypes1.decoder."),
    (r"^g_ab2\.", "prototypes2.encoder."),
    (r"^g_sb2\.", "prototypes2.decoder."),
    (r"^h_a\.", "hyper_analysis."),
    (r"^h_mean_s\.", "hyper_means."),
    (r"^h_scale_s\.", "hyper_scales."),
    (r"^dyn_(encoder|decoder)\.", r"\1_rat."),
    (r"^dyn_enc_hyper\.", "hyper_rat."),
    (r"^dyn_dec_hyper_(means|scales)\.", r"\1_rat."),
    (r"^cc_(mean|scale)_transforms\.", r"channel_context.\1s."),
    (r"^lrp_transforms\.", "channel_context.residuals."),
    (r"^entropy_bottleneck\.", "bottleneck."),
    (r"^entropy_bottleneck_b\.", "prototypes1.bottleneck."),
    (r"^entropy_bottleneck_b2\.", "prototypes2.bottleneck."),
    (r"bottleneck\._(?:matrix|matrices\.)(\d)$", r"bottleneck.matrices.\1"),
    (r"bottleneck\._(?:bias|biases\.)(\d)$", r"bottleneck.biases.\1"),
    (r"bottleneck\._(?:factor|factors\.)(\d)$", r"bottleneck.factors.\1"),
    (r"\.conv_groups\.0\.", ".conv."),
    (r"\.conv_groups\.1\.", ".gdn."),
    (r"\.scales_bias\.0\.", ".affine.hidden."),
    (r"\.scales_bias\.2\.", ".affine.out."),
    (r"\.conv_a\.(\d)\.conv\.", r".trunk.\1.layers."),
    (r"\.conv_b\.(\d)\.conv\.", r".mask.\1.layers."),
    (r"\.conv_b\.0\.attn\.relative_position_bias_table$", ".mask.0.position"),
    (r"\.conv_b\.0\.attn\.qkv\.", ".mask.0.qkv."),
    (r"\.conv_b\.0\.attn\.proj\.", ".mask.0.out."),
    (r"\.conv_b\.4\.", ".mask.4."),
    (r"_rat\.conv\.", "_rat.features."),
    (r"_rat\.k_sp_gen\.0\.", "_rat.from_features."),
    (r"_rat\.k_sp_gen\.2\.", "_rat.blend."),
    (r"_rat\.k_sp_gen\.4\.", "_rat.taps."),
    (r"_rat\.k_ch_gen\.1\.", "_rat.gate.0."),
    (r"_rat\.k_ch_gen\.3\.", "_rat.gate.2."),
    (r"_rat\.conv_out\.", "_rat.out."),
)
_DERIVED = re.compile(
    r"(^gaussian_conditional\..*|_reparam\..*|\.relative_position_index"
    r"|bottleneck(_b2?)?\.(target|_offset|_quantized_cdf|_cdf_length|likelihood_lower_bound\.bound))$"
)
"""Buffers: constants, and tables that follow from the weights (empty in published files)."""
_TWO_HALVES = "from_features.weight"
"""The map over features and prototypes, which are never concatenated here."""


def segpic_names(official: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return an official SegPIC state dict (or gradients by the same names) under our names.

    Blocks that the file holds twice (``basic_E``, ``basic_D`` and the transforms they are part of) must be equal.
    """
    ours: dict[str, Tensor] = {}
    for name, tensor in official.items():
        if _DERIVED.search(name):
            continue
        new = name
        for pattern, replacement in _NAMES:
            new = re.sub(pattern, replacement, new)
        if new in ours and not _equal(ours[new], tensor):
            raise InputError(f"official weights hold {name} twice, with different numbers: the file is inconsistent")
        ours[new] = tensor
    for name in [name for name in ours if name.endswith(_TWO_HALVES)]:
        features, prototypes = ours[name].chunk(2, 1)  # (c, c, 1, 1) each
        ours |= {name: features, name.replace("from_features", "from_prototypes"): prototypes}
    return ours


def _equal(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and (a.is_meta or torch.equal(a, b))


def segpic_config(official: Mapping[str, Any]) -> dict[str, Any]:
    """Refuse a config: there are no official fields."""
    raise InputError("SegPIC's published weights have no config: leave it out, their widths are read from their shapes")


def infer_segpic(weights: Mapping[str, Tensor]) -> dict[str, Any]:
    """Return the config that official weights of any width are of. The grid is not in them: the published 4."""
    try:
        return _infer({name: tuple(tensor.shape) for name, tensor in segpic_names(weights).items()})
    except (KeyError, IndexError) as error:
        raise InputError(f"these are not SegPIC weights: {error.args[0]} is missing or has another form") from None


def _infer(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
    def outputs(pattern: str, *numbers: int) -> list[int]:
        return [shapes[f"{pattern.format(i)}.weight"][0] for i in numbers]

    slices = len({name.split(".")[2] for name in shapes if name.startswith("channel_context.means.")})
    *context, width = outputs("channel_context.means.0.{}", 0, 2, 4, 6, 8)
    latent = shapes["analysis2.1.conv.weight"][0]
    seen = shapes[f"channel_context.means.{slices - 1}.0.weight"][1] - latent
    tables = [shapes[f"analysis{stage}.2.mask.0.position"] for stage in (1, 2)]
    return {
        "channels": shapes["analysis1.0.conv.weight"][0],
        "latent": latent,
        "head": shapes["synthesis2.3.weight"][1],
        "hyper": outputs("hyper_analysis.{}", 2, 4, 6, 8),
        "prototype": outputs("prototypes1.encoder.{}", 0, 2),
        "context": context,
        "slices": slices,
        "support": seen // width,
        "heads": tables[0][1],
        "windows": [(isqrt(positions) + 1) // 2 for positions, _ in tables],
    }
