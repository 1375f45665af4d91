"""What several test files share: a small DiMR and a small FiTv2 with random weights, saved as model folders."""

import gc
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.util import Finalize
from pathlib import Path

import pytest

os.environ["BELVEDERE_CONFIG"] = os.devnull  # no test depends on somebody's own defaults
os.environ.setdefault("HF_HUB_OFFLINE", "1")  # nor on a hub
os.environ.setdefault("TRITON_INTERPRET", "1")  # before triton is imported: its kernels run without a GPU
if "PYTEST_XDIST_WORKER" in os.environ:  # several at work: each keeps to one core, and so does what it starts
    os.environ.setdefault("OMP_NUM_THREADS", "1")

LAST = -200
"""Of what is done at exit: multiprocessing tidies up in its own folders for temporary files with -100."""


def pytest_configure() -> None:
    """Let all temporary files, of started processes too, lie in one folder, which goes at the end.

    Its path is short: that of a socket has at most 108 bytes. ``tmp_path`` is elsewhere, for it stays where tests fail.
    """
    os.environ.setdefault("PYTEST_DEBUG_TEMPROOT", tempfile.gettempdir())
    folder = tempfile.mkdtemp(prefix="bvd-")
    Finalize(None, shutil.rmtree, (folder,), {"ignore_errors": True}, LAST)
    os.environ["TMPDIR"] = os.environ["GRADIO_TEMP_DIR"] = tempfile.tempdir = folder


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put files with slow tests first, so that none of them is what one worker still does when the other has ended."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)


def pytest_collection_finish() -> None:
    """Let garbage collection, which each run of the trainer asks for, pass over a million objects of imports."""
    gc.collect()
    gc.freeze()


CLASSES = ("car", "boat", "plane", "rocket")
Run = Callable[..., subprocess.CompletedProcess[str]]


DEFAULTS = ("float64", "meta")


@contextmanager
def by_default(name: str) -> Iterator[None]:
    """Let PyTorch, in this block, by default make tensors of a number format, or on a device."""
    import torch

    if name == "meta":
        with torch.device(name):
            yield
        return
    before = torch.get_default_dtype()
    torch.set_default_dtype(getattr(torch, name))
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def save_tiny_model(folder: Path, seed: int = 0, prediction: str = "sample", schedule: str = "flow") -> Path:
    """Write a 16x16 pixel DiMR of four classes with random weights to ``folder``."""
    import torch

    from belvedere.checkpoints import store
    from belvedere.generation.dimr import DiMR
    from belvedere.generation.pipelines import DiMRPipeline

    low = {"kind": "transformer", "dim": 32, "hidden": 64, "blocks": 3, "heads": 2, "height": 4, "width": 4}
    high = {"kind": "convnext", "dim": 16, "hidden": 32, "blocks": 3, "height": 8, "width": 8}
    stages = [low | {"patch": 4, "head_patch": 2}, high | {"patch": 2, "head_patch": 2}]
    torch.manual_seed(seed)
    network = DiMR(channels=3, num_classes=5, stage_configs=stages, prediction=prediction, schedule=schedule)
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    names = dict(enumerate(CLASSES))
    pipeline = DiMRPipeline(network=network, id2label=names, default_steps=4, default_guidance=1.5)
    store.save(pipeline, folder, {"kind": "DiMR, random weights", "quality": {"recognised": 0.25}})
    return folder


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a small DiMR pipeline with random weights; do not change it, copy it."""
    return save_tiny_model(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="session")
def other_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A second one: the same sizes, other weights."""
    return save_tiny_model(tmp_path_factory.mktemp("models") / "other", seed=1)


@pytest.fixture(scope="session")
def tiny_fitv2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a small FiTv2 pipeline with random weights: four classes, pixels in patches of 4, trained on 16x16."""
    import torch

    from belvedere.checkpoints import store
    from belvedere.generation.fitv2 import FiTv2
    from belvedere.generation.fitv2_pipeline import FiTv2Pipeline

    sizes = {"dim": 32, "depth": 2, "heads": 2, "num_classes": 5, "channels": 3, "patch": 4, "adaln_rank": 8}
    torch.manual_seed(0)
    network = FiTv2(**sizes, trained_side=4, prediction="sample")
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.12)
    pipeline = FiTv2Pipeline(network, id2label=dict(enumerate(CLASSES)), default_steps=3)
    folder = tmp_path_factory.mktemp("models") / "fitv2"
    store.save(pipeline, folder, {"kind": "FiTv2, random weights"})
    return folder


@pytest.fixture(scope="session")
def belvedere() -> Run:
    """Run ``python -m belvedere`` with these arguments, as a user would; returns the finished process."""
    root = str(Path(__file__).parents[1])
    path = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH", "")]))
    environment = {**os.environ, "PYTHONPATH": path, "COLUMNS": "120", "HF_HUB_OFFLINE": "1"}

    def run(*arguments: object, **options: object) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "belvedere", *map(str, arguments)]
        return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, **options)

    return run
