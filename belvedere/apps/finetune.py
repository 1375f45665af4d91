"""Training that begins with given weights: which parts take them over, and which of them learn."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from belvedere.errors import InputError

CLASS_TABLE = "class_embed.weight"
"""How the names of a network's tables of classes end; their last row is no class."""


@dataclass(frozen=True, kw_only=True)
class FinetuneConfig:
    """Where training begins. A part is a module of the network by its first name (``embed``, ``head``), or ``bias``."""

    weights: str
    """A model (embedded name, folder or hub id), or a published weights file."""
    train: tuple[str, ...] = ()
    """Parts that learn; the others stay as they are. None named: all learn."""
    reset: bool = False
    """The parts that learn begin anew instead of with the weights (as FiTv2's high-resolution stage was published)."""
    new_classes: bool = False
    """The tables of classes begin anew, for other classes than the weights', and learn whatever ``train`` says."""
    resize: bool = False
    """A model of NViST's whose volume has other texels or tokens is resampled (``nvist_resize``)."""


def begin(system: str, model: nn.Module, config: FinetuneConfig) -> str:
    """Fill ``model`` with the weights, but for the parts that begin anew, and freeze what does not learn.

    Returns the SHA-256 of the weights' file, or the digest of the model they are of. Raises ``InputError`` for a
    ``system`` without published weights, unknown parts, and weights that do not fit.
    """
    from belvedere.checkpoints.official import IMPORTERS

    if system not in IMPORTERS:
        raise InputError(f"config finetune: task {system} has none; it is for {', '.join(IMPORTERS)}")
    check_parts(model, config.train)
    weights = read_weights(system, model, config.weights, resize=config.resize, new_classes=config.new_classes)
    fresh = {name for name in weights if config.reset and is_part(name, config.train)}
    missing, _ = model.load_state_dict({n: w for n, w in weights.items() if n not in fresh}, strict=False)
    assert set(missing) <= fresh
    if config.train:
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(is_part(name, config.train) or (config.new_classes and name.endswith(CLASS_TABLE)))
    return _digest(config.weights)


def _digest(name: str) -> str:
    from belvedere.checkpoints import manifest, store

    path = Path(name)
    return manifest.Entry.of(path).sha256 if path.is_file() else store.digest(store.resolve(name))


def is_part(name: str, parts: Sequence[str]) -> bool:
    """Return whether a parameter is of one of the parts."""
    return name.split(".")[0] in parts or ("bias" in parts and name.endswith("bias"))


def check_parts(model: nn.Module, parts: Sequence[str]) -> None:
    """Raise ``InputError`` for a part that ``model`` does not have."""
    known = ["bias", *dict(model.named_children())]
    if unknown := [part for part in parts if part not in known]:
        raise InputError(
            f"config finetune.train: no part {unknown[0]!r} in this network: choose from {', '.join(known)}"
        )


def read_weights(
    system: str, model: Any, name: str, *, resize: bool = False, new_classes: bool = False
) -> dict[str, Tensor]:
    """Return the state dict that fits ``model``, from a published file or a model of ours; ``resize``: its volume.

    With ``new_classes`` its tables of classes are those of ``model``.
    """
    from belvedere.checkpoints import store
    from belvedere.checkpoints.components import load_network
    from belvedere.checkpoints.official import IMPORTERS, check_fit
    from belvedere.checkpoints.tensors import read_state_dict

    published = Path(name).is_file()
    if resize and (published or system != "nvist"):
        raise InputError("config finetune.resize: only a model of ours for task nvist can be resized")
    if published:
        weights = IMPORTERS[system].names(read_state_dict(Path(name)))
    else:
        network = load_network(store.resolve(name) / "network", type(model), torch.float32)
        weights = _volume_weights(network, model, resize) if system == "nvist" else network.state_dict()
    weights |= _class_tables(model, weights, new_classes)
    check_fit(model, weights)
    return weights


def _class_tables(model: nn.Module, weights: Mapping[str, Tensor], new: bool) -> dict[str, Tensor]:
    """Return the tables of classes to put in place of those of ``weights``: the model's where they are ``new``.

    Raises ``InputError`` for a network without them, and for tables of another length that are not.
    """
    tables = {name: tensor for name, tensor in model.state_dict().items() if name.endswith(CLASS_TABLE)}
    if new:
        if not tables:
            raise InputError("config finetune.new_classes: this network has no table of classes; leave it out")
        return tables
    for name in tables.keys() & weights.keys():
        if len(weights[name]) != len(tables[name]):
            raise InputError(
                f"config finetune.weights: of {len(weights[name]) - 1} classes, not the {len(tables[name]) - 1} of "
                "model; finetune.new_classes=true begins their table anew"
            )
    return {}


def _volume_weights(network: Any, model: Any, resize: bool) -> dict[str, Tensor]:
    """Return an NViST's weights for ``model``; raises ``InputError`` for another volume, unless it is resized."""
    from belvedere.synthesis.nvist_resize import resize_volume

    if resize:
        return resize_volume(network, model)
    for field in ("resolution", "volume_patch"):
        if network.config[field] != model.config[field]:
            raise InputError(
                f"config finetune.weights: {field} {network.config[field]} is not the {model.config[field]} of model; "
                "finetune.resize=true resamples the volume"
            )
    return network.state_dict()
