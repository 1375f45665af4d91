"""Weights in int8: a matrix or convolution kernel as one byte a number and one scale an output channel.

In the safetensors file stand NAME, int8, and NAME.int8_scale, float32: the weight is their product. All else is float16
or what it was. ``config.json`` says so under ``quantization_config``, where other readers of such folders look first
and refuse a method they do not know.
"""

import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from belvedere.checkpoints import tensors
from belvedere.errors import InputError

if TYPE_CHECKING:
    import torch

COMPONENTS = ("network", "unet")
"""Of a model folder, that are stored in int8: autoencoders and text encoders stay float16."""
SCALE = ".int8_scale"
NO_CODEC = "--dtype int8: the probabilities of a codec need its weights more exactly; use float16"
"""Why codecs are refused: their integer tables, which files are read with, are made from the stored weights."""
_FIELD = "quantization_config"
_METHOD = {"quant_method": "belvedere-int8", "version": 1}
_LARGEST = 127
_SCALE_BYTES = 4


def declared(config: dict[str, Any], path: Path) -> bool:
    """Return whether a component's config says that its weights are int8, and take the word out of it.

    Raises ``InputError`` naming ``path`` for any other method.
    """
    method = config.pop(_FIELD, None)
    if method not in (None, _METHOD):
        raise InputError(f"{path}: {_FIELD} is not that of Belvedere's int8; get the model with unquantised weights")
    return method is not None


def takes(name: str, shape: tuple[int, ...]) -> bool:
    """Return whether the tensor of this name is stored in int8: a matrix, a kernel or a stack of matrices.

    Positions, tokens, biases and norms are not: their names do not end in ``weight``, or they have one axis. Nor is
    what would not become smaller.
    """
    return name.endswith("weight") and 2 <= len(shape) <= 4 and math.prod(shape[_axes(shape) :]) > _SCALE_BYTES


def _axes(shape: tuple[int, ...]) -> int:
    """How many leading axes have scales: the output channels (o, c), (o, c, h, w), in a stack (n, o, c) of each."""
    return 2 if len(shape) == 3 else 1


def quantised(weight: "torch.Tensor") -> "tuple[torch.Tensor, torch.Tensor]":
    """Return a finite weight as int8 in [-127, 127] and its scales, float32, of the leading axes."""
    import torch

    rows = weight.float().flatten(_axes(tuple(weight.shape)))  # (o, c) or (n, o, c)
    scale = rows.abs().amax(-1) / _LARGEST
    steps = rows / torch.where(scale > 0, scale, 1.0)[..., None]
    return steps.round().to(torch.int8).view(weight.shape), scale


def restored(weight: "torch.Tensor", scale: "torch.Tensor") -> "torch.Tensor":
    """Return the weight, float32, that int8 numbers and their scales stand for."""
    return weight.float().mul_(scale.view([*scale.shape, *[1] * (weight.ndim - scale.ndim)]))


def shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """Return the shape of each weight of a file, scales left out; only the header is read.

    Raises ``InputError`` as ``tensors.entries`` does, and for an int8 tensor without scales that fit it.
    """
    found = tensors.entries(path)
    for name, entry in found.items():
        scale = found.get(name + SCALE)
        wanted = entry.shape[: _axes(entry.shape)]
        if entry.dtype == "I8" and (scale is None or scale.dtype != "F32" or scale.shape != wanted):
            raise InputError(f"{path}: int8 tensor '{name[:80]}' has no scales of float32 {wanted}; get it again")
    packed = {name + SCALE for name, entry in found.items() if entry.dtype == "I8"}
    return {name: entry.shape for name, entry in found.items() if name not in packed}


def read_each(path: Path) -> "Iterator[tuple[str, torch.Tensor]]":
    """Yield name and weight of a file that ``shapes`` accepts, int8 as float32, one by one.

    Raises ``InputError`` for scales that are not finite or below 0.
    """
    packed = {name for name, entry in tensors.entries(path).items() if entry.dtype == "I8"}
    scales = dict(tensors.read_each(path, {name + SCALE for name in packed}))
    for name, scale in scales.items():
        if not bool((scale.isfinite() & (scale >= 0)).all()):
            raise InputError(f"{path}: tensor '{name[:80]}' holds scales that are not finite or below 0; get it again")
    for name, weight in tensors.read_each(path, shapes(path)):
        yield name, restored(weight, scales[name + SCALE]) if name in packed else weight


def quantise(folder: Path) -> None:
    """Turn the float16 weights of a model folder, which nobody reads yet, into int8."""
    from safetensors.torch import save_file

    for part in (folder / name for name in COMPONENTS if (folder / name / "config.json").is_file()):
        for file in sorted(part.glob("*.safetensors")):
            save_file(_packed(file), file, {"format": "pt"})
        for index in part.glob("*.safetensors.index.json"):
            _write(index, _index(sorted(part.glob("*.safetensors"))))
        _write(part / "config.json", {**json.loads((part / "config.json").read_text()), _FIELD: _METHOD})


def _packed(file: Path) -> "dict[str, torch.Tensor]":
    import torch

    packed = {}
    for name, weight in tensors.read_each(file):
        packed[name] = weight
        if weight.dtype == torch.float16 and takes(name, tuple(weight.shape)):
            packed[name], packed[name + SCALE] = quantised(weight)
    return packed


def _index(files: list[Path]) -> dict[str, Any]:
    """Return what diffusers writes beside the files of a network: which tensor is in which."""
    held = {file.name: tensors.entries(file) for file in files}
    size = sum(entry.stop - entry.start for entries in held.values() for entry in entries.values())
    places = {name: file for file, entries in held.items() for name in entries}
    return {"metadata": {"total_size": size}, "weight_map": places}


def _write(path: Path, content: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n")


def rounded(name: str, weight: "torch.Tensor") -> "torch.Tensor":
    """Return a weight of float16's range as it is after storing: from int8, or float16."""
    import torch

    half = weight.to(torch.float16)
    return restored(*quantised(half)) if takes(name, tuple(weight.shape)) else half
