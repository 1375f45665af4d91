"""What each system gives the training loop: a model, data, a loss, parameter groups, how to show and keep it."""

import copy
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from belvedere.apps.config import ExportConfig, TrainConfig, call, check_keys
from belvedere.apps.finetune import begin
from belvedere.apps.latents import Loss, load_vae, of_data
from belvedere.apps.training_state import atomic_directory
from belvedere.data import Dataset
from belvedere.errors import InputError
from belvedere.files import atomic_write
from belvedere.seeds import generator

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
    sheet: Callable[[nn.Module, Path], None] | None = None
    """``sheet(model, path)`` writes a picture that shows what the model can do."""


def make_task(config: TrainConfig) -> Task:
    """Return the task a config asks for; raises ``InputError`` for an unknown one, bad keys or missing data."""
    if config.task not in TASKS:
        raise InputError(f"config task {config.task!r}: choose from {', '.join(TASKS)}")
    task = TASKS[config.task](config)
    if config.checkpointing:
        if not getattr(task.model, "_supports_gradient_checkpointing", False):
            raise InputError(f"config checkpointing: task {config.task} has no activation checkpointing; leave it out")
        task.model.enable_gradient_checkpointing()  # type: ignore[operator]
    return task


DATASETS = {
    "toybox": ("belvedere.data.toybox", "Toybox"),
    "mixed-toybox": ("belvedere.data.toybox.mixed", "MixedToybox"),
    "parquet": ("belvedere.data.folders", "Parquet"),
    "folder": ("belvedere.data.folders", "ImageFolder"),
    "latents": ("belvedere.data.latents", "Latents"),
    "mixed-latents": ("belvedere.data.latents", "MixedLatents"),
    "photographs": ("belvedere.data.photographs", "Photographs"),
    "panoptic": ("belvedere.data.photographs", "PanopticPhotographs"),
}
"""Every dataset by the name that a config's ``data.kind`` gives."""


def make_dataset(data: Mapping[str, Any]) -> Dataset:
    """Return the dataset of a config's ``data`` section: ``kind`` and the keywords of that kind."""
    kind = data.get("kind")
    if kind not in DATASETS:
        raise InputError(f"config data.kind {kind!r}: choose from {', '.join(DATASETS)}")
    module, name = DATASETS[kind]
    return call(getattr(import_module(module), name), {k: v for k, v in data.items() if k != "kind"}, "data")


def dimr_task(config: TrainConfig) -> Task:
    """DiMR: ``model`` is {variant: NAME, and fields that replace the variant's} or a full config; ``loss`` has
    ``class_dropout``."""
    from belvedere.generation import dimr
    from belvedere.generation.dimr_config import VARIANTS
    from belvedere.generation.pipelines import DiMRPipeline

    check_keys(config.loss, ("class_dropout",), "loss.")
    _check_numbers(config.loss, ("class_dropout",))
    loss = partial(dimr.loss, **config.loss)
    return _generator_task(config, dimr.DiMR, VARIANTS, DiMRPipeline, loss, dimr.parameter_groups, _dimr_sheet)


def fitv2_task(config: TrainConfig) -> Task:
    """FiTv2: ``model`` is {variant: NAME, and fields that replace the variant's} or a full config; ``loss`` has
    ``class_dropout``, ``times`` and ``time_mean``."""
    from belvedere.generation import fitv2
    from belvedere.generation.fitv2_config import VARIANTS
    from belvedere.generation.fitv2_pipeline import FiTv2Pipeline

    check_keys(config.loss, ("class_dropout", "times", "time_mean"), "loss.")
    _check_numbers(config.loss, ("class_dropout", "time_mean"))
    if config.loss.get("times", "lognorm") not in ("lognorm", "uniform"):
        raise InputError(f"config loss.times {config.loss['times']!r}: choose lognorm or uniform")
    loss = partial(fitv2.loss, **config.loss)
    return _generator_task(config, fitv2.FiTv2, VARIANTS, FiTv2Pipeline, loss, fitv2.parameter_groups, _any_size_sheet)


def _generator_task(
    config: TrainConfig,
    cls: Any,
    variants: Mapping[str, dict[str, Any]],
    pipeline: Any,
    loss: Loss,
    groups: Groups,
    sheet: Callable[[Any, Path], None],
) -> Task:
    """Return the task of a network that makes pictures of classes."""
    dataset, vae = make_dataset(config.data), load_vae(config.vae)
    model = _make_network(cls, variants, config.model)
    _check_classes(model, dataset)
    if not pipeline.any_size and "size" in dataset.batch([0]):
        raise InputError(
            f"config data.kind {config.data['kind']!r} has many sizes: {config.task} takes pictures of one"
        )
    for height, width in getattr(dataset, "sizes", ()):
        if height % model.config.patch or width % model.config.patch:
            raise InputError(f"config data.sizes: {width}x{height} is no multiple of patches of {model.config.patch}")
    if config.finetune is not None:
        begin(config.task, model, config.finetune)

    def make(network: Any) -> Any:
        return pipeline(network, vae=vae, **_defaults(dataset, config.export))

    return Task(
        model=model,
        dataset=dataset,
        loss=of_data(loss, pipeline.any_size, vae),
        groups=groups,
        export=lambda network, folder, facts: _export_pipeline(make(network), config.export.dtype, folder, facts),
        sheet=lambda network, path: sheet(make(network), path),
    )


def _make_network(cls: Any, variants: Mapping[str, dict[str, Any]], values: Mapping[str, Any]) -> Any:
    fields = dict(values)
    variant = fields.pop("variant", None)
    if variant is not None and variant not in variants:
        raise InputError(f"config model.variant {variant!r}: choose from {', '.join(variants)}")
    return call(cls, variants.get(variant, {}) | fields, "model")


def _check_numbers(values: Mapping[str, Any], names: tuple[str, ...]) -> None:
    for name in names:
        if not isinstance(values.get(name, 0), int | float):
            raise InputError(f"config loss.{name}: {values[name]!r} is not a number")


def _check_classes(model: Any, dataset: Dataset) -> None:
    if model.null_class is not None and model.null_class != len(dataset.classes):
        raise InputError(
            f"config model.num_classes: {len(dataset.classes)} classes in the data need "
            f"{len(dataset.classes) + 1} (one is for no class), not {model.config.num_classes}"
        )


def _defaults(dataset: Dataset, export: ExportConfig) -> dict[str, Any]:
    """Return what a pipeline is told besides its network."""
    return {
        "id2label": dict(enumerate(dataset.classes)),
        "default_steps": export.default_steps,
        "default_guidance": export.default_guidance,
        "default_shift": export.default_shift,
    }


def _makes_latents(pipeline: Any) -> bool:
    """Return whether a pipeline has no pictures to show: latents, without their decoder."""
    return pipeline.vae is None and pipeline.network.config.channels != 3


def _dimr_sheet(pipeline: Any, path: Path, rows: int = 4, columns: int = 12) -> None:
    """Write a sheet of pictures, one class a column, with fixed seeds; nothing for latents without their decoder."""
    if _makes_latents(pipeline):
        return
    columns = min(columns, pipeline.network.null_class)
    labels = [i % columns for i in range(rows * columns)]
    generators = [generator("sheet", i) for i in range(len(labels))]
    images = pipeline(labels, generator=generators, output_type="pt").images
    save_grid(images, columns, path)


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


def _any_size_sheet(pipeline: Any, path: Path, columns: int = 12) -> None:
    """Write a sheet of pictures, one class a column, a row each square, upright and wide, with fixed seeds."""
    if _makes_latents(pipeline):
        return
    from belvedere.apps.output import sheet

    columns = min(columns, pipeline.network.null_class)
    side = pipeline.network.config.trained_side
    grids = [(side, side), (-(-side * 3 // 2), side * 3 // 4), (side * 3 // 4, -(-side * 3 // 2))]
    sizes = [(h * pipeline.unit, w * pipeline.unit) for h, w in grids for _ in range(columns)]
    generators = [generator("sheet", i) for i in range(len(sizes))]
    images = pipeline([i % columns for i in range(len(sizes))], sizes=sizes, generator=generators).images
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as stream:
        sheet(images, [""] * len(images), columns).save(stream, "PNG")


def _export_pipeline(pipeline: Any, dtype: str, folder: Path, facts: dict[str, Any]) -> str:
    from belvedere.checkpoints import store

    pipeline.register_modules(network=_cast(pipeline.network, dtype))
    return store.save(pipeline, folder, facts)


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
    dataset, model = make_dataset(config.data), _make_network(segpic.SegPIC, VARIANTS, fields)
    check_keys(config.loss, ("weights", "prototype_share", "distortion"), "loss.")
    if config.loss.get("distortion", "mse") not in ("mse", "ms-ssim"):
        raise InputError(f"config loss.distortion {config.loss['distortion']!r}: choose mse or ms-ssim")
    _check_numbers(config.loss, ("prototype_share",))
    weights = config.loss.get("weights", [0.013])
    if not isinstance(weights, list) or not all(isinstance(weight, int | float) and weight > 0 for weight in weights):
        raise InputError(f"config loss.weights: {weights!r} must be a list of numbers above 0")
    if len(weights) != max(1, model.config.rates):
        raise InputError(
            f"config loss.weights: {len(weights)} for {max(1, model.config.rates)} rates; give one for each"
        )
    if getattr(dataset, "size", 0) % STRIDE:
        raise InputError(f"config data.size {dataset.size}: must be a multiple of {STRIDE}")  # type: ignore[attr-defined]
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


@torch.no_grad()
def _segpic_sheet(network: Any, examples: Tensor, path: Path) -> None:
    """Write a sheet of pictures (b, 3, h, w) in [0, 1]: a row as they are, and one a rate as they come out."""
    rows = [examples.to(network.device)]
    for rate in range(max(1, network.config.rates)):
        quality = torch.full((len(examples),), float(rate), device=network.device) if network.config.rates else None
        rows.append(network(rows[0], quality=quality).reconstruction.clamp(0, 1))
    save_grid(torch.cat(rows), len(examples), path)


def toybox_classifier_task(config: TrainConfig) -> Task:
    """The classifier that measures generated toys: ``model`` is {width, size}."""
    from belvedere.data.toybox.classifier import ToyClassifier, loss, parameter_groups

    dataset = make_dataset(config.data)
    check_keys(config.loss, (), "loss.")
    model = call(ToyClassifier, {"classes": dataset.classes} | config.model, "model")
    return Task(
        model=model,
        dataset=dataset,
        loss=loss,
        groups=parameter_groups,
        export=lambda network, folder, facts: _export_network(network, config.export.dtype, folder, facts),
    )


def _cast(network: nn.Module, dtype: str) -> Any:
    """Return a copy on the CPU in another number format."""
    return nn.Module.to(copy.deepcopy(network), "cpu", getattr(torch, dtype))  # past diffusers' warning


def _export_network(network: nn.Module, dtype: str, folder: Path, facts: dict[str, Any]) -> str:
    from belvedere.checkpoints import store

    with atomic_directory(folder) as temporary:
        _cast(network, dtype).save_pretrained(temporary, safe_serialization=True)
        sha256 = store.digest(temporary)
        (temporary / "card.json").write_text(json.dumps(facts | {"digest": sha256}, indent=2) + "\n")
    return sha256


TASKS: dict[str, Callable[[TrainConfig], Task]] = {
    "dimr": dimr_task,
    "fitv2": fitv2_task,
    "segpic": segpic_task,
    "toybox-classifier": toybox_classifier_task,
}
"""Every task by the name that a config's ``task`` gives."""
