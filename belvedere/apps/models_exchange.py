"""Models from elsewhere and to elsewhere: official files into folders, folders in other number formats, graphs."""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from belvedere.checkpoints import int8, store
from belvedere.checkpoints.components import CODEC, SCENES
from belvedere.errors import InputError

if TYPE_CHECKING:
    from torch import nn

SYSTEMS = ("dimr", "fitv2", "nvist", "segpic", "neti", "stable-diffusion")
FORMATS = ("safetensors", "torch-export", "onnx")
_OF_ITS_NUMBERS = ("digest", "quality")
"""Facts of a card that hold for the numbers it was written with, and no others."""
_OF_AN_EXPORT = ("exported from", "dtype", "rounding")
"""Facts of a card that the next export has too: those of the earlier ones stay in a list."""


def import_official(
    file: Path,
    system: str,
    out: Path,
    *,
    config: str | None = None,
    distances: tuple[float, float] | None = None,
    vae: str | None = None,
    layout: Path | None = None,
    dtype: str = "float32",
) -> str:
    """Write an official file as a model folder with its card (NeTI: as a concept file ``out``); return its digest.

    ``config``: the name of a variant where shapes do not tell (FiTv2's HR files). ``distances``: near and far of NViST,
    which no file tells. ``vae``: the autoencoder of DiMR's and FiTv2's latents, a folder or a hub id; without it the
    pipeline makes latents only. ``layout``: a model folder of the form of a Stable Diffusion checkpoint, which
    the one file does not tell; weights are not needed there. Raises ``InputError`` for files that are not of the
    system, damaged or hostile.
    """
    if system not in SYSTEMS:
        raise InputError(f"--system {system!r}: choose from {', '.join(SYSTEMS)}")
    _check_dtype(dtype)
    for option, given, systems in (
        ("--vae", vae, ("dimr", "fitv2")),
        ("--near and --far", distances, ("nvist",)),
        ("--config", config, ("dimr", "fitv2", "segpic")),
        ("--layout", layout, ("stable-diffusion",)),
        ("--dtype", None if dtype == "float32" else dtype, tuple(name for name in SYSTEMS if name != "neti")),
    ):
        if given is not None and system not in systems:
            raise InputError(f"{option} goes with {' and '.join(systems)}, not with {system}: leave it out")
    if system == "segpic" and dtype == "int8":
        raise InputError(int8.NO_CODEC)
    if not file.is_file():
        raise InputError(f"no file {file}; check the path")
    if system == "neti":
        return _import_concept(file, out)
    store.check_target(out)
    autoencoder = None if vae is None else _autoencoder(vae, dtype)
    with file.open("rb") as stream:
        sha256 = hashlib.file_digest(stream, "sha256").hexdigest()
    source = {"file": file.name, "bytes": file.stat().st_size, "sha256": sha256}
    facts = {"name": out.name, "system": system, "imported from": source, "variant": config, "dtype": dtype}
    facts = {key: x for key, x in facts.items() if x is not None}
    if system == "stable-diffusion":
        return _import_single_file(file, layout, out, facts, dtype)
    from belvedere.checkpoints.official import load_official

    told: Mapping[str, Any] | str | None = config
    if system == "nvist":
        told = None if distances is None else dict(zip(("near", "far"), distances, strict=True))
    network = load_official(system, file, told)
    return _write(network, system, out, facts, dtype, autoencoder)


def _autoencoder(name: str, dtype: str) -> Any:
    """Return the autoencoder of latents; ``InputError`` for one that is not of their scale."""
    import torch

    from belvedere.checkpoints.autoencoder import find_autoencoder, load_autoencoder
    from belvedere.data.latents import check_scale

    autoencoder = load_autoencoder(find_autoencoder(name), store.memory_dtype(dtype), torch.device("cpu"))
    check_scale(autoencoder)
    return autoencoder


def _write(network: Any, system: str, out: Path, facts: dict[str, Any], dtype: str, autoencoder: Any) -> str:
    check_range(network, dtype)
    if system == "segpic":
        from belvedere.checkpoints.codecs import save_codec

        return save_codec(network, dtype, out, facts)
    if system == "nvist":
        from belvedere.checkpoints.views import save_scene_model

        return save_scene_model(network, dtype, out, facts)
    from torch import nn

    from belvedere.generation.fitv2_config import DEFAULTS
    from belvedere.generation.fitv2_pipeline import FiTv2Pipeline
    from belvedere.generation.pipelines import DiMRPipeline

    network = nn.Module.to(network, store.memory_dtype(dtype))
    if system == "dimr":
        return store.save(DiMRPipeline(network, vae=autoencoder), out, facts, dtype=dtype)
    told = DEFAULTS.get(facts.get("variant", ""), {})
    return store.save(FiTv2Pipeline(network, vae=autoencoder, **told), out, facts, dtype=dtype)


def _import_single_file(file: Path, layout: Path | None, out: Path, facts: dict[str, Any], dtype: str) -> str:
    from torch import nn

    from belvedere.checkpoints.single_file import load_single_file

    if layout is None:
        raise InputError(
            "stable-diffusion needs --layout: a folder of its form as diffusers has it, weights not needed"
        )
    pipeline = load_single_file(file, layout)
    for part in pipeline.components.values():
        if isinstance(part, nn.Module):
            check_range(part, dtype)
            nn.Module.to(part, store.memory_dtype(dtype))
    return store.save(pipeline, out, facts, dtype=dtype)


def _import_concept(file: Path, out: Path) -> str:
    from belvedere.apps.personalize import import_official as take_over

    take_over(file, out)
    with out.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def export(name_or_path: str, out: Path, *, dtype: str = "float32", kind: str = "safetensors") -> list[Path]:
    """Write a model in another form into the folder ``out``; return what was written.

    ``kind`` "safetensors": the model's folder with weights in ``dtype``; "torch-export" and "onnx": one file for each
    part of its networks, float32, of fixed sizes (``checkpoints.graphs``). Raises ``InputError`` for models and folders
    that it cannot do.
    """
    if kind not in FORMATS:
        raise InputError(f"--format {kind!r}: choose from {', '.join(FORMATS)}")
    _check_dtype(dtype)
    folder = store.resolve(name_or_path)
    if out.exists() and out.resolve() == folder.resolve():
        raise InputError(f"{out} is the model itself: choose another folder")
    if out.exists() and not out.is_dir():
        raise InputError(f"{out} is a file: choose a folder")
    if kind == "safetensors":
        store.check_target(out)
        _export_folder(folder, out, dtype)
        return [out]
    if dtype != "float32":
        raise InputError(f"--dtype {dtype}: graphs are exported in float32; leave it out")
    return _export_graphs(folder, out, kind)


def _check_dtype(dtype: str) -> None:
    if dtype not in store.STORED:
        raise InputError(f"--dtype {dtype!r}: choose from {', '.join(store.STORED)}")


def _export_folder(folder: Path, out: Path, dtype: str) -> None:
    import torch
    from torch import nn

    memory = store.memory_dtype(dtype)
    digest, kind = store.verify(folder), store.read_json(folder / "model_index.json").get("_class_name")
    facts = {key: value for key, value in store.card(folder).items() if key not in _OF_ITS_NUMBERS}
    if "exported from" in facts:
        last = {key: facts[key] for key in _OF_AN_EXPORT if key in facts}
        facts["earlier exports"] = [*facts.get("earlier exports", []), last]
    facts |= {"exported from": digest, "dtype": dtype}
    if kind == CODEC:
        from belvedere.checkpoints.codecs import load_codec, save_codec

        if dtype == "int8":
            raise InputError(int8.NO_CODEC)
        model = load_codec(folder, "cpu").model
        save_codec(model, dtype, out, facts | {"rounding": rounding(model, dtype)})
    elif kind == SCENES:
        from belvedere.checkpoints.views import open_scene_model, save_scene_model

        scene = open_scene_model(folder, "cpu")
        facts |= {"rounding": rounding(scene.network, dtype)}
        save_scene_model(scene.network, dtype, out, facts, distance=scene.distance, fov=scene.fov, pitch=scene.pitch)
    else:
        pipeline, _ = store.load_verified(folder, torch.float32, torch.device("cpu"))
        networks = {name: x for name, x in pipeline.components.items() if isinstance(x, nn.Module)}
        whole = {name: dtype if name in int8.COMPONENTS else str(memory).removeprefix("torch.") for name in networks}
        facts |= {"rounding": max(rounding(network, whole[name]) for name, network in networks.items())}
        for network in networks.values():
            nn.Module.to(network, memory)
        store.save(pipeline, out, facts, dtype=dtype)


def check_range(network: "nn.Module", dtype: str) -> None:
    """Raise ``InputError`` for weights beyond the range of ``dtype``, which would become infinite."""
    import torch

    largest = torch.finfo(store.memory_dtype(dtype)).max
    for name, weight in network.state_dict().items():
        if weight.is_floating_point() and weight.numel() and float(max(map(abs, weight.aminmax()))) > largest:
            raise InputError(f"--dtype {dtype}: tensor {name} has numbers beyond its range; use bfloat16")


def rounding(network: "nn.Module", dtype: str) -> float:
    """Return what rounding to ``dtype`` costs the weights: the root mean square of the change over that of the weights.

    Raises ``InputError`` for weights beyond the range of ``dtype``.
    """
    import torch

    check_range(network, dtype)
    change = total = 0.0
    for name, weight in network.state_dict().items():
        rounded = int8.rounded(name, weight) if dtype == "int8" else weight.to(getattr(torch, dtype))
        change += float((weight.float() - rounded.float()).square().sum(dtype=torch.float64))
        total += float(weight.float().square().sum(dtype=torch.float64))
    return (change / total) ** 0.5 if total else 0.0


def _export_graphs(folder: Path, out: Path, kind: str) -> list[Path]:
    import torch
    from torch import nn

    from belvedere.checkpoints import front, graphs

    loaded = front.load(folder, "float32", "cpu")
    networks = {"network": getattr(loaded, "model", loaded)}
    if hasattr(loaded, "components"):
        networks = {name: part for name, part in loaded.components.items() if isinstance(part, nn.Module)}
    write, suffix = {"torch-export": (graphs.write_program, "pt2"), "onnx": (graphs.write_onnx, "onnx")}[kind]
    out.mkdir(parents=True, exist_ok=True)
    speaker = networks.get("text_encoder")
    tokens = graphs.TOKENS if speaker is None else speaker.config.max_position_embeddings
    written = []
    for name, network in networks.items():
        for part, call in graphs.parts(nn.Module.to(network, torch.float32), tokens).items():
            path = out / f"{name}-{part}.{suffix}"
            write(call, path.with_name(f".{path.name}"))
            path.with_name(f".{path.name}").replace(path)
            written.append(path)
    return written
