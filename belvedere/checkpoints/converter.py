"""The program that reads one torch file, in a process of its own: ``python -m belvedere.checkpoints.converter``.

This is the only file that may touch a pickle. What it was given is scanned (``scan``), then read by torch's
weights-only reader under limits of memory and disk, and written as safetensors; else one line on stdout says why.
"""

import json
import re
import sys
import zipfile
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from belvedere.checkpoints.scan import MAX_ENTRIES, check_torch_file
from belvedere.checkpoints.tensors import PLAIN_ONLY, kind_of, one_line, unwrap
from belvedere.errors import InputError

if TYPE_CHECKING:
    import torch

_MEGABYTE = 1 << 20
_MAX_DEPTH = 16
_FORBIDDEN = (
    "os.system", "os.exec", "os.fork", "os.forkpty", "os.posix_spawn", "os.spawn", "os.remove", "os.rename",
    "subprocess.Popen", "socket.connect", "socket.bind", "pickle.find_class", "shutil.rmtree",
)  # fmt: skip


def guard(event: str, _arguments: object) -> None:
    """Refuse what no reader of weights does: an audit hook, the fence behind all others."""
    if event in _FORBIDDEN:
        raise PermissionError(f"{event} is not allowed while weights are read")


def limit_memory(budget: int | None) -> None:
    """Let this process take ``budget`` bytes of address space beyond what it has; None lifts the limit (Linux)."""
    with suppress(ImportError, OSError, ValueError):
        import resource

        taken = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        hard = resource.getrlimit(resource.RLIMIT_AS)[1]
        resource.setrlimit(resource.RLIMIT_AS, (hard if budget is None else taken + budget, hard))


def _limit_work(largest: int, seconds: int) -> None:
    """Let this process write files of at most ``largest`` bytes, and work, not wait, for ``seconds``."""
    with suppress(ImportError, OSError, ValueError):
        import resource

        resource.setrlimit(resource.RLIMIT_FSIZE, (largest, largest))
        resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


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
            raise InputError(f"{message}. {PLAIN_ONLY}: ask its maker for safetensors") from error
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
        if self.entries > MAX_ENTRIES or depth > _MAX_DEPTH or key in self.tensors:
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
            raise InputError(f"{self.name}: holds {kind_of(value)} under '{key[:80]}'; {PLAIN_ONLY} and plain values")
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
    _limit_work(4 * size + 64 * _MEGABYTE, 60 + size // (20 * _MEGABYTE))
    limit_memory(256 * _MEGABYTE)
    check_torch_file(source, objects)
    limit_memory(None)
    from safetensors.torch import save_file

    sys.addaudithook(guard)
    limit_memory(8 * size + 256 * _MEGABYTE)
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
