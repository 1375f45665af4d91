"""The state of a run and its checkpoints: atomic directories with digests, read without unpickling.

    checkpoints/step-00001000/  model.safetensors  ema.safetensors  optimizer.safetensors  state.json  manifest.json

Of a sharded run each file of tensors is in parts (``sharding``). A checkpoint is written under a temporary name,
flushed and renamed; ``manifest.json`` holds the SHA-256 of every file, so a reader takes the newest directory that
verifies.
"""

import dataclasses
import fcntl
import hashlib
import json
import os
import secrets
import shutil
import warnings
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
    looks: int = 0
    """How often they have been looked at since then."""

    def add(self, loss: float, bad: bool, seconds: float) -> None:
        """Count one step."""
        self.step += 1
        self.seconds += seconds
        self.bad_steps = self.bad_steps + 1 if bad else 0
        if not bad:
            share = 1.0 if self.loss is None else max(0.01, 1 / self.step)
            self.loss = share * loss + (1 - share) * (self.loss or 0.0)

    def look(self, loss: float) -> None:
        """Count one look at held-out samples, whose loss is ``loss``."""
        lower = self.best is None or loss < self.best
        self.best, self.looks = (loss, 0) if lower else (self.best, self.looks + 1)

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

    def save(self, folder: Path, config: Mapping[str, Any]) -> Path:
        """Write a checkpoint of this state below ``folder`` and return its directory; of shards, see ``stage``."""
        target = self._target(folder)
        state = {"config": config, "versions": {"torch": torch.__version__}} | dataclasses.asdict(self.progress)
        with atomic_directory(target) as directory:
            if self.part.count == 1:
                self._write(directory)
            else:
                for stem, number in product(_STEMS, range(self.part.count)):
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
        for stem in _STEMS:
            _sync(staging / self.part.file(stem))

    def _target(self, folder: Path) -> Path:
        return folder / f"step-{self.progress.step:08d}"

    def _write(self, directory: Path) -> None:
        tensors = (self.model.state_dict(), self.ema.state(), self._optimizer_tensors())
        for stem, named in zip(_STEMS, tensors, strict=True):
            self.part.write(named, directory / self.part.file(stem))

    def load(self, directory: Path) -> None:
        """Read a checkpoint, in shards or not, into this state. One of another model raises ``InputError``."""
        fill(self.model.state_dict(), Parts(directory, "model"))
        fill(self.ema.state(), Parts(directory, "ema"))
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


def make_folder(folder: Path) -> None:
    """Make the run's folder and see that it can be written, before any work."""
    try:
        (folder / "checkpoints").mkdir(parents=True, exist_ok=True)
        probe = folder / f".{secrets.token_hex(4)}.tmp"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise InputError(f"cannot write in {folder}: {error.strerror}; choose another --out") from None


def make_room(folder: Path, model: nn.Module, keep: int) -> None:
    """Remove what interrupted writers left in a folder that no other run has; see that the checkpoints have room."""
    remove_leftovers(folder / "checkpoints")
    weights = sum(p.numel() for p in model.parameters()) * 4
    there = min(keep, len(checkpoints(folder / "checkpoints")))  # they go when as many new ones have come
    need, free = weights * 4 * (keep + 1 - there), shutil.disk_usage(folder).free
    if free < need:
        raise InputError(
            f"{folder}: {free / 1e9:.1f} GB free, this run needs {need / 1e9:.1f}; make room or lower keep"
        )


@contextmanager
def only_run(folder: Path) -> Iterator[None]:
    """Hold a run's folder; raise ``InputError`` when another process has it. It is free again when the process ends.

    Where its file system gives no locks a warning says so.
    """
    with (folder / ".lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InputError(f"another run is writing into {folder}: stop it, or choose another --out") from None
        except OSError as error:
            warnings.warn(f"{folder}: no lock ({error.strerror}): let no other run write into it", stacklevel=3)
        yield


def find_start(
    folder: Path, resume: str | Path, config: Mapping[str, Any], report: Callable[[str], None]
) -> Path | None:
    """Return the checkpoint that a run in ``folder`` starts from, None for the beginning; ``resume`` as in ``train``.

    Raises ``InputError`` for a checkpoint that is missing, damaged or of another run, and rather than write into a
    folder whose later checkpoints do not belong to this start.
    """
    own = folder / "checkpoints"
    start = None
    if resume == "auto":
        start = last_good(own, report)
    elif resume != "never":
        start = _named(Path(resume), report)
    if start is not None:
        _check_same_run(start, config)
    first = read_progress(start).step if start else 0
    if resume != "auto" and any(step_of(later) > first for later in checkpoints(own)):
        raise InputError(f"{folder} holds checkpoints later than step {first}: choose another --out, or --resume auto")
    return start


def _named(path: Path, report: Callable[[str], None]) -> Path:
    """Return a checkpoint given by itself or by its run."""
    if not path.is_dir():
        raise InputError(f"no checkpoint {path}: give auto, never, a checkpoint or the folder of a run")
    if (path / "checkpoints").is_dir():
        if (found := last_good(path / "checkpoints", report)) is None:
            raise InputError(f"{path} holds no good checkpoint")
        return found
    if trouble := verify(path):
        raise InputError(f"checkpoint {path}: {trouble}")
    return path


def _check_same_run(start: Path, config: Mapping[str, Any]) -> None:
    """Raise ``InputError`` when a key that fixes the weights, their moments or the order of the data differs."""
    then, now = _fixed(read_state(start)["config"]), _fixed(config)
    for key, value in now.items():
        if then[key] != value:
            raise InputError(f"{start} has {key} {then[key]!r}, not {value!r}: change it back or use a new --out")


def _fixed(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a run cannot change; before optimizers had names all were AdamW."""
    keys = {key: config.get(key) for key in ("task", "model", "seed", "batch")}
    return keys | {"optimizer.name": config["optimizer"].get("name", "adamw")}


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
