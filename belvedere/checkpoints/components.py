"""What a model folder is made of: configs checked against fixed tables, networks built from them, weights filled in.

A config is data: no name in it is imported, an unknown key is an error, and the tensors of a file are compared with
the network's, built without memory, before any is read.
"""

import inspect
import json
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from belvedere.checkpoints.tensors import check_finite, header, one_line
from belvedere.errors import InputError

if TYPE_CHECKING:
    import torch

PIPELINES = {
    "DiMRPipeline": "belvedere.generation.pipelines",
    "FiTv2Pipeline": "belvedere.generation.fitv2_pipeline",
}
NETWORKS = {"DiMR": "belvedere.generation.dimr", "FiTv2": "belvedere.generation.fitv2"}
CODEC = "SegPICCodec"
"""What ``model_index.json`` calls a codec, which is no pipeline."""
SCENES = "NViSTModel"
"""What it calls a network that makes scenes of pictures, which is none either."""

_MAX_JSON = 4 << 20
_MAX_NUMBER = 1 << 16


def read_json(path: Path) -> dict[str, Any]:
    """Return the JSON object in a file of at most 4 MB; ``InputError`` names what is wrong with it."""
    try:
        if path.stat().st_size > _MAX_JSON:
            raise InputError(f"{path}: larger than {_MAX_JSON >> 20} MB; not a config")
        value = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{path}: not readable JSON ({one_line(error)}); get the model again") from error
    if not isinstance(value, dict):
        raise InputError(f"{path}: must be a JSON object")
    return value


def known_class(table: dict[str, str], name: object, path: Path) -> Any:
    """Return the class that ``table`` (name -> module) has under ``name``; ``path`` is the file that names it."""
    if not isinstance(name, str) or name not in table:
        raise InputError(f"{path}: class {name!r} is not one Belvedere loads ({', '.join(table)})")
    return getattr(import_module(table[name]), name)


def build(cls: Any, values: dict[str, Any], path: Path) -> Any:
    """Return ``cls(**values)``; an unknown key or a wrong value is an ``InputError`` naming the file."""
    known = set(inspect.signature(cls.__init__).parameters) - {"self"}
    if unknown := sorted(set(values) - known):
        raise InputError(f"{path}: unknown key {unknown[0]!r}; known are {', '.join(sorted(known))}")
    try:
        return cls(**values)
    except (TypeError, ValueError, AttributeError, KeyError, RuntimeError, OverflowError) as error:
        raise InputError(f"{path}: {one_line(error)}") from error


def load_component(folder: Path, name: str, entry: list[Any], dtype: "torch.dtype") -> Any:
    """Load one component of a pipeline; ``entry`` is the (library, class) pair of model_index.json."""
    if entry[1] is None:
        return None
    if name == "network":
        return load_network(folder, known_class(NETWORKS, entry[1], folder.parent / "model_index.json"), dtype)
    import diffusers

    base: Any = {"vae": diffusers.AutoencoderKL, "scheduler": diffusers.SchedulerMixin}.get(name)
    cls: Any = getattr(diffusers, str(entry[1]), None)
    if base is None or base not in getattr(cls, "__mro__", ()):
        raise InputError(f"{folder.parent}: component {name} of class {entry[1]!r} is not one Belvedere loads")
    options = {} if name == "scheduler" else {"use_safetensors": True, "torch_dtype": dtype}
    try:
        return cls.from_pretrained(folder, local_files_only=True, **options)
    except (OSError, ValueError, RuntimeError, TypeError, KeyError) as error:
        raise InputError(f"{folder}: cannot be loaded ({one_line(error)}); get the model again") from error


def load_network(folder: Path, cls: Any, dtype: "torch.dtype") -> Any:
    """Build a network from its config without memory, check the files against it, then read the weights."""
    import torch
    from safetensors.torch import load_file

    config = read_json(folder / "config.json")
    _check_numbers(config, folder / "config.json")
    with torch.device("meta"):
        values = {key: value for key, value in config.items() if not key.startswith("_")}
        network = build(cls, values, folder / "config.json")
    files = sorted(folder.glob("*.safetensors"))
    check_shapes(files, {key: tuple(value.shape) for key, value in network.state_dict().items()}, folder)
    for file in files:
        weights = load_file(file)
        check_finite(weights, str(file))
        if whole := [key for key, value in weights.items() if not value.is_floating_point()]:
            raise InputError(f"{file}: tensors of integers ({_some(whole)}); quantised weights are not supported")
        weights = {key: value.to(dtype, copy=True) for key, value in weights.items()}
        network.load_state_dict(weights, strict=False, assign=True)
    return network.eval()


def _check_numbers(value: Any, path: Path) -> None:
    """Refuse sizes no network of ours has, before anything is built from them."""
    if isinstance(value, dict | list):
        for item in value.values() if isinstance(value, dict) else value:
            _check_numbers(item, path)
    elif isinstance(value, int) and abs(value) > _MAX_NUMBER:
        raise InputError(f"{path}: {value} is larger than any size Belvedere builds ({_MAX_NUMBER})")


def check_shapes(files: list[Path], expected: dict[str, tuple[int, ...]], folder: Path) -> None:
    """Raise ``InputError`` listing what is missing, unexpected or of another shape in safetensors ``files``.

    Only headers are read: no memory is taken for a file that does not fit its config.
    """
    if not files:
        raise InputError(f"{folder}: no .safetensors file; the model is incomplete")
    found: dict[str, tuple[int, ...]] = {}
    for file in files:
        found |= header(file)
    shared = expected.keys() & found.keys()
    wrong = [f"{key} {found[key]} is {expected[key]}" for key in sorted(shared) if found[key] != expected[key]]
    problems = {
        "missing": sorted(expected.keys() - found.keys()),
        "unexpected": sorted(found.keys() - expected.keys()),
        "of another shape than the config's": wrong,
    }
    lines = [f"{len(keys)} {what} ({_some(keys)})" for what, keys in problems.items() if keys]
    if lines:
        raise InputError(f"weights in {folder} do not fit its config.json: tensors {'; '.join(lines)}")


def _some(keys: list[str]) -> str:
    return ", ".join(keys[:3]) + (", ..." if len(keys) > 3 else "")
