"""What a run writes while it goes: all its processes know whether that could be, and none goes on alone."""

import dataclasses
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from accelerate import Accelerator
from safetensors import SafetensorError

from belvedere.apps import training_state
from belvedere.apps.agreement import Agreed, first_trouble, main_checks
from belvedere.apps.config import TrainConfig
from belvedere.apps.run_folder import RunFolder
from belvedere.apps.training_log import TrainingLog
from belvedere.apps.training_state import RunState
from belvedere.errors import InputError


class RunWriter:
    """Writes what a run keeps in its folder: by the first process, or, of shards, by all."""

    def __init__(
        self, config: TrainConfig, accelerator: Accelerator, folder: RunFolder, state: RunState, log: TrainingLog
    ):
        self.config, self.accelerator, self.folder, self.state, self.log = config, accelerator, folder, state, log
        self._saved = (0, 0)

    def begin(self, start: Path | None) -> None:
        """Make the folder that of a run which has taken up a checkpoint, None for none: nothing later is in it."""
        self._saved = self._now()
        self.write("log", self._rewind, final=True)
        self.event(f"resumed from {start}" if start else "began")

    def _rewind(self) -> None:
        step = self.state.progress.step
        training_state.set_aside(self.folder.checkpoints, step)
        self.log.rewind(step)

    def _now(self) -> tuple[int, int]:
        """Return what a checkpoint is of: the step, and the last that was looked at."""
        return self.state.progress.step, self.state.progress.looked

    def event(self, text: str) -> None:
        """Log something that happened, at the present step."""
        self.log.event(self.state.progress.step, text)

    def save(self, final: bool) -> None:
        """Write a checkpoint, unless there is one of this state, and drop old ones."""
        if self._saved == self._now():
            return
        sharded, stage = self.state.part.count > 1, partial(self.state.stage, self.folder.checkpoints)
        staged = not sharded or self.write("checkpoint", stage, final, everywhere=True)
        if staged and self.write("checkpoint", self._save, final):
            self._saved = self._now()

    def _save(self) -> None:
        self.state.save(self.folder.checkpoints, dataclasses.asdict(self.config))
        training_state.prune(self.folder.checkpoints, self.config.keep)

    @contextmanager
    def saving(self) -> Iterator[None]:
        """Save before an error that all processes have ends the run."""
        try:
            yield
        except Agreed as error:
            self.save(final=True)
            self.event(f"stopped: {error}")
            raise

    def write(self, what: str, write: Callable[[], object], final: bool, everywhere: bool = False) -> bool:
        """Let the first process write, or every one; return whether all could.

        A failure is fatal, as ``Agreed``, only when there will be no next time.
        """
        trouble = None
        if everywhere or self.accelerator.is_main_process:
            try:
                write()
            except (OSError, SafetensorError, InputError) as error:
                trouble = str(error)
        if (trouble := first_trouble(trouble)) is None:
            return True
        main_checks(self.accelerator, partial(training_state.remove_leftovers, self.folder.checkpoints))
        self.event(f"{what} not written: {trouble}")
        if final:
            mend = "with that mended the same command goes on"
            raise Agreed(f"cannot write the {what} in {self.folder.path}: {trouble}; {mend}")
        return False
