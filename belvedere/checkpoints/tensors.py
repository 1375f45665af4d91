"""The only place that reads other people's tensor files, and the only one that may touch a pickle.

Safetensors are opened by the safetensors library, which checks the header against the file. Torch files (zip or
older) are read by torch's weights-only reader in a child process under a memory, size and time limit, which
writes the tensors to a private temporary folder as safetensors; this process never unpickles.
"""

import json
import os
import re
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from belvedere.errors import InputError

if TYPE_CHECKING:
    import torch

TORCH_SUFFIXES = (".pth", ".pt", ".bin", ".ckpt")
CONTAINERS = ("ema", "model_ema", "ema_state_dict", "state_dict", "model_state_dict", "model", "module", "network")
"""Keys under which a training script keeps the weights, the averaged ones first."""

_MEGABYTE = 1 << 20
_MAX_ENTRIES = 65_535
_MAX_DEPTH = 16
_READ_MESSAGE = "Belvedere reads files of plain tensors only"


def read_state_dict(path: Path | str) -> "dict[str, torch.Tensor]":
    """Return the tensors of a weights file (.safetensors, .pth, .pt, .bin, .ckpt), by name, on the CPU.

    Containers (``{"state_dict": ...}``, ``{"ema": ...}``) are opened, the prefixes ``module.`` and ``_orig_mod.``
    removed. Raises ``InputError`` for a missing, damaged, renamed or hostile file, for anything in it that is not
    a tensor, and for weights that are not finite. No code of the file runs.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"no weights file at {path}; check the path")
    if path.suffix == ".safetensors":
        tensors = _load_safetensors(path)
    elif path.suffix in TORCH_SUFFIXES:
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
    if not path.is_file() or path.suffix not in TORCH_SUFFIXES:
        raise InputError(f"no weights file at {path} ({', '.join(TORCH_SUFFIXES)}); check the path")
    tensors, plain = _load_in_child(path, objects)
    check_finite(tensors, path.name)
    return tensors, plain


def header(path: Path) -> dict[str, tuple[int, ...]]:
    """Return the shape of each tensor of a safetensors file; only the header is read.

    Raises ``InputError`` when the file is damaged or is another kind of file under this name.
    """
    from safetensors import SafetensorError, safe_open

    _refuse_renamed(path)
    try:
        with safe_open(path, framework="pt") as file:
            return {key: tuple(file.get_slice(key).get_shape()) for key in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, ValueError) as error:
        raise InputError(f"weights file {path} is damaged ({one_line(error)}); get it again") from error


def metadata(path: Path) -> dict[str, str]:
    """Return the texts in the header of a safetensors file; raises ``InputError`` as ``header`` does."""
    from safetensors import safe_open

    header(path)
    with safe_open(path, framework="pt") as file:
        return dict(file.metadata() or {})


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
        raise InputError(f"{name}: holds {_kind(loaded)}, not named tensors; {_READ_MESSAGE}")
    for key, value in loaded.items():
        if not isinstance(key, str) or not isinstance(value, torch.Tensor):
            raise InputError(f"{name}: holds {_kind(value)} under '{str(key)[:80]}'; {_READ_MESSAGE}")
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


def _kind(value: object) -> str:
    return f"a {type(value).__module__}.{type(value).__qualname__}".replace("a builtins.", "a Python ")


def one_line(error: object) -> str:
    """Return a message without line breaks, control characters or more than 300 characters."""
    return re.sub(r"[^ -~]+", " ", str(error)).strip()[:300]


def _starts_like_pickle(path: Path) -> bool:
    with path.open("rb") as file:
        start = file.read(2)
    return len(start) == 2 and start[0] == 0x80 and start[1] in (2, 3, 4, 5)


def _refuse_renamed(path: Path) -> None:
    """Name a torch archive or a pickle that calls itself safetensors; it is never tried as what it is."""
    with path.open("rb") as file:
        start = file.read(9)
    if start[8:] != b"{" and (start[:2] == b"PK" or _starts_like_pickle(path)):
        raise InputError(f"{path.name} is a pickle or zip archive renamed .safetensors; refused, it was not opened")


def _load_safetensors(path: Path) -> "dict[str, torch.Tensor]":
    from safetensors.torch import load_file

    header(path)
    return load_file(path)


# The reader of torch files: the parent's side.


def _load_in_child(path: Path, objects: Sequence[str] = ()) -> "tuple[dict[str, torch.Tensor], dict[str, Any]]":
    with tempfile.TemporaryDirectory(prefix="belvedere-", ignore_cleanup_errors=True) as folder:
        target = Path(folder) / "tensors.safetensors"
        _run_child(path.resolve(), target, objects)
        return _load_safetensors(target), json.loads(metadata(target)["plain"])


def _run_child(source: Path, target: Path, objects: Sequence[str]) -> None:
    megabytes = source.stat().st_size // _MEGABYTE
    root = str(Path(__file__).parents[2])
    path = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH", "")]))
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-P", "-m", "belvedere.checkpoints.tensors", str(source), str(target), *objects]
    try:
        done = subprocess.run(
            command, env=environment, cwd=target.parent, capture_output=True, timeout=60 + megabytes // 20
        )
    except subprocess.TimeoutExpired as error:
        raise InputError(f"{source.name}: took too long to read; the file is damaged or hostile") from error
    if done.returncode == 0:
        return
    reason = one_line(done.stdout.decode("utf-8", "replace"))
    if done.returncode != 2 or not reason:
        reason = f"{source.name}: the reader stopped (code {done.returncode}); the file is damaged or hostile"
    raise InputError(reason)


# The reader of torch files: the child's side.

_FORBIDDEN = (
    "os.system", "os.exec", "os.fork", "os.forkpty", "os.posix_spawn", "os.spawn", "os.remove", "os.rename",
    "subprocess.Popen", "socket.connect", "socket.bind", "pickle.find_class", "shutil.rmtree",
)  # fmt: skip


def _guard(event: str, _arguments: object) -> None:
    if event in _FORBIDDEN:
        raise PermissionError(f"{event} is not allowed while weights are read")


def _limit_memory(budget: int | None) -> None:
    """Let this process take ``budget`` bytes of address space beyond what it has; None lifts the limit (Linux)."""
    with suppress(ImportError, OSError, ValueError):
        import resource

        taken = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        hard = resource.getrlimit(resource.RLIMIT_AS)[1]
        resource.setrlimit(resource.RLIMIT_AS, (hard if budget is None else taken + budget, hard))


def _limit_files(largest: int) -> None:
    with suppress(ImportError, OSError, ValueError):
        import resource

        resource.setrlimit(resource.RLIMIT_FSIZE, (largest, largest))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def check_archive(path: Path) -> None:
    """Raise ``InputError`` unless the zip directory of a torch file is plausible; nothing is inflated.

    Torch stores tensors uncompressed, so entries that are compressed, repeated, encrypted, named outside the
    archive, or larger together than the file itself are signs of a bomb.
    """
    name = path.name
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
    except (zipfile.BadZipFile, NotImplementedError, ValueError, EOFError) as error:
        raise InputError(f"{name}: damaged zip archive ({one_line(error)}); get the file again") from error
    if len(entries) > _MAX_ENTRIES:
        raise InputError(f"{name}: {len(entries)} zip entries, more than {_MAX_ENTRIES}; refused")
    if len({entry.filename for entry in entries}) != len(entries):
        raise InputError(f"{name}: a zip entry appears twice; refused")
    for entry in entries:
        parts = PurePosixPath(entry.filename.replace("\\", "/"))
        if parts.is_absolute() or ".." in parts.parts or ":" in entry.filename:
            raise InputError(f"{name}: zip entry '{entry.filename[:80]}' points outside the archive; refused")
        if entry.compress_type != zipfile.ZIP_STORED or entry.flag_bits & 1:
            raise InputError(
                f"{name}: zip entry '{entry.filename[:80]}' is compressed or encrypted; torch files are not"
            )
    total = sum(entry.file_size for entry in entries)
    if total > path.stat().st_size:
        raise InputError(f"{name}: its zip entries claim {total} bytes, more than the file has; refused")


class _Bag:
    """Stands for an object of a training script; its attributes are put into it, nothing of it runs."""


def _load_torch(path: Path, objects: Sequence[str]) -> Any:
    import torch

    try:
        with torch.serialization.safe_globals([(_Bag, name) for name in objects]):
            return torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except Exception as error:
        text = str(error)
        found = re.search(r"GLOBAL ([\w.]+)", text)
        if found:
            message = f"{path.name}: holds a Python object ({found[1]}), not only tensors; it was not run"
            raise InputError(f"{message}. {_READ_MESSAGE}: ask its maker for safetensors") from error
        if isinstance(error, MemoryError) or "allocate memory" in text:
            raise InputError(f"{path.name}: needs far more memory than its size explains; refused") from error
        raise InputError(f"{path.name}: not a torch weights file ({one_line(text)[:120]})") from error


class Separator:
    """Takes a tree of a training script apart: ``tensors`` by dotted names, the rest as plain values of JSON."""

    def __init__(self, name: str):
        self.name, self.tensors, self.entries = name, dict[str, Any](), 0

    def __call__(self, value: object, key: str = "", depth: int = 0) -> Any:
        """Return ``value`` without its tensors; ``key``: its dotted name."""
        import torch

        self.entries += 1
        if self.entries > _MAX_ENTRIES or depth > _MAX_DEPTH or key in self.tensors:
            raise InputError(f"{self.name}: '{key[:80]}' is there twice, nested too deeply or one too many; refused")
        if isinstance(value, torch.Tensor):
            self.tensors[key] = value
            return None
        if value is None or type(value) in (bool, int, float, str):
            return value
        if isinstance(value, _Bag):
            value = vars(value)
        elif isinstance(value, list | tuple | set):
            value = dict(enumerate(value))
        if not isinstance(value, Mapping) or not all(type(part) in (int, str) for part in value):
            raise InputError(f"{self.name}: holds {_kind(value)} under '{key[:80]}'; {_READ_MESSAGE} and plain values")
        return {str(part): self(item, f"{key}.{part}".removeprefix("."), depth + 1) for part, item in value.items()}


def _own(tensors: "dict[str, torch.Tensor]", size: int, name: str) -> "dict[str, torch.Tensor]":
    """Return dense tensors that share no memory, as safetensors wants them."""
    import torch

    for key, tensor in tensors.items():
        if tensor.layout != torch.strided or tensor.is_quantized or tensor.device.type != "cpu":
            raise InputError(f"{name}: tensor '{key}' is sparse, quantised or has no data; save it as a dense one")
    if sum(tensor.numel() * tensor.element_size() for tensor in tensors.values()) > 4 * size + _MEGABYTE:
        raise InputError(f"{name}: its tensors unfold to far more than the file's size; refused")
    return {key: tensor.detach().clone(memory_format=torch.contiguous_format) for key, tensor in tensors.items()}


def _convert(source: Path, target: Path, objects: Sequence[str]) -> None:
    size = source.stat().st_size
    _limit_files(4 * size + 64 * _MEGABYTE)
    _limit_memory(256 * _MEGABYTE)
    if zipfile.is_zipfile(source):
        check_archive(source)
    elif not _starts_like_pickle(source):
        raise InputError(f"{source.name}: not a torch weights file: neither a zip archive nor a pickle")
    _limit_memory(None)
    from safetensors.torch import save_file

    sys.addaudithook(_guard)
    _limit_memory(8 * size + 256 * _MEGABYTE)
    loaded = _load_torch(source, objects)
    separate = Separator(source.name)
    plain = separate(loaded) if objects else {}
    tensors = separate.tensors if objects else unwrap(loaded, source.name)
    save_file(_own(tensors, size, source.name), target, {"plain": json.dumps(plain)})


def _child(source: str, target: str, *objects: str) -> int:
    """Convert one torch file; print one line and return 2 when it cannot be."""
    try:
        _convert(Path(source), Path(target), objects)
    except InputError as error:
        print(one_line(error))
        return 2
    except MemoryError:
        print(f"{Path(source).name}: needs far more memory than its size explains; refused")
        return 2
    except OSError as error:
        print(f"{Path(source).name}: {one_line(error)}; the folder for temporary files may be full (TMPDIR)")
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(_child(*sys.argv[1:]))
