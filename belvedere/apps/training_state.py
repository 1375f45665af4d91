"""The state of a run and its checkpoints: atomic directories with digests, read without unpickling.

    checkpoints/step-00001000/  model.safetensors  ema.safetensors  optimizer.safetensors  state.json  manifest.json

With ``patience`` there is also ``best.safetensors``, the average at its best. Of a sharded run each file of tensors is
in parts (``sharding``). A checkpoint is written under a temporary name, flushed and renamed; ``manifest.json`` has the
SHA-256 of every file, so a reader takes the newest directory that verifies.
"""

import dataclasses
import hashlib
import json
import math
import os
import secrets
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from belvedere.apps.average import Ema
from belvedere.apps.sharding import WHOLE, Part, Parts, files_of, fill
from belvedere.errors import InputError

_MANIFEST = "manifest.json"
_STEMS = ("model", "ema", "optimizer")
"""Of the files of tensors, of which each process of a sharded run writes its part."""
_BEST = "best"
"""Of one more, in a run that ends early."""


@dataclass
class Progress:
    """How far a run is: what ``state.json`` holds besides the config."""

    step: int = 0
    """Steps done."""
    bad_steps: int = 0
    """Skipped steps in a row, up to now."""
    seconds: float = 0.0
    """Time in steps, over all resumes."""
    loss: float | None = None
    """Loss, averaged over about the last 100 steps."""
    best: float | None = None
    """The lowest loss of held-out samples."""
    best_step: int = 0
    """The step that had it."""
    looks: int = 0
    """How often they have been looked at since then."""
    looked: int = 0
    """The step of the last look."""
    held_out: float | None = None
    """Their loss at the last look."""

    def add(self, loss: float, bad: bool, seconds: float) -> None:
        """Count one step."""
        self.step += 1
        self.seconds += seconds
        self.bad_steps = self.bad_steps + 1 if bad else 0
        if not bad:
            share = 1.0 if self.loss is None else max(0.01, 1 / self.step)
            self.loss = share * loss + (1 - share) * (self.loss or 0.0)

    def look(self, loss: float) -> bool:
        """Count one look at held-out samples, whose loss is ``loss``; return whether none was lower before."""
        lower = math.isfinite(loss) and (self.best is None or loss < self.best)
        if lower:
            self.best, self.best_step = loss, self.step
        self.looks = 0 if lower else self.looks + 1
        self.looked, self.held_out = self.step, loss
        return lower

    def tired(self, patience: int) -> bool:
        """Return whether ``patience`` looks in a row have found no lower loss; never when it is 0."""
        return 0 < patience <= self.looks


@dataclass
class RunState:
    """Everything that a resumed run needs to continue bit for bit."""

    model: nn.Module
    ema: Ema
    optimizer: torch.optim.Optimizer
    progress: Progress
    part: Part = WHOLE
    """What this process writes, where the tensors are sharded."""
    best: dict[str, Tensor] | None = None
    """The average at the look that found the lowest loss, where it is kept."""

    def keep_or_forget_best(self, patience: int) -> None:
        """Begin with what a run with so much patience keeps: nothing without it, and no lowest loss without weights."""
        if not patience:
            self.best = None
        elif self.best is None:
            self.progress.best, self.progress.looks = None, 0

    def keep_best(self) -> None:
        """Keep a copy of the average as it is."""
        self.best = {name: value.clone() for name, value in self.ema.state().items()}

    def restore_best(self) -> None:
        """Make the average what was kept of it."""
        for name, value in (self.best or {}).items():
            self.ema.state()[name].copy_(value)

    def save(self, folder: Path, config: Mapping[str, Any]) -> Path:
        """Write a checkpoint of this state below ``folder`` and return its directory; of shards, see ``stage``."""
        target = self._target(folder)
        state = {"config": config, "versions": {"torch": torch.__version__}} | dataclasses.asdict(self.progress)
        with atomic_directory(target) as directory:
            if self.part.count == 1:
                self._write(directory)
            else:
                for stem, number in product(self._tensors(), range(self.part.count)):
                    file = Part(number, self.part.count).file(stem)
                    (_staging(target) / file).rename(directory / file)
            (directory / "state.json").write_text(json.dumps(state, indent=1))
            seal(directory)
        shutil.rmtree(_staging(target), ignore_errors=True)
        return target

    def stage(self, folder: Path) -> None:
        """Write this process's shards to where ``save`` will find them; the first saves when all have staged."""
        staging = _staging(self._target(folder))
        staging.mkdir(parents=True, exist_ok=True)
        self._write(staging)
        for stem in self._tensors():
            _sync(staging / self.part.file(stem))

    def _target(self, folder: Path) -> Path:
        return folder / f"step-{self.progress.step:08d}"

    def _write(self, directory: Path) -> None:
        for stem, named in self._tensors().items():
            self.part.write(named, directory / self.part.file(stem))

    def _tensors(self) -> dict[str, dict[str, Tensor]]:
        """Return what each file of tensors holds."""
        tensors = (self.model.state_dict(), self.ema.state(), self._optimizer_tensors())
        best = {} if self.best is None else {_BEST: self.best}
        return dict(zip(_STEMS, tensors, strict=True)) | best

    def load(self, directory: Path) -> None:
        """Read a checkpoint, in shards or not, into this state. One of another model raises ``InputError``."""
        fill(self.model.state_dict(), Parts(directory, "model"))
        fill(self.ema.state(), Parts(directory, "ema"))
        self.best = None
        if (best := Parts(directory, _BEST)).names:
            self.keep_best()
            fill(self.best or {}, best)
        self._fill_optimizer(Parts(directory, "optimizer"))
        for name, value in vars(read_progress(directory)).items():
            setattr(self.progress, name, value)

    def _optimizer_tensors(self) -> dict[str, Tensor]:
        named = self.model.named_parameters()
        states = ((name, self.optimizer.state.get(parameter, {})) for name, parameter in named)
        return {f"{name}/{key}": value for name, state in states for key, value in state.items()}

    def _fill_optimizer(self, parts: Parts) -> None:
        parameters = dict(self.model.named_parameters())
        self.optimizer.state.clear()
        for key in sorted(parts.names):
            name, _, slot = key.partition("/")
            if name not in parameters or parts.shape(key) != (() if slot == "step" else parameters[name].shape):
                raise InputError(f"checkpoint: optimizer state {key!r} does not belong to this model")
            parameter = parameters[name].detach()
            value = torch.zeros((), device=parameter.device) if slot == "step" else torch.zeros_like(parameter)
            parts.read(key, value)
            self.optimizer.state[parameters[name]][slot] = value


def _staging(target: Path) -> Path:
    return target.with_name(f".{target.name}.parts.tmp")


@contextmanager
def atomic_directory(target: Path) -> Iterator[Path]:
    """Fill a temporary directory beside ``target``; flush it and rename it when the block succeeds, else remove it.

    An existing ``target`` is replaced.
    """
    temporary = target.with_name(f".{target.name}.{secrets.token_hex(4)}.tmp")
    old = temporary.with_suffix(".old.tmp")
    try:
        temporary.mkdir(parents=True)
        yield temporary
        for path in [*temporary.rglob("*"), temporary]:
            _sync(path)
        if target.exists():
            target.rename(old)
        temporary.rename(target)
        _sync(target.parent)
        shutil.rmtree(old, ignore_errors=True)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def seal(directory: Path) -> None:
    """Write ``manifest.json``: size and SHA-256 of every other file of ``directory``."""
    entries = {
        path.name: {"bytes": path.stat().st_size, "sha256": digest(path)} for path in sorted(directory.iterdir())
    }
    (directory / _MANIFEST).write_text(json.dumps(entries, indent=1))


def verify(directory: Path) -> str | None:
    """Return what is wrong with a checkpoint, or None when every file is as its manifest says."""
    try:
        entries = json.loads((directory / _MANIFEST).read_text())
        if missing := [stem for stem in _STEMS if not files_of(stem, entries)] + [*({"state.json"} - entries.keys())]:
            return f"its manifest lacks {missing[0]}"
        for name, entry in entries.items():
            if Path(name).name != name or not (directory / name).is_file():
                return f"{name} is missing"
            if (directory / name).stat().st_size != entry["bytes"] or digest(directory / name) != entry["sha256"]:
                return f"{name} does not match its digest"
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return "its manifest cannot be read"
    return None


def digest(path: Path) -> str:
    """Return the SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def step_of(directory: Path) -> int:
    """Return the step in the name of a checkpoint directory."""
    return int(directory.name.removeprefix("step-"))


def checkpoints(folder: Path) -> list[Path]:
    """Return the checkpoint directories of a run, oldest first."""
    found = (path for path in folder.glob("step-*") if path.is_dir() and path.name.removeprefix("step-").isdecimal())
    return sorted(found, key=step_of)


def set_aside(folder: Path, step: int) -> None:
    """Rename checkpoints later than ``step``, which a resume has passed over, so that none is taken for a new one."""
    for directory in checkpoints(folder):
        if step_of(directory) > step:
            directory.rename(folder / f"damaged-{directory.name}-{secrets.token_hex(4)}")


def last_good(folder: Path, report: Callable[[str], None] = lambda line: None) -> Path | None:
    """Return the newest checkpoint that verifies; ``report`` is told about each one passed over."""
    for directory in reversed(checkpoints(folder)):
        trouble = verify(directory)
        if trouble is None:
            return directory
        report(f"{directory.name}: {trouble}; passed over")
    return None


def prune(folder: Path, keep: int) -> None:
    """Remove all but the ``keep`` newest checkpoints, and what interrupted writers left."""
    for path in checkpoints(folder)[:-keep]:
        shutil.rmtree(path, ignore_errors=True)
    remove_leftovers(folder)


def remove_leftovers(folder: Path) -> None:
    """Remove what writers that were interrupted, or failed, have left beside the checkpoints."""
    for path in folder.glob(".step-*.tmp"):
        shutil.rmtree(path, ignore_errors=True)


def read_state(directory: Path) -> dict[str, Any]:
    """Return ``state.json`` of a checkpoint."""
    return json.loads((directory / "state.json").read_text())


def read_progress(directory: Path) -> Progress:
    """Return how far the run of a checkpoint was."""
    state = read_state(directory)
    return Progress(**{entry.name: state.get(entry.name, entry.default) for entry in dataclasses.fields(Progress)})


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
