"""Which implementation of attention runs: one table, first that fits wins, and the reason of each that did not."""

import os
from collections.abc import Callable
from dataclasses import dataclass

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
