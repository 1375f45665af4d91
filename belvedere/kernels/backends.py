"""Which implementation runs: for attention one table, first that fits wins, with the reason of each that did not; for
every other op its Triton kernel where that can run, else plain PyTorch."""

import functools
import importlib
import logging
import os
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from subprocess import CalledProcessError
from typing import Any, ParamSpec, TypeVar

import torch
from torch import Tensor

from belvedere.kernels import flex, fmha, matmul, reference, sdpa

log = logging.getLogger("belvedere.kernels")
P = ParamSpec("P")
T = TypeVar("T")

MATMUL_KEYS = 1024
TRITON_HEAD = 128
"""Channels of a head up to which the Triton kernels go."""
FLEX_HEAD = 16


class BackendError(ValueError):
    """A backend of attention that is asked for by name and does not exist or cannot serve the call."""


@dataclass(frozen=True)
class Request:
    """What a caller of ``attend`` asks for, as far as the choice of a backend depends on it."""

    device: str
    activation: str
    packed: bool
    bias: bool
    dtype: torch.dtype = torch.float32
    keys: int = 0
    head: int = 64
    """Channels of a head."""
    rows: int = 2
    """Of a dense batch."""
    gradients: bool = False
    """Whether they are asked for."""


def _never(request: Request) -> None:
    return None


def _once(look: Callable[P, T]) -> Callable[P, T]:
    """Return ``look`` with its results remembered, which a compiler takes as constants.

    It warns of ``functools.cache``, and looks through it, where that is what it meets.
    """
    remembered: Any = functools.cache(look)

    @torch.compiler.assume_constant_result
    @functools.wraps(look)
    def constant(*arguments: P.args, **named: P.kwargs) -> T:
        return remembered(*arguments, **named)

    return constant


@dataclass(frozen=True)
class Backend:
    """One implementation of attention.

    ``refuse(request)`` returns why this backend cannot serve the request, or None when it can; ``defer(request)`` why
    it lets those after it go first although it can.
    ``run(q, k, v, offsets, bias, scale, activation)`` has the shapes of ``belvedere.kernels.attend``.
    """

    name: str
    refuse: Callable[[Request], str | None]
    run: Callable[..., Tensor]
    defer: Callable[[Request], str | None] = _never
    reads: bool = False
    """Whether it reads on the host where packed sequences begin, which is no part of a CUDA graph."""


def _refuse_sdpa(request: Request) -> str | None:
    if request.activation != "softmax":
        return f"PyTorch's attention has no {request.activation} activation"
    return _refuse_packed_bias(request)


def _refuse_packed_bias(request: Request) -> str | None:
    return "a bias for packed sequences is not supported" if request.packed and request.bias else None


def _refuse_matmul(request: Request) -> str | None:
    if request.packed or request.activation != "softmax":
        return "only for dense softmax"
    if request.device != "cpu" or request.dtype != torch.bfloat16:
        return "only faster than sdpa in bfloat16 on a CPU"
    if not _has_avx512():
        return "40x slower than sdpa on a CPU without AVX-512"
    if request.keys > MATMUL_KEYS:
        return f"keeps all attention weights: only up to {MATMUL_KEYS} keys"
    return None


@torch.compiler.assume_constant_result
def _has_avx512() -> bool:
    return torch.backends.cpu.get_cpu_capability() == "AVX512"


def _refuse_triton(request: Request) -> str | None:
    if request.bias:
        return "it adds no bias"
    if request.head > TRITON_HEAD:
        return f"only up to {TRITON_HEAD} channels a head"
    return why_not_fused(request.device, request.dtype)


def _defer_triton(request: Request) -> str | None:
    if request.packed or request.activation != "softmax":
        return None
    if request.dtype == torch.float32:
        return "dense softmax in float32 stays with sdpa until a measurement says otherwise"
    if request.head % 8 == 0 and not (request.rows == 1 and request.gradients):
        return "sdpa is faster for dense softmax with heads of a multiple of 8 channels"
    return None


def _triton(
    q: Tensor, k: Tensor, v: Tensor, offsets: Tensor | None, bias: None, scale: float | None, activation: str
) -> Tensor:
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    return OPERATIONS["attention"](q, k, v, offsets, scale, activation == "sigmoid")[0]


def _defer_split(request: Request) -> str | None:
    return "its sums depend on the size of the batch: a row has other last bits alone than among others"


def _split(
    q: Tensor, k: Tensor, v: Tensor, offsets: Tensor | None, bias: None, scale: float | None, activation: str
) -> Tensor:
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    return OPERATIONS["attention_split"](q, k, v, offsets, scale, activation == "sigmoid")[0]


def _autocast(run: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Return ``run`` with q, k and v in the dtype of ``torch.autocast``, as PyTorch has them for its own attention."""

    def cast(q: Tensor, k: Tensor, v: Tensor, *rest: Any) -> Tensor:
        device = q.device.type
        if torch.is_autocast_enabled(device):
            q, k, v = (x.to(torch.get_autocast_dtype(device)) for x in (q, k, v))
        return run(q, k, v, *rest)

    return cast


def _refuse_packed_only(request: Request) -> str | None:
    if not request.packed or request.activation != "softmax":
        return "only for packed softmax"
    if request.device != "cuda":
        return "it needs an NVIDIA GPU"
    return _refuse_packed_bias(request)


def _refuse_xformers(request: Request) -> str | None:
    if torch.compiler.is_compiling():
        return "it reads offsets on the host, which a compiler cannot trace"
    if (reason := _refuse_packed_only(request)) is None and torch.are_deterministic_algorithms_enabled():
        return "its gradients are not the same bits each time"
    return reason or _missing("xformers")


def _refuse_flex(request: Request) -> str | None:
    if request.head < FLEX_HEAD:
        return f"only from {FLEX_HEAD} channels a head"
    return _refuse_packed_only(request) or _missing("triton")


@_once
def _missing(package: str) -> str | None:
    return None if find_spec(package) else f"{package} is not installed: pip install 'belvedere[gpu]'"


# On a GPU (benchmarks/results/kernels.json, an H200) packed sequences are fastest in our kernel: flex takes ten times
# as long, and sdpa, which reads offsets on the host, more. Dense softmax is faster in sdpa, by cuDNN, where the
# channels of a head are a multiple of 8, and takes twice as long where they are not. The gradients that sdpa gave for
# a batch of one row were wrong there (PyTorch 2.11): those are ours.
BACKENDS = (
    Backend("matmul", _refuse_matmul, matmul.attend),
    Backend("triton", _refuse_triton, _autocast(_triton), _defer_triton),
    Backend("split", _refuse_triton, _autocast(_split), _defer_split),
    Backend("xformers", _refuse_xformers, _autocast(fmha.attend), reads=True),
    Backend("flex", _refuse_flex, _autocast(flex.attend)),
    Backend("sdpa", _refuse_sdpa, sdpa.attend, reads=True),
    Backend("reference", _never, reference.attend, reads=True),
)


def choose(request: Request, name: str | None = None) -> Backend:
    """Return the first backend that fits ``request``, or the one named by ``name`` or ``BELVEDERE_ATTENTION``.

    Raises ``BackendError`` when the named backend does not exist or refuses the request.
    """
    name = name or os.environ.get("BELVEDERE_ATTENTION") or None
    if name is None:
        return next(b for b in BACKENDS if b.refuse(request) is None and b.defer(request) is None)
    backend = {backend.name: backend for backend in BACKENDS}.get(name)
    if backend is None:
        raise BackendError(f"no attention backend {name!r}: choose from {', '.join(b.name for b in BACKENDS)}")
    if reason := backend.refuse(request):
        raise BackendError(f"attention backend {name!r} cannot serve this call: {reason}")
    return backend


def check_recordable(backend: Backend, request: Request) -> None:
    """Raise ``RuntimeError`` while a CUDA graph is captured that would not hold what the call depends on.

    The capture then ends in order; to read a tensor on the host would spoil it, and with it PyTorch's generators.
    """
    if not (backend.reads and request.packed and request.device == "cuda") or torch.compiler.is_compiling():
        return
    if torch.cuda.is_current_stream_capturing():
        raise RuntimeError(f"attention backend {backend.name!r} reads on the host where sequences begin")


def explain(request: Request) -> list[tuple[str, bool, str]]:
    """Return (name, fits, reason) of every backend for ``request``."""
    forced = os.environ.get("BELVEDERE_ATTENTION") or None
    chosen = forced or choose(request).name
    passed = f"fits, but BELVEDERE_ATTENTION names {forced}" if forced else "fits, but a faster one stands before it"
    rows = []
    for backend in BACKENDS:
        reason = backend.refuse(request)
        note = "chosen" if backend.name == chosen else (not forced and backend.defer(request)) or passed
        rows.append((backend.name, reason is None, reason or note))
    return rows


OPERATIONS: dict[str, Callable[..., Any]] = {}
"""The Triton kernels by name, once ``why_not_fused`` found that they can run."""
FUSED = (torch.float32, torch.float16, torch.bfloat16)


def fused(x: Tensor) -> bool:
    """Return whether the Triton kernel of an op serves ``x``; then it is ``OPERATIONS[NAME]``."""
    return x.device.type == "cuda" and why_not_fused(x.device.type, x.dtype) is None


@_once
def why_not_fused(device: str, dtype: torch.dtype = torch.float32) -> str | None:
    """Return why the Triton kernels cannot run on this kind of device, or None; then they are registered."""
    if device != "cuda":
        return "they need an NVIDIA GPU"
    if dtype not in FUSED:
        return f"they have no {dtype}"
    if os.environ.get("BELVEDERE_KERNELS") == "plain":
        return "switched off by BELVEDERE_KERNELS=plain"
    if not torch.cuda.is_available():
        return "there is no NVIDIA GPU here"
    if torch.version.hip is not None:
        return "they need an NVIDIA GPU, this PyTorch is for GPUs of AMD (ROCm)"
    if find_spec("triton") is None:
        return "triton is not installed: pip install 'belvedere[gpu]'"
    if (capability := torch.cuda.get_device_capability()) < (8, 0):
        return f"they need compute capability 8.0, this GPU has {'.'.join(map(str, capability))}"
    if reason := _why_not_started():
        return reason
    importlib.import_module("belvedere.kernels.triton")
    return None


@_once
def _why_not_started() -> str | None:
    """Start Triton's driver, which it compiles where it has not before; return why it does not start, or None.

    It is told once: everything then runs in PyTorch, slowly.
    """
    try:
        importlib.import_module("triton.runtime").driver.active.get_current_target()
    except CalledProcessError as error:
        said = f"{Path(error.cmd[0]).name} failed"
    except Exception as error:  # of whatever kind: PyTorch then serves the calls
        said = str(error).partition("\n")[0] or type(error).__name__
    else:
        return None
    reason = f"Triton does not start, it needs a C compiler and Python's headers (Python.h): {said}"
    log.warning("the kernels for a GPU do not run: %s", reason)
    return reason
