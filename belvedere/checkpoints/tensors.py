"""The only place that reads other people's tensor files.

Safetensors are opened by the safetensors library, which checks the header against the file. Torch files (zip or
older) are read in a child process (``converter``) under a memory, size and time limit, which writes the tensors to a
private temporary folder as safetensors; this process never unpickles.
"""

import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from belvedere.errors import InputError

if TYPE_CHECKING:
    import torch

TORCH_SUFFIXES = (".pth", ".pt", ".bin", ".ckpt", ".pth.tar")
CONTAINERS = ("ema", "model_ema", "ema_state_dict", "state_dict", "model_state_dict", "model", "module", "network")
"""Keys under which a training script keeps the weights, the averaged ones first."""

MAX_HEADER = 4 << 20
"""Bytes of the header of a safetensors file: 40,000 tensors; the safetensors library allows 25 times as much."""
PLAIN_ONLY = "Belvedere reads files of plain tensors only"

_MEGABYTE = 1 << 20
_DTYPES = {
    "F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16", "F8_E4M3": "float8_e4m3fn",
    "F8_E5M2": "float8_e5m2", "I64": "int64", "I32": "int32", "I16": "int16", "I8": "int8", "U8": "uint8",
    "U16": "uint16", "U32": "uint32", "U64": "uint64", "BOOL": "bool", "C64": "complex64",
}  # fmt: skip
"""Kinds of numbers: as safetensors calls them, and PyTorch."""


def read_state_dict(path: Path | str) -> "dict[str, torch.Tensor]":
    """Return the tensors of a weights file (.safetensors, .pth, .pt, .bin, .ckpt, .pth.tar), by name, on the CPU.

    Containers (``{"state_dict": ...}``, ``{"ema": ...}``) are opened, the prefixes ``module.`` and ``_orig_mod.``
    removed. Raises ``InputError`` for a missing, damaged, renamed or hostile file, for anything in it that is not
    a tensor, and for weights that are not finite. No code of the file runs.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"no weights file at {path}; check the path")
    if path.suffix == ".safetensors":
        tensors = dict(read_each(path))
    elif path.name.endswith(TORCH_SUFFIXES):
        tensors, _ = _load_in_child(path)
    else:
        known = ", ".join((".safetensors", *TORCH_SUFFIXES))
        raise InputError(f"{path.name}: not a weights file by its ending; known endings are {known}")
    tensors = unwrap(tensors, path.name)
    check_finite(tensors, path.name)
    return tensors


def read_training_file(path: Path | str, objects: Sequence[str]) -> "tuple[dict[str, torch.Tensor], dict[str, Any]]":
    """Return what a training script saved with ``torch.save``: tensors by dotted names, and the rest as plain values.

    ``objects``: qualified names of classes of which there may be instances. Those classes are not imported, of an
    instance only its attributes are read. The rest keeps its nesting, without the tensors. Raises ``InputError`` for
    anything else in the file, by name, and as ``read_state_dict`` does. No code of the file runs.
    """
    path = Path(path)
    if not path.is_file() or not path.name.endswith(TORCH_SUFFIXES):
        raise InputError(f"no weights file at {path} ({', '.join(TORCH_SUFFIXES)}); check the path")
    tensors, plain = _load_in_child(path, objects)
    check_finite(tensors, path.name)
    return tensors, plain


class Entry(NamedTuple):
    """A tensor of a safetensors file."""

    dtype: str
    """As the format calls it, such as BF16."""
    shape: tuple[int, ...]
    start: int
    """Of its bytes in the file."""
    stop: int


def entries(path: Path) -> dict[str, Entry]:
    """Return what tensors a safetensors file has, in the order of their bytes; only its header is read.

    Raises ``InputError`` when the file is damaged, has one name twice or a header of more than ``MAX_HEADER`` bytes, or
    is another kind of file under this name.
    """
    content, begin = _header_of(path)
    found = {
        name: Entry(about["dtype"], tuple(about["shape"]), *(begin + offset for offset in about["data_offsets"]))
        for name, about in content.items()
        if name != "__metadata__"
    }
    return dict(sorted(found.items(), key=lambda item: item[1].start))


def header(path: Path) -> dict[str, tuple[int, ...]]:
    """Return the shape of each tensor of a safetensors file; raises ``InputError`` as ``entries`` does."""
    return {name: entry.shape for name, entry in entries(path).items()}


def metadata(path: Path) -> dict[str, str]:
    """Return the texts in the header of a safetensors file; raises ``InputError`` as ``entries`` does."""
    texts: dict[str, str] = _header_of(path)[0].get("__metadata__", {})
    return texts


def _header_of(path: Path) -> tuple[dict[str, Any], int]:
    """Return a safetensors file's header, which the safetensors library found to fit the file, and where data begin."""
    from safetensors import SafetensorError, safe_open

    _refuse_renamed(path)
    try:
        with path.open("rb") as file:
            size = int.from_bytes(file.read(8), "little")
            if size > MAX_HEADER:
                raise ValueError(f"its header claims {size} bytes, at most {MAX_HEADER} are read")
            with safe_open(path, framework="pt"):
                return json.loads(file.read(size), object_pairs_hook=_without_repeats), 8 + size
    except (SafetensorError, OSError, ValueError) as error:
        raise InputError(f"weights file {path} is damaged ({one_line(error)}); get it again") from error


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a name appears twice in its header")
    return found


def read_each(path: Path, names: Collection[str] | None = None) -> "Iterator[tuple[str, torch.Tensor]]":
    """Yield name and tensor of a safetensors file, one by one in the order of their bytes, each in memory of its own.

    ``names``: only these are read; those that the file has not are left out.

    The file is read, not mapped: a mapped file that another program shortens takes the process down, and its pages
    count as a second copy while numbers are converted. Raises ``InputError`` as ``entries`` does, for a kind of numbers
    that PyTorch has not, and for a file that ends early.
    """
    import torch

    found = entries(path)
    with path.open("rb") as file:
        for name, entry in found.items():
            if names is not None and name not in names:
                continue
            dtype = getattr(torch, _DTYPES.get(entry.dtype, ""), None)
            if dtype is None:
                raise InputError(f"{path.name}: tensor '{name[:80]}' has kind {entry.dtype}, not read here")
            tensor = torch.empty(entry.shape, dtype=dtype, device="cpu")
            file.seek(entry.start)
            content = memoryview(tensor.reshape(-1).view(torch.uint8).numpy())  # type: ignore[arg-type]  # (n,) bytes
            if file.readinto(content) != entry.stop - entry.start:
                raise InputError(f"weights file {path} became shorter while it was read; get it again")
            yield name, tensor


def check_finite(tensors: "Mapping[str, torch.Tensor]", name: str) -> None:
    """Raise ``InputError`` naming the first tensor that holds NaN or infinity; ``name`` is the file's."""
    import torch

    for key, tensor in tensors.items():
        if not tensor.is_floating_point():
            continue
        chunks = tensor.reshape(-1).split(16 * _MEGABYTE)
        if not all(torch.isfinite(chunk.float() if chunk.itemsize == 1 else chunk).all() for chunk in chunks):
            raise InputError(f"{name}: tensor '{key}' holds NaN or infinity; the weights are broken, get them again")


def unwrap(loaded: object, name: str) -> "dict[str, torch.Tensor]":
    """Return the named tensors inside what a training script saved; ``name`` is the file's, for the message.

    Raises ``InputError`` naming the first thing found that is not a tensor.
    """
    import torch

    for _ in range(4):
        found = [loaded[key] for key in CONTAINERS if isinstance(loaded, Mapping) and key in loaded]
        inner = next((value for value in found if isinstance(value, Mapping)), None)
        if inner is None:
            break
        loaded = inner
    if not isinstance(loaded, Mapping):
        raise InputError(f"{name}: holds {kind_of(loaded)}, not named tensors; {PLAIN_ONLY}")
    for key, value in loaded.items():
        if not isinstance(key, str) or not isinstance(value, torch.Tensor):
            raise InputError(f"{name}: holds {kind_of(value)} under '{str(key)[:80]}'; {PLAIN_ONLY}")
    if not loaded:
        raise InputError(f"{name}: holds no tensors; choose the file with the weights")
    return _strip_prefixes(loaded, name)


def _strip_prefixes(tensors: "Mapping[str, torch.Tensor]", name: str) -> "dict[str, torch.Tensor]":
    stripped = {key.replace("_orig_mod.", ""): value for key, value in tensors.items()}
    while all(key.startswith("module.") for key in stripped):
        stripped = {key.removeprefix("module."): value for key, value in stripped.items()}
    if len(stripped) != len(tensors):
        raise InputError(f"{name}: two tensors have one name once '_orig_mod.' is removed; the file is inconsistent")
    return stripped


def kind_of(value: object) -> str:
    """Return what a value is, for a message."""
    return f"a {type(value).__module__}.{type(value).__qualname__}".replace("a builtins.", "a Python ")


def one_line(error: object) -> str:
    """Return a message without line breaks, control characters or more than 300 characters."""
    return re.sub(r"[^ -~]+", " ", str(error)).strip()[:300]


def starts_like_pickle(path: Path) -> bool:
    """Return whether a file begins as a pickle of protocol 2 to 5 does."""
    with path.open("rb") as file:
        start = file.read(2)
    return len(start) == 2 and start[0] == 0x80 and start[1] in (2, 3, 4, 5)


def _refuse_renamed(path: Path) -> None:
    """Name a torch archive or a pickle that calls itself safetensors; it is never tried as what it is."""
    with path.open("rb") as file:
        start = file.read(9)
    if start[8:] != b"{" and (start[:2] == b"PK" or starts_like_pickle(path)):
        raise InputError(f"{path.name} is a pickle or zip archive renamed .safetensors; refused, it was not opened")


def _load_in_child(path: Path, objects: Sequence[str] = ()) -> "tuple[dict[str, torch.Tensor], dict[str, Any]]":
    with tempfile.TemporaryDirectory(prefix="belvedere-", ignore_cleanup_errors=True) as folder:
        target = Path(folder) / "tensors.safetensors"
        _run_child(path.resolve(), target, objects)
        return dict(read_each(target)), json.loads(metadata(target)["plain"])


def _run_child(source: Path, target: Path, objects: Sequence[str]) -> None:
    megabytes = source.stat().st_size // _MEGABYTE
    root = str(Path(__file__).parents[2])
    path = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH", "")]))
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-P", "-m", "belvedere.checkpoints.converter", str(source), str(target), *objects]
    try:
        done = subprocess.run(
            command, env=environment, cwd=target.parent, capture_output=True, timeout=600 + megabytes // 2
        )
    except subprocess.TimeoutExpired as error:
        raise InputError(f"{source.name}: took too long to read; the file is damaged or hostile") from error
    if done.returncode == 0:
        return
    reason = one_line(done.stdout.decode("utf-8", "replace"))
    if done.returncode != 2 or not reason:
        reason = f"{source.name}: the reader stopped (code {done.returncode}); the file is damaged or hostile"
    raise InputError(reason)
