"""Where models live: the embedded ones, folders, the hub; how one is found, checked, loaded and saved.

A model is a diffusers pipeline folder: ``model_index.json``, one folder a component (``network/config.json``,
``network/diffusion_pytorch_model.safetensors``) and, when Belvedere made it, ``card.json`` with its digest,
``README.md`` with the same facts for people and hubs, and ``manifest.json`` with the digest of every file.
"""

import difflib
import hashlib
import json
import os
import re
import secrets
import shutil
from collections.abc import Callable, Iterable, Mapping
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from belvedere.checkpoints import int8, manifest, readme
from belvedere.checkpoints.components import (
    CODEC,
    PIPELINES,
    SCENES,
    build,
    check_keys,
    fields,
    known_class,
    read_json,
)
from belvedere.checkpoints.published import load_component, quiet
from belvedere.checkpoints.text_to_image import TEXT_TO_IMAGE, files_read, load_text_to_image
from belvedere.errors import InputError
from belvedere.files import atomic_write, expanded

if TYPE_CHECKING:
    import torch

EMBEDDED = Path(__file__).with_name("embedded")
KINDS = (*PIPELINES, *TEXT_TO_IMAGE, SCENES, CODEC)
"""Models that are loaded, as ``model_index.json`` calls them."""
DTYPES = ("auto", "float32", "bfloat16", "float16")
"""Of the weights in memory."""
STORED = ("float32", "bfloat16", "float16", "int8")
"""Of the weights in a file."""
SHARD = 5_000_000_000
"""Bytes of weights in one file: what some file systems, and the hub's tools, handle well."""

_ABOUT = ("model_index.json", "card.json", manifest.NAME, readme.NAME)
_WHOLE = ("*.json", "*.safetensors", "*/*.json", "*/*.safetensors", "*/*.txt")
"""Patterns of the configs and weights of a model."""
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+(@[\w./-]+)?")


def embedded() -> list[str]:
    """Return the names of the models the package carries."""
    return sorted(path.parent.name for path in EMBEDDED.glob("*/model_index.json"))


def resolve(name_or_path: str | Path, *, download: bool = True) -> Path:
    """Return the folder of a model: an embedded name, a folder, or a hub id ``owner/name[@revision]``.

    A hub id is downloaded through huggingface_hub's cache, only what is read of it; without ``download`` it must be in
    the cache. Raises ``InputError`` when there is no such model, or it cannot be fetched.
    """
    name = str(name_or_path)
    if name in embedded():
        return EMBEDDED / name
    folder = expanded(name)
    if (folder / "model_index.json").is_file():
        return folder
    if folder.is_file():
        raise InputError(f"no model {name!r}: it is one file; 'belvedere models import' makes a folder of one")
    if folder.exists():
        raise InputError(f"model {name}: no model_index.json there; give the folder of a saved model")
    if _HUB_ID.fullmatch(name):
        return _fetch(name, download)
    near = difflib.get_close_matches(name, embedded(), n=1)
    hint = f"did you mean {near[0]}?" if near else f"embedded are {', '.join(embedded()) or 'none'}"
    raise InputError(f"no model {name!r}: {hint} (or give a folder, or a hub id owner/name)")


def _fetch(hub_id: str, download: bool) -> Path:
    from huggingface_hub import snapshot_download

    repository, _, revision = hub_id.partition("@")
    get: Any = partial(snapshot_download, repository, revision=revision or None, local_files_only=not download)
    try:
        folder = Path(get(allow_patterns=_ABOUT))
        if (folder / "model_index.json").is_file():
            check_kind(hub_id, folder)
            folder = Path(get(allow_patterns=[*_ABOUT, *_patterns(folder)]))
    except InputError:
        raise
    except Exception as error:
        if not download:
            raise InputError(f"model {hub_id} is not on this machine; --model {hub_id} fetches it") from error
        reason = f"{type(error).__name__}: {str(error).splitlines()[0][:160]}"
        raise InputError(f"model {hub_id}: no such folder, and the hub did not give it ({reason})") from error
    if not (folder / "model_index.json").is_file():
        raise InputError(f"model {hub_id}: the repository has no model_index.json; it is not a pipeline")
    return folder


def check_kind(name: str, folder: Path) -> None:
    """Raise ``InputError`` unless the model in a folder, called ``name``, is one of ``KINDS``."""
    kind = str(read_json(folder / "model_index.json").get("_class_name"))
    if kind not in KINDS:
        raise InputError(f"model {name}: Belvedere loads no {kind[:80]!r}; give one of {', '.join(KINDS)}")


def card(folder: Path) -> dict[str, Any]:
    """Return what is known of a model (config, data, steps, quality, digest); empty when it has no card."""
    path = folder / "card.json"
    return read_json(path) if path.is_file() else {}


def amend_card(folder: Path, facts: dict[str, Any]) -> None:
    """Add ``facts`` to a model's card, which must exist; what it already said under other keys stays."""
    if not (folder / "card.json").is_file():
        raise InputError(f"model {folder}: it has no card.json to write into")
    _write_card(folder, {**card(folder), **facts})
    manifest.update(folder, ("card.json", readme.NAME))


def _write_card(folder: Path, facts: dict[str, Any]) -> None:
    index = folder / "model_index.json"
    with atomic_write(folder / "card.json") as file:
        file.write(json.dumps(facts, indent=2).encode() + b"\n")
    with atomic_write(folder / readme.NAME) as file:
        file.write(readme.text(facts, read_json(index) if index.is_file() else {}).encode())


def digest(folder: Path, known: Mapping[str, manifest.Entry] | None = None) -> str:
    """Return the SHA-256 of a model: over the names and bytes of its configs and weights, in sorted order.

    Of a text-to-image model that Belvedere did not write, only those that are read count. ``known``: entries of its
    manifest for files that are not to be read again.
    """
    return _digest(folder, _patterns(folder), known or {})


def _patterns(folder: Path) -> Iterable[str]:
    """Return patterns of the files that make the model in a folder."""
    index = folder / "model_index.json"
    if index.is_file() and not any((folder / name).is_file() for name in ("card.json", manifest.NAME)):
        content = read_json(index)
        if str(content.get("_class_name")) in TEXT_TO_IMAGE:
            return files_read(content)
    return _WHOLE


def _digest(folder: Path, patterns: Iterable[str], known: Mapping[str, manifest.Entry]) -> str:
    total = hashlib.sha256()
    files = {path for pattern in patterns for path in folder.glob(pattern)}
    for path in sorted(files - {folder / "card.json", folder / manifest.NAME}):
        name = path.relative_to(folder).as_posix()
        if name.startswith(".") or "/." in name:  # what tools leave, such as the hub's .cache
            continue
        entry = known[name] if name in known else manifest.Entry.of(path)
        total.update(f"{name} {entry.sha256}\n".encode())
    return total.hexdigest()


def verify(folder: Path, *, full: bool = True) -> str:
    """Return the digest of a model; raise ``InputError`` when its card promises another.

    ``full`` reads every byte. Else, of files of more than ``manifest.SMALL`` bytes, only the size is compared with the
    manifest; a model without one is read whole all the same.
    """
    has_manifest = (folder / manifest.NAME).is_file()
    known = {}
    if not full and has_manifest and not _differences(folder, full=False):
        known = {name: entry for name, entry in manifest.read(folder).items() if entry.bytes > manifest.SMALL}
    found = digest(folder, known)
    promised = card(folder).get("digest", found)
    if promised != found:
        wrong = _differences(folder, full=True) if has_manifest else []
        raise InputError(
            f"model {folder.name}: its files do not match the digest in card.json"
            f"{f' ({wrong[0]})' if wrong else ''}; it is damaged or was changed, "
            "get it again (or remove card.json if you changed it)"
        )
    return found


def _differences(folder: Path, *, full: bool) -> list[str]:
    try:
        return manifest.differences(folder, full=full)
    except InputError as error:
        return [str(error)]


def faults(folder: Path) -> list[str]:
    """Return what is wrong with the files of a model that Belvedere wrote, a line each; nothing where all is right.

    Every byte of every file counts, of the card and the manifest too.
    """
    if not (folder / manifest.NAME).is_file():
        return [f"it has no {manifest.NAME}: made before there were any, or not by Belvedere"]
    wrong = _differences(folder, full=True)
    try:
        verify(folder)
    except InputError as error:
        wrong.append(str(error))
    return wrong


def load(
    name_or_path: str | Path,
    dtype: "torch.dtype | str | None" = None,
    device: "torch.device | str | None" = None,
    *,
    fast: bool = False,
) -> Any:
    """Return the ready pipeline of an embedded name, a folder or a hub id.

    ``dtype``: float32 (default on a CPU), bfloat16 (default on a GPU), float16 (GPU only). ``device``: by default a
    GPU if there is one. ``fast``: large files are compared with the manifest by their size only (``verify``). Raises
    ``InputError`` for anything unknown, damaged or inconsistent; no code of the model runs, names in its configs are
    looked up in fixed tables.
    """
    target = choose_device(device)
    return load_verified(resolve(name_or_path), choose_dtype(dtype, target), target, fast=fast)[0]


def load_verified(folder: Path, dtype: "torch.dtype", device: "torch.device", *, fast: bool = False) -> tuple[Any, str]:
    """Return the pipeline in a model folder and the model's digest; see ``load``."""
    found = verify(folder, full=not fast)
    index = read_json(folder / "model_index.json")
    if index.get("_class_name") == CODEC:
        raise InputError(f"model {folder.name} is a codec: belvedere compress and belvedere.load_codec take it")
    if index.get("_class_name") == SCENES:
        raise InputError(f"model {folder.name} makes scenes: belvedere view and belvedere.load_scene_model take it")
    if str(index.get("_class_name")) in TEXT_TO_IMAGE:
        return load_text_to_image(folder, index, dtype).to(device), found
    cls = known_class(PIPELINES, index.get("_class_name"), folder / "model_index.json")
    values = {key: value for key, value in index.items() if not key.startswith("_")}
    check_keys(values, fields(cls), folder / "model_index.json")
    for name, value in values.items():
        if isinstance(value, list) and len(value) == 2:
            values[name] = load_component(folder / name, name, value, dtype)
    return build(cls, values, folder / "model_index.json").to(device), found


def choose_device(device: "torch.device | str | None") -> "torch.device":
    """Return the device asked for; ``None`` or ``"auto"`` is a GPU if there is one, else the CPU."""
    import torch

    if device is None or device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        chosen = torch.device(device)
    except RuntimeError as error:
        raise InputError(f"no device {str(device)!r}; choose auto, cpu, cuda or cuda:N") from error
    if chosen.type not in ("cpu", "cuda"):
        raise InputError(f"device {chosen} is not supported; choose auto, cpu, cuda or cuda:N")
    if chosen.type == "cuda" and (chosen.index or 0) >= torch.cuda.device_count():
        raise InputError(f"no device {chosen} on this machine ({torch.cuda.device_count()} GPUs); use --device cpu")
    return chosen


def choose_dtype(dtype: "torch.dtype | str | None", device: "torch.device") -> "torch.dtype":
    """Return the number format asked for; ``None`` or ``"auto"`` is float32 on a CPU, bfloat16 on a GPU."""
    import torch

    if dtype is None or dtype == "auto":
        return torch.float32 if device.type == "cpu" else torch.bfloat16
    name = str(dtype).removeprefix("torch.")
    if name not in DTYPES:
        raise InputError(f"no dtype {name!r}; choose {', '.join(DTYPES)}")
    if name == "float16" and device.type == "cpu":
        raise InputError("float16 is unusably slow on a CPU; use --dtype bfloat16 or float32")
    chosen: torch.dtype = getattr(torch, name)
    return chosen


def memory_dtype(stored: str) -> "torch.dtype":
    """Return the number format of a network whose weights are to be stored in one of ``STORED``."""
    import torch

    chosen: torch.dtype = getattr(torch, "float16" if stored == "int8" else stored)
    return chosen


def save(pipeline: Any, folder: Path, facts: dict[str, Any], *, shard: int = SHARD, dtype: str | None = None) -> str:
    """Write the folder of a pipeline and its card, weights in files of at most ``shard`` bytes; see ``save_folder``."""
    write = partial(pipeline.save_pretrained, safe_serialization=True, max_shard_size=shard)
    with quiet() if type(pipeline).__name__ in TEXT_TO_IMAGE else nullcontext():
        return save_folder(write, folder, facts, dtype)


def save_folder(write: Callable[[Path], object], folder: Path, facts: dict[str, Any], dtype: str | None = None) -> str:
    """Write a model folder and its card (``facts`` and the digest) whole or not at all; return the digest.

    ``write(path)`` writes the model to a folder that does not exist yet. A model already there is replaced. ``dtype``
    "int8": what it writes is of ``memory_dtype``, and becomes int8. Raises ``InputError`` as ``check_target`` does.
    """
    check_target(folder)
    folder = folder.resolve()
    folder.parent.mkdir(parents=True, exist_ok=True)
    fresh = folder.with_name(f".{folder.name}.{secrets.token_hex(4)}.tmp")
    try:
        write(fresh)
        if dtype == "int8":
            int8.quantise(fresh)
        found = _digest(fresh, _WHOLE, {})
        _write_card(fresh, {**facts, "digest": found})
        manifest.write(fresh)
        _settle(fresh)
        _swap(fresh, folder)
    finally:
        shutil.rmtree(fresh, ignore_errors=True)
    return found


def check_target(folder: Path) -> None:
    """Raise ``InputError`` unless a model may be written to ``folder``: new, empty, or with nothing but a model.

    That is one with a manifest, and with no file, hidden ones too, that is not in it: all of it will be removed.
    """
    if not folder.name:
        raise InputError(f"{folder}: no name of a folder; give one to be made")
    if folder.exists() and not folder.is_dir():
        raise InputError(f"{folder} is a file: choose a folder")
    if not folder.exists() or not any(folder.iterdir()):
        return
    if not (folder / manifest.NAME).is_file():
        raise InputError(f"{folder}: not empty and not a model that Belvedere wrote; choose another folder")
    if strange := manifest.strangers(folder):
        raise InputError(f"{folder} holds {strange[0]}, which is no part of its model; choose another folder")


def _settle(folder: Path) -> None:
    """Put every file on the disk, readable by whoever can read the card (safetensors makes its files private)."""
    mode = (folder / "card.json").stat().st_mode
    for path in folder.rglob("*"):
        if path.is_file():
            path.chmod(mode)
            with path.open("rb") as file:
                os.fsync(file.fileno())


def _swap(fresh: Path, folder: Path) -> None:
    """Put ``fresh`` in the place of ``folder``, which stays as it is where that fails."""
    old = fresh.with_suffix(".old")
    try:
        if folder.exists():
            folder.rename(old)
        fresh.rename(folder)
    except BaseException:
        if old.exists() and not folder.exists():
            old.rename(folder)
        raise
    shutil.rmtree(old, ignore_errors=True)
