"""What a task is, and what tasks share: their data, their networks, sheets, and how weights are kept."""

import copy
import math
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from belvedere.apps.config import call
from belvedere.apps.latents import Loss
from belvedere.checkpoints import store
from belvedere.data import Dataset
from belvedere.errors import InputError
from belvedere.files import atomic_write

Groups = Callable[[Any, float], list[dict[str, Any]]]


@dataclass(frozen=True)
class Task:
    """One thing to train. The loop knows nothing else about a system."""

    model: nn.Module
    dataset: Dataset
    loss: Loss
    """``loss(model, batch, rng)`` -> (scalar, numbers to log)."""
    groups: Groups
    """``groups(model, weight_decay)`` -> the optimizer's parameter groups."""
    export: Callable[[nn.Module, Path, dict[str, Any]], str]
    """``export(model, folder, facts)`` writes the model folder and its card; returns the digest of the weights."""
    check_target: Callable[[Path], None] = store.check_target
    """``check_target(folder)`` raises ``InputError`` unless ``export`` may write the folder."""
    sheet: Callable[[nn.Module, Path], Mapping[str, float] | None] | None = None
    """``sheet(model, path)`` writes a picture of what the model can do; returns figures of it, if it has any."""
    held_out: Dataset | None = None
    """Samples that training does not see, of the same form; None: no evaluation in the run."""
    began_with: str | None = None
    """The digest of the weights that the model has at first, where they are given; the card tells it."""


DATASETS = {
    "toybox": ("belvedere.data.toybox", "Toybox"),
    "mixed-toybox": ("belvedere.data.toybox.mixed", "MixedToybox"),
    "captioned-toybox": ("belvedere.data.toybox.captions", "CaptionedToybox"),
    "toybox-views": ("belvedere.data.toybox.views", "ToyboxViews"),
    "mvimgnet": ("belvedere.data.mvimgnet_views", "MVImgNetViews"),
    "parquet": ("belvedere.data.folders", "Parquet"),
    "folder": ("belvedere.data.folders", "ImageFolder"),
    "webdataset": ("belvedere.data.webdataset", "WebDataset"),
    "latents": ("belvedere.data.latents", "Latents"),
    "mixed-latents": ("belvedere.data.latents", "MixedLatents"),
    "photographs": ("belvedere.data.photographs", "Photographs"),
    "concept-photos": ("belvedere.data.concept_photos", "ConceptPhotos"),
    "panoptic": ("belvedere.data.photographs", "PanopticPhotographs"),
}
"""Every dataset by the name that a config's ``data.kind`` gives."""


def dataset_class(kind: Any) -> Any:
    """Return the dataset that a config's ``data.kind`` names."""
    if not isinstance(kind, str) or kind not in DATASETS:
        raise InputError(f"config data.kind {kind!r}: choose from {', '.join(DATASETS)}")
    module, name = DATASETS[kind]
    return getattr(import_module(module), name)


def make_dataset(data: Mapping[str, Any]) -> Dataset:
    """Return the dataset of a config's ``data`` section: ``kind`` and the keywords of that kind."""
    kind = dataset_class(data.get("kind"))
    return call(kind, {key: value for key, value in data.items() if key != "kind"}, "data")


_NAMED = "name the classes in classes.json (one will do: all labels are 0)"
_MENDS = {
    "folder": "put the pictures into one subfolder a class (one will do)",
    "parquet": "give it a column 'label' of class numbers",
    "webdataset": "give each picture a .cls, .json or .txt beside it, or unpack each tar into a subfolder of its class",
    "latents": _NAMED,
    "mixed-latents": _NAMED,
}
"""What gives data of a kind its classes."""


def check_classes(data: Mapping[str, Any], dataset: Dataset) -> None:
    """Raise ``InputError`` for a ``dataset`` without classes, made of a config's ``data``."""
    if not dataset.classes:
        mend = _MENDS.get(data["kind"], "choose another data.kind")
        raise InputError(f"{data.get('path', data['kind'])}: {len(dataset)} items without classes: {mend}")


def make_network(cls: Any, variants: Mapping[str, dict[str, Any]], values: Mapping[str, Any]) -> Any:
    fields = dict(values)
    variant = fields.pop("variant", None)
    if variant is None:
        return call(cls, fields, "model")
    if not isinstance(variant, str) or variant not in variants:
        raise InputError(f"config model.variant {variant!r}: choose from {', '.join(variants)}")
    return call(cls, {**variants[variant], **fields}, "model")


SHARE, WEIGHT, ANY, COUNT = (0.0, 1.0), (0.0, math.inf), (-math.inf, math.inf), (1, sys.maxsize)
"""Bounds of numbers, both included; of whole numbers where they are."""


def check_numbers(values: Mapping[str, Any], **bounds: tuple[float, float]) -> None:
    """Raise ``InputError`` unless those of ``values``, a config's ``loss``, are finite and within the bounds given."""
    for name in (name for name in bounds if name in values):
        value, (low, high) = values[name], bounds[name]
        whole = isinstance(low, int)
        if not isinstance(value, int if whole else int | float) or isinstance(value, bool) or not abs(value) < math.inf:
            raise InputError(f"config loss.{name}: {value!r} is not a {'whole' if whole else 'finite'} number")
        if not low <= value <= high:
            most = f" and at most {high:g}" if (low, high) == SHARE else ""
            raise InputError(f"config loss.{name}: {value} must be at least {low:g}{most}")


def save_grid(images: Tensor, columns: int, path: Path) -> None:
    """Write pictures (n, 3, h, w) in [0, 1] as one PNG, ``columns`` side by side; makes the folder of ``path``."""
    from PIL import Image

    count, _, height, width = images.shape
    sheet = torch.ones(3, -(-count // columns) * height, min(columns, count) * width)
    for i, image in enumerate(images.float().cpu()):
        top, left = i // columns * height, i % columns * width
        sheet[:, top : top + height, left : left + width] = image
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = (sheet.clamp(0, 1) * 255).round().byte().permute(1, 2, 0)  # (h, w, 3)
    with atomic_write(path) as stream:
        Image.fromarray(pixels.numpy()).save(stream, "PNG")


def blocks(model: nn.Module) -> list[nn.Module]:
    """Return the blocks that a network is made of: the members of its lists ``blocks``."""
    lists = (module for name, module in model.named_modules() if name.endswith("blocks"))
    return [block for module in lists if isinstance(module, nn.ModuleList) for block in module]


def copy_with(network: nn.Module, convert: Callable[[Tensor], Tensor]) -> Any:
    """Return a copy of a network with ``convert(parameter)`` for its parameters; buffers as they are."""
    memo: dict[int, Any] = {}
    for parameter in network.parameters():
        memo[id(parameter)] = nn.Parameter(convert(parameter.detach()), parameter.requires_grad)
    return copy.deepcopy(network, memo)


def cast_weights(network: nn.Module, dtype: str) -> Any:
    """Return a copy on the CPU in another number format, without one in the old format on the way."""
    target = getattr(torch, dtype)
    converted = copy_with(network, lambda weight: weight.to("cpu", target))
    return nn.Module.to(converted, "cpu", target)  # past diffusers' warning


def export_network(network: nn.Module, dtype: str, folder: Path, facts: dict[str, Any]) -> str:
    """Write one network as a model folder with its card; return the digest."""
    write = partial(cast_weights(network, dtype).save_pretrained, safe_serialization=True)
    return store.save_folder(write, folder, facts)
