"""Which implementation runs: for attention one table, first that fits wins, with the reason of each that did not; for
every other op its Triton kernel where that can run, else plain PyTorch."""

import functools
import importlib
import os
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec

import torch
from torch import Tensor

from belvedere.kernels import matmul, reference, sdpa

MATMUL_KEYS = 1024


@dataclass(frozen=True)
class Request:
    """What a caller of ``attend`` asks for, as far as the choice of a backend depends on it."""

    device: str
    activation: str
    packed: bool
    bias: bool
    dtype: torch.dtype = torch.float32
    keys: int = 0


@dataclass(frozen=True)
class Backend:
    """One implementation of attention.

    ``refuse(request)`` returns why this backend cannot serve the request, or None when it can.
    ``run(q, k, v, offsets, bias, scale, activation)`` has the shapes of ``belvedere.kernels.attend``.
    """

    name: str
    refuse: Callable[[Request], str | None]
    run: Callable[..., Tensor]


def _refuse_sdpa(request: Request) -> str | None:
    if request.activation != "softmax":
        return f"PyTorch's attention has no {request.activation} activation"
    if request.packed and request.bias:
        return "a bias for packed sequences is not supported"
    return None


def _refuse_matmul(request: Request) -> str | None:
    if request.packed or request.activation != "softmax":
        return "only for dense softmax"
    if request.device != "cpu" or request.dtype != torch.bfloat16:
        return "only faster than sdpa in bfloat16 on a CPU"
    if torch.backends.cpu.get_cpu_capability() != "AVX512":
        return "40x slower than sdpa on a CPU without AVX-512"
    if request.keys > MATMUL_KEYS:
        return f"keeps all attention weights: only up to {MATMUL_KEYS} keys"
    return None


BACKENDS = (
    Backend("matmul", _refuse_matmul, matmul.attend),
    Backend("sdpa", _refuse_sdpa, sdpa.attend),
    Backend("reference", lambda request: None, reference.attend),
)


def choose(request: Request, name: str | None = None) -> Backend:
    """Return the first backend that fits ``request``, or the one named by ``name`` or ``BELVEDERE_ATTENTION``.

    Raises ``ValueError`` when the named backend does not exist or refuses the request.
    """
    name = name or os.environ.get("BELVEDERE_ATTENTION") or None
    if name is None:
        return next(backend for backend in BACKENDS if backend.refuse(request) is None)
    backend = {backend.name: backend for backend in BACKENDS}.get(name)
    if backend is None:
        raise ValueError(f"no attention backend {name!r}: choose from {', '.join(b.name for b in BACKENDS)}")
    if reason := backend.refuse(request):
        raise ValueError(f"attention backend {name!r} cannot serve this call: {reason}")
    return backend


def explain(request: Request | None = None) -> list[tuple[str, bool, str]]:
    """Return (name, fits, reason) of every backend for ``request``; by default dense softmax on this machine."""
    if request is None:
        device = "cuda" if torch.cuda.is_available() else "cpu"
        request = Request(device, "softmax", packed=False, bias=False)
    rows, chosen = [], choose(request).name
    for backend in BACKENDS:
        reason = backend.refuse(request)
        note = "chosen" if backend.name == chosen else "fits, but a faster one stands before it"
        rows.append((backend.name, reason is None, reason or note))
    return rows


FUSED = (torch.float32, torch.float16, torch.bfloat16)


def fused(x: Tensor) -> bool:
    """Return whether the Triton kernel of an op serves ``x``; then it is ``torch.ops.belvedere.NAME``."""
    return x.device.type == "cuda" and why_not_fused(x.device.type, x.dtype) is None


@torch.compiler.assume_constant_result
@functools.cache
def why_not_fused(device: str, dtype: torch.dtype = torch.float32) -> str | None:
    """Return why the Triton kernels cannot run on this kind of device, or None; then they are registered."""
    if device != "cuda":
        return "they need an NVIDIA GPU"
    if dtype not in FUSED:
        return f"they have no {dtype}"
    if os.environ.get("BELVEDERE_KERNELS") == "plain":
        return "switched off by BELVEDERE_KERNELS=plain"
    if find_spec("triton") is None:
        return "triton is not installed: pip install 'belvedere[gpu]'"
    if (capability := torch.cuda.get_device_capability()) < (8, 0):
        return f"they need compute capability 8.0, this GPU has {'.'.join(map(str, capability))}"
    importlib.import_module("belvedere.kernels.triton")
    return None
