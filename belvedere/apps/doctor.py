"""``belvedere doctor``: what this machine has, what is missing, and how to get it."""

import os
import platform
import sys
import tempfile
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from belvedere.checkpoints import store
from belvedere.errors import InputError

CORE = (
    "torch",
    "diffusers",
    "transformers",
    "accelerate",
    "safetensors",
    "huggingface_hub",
    "numpy",
    "pillow",
    "constriction",
    "imageio-ffmpeg",
    "scikit-image",
    "trimesh",
)
EXTRAS = {"xformers": "gpu", "triton": "gpu", "matplotlib": "evaluate", "pillow-jxl-plugin": "evaluate"}
"""Optional packages and the extra of Belvedere that installs each."""

_FEATURES = ("avx2", "avx512f", "avx512_bf16", "amx_tile", "amx_bf16", "asimd", "bf16")


def report() -> dict[str, dict[str, Any]]:
    """Return what was found, by section; values that start with ``!`` are faults to mend."""
    import torch

    return {
        "machine": _machine(),
        "torch": {"build": torch.__version__, "threads": torch.get_num_threads(), "gpu": _gpus()},
        "attention": _attention("softmax", packed=False),
        "packed attention": _attention("softmax", packed=True),
        "packed sigmoid attention": _attention("sigmoid", packed=True),
        "kernels": _kernels(),
        "packages": {name: _version(name) for name in (*CORE, *EXTRAS)},
        "models": _models(),
        "folders": {"hub cache": _hub_cache(), "temporary": _writable(Path(tempfile.gettempdir())),
                    "current": _writable(Path.cwd())},
    }  # fmt: skip


def faults(found: dict[str, dict[str, Any]]) -> list[str]:
    """Return the entries of a report that need mending."""
    return [f"{name}: {value[1:]}" for part in found.values() for name, value in part.items() if _is_fault(value)]


def _is_fault(value: object) -> bool:
    return isinstance(value, str) and value.startswith("!")


def _machine() -> dict[str, Any]:
    from belvedere import __version__
    from belvedere.apps.record import processor

    return {
        "belvedere": __version__,
        "python": f"{platform.python_version()} ({sys.executable})",
        "system": platform.platform(),
        "processor": processor(),
        "features": ", ".join(_cpu_features()) or "not known",
        "cores": _cores(),
        "memory": f"{_memory() / 2**30:.1f} GB" if _memory() else "not known",
    }


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _cpu_features() -> list[str]:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    flags = {flag for line in lines if line.startswith(("flags", "Features")) for flag in line.split()}
    return [feature for feature in _FEATURES if feature in flags]


def _memory() -> int:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return 0


def _gpus() -> str:
    import torch

    if not torch.cuda.is_available():
        return "none: everything runs on the CPU"
    names = [torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count())]
    return ", ".join(f"{gpu.name} ({gpu.total_memory / 2**30:.0f} GB, sm_{gpu.major}{gpu.minor})" for gpu in names)


def _attention(activation: str, packed: bool) -> dict[str, str]:
    """Return which attention serves such a call in float32 on this machine, and why the others do not."""
    import torch

    from belvedere.kernels.backends import Request, explain

    request = Request("cuda" if torch.cuda.is_available() else "cpu", activation, packed, bias=False)
    return {name: f"{'yes' if fits else 'no'}: {reason}" for name, fits, reason in explain(request)}


def _kernels() -> dict[str, str]:
    """Return whether the kernels for a GPU run here, and whether calls of networks are recorded, or why not."""
    from belvedere.kernels import backends, graphs

    reasons = {"fused": backends.why_not_fused("cuda"), "graphs": graphs.why_not("cuda")}
    return {name: f"no: {reason}" if reason else "yes" for name, reason in reasons.items()}


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        pass
    if find_spec(name):
        return "present"
    if name in EXTRAS:
        return f"not installed (optional: pip install 'belvedere[{EXTRAS[name]}]')"
    return f"!not installed: pip install {name}"


def _models() -> dict[str, str]:
    """Return whether each embedded model's files match the digest in its card."""
    folders = sorted(path.parent for path in store.EMBEDDED.glob("*/card.json"))
    return {folder.name: _verified(folder) for folder in folders} or {"embedded": "none in this build"}


def _verified(folder: Path) -> str:
    try:
        return f"verified, {store.verify(folder)[:12]}"
    except (InputError, OSError) as error:
        return f"!{error}"


def _hub_cache() -> str:
    from huggingface_hub.constants import HF_HUB_CACHE

    return str(HF_HUB_CACHE)


def _writable(folder: Path) -> str:
    try:
        with tempfile.TemporaryFile(dir=folder):
            return f"{folder} (writable)"
    except OSError as error:
        return f"{folder} (not writable: {error.strerror}; give --out another folder)"


def print_report(found: dict[str, dict[str, Any]]) -> None:
    """Print a report on stdout, one section after another."""
    for section, values in found.items():
        print(section)
        for name, value in values.items():
            print(f"  {name:16} {str(value).removeprefix('!')}")
    problems = faults(found)
    print("\n".join(f"fault: {problem}" for problem in problems) or "no faults found")
