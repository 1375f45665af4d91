"""The tasks of networks that make pictures of classes, and of the classifier that measures them."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from belvedere.apps.config import ExportConfig, TrainConfig, call
from belvedere.apps.latents import Loss, load_vae, of_data, shape_of
from belvedere.apps.task import (
    ANY,
    SHARE,
    Groups,
    Task,
    cast_weights,
    check_classes,
    check_numbers,
    export_network,
    make_dataset,
    make_network,
    save_grid,
)
from belvedere.apps.written import check_keys
from belvedere.data import Dataset
from belvedere.data.latents import MixedLatents, check_scale
from belvedere.errors import InputError
from belvedere.files import atomic_write
from belvedere.seeds import generator


def dimr_task(config: TrainConfig) -> Task:
    """DiMR: ``model`` is {variant: NAME, and fields that replace the variant's} or a full config; ``loss`` has
    ``class_dropout``."""
    from belvedere.generation import dimr
    from belvedere.generation.dimr_config import VARIANTS
    from belvedere.generation.pipelines import DiMRPipeline

    check_keys(config.loss, ("class_dropout",), "loss.")
    check_numbers(config.loss, class_dropout=SHARE)
    loss = partial(dimr.loss, **config.loss)
    return _generator_task(config, dimr.DiMR, VARIANTS, DiMRPipeline, loss, dimr.parameter_groups, _dimr_sheet)


def fitv2_task(config: TrainConfig) -> Task:
    """FiTv2: ``model`` is {variant: NAME, and fields that replace the variant's} or a full config; ``loss`` has
    ``class_dropout``, ``times`` and ``time_mean``."""
    from belvedere.generation import fitv2
    from belvedere.generation.fitv2_config import DEFAULTS, VARIANTS
    from belvedere.generation.fitv2_pipeline import FiTv2Pipeline

    check_keys(config.loss, ("class_dropout", "times", "time_mean"), "loss.")
    check_numbers(config.loss, class_dropout=SHARE, time_mean=ANY)
    if config.loss.get("times", "lognorm") not in ("lognorm", "uniform"):
        raise InputError(f"config loss.times {config.loss['times']!r}: choose lognorm or uniform")
    loss = partial(fitv2.loss, **config.loss)
    side = DEFAULTS.get(str(config.model.get("variant")), {}).get("default_side")
    pipeline = partial(FiTv2Pipeline, default_side=side)
    return _generator_task(config, fitv2.FiTv2, VARIANTS, pipeline, loss, fitv2.parameter_groups, _any_size_sheet)


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
    check_classes(config.data, dataset)
    model = make_network(cls, variants, config.model)
    if model.null_class != (classes := len(dataset.classes)):
        raise InputError(
            f"config model.num_classes: {classes} classes in the data need {classes + 1} (one is for no class), "
            f"not {model.config.num_classes}"
        )

    def make(network: Any) -> Any:
        if vae is not None:
            vae.to(network.device)
        return pipeline(network, vae=vae, **_defaults(dataset, config.export))

    ready = make(model)
    _check_shapes(config, ready, dataset)
    return Task(
        model=model,
        dataset=dataset,
        loss=of_data(loss, ready.any_size, vae),
        groups=groups,
        export=lambda network, folder, facts: _export_pipeline(make(network), config.export.dtype, folder, facts),
        sheet=lambda network, path: sheet(make(network), path),
    )


def _check_shapes(config: TrainConfig, pipeline: Any, dataset: Dataset) -> None:
    """Raise ``InputError`` unless the network can learn from the data what its pipeline makes."""
    network, vae, first = pipeline.network.config, pipeline.vae, dataset.batch([0])
    if not pipeline.any_size and "size" in first:
        raise InputError(
            f"config data.kind {config.data['kind']!r} has many sizes: {config.task} takes pictures of one"
        )
    if vae is not None:
        check_scale(vae)
        if vae.config.latent_channels != network.channels:
            raise InputError(f"config vae: has {vae.config.latent_channels} channels, the model {network.channels}")
    shape = shape_of(first, vae)
    what = "pictures" if vae is None and "moments" not in first else "latents"
    if shape[0] != network.channels:
        mend = "give their autoencoder as vae, or " if what == "pictures" else ""
        raise InputError(
            f"config data: {what} of {shape[0]} channels, the model has {network.channels}: {mend}"
            f"model.channels={shape[0]}"
        )
    if pipeline.any_size:
        latents = sorted(dataset.latent_sizes()) if isinstance(dataset, MixedLatents) else [shape[1:]]
        _check_patches(what, latents, network.patch)
        _check_patches("pictures", getattr(dataset, "sizes", ()), pipeline.unit)
    elif shape != pipeline.sample_shape:
        raise InputError(
            f"config data: {what} of {_spelled(shape[1:])}, the model makes {_spelled(pipeline.sample_shape[1:])}: "
            "give data of that size, or change model.stage_configs"
        )


def _check_patches(what: str, sizes: Iterable[Sequence[int]], unit: int) -> None:
    for size in sizes:
        if any(side % unit for side in size):
            raise InputError(f"config data: {what} of {_spelled(size)} do not divide into patches of {unit}")


def _spelled(size: Sequence[int]) -> str:
    height, width = size
    return f"{width}x{height}"


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


def _any_size_sheet(pipeline: Any, path: Path, columns: int = 12) -> None:
    """Write a sheet of pictures, one class a column, a row each square, upright and wide, with fixed seeds."""
    if _makes_latents(pipeline):
        return
    from belvedere.apps.output import sheet

    columns = min(columns, pipeline.network.null_class)
    side = pipeline.default_size[0] // pipeline.unit
    grids = [(side, side), (-(-side * 3 // 2), side * 3 // 4), (side * 3 // 4, -(-side * 3 // 2))]
    sizes = [(h * pipeline.unit, w * pipeline.unit) for h, w in grids for _ in range(columns)]
    generators = [generator("sheet", i) for i in range(len(sizes))]
    images = pipeline([i % columns for i in range(len(sizes))], sizes=sizes, generator=generators).images
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as stream:
        sheet(images, [""] * len(images), columns).save(stream, "PNG")


def _export_pipeline(pipeline: Any, dtype: str, folder: Path, facts: dict[str, Any]) -> str:
    from belvedere.checkpoints import store

    pipeline.register_modules(network=cast_weights(pipeline.network, dtype))
    return store.save(pipeline, folder, facts)


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
        export=lambda network, folder, facts: export_network(network, config.export.dtype, folder, facts),
    )
