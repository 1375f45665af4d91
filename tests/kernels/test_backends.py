"""Why the kernels for a GPU do not run: told before the first of them would fail."""

import subprocess
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any
from unittest import mock

import pytest
import torch

pytest.importorskip("triton", reason="triton is not installed: pip install 'belvedere[test]'")

import triton

from belvedere.kernels import backends

NEEDS = "Triton does not start, it needs a C compiler and Python's headers (Python.h): "


def forgetful(once: Any) -> Callable[..., str | None]:
    """Return a function that looks each time, of one that remembers."""
    look: Callable[..., str | None] = once.__wrapped__
    return look


@pytest.fixture
def why(monkeypatch: pytest.MonkeyPatch) -> Callable[[], str | None]:
    """Return ``why_not_fused`` for a machine with an H200, with nothing remembered."""
    monkeypatch.delenv("BELVEDERE_KERNELS", raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (9, 0))
    start, look = forgetful(backends._why_not_started), forgetful(backends.why_not_fused)
    monkeypatch.setattr(backends, "_why_not_started", start)
    return lambda: look("cuda")


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> mock.Mock:
    """What starts Triton's driver."""
    start = mock.Mock()
    monkeypatch.setattr(triton.runtime, "driver", SimpleNamespace(active=SimpleNamespace(get_current_target=start)))
    return start


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (RuntimeError("Failed to find C compiler. Please specify via CC.\nOr not."),
         "Failed to find C compiler. Please specify via CC."),
        (subprocess.CalledProcessError(1, ["/usr/bin/gcc", "cuda_utils.c"]), "gcc failed"),
        (FileNotFoundError(2, "No such file or directory", "icc"), "[Errno 2] No such file or directory: 'icc'"),
        (AssertionError(), "AssertionError"),
    ],
)  # fmt: skip
def test_a_driver_of_triton_that_does_not_start(
    why: Callable[[], str | None],
    started: mock.Mock,
    error: Exception,
    said: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    assert why() is None and not caplog.records
    started.side_effect = error
    assert why() == NEEDS + said
    assert caplog.messages == ["the kernels for a GPU do not run: " + NEEDS + said]


def test_the_driver_is_started_once(why: Callable[[], str | None], started: mock.Mock) -> None:
    once = backends._once(backends._why_not_started)
    started.side_effect = RuntimeError("no")
    assert once() == once() == NEEDS + "no"
    started.assert_called_once()


def test_torch_for_amd_is_refused_before_triton_is_asked(
    why: Callable[[], str | None], started: mock.Mock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.version, "hip", "7.1.25424")
    assert why() == "they need an NVIDIA GPU, this PyTorch is for GPUs of AMD (ROCm)"
    started.assert_not_called()


def test_without_a_gpu_the_driver_is_not_started(
    why: Callable[[], str | None], started: mock.Mock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert why() == "there is no NVIDIA GPU here"
    started.assert_not_called()
