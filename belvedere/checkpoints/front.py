"""The one front door: whatever kind of model a name, a folder, a hub id or an official file is, ready to use."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from belvedere.checkpoints import store
from belvedere.checkpoints.components import CODEC, SCENES
from belvedere.checkpoints.tensors import TORCH_SUFFIXES, read_state_dict
from belvedere.errors import InputError
from belvedere.files import expanded

if TYPE_CHECKING:
    import torch

_SYSTEMS = {
    "dimr": "stages.0.input_layer.1.weight",
    "fitv2": "x_embedder.proj.weight",
    "nvist": "decoder.output_token",
    "segpic": "dyn_encoder.conv_out.weight",
}
"""A tensor that only the official files of a system have."""
_MAPPER = re.compile(r"mapper-(steps-\d+|final)\.pt")
"""What the official code of NeTI calls its files."""


def load(
    name_or_path: str | Path,
    dtype: "torch.dtype | str | None" = None,
    device: "torch.device | str | None" = None,
    *,
    config: Mapping[str, Any] | str | None = None,
    fast: bool = False,
) -> Any:
    """Return the ready model of an embedded name, a folder, a hub id ``owner/name[@revision]`` or an official file.

    A folder or hub id gives a pipeline (DiMR, FiTv2, Stable Diffusion), a ``Codec`` (SegPIC) or an ``NViST``; a concept
    file (.safetensors) or a mapper of the official NeTI (``mapper-steps-N.pt``) a ``Concept``; an official file of
    another system its network, in float32 unless ``dtype`` says otherwise. ``config`` goes with official files: see
    ``load_official``. ``dtype``, ``device``, ``fast``: see ``store.load``; codecs are float32, and NViST unless told.
    Raises ``InputError`` for anything unknown, damaged or inconsistent; no code of the model runs.
    """
    path = expanded(name_or_path)
    if path.name.endswith((".safetensors", *TORCH_SUFFIXES)) and not path.is_dir():
        return _load_file(path, dtype, device, config)
    if config is not None:
        raise InputError(f"config goes with official files of weights, and {name_or_path} is none: leave it out")
    folder = store.resolve(name_or_path)
    kind = store.read_json(folder / "model_index.json").get("_class_name")
    if kind == CODEC:
        from belvedere.checkpoints.codecs import load_codec

        return load_codec(folder, device, fast=fast)
    if kind == SCENES:
        from belvedere.checkpoints.views import load_scene_model

        return load_scene_model(folder, device, dtype or "float32", fast=fast)
    return store.load(folder, dtype, device, fast=fast)


def _load_file(
    path: Path,
    dtype: "torch.dtype | str | None",
    device: "torch.device | str | None",
    config: Mapping[str, Any] | str | None,
) -> Any:
    if _MAPPER.fullmatch(path.name):
        from belvedere.checkpoints.official_neti import official_concept

        return official_concept(path)
    if path.suffix == ".safetensors" and path.is_file() and _is_concept(path):
        from belvedere.checkpoints.concepts import load_concept

        return load_concept(path)
    from torch import float32, nn

    from belvedere.checkpoints.official import load_official

    weights = read_state_dict(path)
    network = load_official(system_of(weights, path.name), weights, config, own=True)
    target = store.choose_device(device)
    return nn.Module.to(network, target, float32 if dtype is None else store.choose_dtype(dtype, target))


def _is_concept(path: Path) -> bool:
    from belvedere.checkpoints.concepts import KEY
    from belvedere.checkpoints.tensors import metadata

    return KEY in metadata(path)


def system_of(weights: Mapping[str, Any], name: str) -> str:
    """Return the system whose official weights these are; ``InputError`` names the file ``name`` when it is none."""
    for system, tensor in _SYSTEMS.items():
        if tensor in weights:
            return system
    raise InputError(f"{name}: not official weights of {', '.join(_SYSTEMS)}; load it with load_official and a config")
