"""What a model folder is made of: configs checked against fixed tables, networks built from them, weights filled in.

A config is data: no name in it is imported, an unknown key is an error, and the tensors of a file are compared with
the network's, built without memory, before any is read.
"""

import inspect
import json
from collections.abc import Callable, Collection, Iterable, Iterator
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from belvedere.checkpoints import int8
from belvedere.checkpoints.tensors import check_finite, header, one_line, read_each
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
_QUICK_BLOCKS = 64
"""That are built without memory in no time, so that what does not fit can be listed."""
MAX_NUMBER = 1 << 16
"""Of what a config says of sizes."""


def read_json(path: Path, largest: int = _MAX_JSON) -> dict[str, Any]:
    """Return the JSON object in a file of at most ``largest`` bytes; ``InputError`` names what is wrong with it."""
    try:
        if not path.is_file():
            raise InputError(f"{path}: missing, or no plain file; get the model again")
        if path.stat().st_size > largest:
            raise InputError(f"{path}: larger than {largest >> 20} MB; not a config")
        value = json.loads(path.read_text("utf-8"), object_pairs_hook=_without_repeats)
    except (OSError, ValueError, RecursionError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{path}: not readable JSON ({one_line(error)}); get the model again") from error
    if not isinstance(value, dict):
        raise InputError(f"{path}: must be a JSON object")
    return value


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Refuse a key that is there twice: readers differ in which of the two counts."""
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key is there twice")
    return found


def known_class(table: dict[str, str], name: object, path: Path) -> Any:
    """Return the class that ``table`` (name -> module) has under ``name``; ``path`` is the file that names it."""
    if not isinstance(name, str) or name not in table:
        raise InputError(f"{path}: class {name!r} is not one Belvedere loads ({', '.join(table)})")
    return getattr(import_module(table[name]), name)


def build(cls: Any, values: dict[str, Any], path: Path) -> Any:
    """Return ``cls(**values)``; an unknown key or a wrong value is an ``InputError`` naming the file."""
    check_keys(values, fields(cls), path)
    try:
        return cls(**values)
    except (TypeError, ValueError, AttributeError, KeyError, RuntimeError, OverflowError) as error:
        raise InputError(f"{path}: {one_line(error)}") from error


def fields(cls: Any) -> set[str]:
    """Return the names of what a class is made from."""
    return set(inspect.signature(cls.__init__).parameters) - {"self"}


def check_keys(config: Collection[str], known: Collection[str], path: Path) -> None:
    """Raise ``InputError`` naming the file for a key of a config that is not one of ``known``."""
    if unknown := sorted(set(config) - set(known)):
        raise InputError(f"{path}: unknown key {one_line(unknown[0])[:80]!r}; known are {', '.join(sorted(known))}")


def load_network(folder: Path, cls: Any, dtype: "torch.dtype") -> Any:
    """Build a network from its config without memory, check the files against it, then read the weights."""
    import torch

    config = read_json(folder / "config.json")
    packed = int8.declared(config, folder / "config.json")
    check_numbers(config, folder / "config.json")
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise InputError(f"{folder}: no .safetensors file; the model is incomplete")
    _check_depth(config, sum(len(header(file)) for file in files), folder)
    with torch.device("meta"):
        values = {key: value for key, value in config.items() if not key.startswith("_")}
        network = build(cls, values, folder / "config.json")
    fill(network, files, folder, dtype, packed=packed)
    return network.eval()


Shapes = dict[str, tuple[int, ...]]
"""Of tensors, by their names."""
Named = Callable[[str], str | None]
"""Returns what a network calls the tensor that a file has under a name; None for one that it has no use for."""


def fill(
    network: Any, files: list[Path], folder: Path, dtype: "torch.dtype", *, packed: bool = False, named: Named = str
) -> None:
    """Give a network built without memory the weights in ``files`` of its folder, in ``dtype``; ``packed``: of int8.

    Raises ``InputError`` for files that do not fit the network, before memory is taken, and for broken weights.
    """
    wanted = {key: tuple(value.shape) for key, value in network.state_dict().items()}
    check_shapes(files, wanted, folder, partial(_shapes, int8.shapes if packed else header, named))
    for file in files:
        network.load_state_dict(_weights(file, dtype, packed, named), strict=False, assign=True)


def _shapes(read: Callable[[Path], Shapes], named: Named, path: Path) -> Shapes:
    """Return the shapes in a file by the names that a network has for them."""
    found = {key: (named(key), shape) for key, shape in read(path).items()}
    ours = {name: shape for name, shape in found.values() if name is not None}
    if len(ours) != sum(name is not None for name, _ in found.values()):
        raise InputError(f"{path}: a tensor is there twice, under its older name too; get the model again")
    return ours


def _weights(file: Path, dtype: "torch.dtype", packed: bool, named: Named) -> "dict[str, torch.Tensor]":
    """Return the tensors of a file in ``dtype``, converted one by one, so that there are never two copies of all."""
    weights = {}
    for key, value in int8.read_each(file) if packed else read_each(file):
        if (name := named(key)) is None:
            continue
        check_finite({key: value}, str(file))
        if not value.is_floating_point():
            raise InputError(f"{file}: tensors of integers ({key}); quantised weights are not supported")
        weights[name] = value.to(dtype)
    return weights


def walk(config: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """Yield every value in a config, however deep, with the key it stands under: lists, and then what is in them."""
    left = list(config.items())
    while left:
        key, value = left.pop()
        yield key, value
        if isinstance(value, dict):
            left += value.items()
        elif isinstance(value, list):
            left += [(key, item) for item in value]


def check_numbers(config: dict[str, Any], path: Path) -> None:
    """Refuse sizes no network of ours has, before anything is built from them."""
    for _, value in walk(config):
        if isinstance(value, int) and abs(value) > MAX_NUMBER:
            raise InputError(f"{path}: {value} is larger than any size Belvedere builds ({MAX_NUMBER})")


def _check_depth(config: dict[str, Any], tensors: int, folder: Path) -> None:
    """Refuse more blocks than the files have tensors: even without memory, building them takes time."""
    stages = config.get("stage_configs")
    parts = [config, *(stages if isinstance(stages, list) else [])]
    depths = [
        part[key] for part in parts if isinstance(part, dict) for key in part if key.endswith(("depth", "blocks"))
    ]
    blocks = sum(depth for depth in depths if isinstance(depth, int))
    check_blocks(blocks, tensors, folder)


def check_blocks(blocks: int, tensors: int, folder: Path, least: int = 1) -> None:
    """Raise ``InputError`` for more blocks than the files of ``folder`` have tensors for, at ``least`` each."""
    if blocks > max(tensors // least, _QUICK_BLOCKS):
        raise InputError(f"weights in {folder} do not fit its config.json: {tensors} tensors for {blocks} blocks")


def check_shapes(files: list[Path], expected: Shapes, folder: Path, read: Callable[[Path], Shapes] = header) -> None:
    """Raise ``InputError`` listing what is missing, unexpected or of another shape in safetensors ``files``.

    ``read`` gives the shapes in a file from its header: no memory is taken for one that does not fit its config.
    """
    if not files:
        raise InputError(f"{folder}: no .safetensors file; the model is incomplete")
    found: Shapes = {}
    for file in files:
        shapes = read(file)
        if twice := sorted(found.keys() & shapes.keys()):
            raise InputError(f"{folder}: tensors in two of its files ({_some(twice)}); get the model again")
        found |= shapes
    for index in folder.glob("*.safetensors.index.json"):
        places = {key: file.name for file in files for key in header(file)}
        if read_json(index).get("weight_map") != places:
            raise InputError(f"{index} does not list the tensors of the files beside it; get the model again")
    shared = expected.keys() & found.keys()
    wrong = (f"{key} {found[key]} is {expected[key]}" for key in shared if found[key] != expected[key])
    check_fit(folder, expected.keys() - found.keys(), wrong, found.keys() - expected.keys())


def check_fit(folder: Path, missing: Iterable[str], mismatched: Iterable[str], unexpected: Iterable[str] = ()) -> None:
    """Raise ``InputError`` listing tensors of the weights in ``folder``, where there are any that do not fit."""
    problems = {
        "missing": sorted(missing),
        "unexpected": sorted(unexpected),
        "of another shape than the config's": sorted(mismatched),
    }
    lines = [f"{len(keys)} {what} ({_some(keys)})" for what, keys in problems.items() if keys]
    if lines:
        raise InputError(f"weights in {folder} do not fit its config.json: tensors {'; '.join(lines)}")


def _some(keys: list[str]) -> str:
    return ", ".join(keys[:3]) + (", ..." if len(keys) > 3 else "")
