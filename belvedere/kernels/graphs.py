"""Calls of a network recorded once and played again (CUDA graphs), for small batches, whose launches take longer than
their work.

They are on wherever our kernels run, unless the environment has BELVEDERE_GRAPHS=0.
"""

import logging
import os
import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from belvedere.kernels.backends import BACKENDS, why_not_fused

log = logging.getLogger("belvedere.kernels")
MOST = 8
"""Recordings kept: each holds its inputs and its output, and all share the memory between."""
WARM_UP = 3
"""Calls before a recording, in which kernels are compiled and libraries begin."""
CAPTURING = threading.Lock()
"""Held while a call is recorded: PyTorch captures one graph of a process at a time."""


def why_not(device: str, dtype: torch.dtype = torch.float32) -> str | None:
    """Return why calls are not recorded on this kind of device, or None.

    Where our own kernels do not run, those that do may read lengths of sequences on the host, which is no part of a
    graph; so may those that are asked for by name.
    """
    if os.environ.get("BELVEDERE_GRAPHS") == "0":
        return "switched off by BELVEDERE_GRAPHS=0"
    if reason := why_not_fused(device, dtype):
        return reason
    named = os.environ.get("BELVEDERE_ATTENTION")
    reads = any(backend.reads for backend in BACKENDS if backend.name == named)
    return f"BELVEDERE_ATTENTION={named} reads on the host where sequences begin" if reads else None


class Recording(NamedTuple):
    """A recorded call, the tensors that it reads, and the one that it writes."""

    graph: Any
    inputs: list[Tensor]
    output: Tensor

    def play(self, inputs: Sequence[Tensor]) -> Tensor:
        """Return what the call gives for ``inputs``, a fresh tensor."""
        for still, x in zip(self.inputs, inputs, strict=True):
            still.copy_(x, non_blocking=True)
        self.graph.replay()
        return self.output.clone()


class Graphs:
    """The recorded calls of one network; the ``MOST`` that were used last are kept. A copy of it has none."""

    def __init__(self) -> None:
        self._kept: OrderedDict[Hashable, Recording | None] = OrderedDict()  # None: it could not be recorded
        self._weights: tuple[int, ...] = ()
        self._place: tuple[Any, Any] | None = None  # a stream and the memory that recordings made on it share
        self._told = False
        self._lock = threading.Lock()

    def __reduce__(self) -> tuple[type["Graphs"], tuple[()]]:
        return Graphs, ()

    def follow(self, network: nn.Module) -> None:
        """Be ready for a loop of calls of this network: forget what was recorded with weights elsewhere.

        Without this, or where not all of its weights are on a GPU, nothing is recorded.
        """
        tensors = [*network.parameters(), *network.buffers()] if why_not("cuda") is None else []
        weights = tuple(x.data_ptr() for x in tensors) if all(x.is_cuda for x in tensors) else ()
        with self._lock:
            if weights != self._weights:
                self._kept.clear()
                self._place = None  # a new one: the memory ends with the last recording in it
            self._weights = weights

    def __call__(self, function: Callable[..., Tensor], *inputs: Tensor, fixed: Hashable = ()) -> Tensor:
        """Return ``function(*inputs)``, a fresh tensor, played from a recording where there can be one.

        ``function`` depends on the inputs, the network's weights and ``fixed`` alone, launches the same work whatever
        numbers are in them, and reads none of them on the host. It is called as it is on a CPU, where gradients are
        needed, under autocast, which frees its copies of the weights when it ends, while ``torch.compile`` looks, and
        where recording it failed, which is logged once.
        """
        if torch.compiler.is_compiling() or torch.is_grad_enabled() or not self._weights or not inputs[0].is_cuda:
            return function(*inputs)
        if torch.is_autocast_enabled(inputs[0].device.type):
            return function(*inputs)
        with self._lock:
            recording = recall(self._kept, kind_of(inputs, fixed), lambda: self._record(function, inputs))
            if recording is not None:
                return recording.play(inputs)
        return function(*inputs)

    def _record(self, function: Callable[..., Tensor], inputs: Sequence[Tensor]) -> Recording | None:
        """Return a recording of the call; None where it fails, with the stream and the memory as they were."""
        with torch.inference_mode(False):  # later calls write into them in whatever mode they are made
            still = [x.detach().to(inputs[0].device, copy=True) for x in inputs]
        with torch.cuda.device(inputs[0].device):
            here, graph = torch.cuda.current_stream(), torch.cuda.CUDAGraph()
            self._place = self._place or (torch.cuda.Stream(), torch.cuda.graph_pool_handle())
            aside, pool = self._place
            try:
                aside.wait_stream(here)
                with torch.cuda.stream(aside):
                    for _ in range(WARM_UP):
                        function(*still)
                here.wait_stream(aside)
                # Without a stream PyTorch takes one of its own, which may be another device's.
                with CAPTURING, torch.cuda.graph(graph, pool=pool, stream=aside, capture_error_mode="thread_local"):
                    output = function(*still)
            except RuntimeError as error:
                torch.cuda.set_stream(here)  # which a capture that was spoiled leaves as it was
                self._place = None  # memory that holds no recording has ended
                self._tell(error)
                return None
        return Recording(graph, still, output)

    def _tell(self, error: RuntimeError) -> None:
        if not self._told:
            log.warning("calls are made without a CUDA graph, recording failed: %s", str(error).partition("\n")[0])
        self._told = True


def kind_of(inputs: Sequence[Tensor], fixed: Hashable) -> Hashable:
    """Return what calls must have in common to share a recording."""
    return fixed, tuple((tuple(x.shape), x.dtype) for x in inputs)


def recall(kept: "OrderedDict[Hashable, Any]", kind: Hashable, make: Callable[[], Any]) -> Any:
    """Return what is kept of a kind, else what ``make`` makes, and keep it as the one used last of ``MOST``."""
    if kind not in kept:
        kept[kind] = make()
    kept.move_to_end(kind)
    while len(kept) > MOST:
        kept.popitem(last=False)
    return kept[kind]
