"""The task of the learned codec."""

from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from belvedere.apps.config import TrainConfig
from belvedere.apps.task import SHARE, Task, check_numbers, make_dataset, make_network, save_grid
from belvedere.apps.written import check_keys
from belvedere.errors import InputError

EXAMPLES = 128
"""Pictures that a codec's beginning is made from, and the first of which its sheets show."""


def segpic_task(config: TrainConfig) -> Task:
    """SegPIC: ``model`` is {variant: NAME, and fields that replace the variant's} or a full config, and ``start``, as
    published random or linear (``begin_linear``); ``loss`` has ``weights``, a lambda for each rate, ``prototype_share``
    and ``distortion``."""
    from belvedere.checkpoints.codecs import save_codec
    from belvedere.compression import initial, segpic
    from belvedere.compression.segpic_config import STRIDE, VARIANTS

    fields = dict(config.model)
    if (start := fields.pop("start", "random")) not in ("random", "linear"):
        raise InputError(f"config model.start {start!r}: choose random or linear")
    dataset, model = make_dataset(config.data), make_network(segpic.SegPIC, VARIANTS, fields)
    check_keys(config.loss, ("weights", "prototype_share", "distortion"), "loss.")
    if config.loss.get("distortion", "mse") not in ("mse", "ms-ssim"):
        raise InputError(f"config loss.distortion {config.loss['distortion']!r}: choose mse or ms-ssim")
    check_numbers(config.loss, prototype_share=SHARE)
    weights = config.loss.get("weights", [0.013])
    if not isinstance(weights, list) or not all(isinstance(weight, int | float) and weight > 0 for weight in weights):
        raise InputError(f"config loss.weights: {weights!r} must be a list of numbers above 0")
    if len(weights) != max(1, model.config.rates):
        raise InputError(
            f"config loss.weights: {len(weights)} for {max(1, model.config.rates)} rates; give one for each"
        )
    _check_shape(dataset.batch([0]), config.data["kind"], STRIDE)
    examples = (dataset.batch(range(0, len(dataset), max(1, len(dataset) // EXAMPLES)))["image"] + 1) / 2
    if start == "linear":
        initial.begin_linear(model, examples)
    return Task(
        model=model,
        dataset=dataset,
        loss=partial(segpic.loss, **config.loss),
        groups=(initial if start == "linear" else segpic).parameter_groups,
        export=lambda network, folder, facts: save_codec(
            cast(segpic.SegPIC, network), config.export.dtype, folder, facts
        ),
        sheet=lambda network, path: _segpic_sheet(network, examples[:8], path),
    )


def _check_shape(first: dict[str, Tensor], kind: str, stride: int) -> None:
    """Raise ``InputError`` unless the first sample of the data is a picture that the codec can learn from."""
    if "image" not in first or "size" in first:
        raise InputError(f"config data.kind {kind!r}: the codec learns from pictures of one size, as photographs has")
    height, width = first["image"].shape[-2:]
    if height % stride or width % stride:
        raise InputError(f"config data.size: {width}x{height} must be multiples of {stride}")


@torch.no_grad()
def _segpic_sheet(network: Any, examples: Tensor, path: Path) -> None:
    """Write a sheet of pictures (b, 3, h, w) in [0, 1]: a row as they are, and one a rate as they come out."""
    rows = [examples.to(network.device)]
    for rate in range(max(1, network.config.rates)):
        quality = torch.full((len(examples),), float(rate), device=network.device) if network.config.rates else None
        rows.append(network(rows[0], quality=quality).reconstruction.clamp(0, 1))
    save_grid(torch.cat(rows), len(examples), path)
