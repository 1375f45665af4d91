"""FiTv2's published weights and configs under our names: fused halves, and the adaLN maps of all blocks stacked."""

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from belvedere.errors import InputError
from belvedere.generation.fitv2_config import VARIANTS

_NAMES = {
    "x_embedder.proj.": "embed.",
    "t_embedder.mlp.": "time_embed.",
    "y_embedder.embedding_table.": "class_embed.",
    "global_adaLN_modulation.1.": "modulation.shared.",
    "final_layer.adaLN_modulation.1.": "modulation.head.",
    "final_layer.adaLN_modulation.fc2.": "modulation.head.",
    "final_layer.norm_final.": "head_norm.",
    "final_layer.linear.": "head.",
}
_BLOCK_NAMES = {
    "attn.qkv.": "attention.qkv.",
    "attn.proj.": "attention.out.",
    "attn.q_norm.weight": "attention.q_weight",
    "attn.k_norm.weight": "attention.k_weight",
    "mlp.fc1.": "mlp.project_in.",
    "mlp.fc2.": "mlp.project_out.",
    "norm1.": "norm1.",
    "norm2.": "norm2.",
}
_BLOCK = re.compile(r"blocks\.(\d+)\.(.+)")
_POSITIONS = re.compile(r"(abs_)?(pos_embed|rel_pos_embed|freqs)\b")
"""Tables of positions, which a checkpoint may carry and which the network derives."""

_NORMS = {None: "none", "none": "none"} | {name: name for name in ("layernorm", "w_layernorm", "w_rmsnorm")}
_FIELDS = {
    "patch_size": "patch",
    "in_channels": "channels",
    "hidden_size": "dim",
    "depth": "depth",
    "num_heads": "heads",
    "mlp_ratio": "mlp_ratio",
    "learn_sigma": "learn_sigma",
    "adaln_type": "adaln",
    "adaln_lora_dim": "adaln_rank",
    "rope_theta": "rope_theta",
    "time_shifting": "time_shift",
    "add_rel_pe_to_v": "rotate_v",
    "ori_max_pe_len": "trained_side",
}
_MODES = {
    "normal": "none", "linear": "pi", "ntk-aware": "ntk", "ntk-aware-pro1": "ntk-pro1", "ntk-aware-pro2": "ntk-pro2",
    "ntk-by-parts": "ntk-by-parts", "yarn": "yarn",
}  # fmt: skip
_READ_ELSEWHERE = ("num_classes", "class_dropout_prob", "use_swiglu", "use_swiglu_large", "q_norm", "k_norm", "use_sit",
                   "qk_norm_weight", "norm_type", "custom_freqs", "decouple", "rel_pos_embed")  # fmt: skip
_OF_THE_RUN = (
    "context_size",
    "abs_pos_embed",
    "max_cached_len",
    "max_pe_len_h",
    "max_pe_len_w",
    "online_rope",
    "finetune",
)


def extrapolation_name(mode: str, decouple: bool) -> str:
    """Return our name of an official frequency mode (``custom_freqs``) with its ``decouple`` switch."""
    if mode not in _MODES:
        raise InputError(f"official custom_freqs {mode!r}: known are {', '.join(_MODES)}")
    return f"vision-{_MODES[mode]}" if decouple and mode != "normal" else _MODES[mode]


def fitv2_config(official: Mapping[str, Any]) -> dict[str, Any]:
    """Return our config from the official fields; unknown fields, and what no published network uses, are errors."""
    known = (*_FIELDS, *_READ_ELSEWHERE, *_OF_THE_RUN)
    if unknown := [key for key in official if key not in known]:
        raise InputError(f"unknown official FiTv2 field {unknown[0]!r}: known are {', '.join(known)}")
    needed = ("hidden_size", "depth", "num_heads", "num_classes", "q_norm", "k_norm")
    if missing := [key for key in needed if key not in official]:
        raise InputError(f"official FiTv2 config lacks {', '.join(missing)}")
    if official.get("rel_pos_embed", "rope") != "rope":
        raise InputError(f"official rel_pos_embed {official['rel_pos_embed']!r}: only 'rope' is supported")
    if not official.get("class_dropout_prob", 0.1) > 0:
        raise InputError("official class_dropout_prob 0: a network without a null class is not supported")
    config = {"adaln": "normal"} | {ours: official[key] for key, ours in _FIELDS.items() if key in official}
    gated = "swiglu_large" if official.get("use_swiglu_large") else "swiglu"
    return config | {
        "num_classes": official["num_classes"] + 1,
        "mlp": gated if official.get("use_swiglu") else "gelu",
        "norm": _norm("norm_type", official.get("norm_type", "layernorm"), False),
        "q_norm": _norm("q_norm", official["q_norm"], official.get("qk_norm_weight", False)),
        "k_norm": _norm("k_norm", official["k_norm"], official.get("qk_norm_weight", False)),
        "extrapolation": extrapolation_name(official.get("custom_freqs", "normal"), official.get("decouple", False)),
        "channels_first": not official.get("use_sit", True),
    }


def _norm(field: str, name: str | None, weighted: bool) -> str:
    if name not in _NORMS:
        raise InputError(f"official {field} {name!r}: known are {', '.join(str(known) for known in _NORMS)}")
    return "w_layernorm" if name == "layernorm" and weighted else _NORMS[name]


def infer_fitv2(weights: Mapping[str, Tensor]) -> dict[str, Any]:
    """Return the config of the published network that these official weights are of, by width and depth.

    The high-resolution files have the shapes of the others: name their variant to use their positions.
    """
    table = weights.get("x_embedder.proj.weight")
    depth = len({match[1] for name in weights if (match := _BLOCK.match(name))})
    for name in ("XL/2", "3B/2", "v1-XL/2"):
        if table is not None and (table.shape[0], depth) == (VARIANTS[name]["dim"], VARIANTS[name]["depth"]):
            return VARIANTS[name]
    raise InputError("these are not published FiTv2 weights: pass config=, the official fields or a variant's name")


def fitv2_names(official: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return an official FiTv2 state dict (or gradients by the same names) under our names.

    The two halves of a SwiGLU become one ``project_in``; the adaLN maps of the blocks are stacked.
    """
    ours: dict[str, Tensor] = {}
    blocks: dict[int, dict[str, Tensor]] = {}
    for name, tensor in official.items():
        if match := _BLOCK.match(name):
            blocks.setdefault(int(match[1]), {})[match[2]] = tensor
        elif not _POSITIONS.match(name) and "adaLN_modulation.fc1_" not in name:
            ours[_renamed(name, _NAMES)] = tensor
    if head := _gate(official, "final_layer.adaLN_modulation.fc1"):
        ours |= {f"modulation.head_down.{part}": tensor for part, tensor in head.items()}
    if sorted(blocks) != list(range(len(blocks))):
        raise InputError(f"official weights have blocks {sorted(blocks)[:8]}: the file is incomplete")
    for i, block in blocks.items():
        rest = {
            name: tensor for name, tensor in block.items() if not re.match(r"adaLN_modulation\.|mlp\.fc1_[gx]", name)
        }
        ours |= {f"blocks.{i}.{_renamed(name, _BLOCK_NAMES)}": tensor for name, tensor in rest.items()}
        ours |= {f"blocks.{i}.mlp.project_in.{part}": tensor for part, tensor in _gate(block, "mlp.fc1").items()}
    return ours | _stacked([blocks[i] for i in range(len(blocks))])


def _renamed(name: str, table: Mapping[str, str]) -> str:
    for official, ours in table.items():
        if name.startswith(official):
            return ours + name.removeprefix(official)
    return name


def _gate(weights: Mapping[str, Tensor], name: str) -> dict[str, Tensor]:
    """Return weight and bias of the fused projection of ``name``_g and ``name``_x; empty when there is none."""
    fused = {}
    for part in ("weight", "bias"):
        halves = [weights.get(f"{name}_{half}.{part}") for half in "gx"]
        present = [half for half in halves if half is not None]
        if len(present) == 1:
            raise InputError(f"official weights have one half of {name} but not the other: the file is incomplete")
        if present:
            fused[part] = joined(torch.cat, present, f"{name}_g and _x")
    return fused


def _stacked(blocks: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Return the adaLN maps of all blocks as ``modulation.down`` and ``modulation.up_weight``, ``up_bias``."""
    maps: dict[str, list[Tensor]] = {}
    for block in blocks:
        found = {name.removeprefix("adaLN_modulation."): tensor for name, tensor in block.items()}
        last = "fc2" if "adaLN_modulation.fc2.weight" in block else "2" if "adaLN_modulation.2.weight" in block else "1"
        down = _gate(block, "adaLN_modulation.fc1") if last == "fc2" else {}
        if last == "2":
            down = {part: found[f"1.{part}"] for part in ("weight", "bias") if f"1.{part}" in found}
        for part, tensor in down.items():
            maps.setdefault(f"modulation.down.{part}", []).append(tensor)
        for part in ("weight", "bias"):
            if f"{last}.{part}" in found:
                maps.setdefault(f"modulation.up_{part}", []).append(found[f"{last}.{part}"])
    return {
        name: joined(torch.cat if ".down." in name else torch.stack, tensors, "adaLN_modulation of the blocks")
        for name, tensors in maps.items()
    }


def joined(join: Any, tensors: list[Tensor], name: str) -> Tensor:
    """Return what ``join`` makes of tensors; ``InputError`` for ones that do not go together, by their ``name``."""
    if len({tensor.dtype for tensor in tensors}) > 1:
        raise InputError(f"official weights have {name} of different dtypes: the file is damaged")
    if len({tensor.shape for tensor in tensors}) > 1:
        shapes = sorted({tuple(tensor.shape) for tensor in tensors})
        raise InputError(f"official weights have {name} of different shapes, {shapes}: the file is incomplete")
    return join(tensors)
