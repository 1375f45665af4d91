"""The tasks of networks that make scenes of pictures, and of their encoder's pre-training."""

import math
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from belvedere.apps.config import TrainConfig
from belvedere.apps.task import (
    COUNT,
    SHARE,
    WEIGHT,
    Task,
    check_numbers,
    export_network,
    make_dataset,
    make_network,
    save_grid,
)
from belvedere.apps.written import check_keys
from belvedere.data import Dataset
from belvedere.errors import InputError

SHOWN = 6
"""Scenes or pictures of a sheet: the first of the data."""
PERCEPTUAL = ("structure", "lpips", "none")


def nvist_task(config: TrainConfig) -> Task:
    """NViST: ``model`` is {variant: NAME, and fields that replace the variant's} or a full config, and with ``start``,
    as published random or aligned (``begin_aligned``), ``encoder_weights`` and ``decoder_weights``, files of a masked
    autoencoder that either begins with; without ``near`` and ``far`` they are those of the data. ``loss`` has
    ``perceptual`` (structure, lpips or none), ``lpips``, the files of its weights, and the keywords of
    ``view_training.loss``."""
    from belvedere.checkpoints.views import save_scene_model
    from belvedere.synthesis import view_training
    from belvedere.synthesis.nvist import NViST
    from belvedere.synthesis.nvist_config import VARIANTS
    from belvedere.synthesis.nvist_initial import begin_aligned

    fields = dict(config.model)
    starts = {part: fields.pop(f"{part}_weights", None) for part in ("encoder", "decoder")}
    if (start := fields.pop("start", "random")) not in ("random", "aligned"):
        raise InputError(f"config model.start {start!r}: choose random or aligned")
    loss = partial(view_training.loss, **_loss_options(config.loss))
    dataset = make_dataset(config.data)
    for name, distance in zip(("near", "far"), getattr(dataset, "near_far", ()), strict=False):
        fields.setdefault(name, distance)
    model = make_network(NViST, VARIANTS, fields)
    _check_views(dataset, model.config)
    examples = dataset.batch(range(min(SHOWN, len(dataset))))
    if config.loss.get("distance_weight") and "distances" not in examples:
        raise InputError(
            "config loss.distance_weight: this data tells no distances: toybox-views data.distances=true does"
        )
    conditions = view_training.input_conditions(examples["poses"], examples["intrinsics"], model.config.image[0])
    distance, focal = conditions.mean(0).tolist()
    if start == "aligned":
        begin_aligned(model, distance, focal)
    _start(model, starts)
    facts = {"distance": distance, "fov": math.degrees(2 * math.atan(0.5 / focal))}
    facts["pitch"] = getattr(dataset, "pitch", 0.0)
    return Task(
        model=model,
        dataset=dataset,
        loss=loss,
        groups=partial(view_training.parameter_groups, pretrained=starts["encoder"] is not None),
        export=lambda network, folder, card: save_scene_model(
            cast(NViST, network), config.export.dtype, folder, card, **facts
        ),
        sheet=lambda network, path: _view_sheet(network, examples, path),
    )


def _loss_options(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the keywords of the loss that a config's section asks for."""
    from belvedere.apps.evaluate_views import load_lpips
    from belvedere.synthesis.perceptual import structure_loss

    weights = dict.fromkeys(("perceptual_weight", "distortion_weight", "distance_weight"), WEIGHT)
    check_keys(values, ("perceptual", "lpips", "patch", "rays", *weights), "loss.")
    check_numbers(values, rays=COUNT, **weights)
    options = {name: value for name, value in values.items() if name not in ("perceptual", "lpips")}
    kind, files = values.get("perceptual", "structure"), values.get("lpips", [])
    if kind not in PERCEPTUAL:
        raise InputError(f"config loss.perceptual {kind!r}: choose from {', '.join(PERCEPTUAL)}")
    if kind == "lpips" and not files:
        raise InputError(
            "config loss.perceptual lpips needs weights: give loss.lpips='[vgg16-397923af.pth, vgg.pth]', of "
            "torchvision and of LPIPS 0.1, or choose loss.perceptual=structure, which needs none"
        )
    if not isinstance(files, list) or not all(isinstance(file, str) for file in files):
        raise InputError(f"config loss.lpips: {files!r} must be a list of files")
    lpips = load_lpips([Path(file) for file in files]) if kind == "lpips" else None
    perceptual = {"structure": structure_loss, "none": None, "lpips": lpips and lpips.official}
    return options | {"perceptual": perceptual[kind]}


def _check_views(dataset: Dataset, config: Any) -> None:
    size = tuple(getattr(dataset, "size", ()))
    if not hasattr(dataset, "near_far"):
        raise InputError("config data.kind: nvist learns from scenes seen from several sides: toybox-views or mvimgnet")
    if getattr(dataset, "views", None) == 0:
        raise InputError("config data.views 0: nvist learns from views beside the input; give 1 or more")
    if size != tuple(config.image):
        raise InputError(f"config data.size: {list(size)} does not fit model.image {list(config.image)}")


def _start(model: Any, starts: Mapping[str, str | None]) -> None:
    """Load what encoder and decoder begin with."""
    from belvedere.checkpoints.official_mae import start_decoder, start_encoder

    for part, start in (("encoder", start_encoder), ("decoder", start_decoder)):
        if (weights := starts[part]) is not None:
            start(model, weights)


@torch.no_grad()
def _view_sheet(network: Any, examples: dict[str, Tensor], path: Path) -> None:
    """Write a sheet, a row a scene: the input, then each target view as it is, as it is made, and its depth."""
    from belvedere.synthesis import view_training

    truth, made, depth = view_training.render_targets(network, examples)  # (b, v, 3, h, w) each
    rows = torch.cat(((examples["image"][:, None] + 1) / 2, torch.stack((truth, made, depth), 2).flatten(1, 2)), 1)
    save_grid(rows.flatten(0, 1), rows.shape[1], path)


def mae_task(config: TrainConfig) -> Task:
    """The encoder's pre-training: ``model`` is {variant: NAME, and fields that replace the variant's} or a full config,
    and with ``weights``, a file of published ones to begin with; ``loss`` has ``mask_ratio``."""
    from belvedere.checkpoints.official_mae import start_encoder
    from belvedere.synthesis import mae
    from belvedere.synthesis.nvist_config import MAE_VARIANTS

    check_keys(config.loss, ("mask_ratio",), "loss.")
    check_numbers(config.loss, mask_ratio=SHARE)
    fields = dict(config.model)
    weights = fields.pop("weights", None)
    dataset, model = make_dataset(config.data), make_network(mae.MAE, MAE_VARIANTS, fields)
    examples = (dataset.batch(range(min(SHOWN, len(dataset))))["image"] + 1) / 2
    if examples.shape[-2] % model.config.patch or examples.shape[-1] % model.config.patch:
        height, width = examples.shape[-2:]
        raise InputError(f"config data.size: {width}x{height} is no multiple of patches of {model.config.patch}")
    if weights is not None:
        start_encoder(model, weights)
    return Task(
        model=model,
        dataset=dataset,
        loss=partial(mae.loss, **config.loss),
        groups=mae.parameter_groups,
        export=lambda network, folder, card: export_network(network, config.export.dtype, folder, card),
        sheet=lambda network, path: _mae_sheet(network, examples, path),
    )


@torch.no_grad()
def _mae_sheet(network: Any, examples: Tensor, path: Path) -> None:
    """Write a sheet: a row of pictures, one of what the network may look at, one of what it makes of that."""
    from belvedere.synthesis.mae import complete

    visible, made = complete(network, examples.to(network.device))
    save_grid(torch.cat((examples, visible.cpu(), made.cpu())), len(examples), path)
