"""The sizes of FiTv2: the published variants and ours, and what makes a config valid."""

from typing import Any

from belvedere.errors import InputError
from belvedere.generation.extrapolation import check_extrapolation

CHOICES = {
    "mlp": ("swiglu", "swiglu_large", "gelu"),
    "norm": ("layernorm", "w_layernorm", "w_rmsnorm", "none"),
    "q_norm": ("layernorm", "w_layernorm", "w_rmsnorm", "none"),
    "k_norm": ("layernorm", "w_layernorm", "w_rmsnorm", "none"),
    "adaln": ("lora", "normal", "swiglu"),
    "prediction": ("velocity", "sample"),
}
"""Fields that are names, and the names they may have; "w_" means with a learned weight."""

LARGEST = {
    "channels": 4096,
    "patch": 64,
    "dim": 65536,
    "depth": 1000,
    "heads": 1024,
    "num_classes": 10**6,
    "trained_side": 65536,
    "refine_dim": 65536,
}


def _lora(dim: int, depth: int, heads: int, **rest: Any) -> dict[str, Any]:
    return {"dim": dim, "depth": depth, "heads": heads, "adaln_rank": dim // 4, "num_classes": 1001} | rest


VARIANTS: dict[str, dict[str, Any]] = {
    "B/2": _lora(768, 15, 12),
    "XL/2": _lora(1152, 36, 16),
    "3B/2": _lora(2304, 40, 24),
    "HR-XL/2": _lora(1152, 36, 16, extrapolation="vision-ntk"),
    "HR-3B/2": _lora(2304, 40, 24, extrapolation="vision-ntk"),
    "v1-XL/2": {"dim": 1152, "depth": 28, "heads": 16, "num_classes": 1001, "adaln": "normal"}
    | {"mlp": "swiglu_large", "learn_sigma": True, "channels_first": True},
    "S/2": _lora(384, 12, 6),
    "toybox": _lora(256, 6, 8)
    | {
        "channels": 3,
        "patch": 8,
        "num_classes": 13,
        "trained_side": 8,
        "prediction": "sample",
        "class_std": 0.3,
        "adaln_rank": 48,
        "refine_depth": 4,
    },
}
"""Published sizes by their paper names (HR: post-trained at 1024 tokens with vision-ntk positions), and ours."""

DEFAULTS: dict[str, dict[str, Any]] = {
    "HR-XL/2": {"default_side": 32, "default_guidance": 1.65},
    "HR-3B/2": {"default_side": 32},
}
"""Keywords of the pipeline that a variant's network does not tell, by its name."""


def check_config(config: Any) -> None:
    """Raise ``InputError`` unless the fields of a FiTv2's config are known and fit together."""
    for field, names in CHOICES.items():
        if config[field] not in names:
            raise InputError(f"{field} {config[field]!r}: choose from {', '.join(names)}")
    for field, top in LARGEST.items():
        if not isinstance(config[field], int) or not 1 <= config[field] <= top:
            raise InputError(f"{field} {config[field]!r}: must be an integer from 1 to {top}")
    if config.dim % config.heads or config.dim // config.heads % 4:
        raise InputError(f"dim {config.dim} over {config.heads} heads: the channels of a head must divide by 4")
    if not isinstance(config.refine_depth, int) or not 0 <= config.refine_depth <= 1000:
        raise InputError(f"refine_depth {config.refine_depth!r}: must be an integer from 0 to 1000")
    if config.refine_depth and (config.patch % 2 or config.learn_sigma or config.channels_first):
        raise InputError("refine_depth: only for networks of even patches in the layout of FiTv2, without learn_sigma")
    if config.num_classes < 2:
        raise InputError("num_classes counts the null class: 2 at least")
    if config.adaln == "lora" and not (isinstance(config.adaln_rank, int) and 1 <= config.adaln_rank <= 65536):
        raise InputError(f"adaln_rank {config.adaln_rank!r}: adaln lora needs an integer of at least 1")
    if not config.mlp_ratio > 0 or not config.rope_theta > 1 or config.trained_side < 2:
        raise InputError("mlp_ratio must be above 0, rope_theta above 1, trained_side at least 2")
    if not config.time_shift > 0:
        raise InputError(f"time_shift {config.time_shift!r}: must be above 0")
    check_extrapolation(config.extrapolation)


def mlp_width(config: Any) -> int:
    """Return the channels inside a block's MLP."""
    full = int(config.dim * config.mlp_ratio)
    return full * 2 // 3 if config.mlp == "swiglu" else full
