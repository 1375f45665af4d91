"""The published weights: official names and configs -> ours, tensor for tensor, and back."""

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from belvedere.checkpoints.official_fitv2 import fitv2_config, fitv2_names, infer_fitv2, joined
from belvedere.checkpoints.official_nvist import infer_nvist, nvist_config, nvist_names
from belvedere.checkpoints.official_segpic import infer_segpic, segpic_config, segpic_names
from belvedere.checkpoints.tensors import one_line, read_state_dict
from belvedere.compression import segpic_config as segpic_sizes
from belvedere.compression.segpic import SegPIC
from belvedere.errors import InputError, out_of_memory
from belvedere.generation import dimr_config as dimr_sizes
from belvedere.generation import fitv2_config as fitv2_sizes
from belvedere.generation.dimr import DiMR
from belvedere.generation.fitv2 import FiTv2
from belvedere.synthesis.nvist import NViST

_DIMR_NAMES = (
    (r"(stages\.\d+)\.input_layer\.1\.", r"\1.embed."),
    (r"(stages\.\d+)\.input_layer\.3\.position_embeddings\.", r"\1.position."),
    (r"(stages\.\d+)\.class_embeds\.", r"\1.class_embed."),
    (r"(stages\.\d+)\.skip_denses\.", r"\1.skips."),
    (r"(stages\.\d+)\.upsample\.0\.", r"\1.upsample.norm."),
    (r"(stages\.\d+)\.upsample\.1\.kernel\.", r"\1.upsample.linear."),
    (r"(stages\.\d+)\.upsample\.2\.", r"\1.upsample.out_norm."),
    (r"(stages\.\d+)\.output_layer\.0\.", r"\1.head_norm."),
    (r"(stages\.\d+)\.output_layer\.2\.", r"\1.head."),
    (r"\.block1\.query_key_value\.", r".attention.qkv."),
    (r"\.block1\.dense\.", r".attention.out."),
    (r"\.block1\.norm\.", r".attention.norm."),
    (r"\.block1\.pos_emb\.", r".attention.rope."),
    (r"\.block1\.qk_norm\.", r".attention.rope."),
    (r"\.block1\.1\.", r".conv."),
    (r"\.block2\.norm\.", r".mlp.norm."),
    (r"\.block2\.w2\.", r".mlp.project_out."),
)
_DIMR_GATE = re.compile(r"\.block2\.w0\.(weight|bias)$")
_DIMR_UNUSED = re.compile(r"stages\.\d+\.pos_emb\.freqs_[hw]$")

_DIMR_STAGE_FIELDS = {
    "dim": "dim",
    "hidden_dim": "hidden",
    "num_attention_heads": "heads",
    "num_blocks": "blocks",
    "kernel_size": "kernel",
    "max_height": "height",
    "max_width": "width",
    "image_input_ratio": "pool",
    "input_feature_ratio": "patch",
    "final_kernel_size": "head_kernel",
}
_DIMR_KINDS = {"TransformerBlock": "transformer", "ConvNeXtBlock": "convnext"}
_DIMR_FIELDS = {
    "channels": "channels",
    "num_classes": "num_classes",
    "norm_type": "norm",
    "pe_type": "position",
    "block_grad_to_lowres": "detach_lowres",
}


def dimr_names(official: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return an official DiMR state dict (or gradients by the same names) under our names.

    The two halves of each gated MLP, ``w0`` and ``w1``, become one ``project_in``; the stage-level rotary
    frequencies, which the official network stores and never reads, are dropped.
    """
    ours: dict[str, Tensor] = {}
    for name, tensor in official.items():
        if _DIMR_UNUSED.match(name) or re.search(r"\.block2\.w1\.(weight|bias)$", name):
            continue
        if gate := _DIMR_GATE.search(name):
            value = official.get(name[: gate.start()] + f".block2.w1.{gate[1]}")
            if value is None:
                raise InputError(f"official weights have {name} but not its w1 half: the file is incomplete")
            ours[name[: gate.start()] + f".mlp.project_in.{gate[1]}"] = joined(
                torch.cat, [tensor, value], f"{name} and its w1 half"
            )
            continue
        for pattern, replacement in _DIMR_NAMES:
            name = re.sub(pattern, replacement, name)
        ours[name] = tensor
    return ours


def dimr_config(official: Mapping[str, Any]) -> dict[str, Any]:
    """Return our config from the official fields (as in the published config files); unknown fields are errors."""
    config: dict[str, Any] = {"norm": "LN"}
    for key, value in official.items():
        if key == "stage_configs":
            config["stage_configs"] = [_dimr_stage(stage) for stage in value]
        elif key in _DIMR_FIELDS:
            config[_DIMR_FIELDS[key]] = value
        else:
            raise InputError(f"unknown official DiMR field {key!r}: known are {', '.join(_DIMR_FIELDS)}")
    return config


def _dimr_stage(official: Mapping[str, Any]) -> dict[str, Any]:
    stage: dict[str, Any] = {}
    for key, value in official.items():
        if key == "block_type":
            if value not in _DIMR_KINDS:
                raise InputError(f"official block_type {value!r}: known are {', '.join(_DIMR_KINDS)}")
            stage["kind"] = _DIMR_KINDS[value]
        elif key in _DIMR_STAGE_FIELDS:
            stage[_DIMR_STAGE_FIELDS[key]] = value
        elif key != "dropout_prob":
            raise InputError(f"unknown official stage field {key!r}: known are {', '.join(_DIMR_STAGE_FIELDS)}")
        elif value != 0:
            raise InputError(f"dropout_prob {value}: the published networks use 0, and so does this one")
    return stage


def _infer_dimr(weights: Mapping[str, Tensor]) -> dict[str, Any]:
    table = weights.get("stages.0.class_embeds.weight")
    for name in ("XL/2R-256", "G/2R-256"):
        if table is not None and table.shape[1] == dimr_sizes.VARIANTS[name]["stage_configs"][0]["dim"]:
            return dimr_sizes.VARIANTS[name]
    raise InputError("these are not the published DiMR-XL/2R or G/2R weights: pass config=, the official fields")


class _Importer(NamedTuple):
    """How one system's published weights become ours."""

    network: Any
    names: Callable[[Mapping[str, Tensor]], dict[str, Tensor]]
    config: Callable[[Mapping[str, Any]], dict[str, Any]]
    infer: Callable[[Mapping[str, Tensor]], dict[str, Any]]
    variants: Mapping[str, dict[str, Any]]
    partial: bool = False
    """Whether a config is only what the shapes do not tell."""


IMPORTERS = {
    "dimr": _Importer(DiMR, dimr_names, dimr_config, _infer_dimr, dimr_sizes.VARIANTS),
    "fitv2": _Importer(FiTv2, fitv2_names, fitv2_config, infer_fitv2, fitv2_sizes.VARIANTS),
    "nvist": _Importer(NViST, nvist_names, nvist_config, infer_nvist, {}, partial=True),
    "segpic": _Importer(SegPIC, segpic_names, segpic_config, infer_segpic, segpic_sizes.VARIANTS),
}


def load_official(
    system: str,
    weights: Mapping[str, Tensor] | str | Path,
    config: Mapping[str, Any] | str | None = None,
    *,
    own: bool = False,
) -> Any:
    """Return our network with the numbers of a published state dict.

    ``system``: "dimr", "fitv2", "nvist" or "segpic". ``weights``: a state dict, or a ``.pth`` or ``.bin`` (read without
    unpickling anything but tensors) or ``.safetensors`` file. ``config``: the official config fields, or the name of a
    variant; inferred for the published sizes. For NViST: {"near": ..., "far": ...}, which no file of weights tells, and
    other fields of ours that shapes do not. ``own``: tensors of the state dict become the network's, without a copy, as
    those of a file do. Raises ``InputError`` when names or shapes do not fit the config.
    """
    if system not in IMPORTERS:
        raise InputError(f"no importer for {system!r}: choose from {', '.join(IMPORTERS)}")
    importer = IMPORTERS[system]
    if isinstance(weights, str | Path):
        weights, own = read_state_dict(Path(weights)), True
    try:
        model_config, ours = _config(importer, weights, config), importer.names(weights)
        with torch.device("meta"):
            model = importer.network(**model_config)
    except InputError:
        raise
    except Exception as error:  # what is made of shapes fails as anything
        if out_of_memory(error):
            raise
        raise InputError(f"these are not {system} weights of this form: {one_line(error)}") from error
    check_fit(model, ours)
    del weights  # what was joined is free then
    ours = {name: tensor.contiguous() if own else tensor.clone() for name, tensor in ours.items()}
    model.load_state_dict(ours, assign=True)
    return model.eval()


def _config(
    importer: _Importer, weights: Mapping[str, Tensor], config: Mapping[str, Any] | str | None
) -> dict[str, Any]:
    if importer.partial:
        told = config if isinstance(config, Mapping) else {}
        return importer.infer(weights) | importer.config(told)
    if config is None:
        return importer.infer(weights)
    if not isinstance(config, str):
        return importer.config(config)
    if config not in importer.variants:
        raise InputError(f"no variant {config!r}: choose from {', '.join(importer.variants)}")
    return importer.variants[config]


def check_fit(model: torch.nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Raise ``InputError`` naming what is missing, unexpected, of another shape than ``model`` expects or no float."""
    state = model.state_dict()
    wanted = {name: tensor.shape for name, tensor in state.items()}
    problems = [f"missing {name}" for name in wanted.keys() - weights.keys()]
    problems += [f"unexpected {name}" for name in weights.keys() - wanted.keys()]
    for name in wanted.keys() & weights.keys():
        if wanted[name] != weights[name].shape:
            problems.append(f"{name} is {tuple(weights[name].shape)}, not {tuple(wanted[name])}")
        elif state[name].is_floating_point() != weights[name].is_floating_point():
            problems.append(f"{name} is of {weights[name].dtype}, not {state[name].dtype}")
    if problems:
        shown = "; ".join(sorted(problems)[:5])
        raise InputError(f"weights do not fit the config, {len(problems)} differences: {shown}")
