"""Networks that make scenes of pictures, as model folders: ``model_index.json`` and ``network/``.

``model_index.json`` also says what such a network takes for granted of a picture that does not tell: from how far, how
wide, and looking down how steeply, the pictures that it learned from were taken.
"""

import copy
import json
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from belvedere.checkpoints import store
from belvedere.checkpoints.components import SCENES, load_network
from belvedere.errors import InputError
from belvedere.synthesis.nvist import NViST

FOV = 50.0
"""Degrees of the vertical field of view, where a model does not say."""


class SceneModel(NamedTuple):
    """A network and what its folder says of it."""

    network: NViST
    digest: str
    distance: float
    """Of a camera from the middle of the scene, in the scene's unit of length, for a picture that does not tell."""
    fov: float
    """Vertical field of view of such a picture, in degrees."""
    pitch: float
    """How far its camera looks down, in degrees; 0 where nothing is known."""


def load_scene_model(
    name_or_path: str | Path,
    device: "torch.device | str | None" = None,
    dtype: "torch.dtype | str" = torch.float32,
    *,
    fast: bool = False,
) -> NViST:
    """Return the network of an embedded name, a folder or a hub id; other arguments as for ``store.load``.

    In any ``dtype`` the field it makes of a picture is in float32, and decoded so. Raises ``InputError`` for anything
    unknown, damaged or inconsistent.
    """
    return open_scene_model(name_or_path, device, dtype, fast=fast).network


def open_scene_model(
    name_or_path: str | Path,
    device: "torch.device | str | None" = None,
    dtype: "torch.dtype | str" = torch.float32,
    *,
    fast: bool = False,
) -> SceneModel:
    """Return the network with its digest and defaults; see ``load_scene_model``."""
    target = store.choose_device(device)
    number = store.choose_dtype(dtype, target)
    folder = store.resolve(name_or_path)
    digest = store.verify(folder, full=not fast)
    index = store.read_json(folder / "model_index.json")
    if index.get("_class_name") != SCENES:
        raise InputError(f"model {name_or_path} makes no scenes of pictures: choose one, such as nvist-toybox")
    network: NViST = load_network(folder / "network", NViST, number)
    config: Any = network.config
    middle = (config.near + config.far) / 2
    distance, fov = index.get("default_distance", middle), index.get("default_fov", FOV)
    for name, value, high in (("default_distance", distance, 1e6), ("default_fov", fov, 180)):
        if not isinstance(value, int | float) or not 0 < value < high:
            raise InputError(f"{folder / 'model_index.json'}: {name} {str(value)[:40]} must be above 0, below {high:g}")
    pitch = index.get("default_pitch", 0.0)
    if isinstance(pitch, bool) or not isinstance(pitch, int | float) or not -90 < pitch < 90:
        raise InputError(f"{folder / 'model_index.json'}: default_pitch {str(pitch)[:40]} must be between -90 and 90")
    return SceneModel(nn.Module.to(network, target), digest, float(distance), float(fov), float(pitch))


def save_scene_model(
    network: NViST,
    dtype: str,
    folder: Path,
    facts: dict[str, Any],
    *,
    distance: float | None = None,
    fov: float | None = None,
    pitch: float | None = None,
) -> str:
    """Write a network as a model folder with its card; return the digest.

    Weights are stored in ``dtype``, those of the field's decoder in float32. ``distance``, ``fov`` and
    ``pitch``: see ``SceneModel``; by default the middle of near and far, ``FOV`` and 0.
    """
    stored: NViST = nn.Module.to(copy.deepcopy(network), "cpu", store.memory_dtype(dtype))
    defaults = {"default_distance": distance, "default_fov": fov, "default_pitch": pitch}
    index = {"_class_name": SCENES, **{key: value for key, value in defaults.items() if value is not None}}

    def write(fresh: Path) -> None:
        stored.save_pretrained(fresh / "network", safe_serialization=True)
        (fresh / "model_index.json").write_text(json.dumps(index) + "\n")

    return store.save_folder(write, folder, facts, dtype)
