"""What a whole run asks of PyTorch: that the same inputs give the same bits each time."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

import torch

from belvedere.errors import InputError

WORKSPACE = "CUBLAS_WORKSPACE_CONFIG"
FIXED = (":4096:8", ":16:8")
"""Its values with which cuBLAS adds in one order (cuBLAS library, section on reproducibility)."""


@contextmanager
def deterministic(wanted: bool = True) -> Iterator[None]:
    """Within the block the same inputs give the same bits, on the same devices and software; unless it is not wanted.

    PyTorch takes the deterministic form of every operation, cuDNN chooses none by trying, cuBLAS has a fixed workspace.
    The kernels of this package have no other form. Empty tensors are not filled first, which would be one more launch
    for each result: kernels write the whole of what they return, and no operation reads what was not written. Raises
    ``InputError`` that names an operation which has none, and one where CUDA was started without the workspace. At the
    end the switches are as they were; the variable of the environment stays, for cuBLAS has read it.
    """
    if not wanted:
        yield
        return
    _fix_workspace()
    cudnn, memory = torch.backends.cudnn, cast(Any, torch.utils.deterministic)  # its types leave the switch out
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    chosen = cudnn.benchmark, cudnn.deterministic, memory.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True)
    cudnn.benchmark, cudnn.deterministic, memory.fill_uninitialized_memory = False, True, False
    try:
        yield
    except RuntimeError as error:
        operation, said, _ = str(error).partition(" does not have a deterministic implementation")
        if not said:
            raise
        raise InputError(f"deterministic: PyTorch's {operation} has no such form here; leave it out") from error
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])
        cudnn.benchmark, cudnn.deterministic, memory.fill_uninitialized_memory = chosen


def _fix_workspace() -> None:
    """Give cuBLAS a fixed workspace, which it asks for when CUDA starts."""
    given = os.environ.get(WORKSPACE)
    if given is None and not torch.cuda.is_initialized():
        os.environ[WORKSPACE] = FIXED[0]
    elif given not in FIXED:
        state = "CUDA was started without it" if given is None else f"it is {given!r}"
        raise InputError(f"deterministic needs {WORKSPACE}={FIXED[0]} in the environment, but {state}: set it before")
