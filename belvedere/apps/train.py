"""The one training loop: `belvedere train NAME`, or `accelerate launch -m belvedere.apps.train --config NAME`.

    order(seed, epoch) ─► dataset.batch(indices) ─► loss(model, batch, rng(seed, step, sample)) ─► AdamW ─► EMA
                                        every so often: log, sample sheet, checkpoint; at the end: the model

It knows a ``Task`` and nothing else about a system. Every random number is a function of (seed, step, sample), so a
resumed run continues bit for bit and another number of processes sees the same batches and the same noise.
"""

import argparse
import dataclasses
import math
import signal
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast
from torch import nn

import belvedere
from belvedere.apps import policy
from belvedere.apps.agreement import (
    Agreed,
    all_check,
    first_trouble,
    main_checks,
    prints,
    require_division,
    require_equal,
)
from belvedere.apps.config import TrainConfig, load_config
from belvedere.apps.feed import Feed
from belvedere.apps.objective import held_out_loss, run_check
from belvedere.apps.order import make_loader
from belvedere.apps.run_folder import RunFolder
from belvedere.apps.run_writer import RunWriter
from belvedere.apps.sharding import local
from belvedere.apps.start import begin_task, find_start, prepare_folder
from belvedere.apps.steps import Steps
from belvedere.apps.stop import StopRequest
from belvedere.apps.task import Task
from belvedere.apps.training_log import StepResult, TrainingLog, Window, device_name, find_tracker, start_tracker
from belvedere.apps.training_state import Progress
from belvedere.errors import InputError
from belvedere.seeds import derive


class Trainer:
    """One run in a folder: its steps, and when it logs, looks, draws and saves."""

    def __init__(self, config: TrainConfig, task: Task, accelerator: Accelerator, folder: RunFolder, command: str):
        self.config, self.task, self.accelerator, self.folder, self.command = config, task, accelerator, folder, command
        self.device = accelerator.device
        self.steps = Steps(config, task, accelerator)
        self.log = TrainingLog(folder.log if accelerator.is_main_process else None, config.steps)
        self.writer = RunWriter(config, accelerator, folder, self.steps.state, self.log)

    @property
    def progress(self) -> Progress:
        """How far the run is."""
        return self.steps.state.progress

    def resume(self, start: Path | None) -> None:
        """Take up the state in a checkpoint; None: begin."""
        if start is not None:
            all_check(partial(self.steps.state.load, start))
        self.steps.state.keep_or_forget_best(self.config.patience)
        self.writer.begin(start)

    def run(self, stop: StopRequest) -> int:
        """Train to the last step or until asked to stop; return the exit code.

        Samples that cannot be had raise ``Agreed`` on every process, when the state is saved.
        """
        progress = self.progress
        self._look_if_due()
        last = progress.step if progress.tired(self.config.patience) else self.config.steps
        steps = range(progress.step, last)
        pin = self.device.type == "cuda" and self.config.workers > 0
        loader = make_loader(self.task.dataset, self.steps.order, steps, self.steps.parts, self.config.workers, pin)
        feed, window = Feed(loader, len(self.steps.parts)), Window(self.config, self.device)
        feed.draw()
        self._require_batch(feed)
        self.task.model.train()
        for step in steps:
            began = time.perf_counter()
            result = self.steps.step(step, feed, window, stop)
            progress.add(result.loss, result.bad, time.perf_counter() - began)
            window.add(result, time.perf_counter() - began)
            if result.bad and self._too_many_bad(result):
                return 1
            if self._due(self.config.log_every) or result.stop or result.starved:
                self._log(self.log.step, window.close(progress.step))
            self._look_if_due()
            if result.stop:
                return self._stopped(stop)
            if self._due(self.config.save_every):
                self.writer.save(final=False)
            if self._due(self.config.sheet_every):
                self.sheet()
            if progress.tired(self.config.patience):
                self.writer.event(f"ends here: no lower held-out loss in {progress.looks} looks")
                break
            if result.starved:
                self._require_batch(feed)
        return self._finish()

    def _require_batch(self, feed: Feed) -> None:
        with self.writer.saving():
            all_check(feed.check)

    def _log(self, tell: Callable[[dict[str, Any]], None], row: dict[str, Any]) -> None:
        tell(row)
        try:
            self.accelerator.log(row, step=row["step"])
        except OSError as error:  # a full disk must not end the run
            self.accelerator.trackers.clear()
            self.log.event(row["step"], f"the tracker is told no more: {error}")

    def _log_figures(self, figures: Mapping[str, float]) -> None:
        self._log(self.log.figures, {"step": self.progress.step, **figures})

    def _due(self, every: int) -> bool:
        return every > 0 and self.progress.step % every == 0

    def _too_many_bad(self, result: StepResult) -> bool:
        self.writer.event(f"skipped: loss {result.loss}, gradient norm {result.grad_norm}")
        if self.progress.bad_steps < self.config.optimizer.max_bad_steps:
            return False
        self.writer.event(f"stopped: {self.progress.bad_steps} steps in a row were not finite")
        return True

    def sheet(self) -> None:
        """Write a sample sheet of the averaged weights; log the figures that the task has of it."""
        if (show := self.task.sheet) is not None:
            whole = self.steps.state.ema.whole()
            path = self.folder.sheets / f"step-{self.progress.step:08d}.png"
            figures: dict[str, float] = {}

            def draw() -> None:
                figures.update(show(whole.to(self.device), path) or {})

            self.writer.write("sample sheet", draw, final=False)
            if figures:
                self._log_figures(figures)

    def _look_if_due(self) -> None:
        """Evaluate where this step asks for it and has not been looked at; the last step's look is ``_finish``'s."""
        progress = self.progress
        if self._due(self.config.evaluate_every) and progress.looked != progress.step != self.config.steps:
            with self.writer.saving():
                self.evaluate()

    def evaluate(self) -> None:
        """Log the loss of held-out samples by the averaged weights; the first process looks at them, all are told."""
        whole = self.steps.state.ema.whole()
        loss = torch.zeros((), dtype=torch.float64, device=self.device)
        main_checks(self.accelerator, partial(self._look, whole, loss))
        if self.progress.look(broadcast(loss).item()) and self.config.patience:
            self.steps.state.keep_best()

    def _look(self, whole: nn.Module, loss: torch.Tensor) -> None:
        chunk = len(self.steps.order.positions(0))
        loss += held_out_loss(self.config, self.task, whole.to(self.device), chunk, self.device)
        self._log_figures({"held_out_loss": loss.item()})

    def _stopped(self, stop: StopRequest) -> int:
        self.writer.save(final=True)
        self.writer.event("stopped by a signal; the same command continues")
        return 130 if stop.signal == signal.SIGINT else 0

    def _finish(self) -> int:
        """Look, save, write the model, draw; return the exit code. A look or a sheet that fails costs no model."""
        trouble = None
        try:
            if self.config.evaluate_every and self.progress.looked != self.progress.step and not self._ended_early:
                self.evaluate()
        except Agreed as error:
            self.writer.event(f"not looked at: {error}")
            trouble = error
        self.writer.save(final=True)
        if self._ended_early:
            self.steps.state.restore_best()
            self.writer.event(f"the model is that of step {self.progress.best_step}, which had the lowest loss")
        if unfit := self._unfit():
            self.writer.event(f"no model written: {unfit}")
            return 1
        export = partial(self.task.export, self.steps.state.ema.whole(), self.folder.model, self._card())
        self.writer.write("model", export, final=True)
        self.writer.event(f"model written to {self.folder.model}")
        if trouble is not None:
            raise trouble
        if self._ended_early or not self._due(self.config.sheet_every):
            self.sheet()
        return 0

    @property
    def _ended_early(self) -> bool:
        return self.steps.state.best is not None and self.progress.tired(self.config.patience)

    def _unfit(self) -> str | None:
        """Return why the averaged weights are no model, and the mend; None where they are one."""
        weights = (weight for weight in local(self.steps.state.ema.state().values()) if weight.is_floating_point())
        name = self.config.export.dtype
        finite = all(weight.to(getattr(torch, name)).isfinite().all() for weight in weights)
        mend = "give the same command with export.dtype=bfloat16, or begin again with a lower optimizer.lr"
        return first_trouble(None if finite else f"the averaged weights are not finite in {name}: {mend}")

    def _held_out(self) -> dict[str, Any]:
        """Return the step and the loss of the look at the weights of the model, where there was one."""
        progress = self.progress
        step, loss = progress.looked, progress.held_out
        if self._ended_early:
            step, loss = progress.best_step, progress.best
        if not step:
            return {}
        return {"held_out_step": step, "held_out_loss": loss if loss is not None and math.isfinite(loss) else None}

    def _card(self) -> dict[str, Any]:
        progress = self.progress
        return {
            "config": dataclasses.asdict(self.config),
            **({"began_with": self.task.began_with} if self.task.began_with else {}),
            "samples": len(self.task.dataset),
            "classes": list(self.task.dataset.classes),
            "steps": progress.step,
            "train_loss": progress.loss,
            **self._held_out(),
            "seconds": round(progress.seconds, 1),
            "processes": self.accelerator.num_processes,
            "device": device_name(self.device),
            "command": self.command,
            "versions": {"belvedere": belvedere.__version__, "torch": torch.__version__},
        }


def train(
    name_or_path: str | Path,
    *,
    resume: str | Path = "auto",
    check: bool = False,
    overrides: Sequence[str] = (),
    out: str | Path | None = None,
) -> int:
    """Train a packaged config or a YAML file in folder ``out`` (default ``runs/NAME``); return the exit code.

    ``resume``: "auto" continues from the newest good checkpoint of ``out`` if there is one, "never" refuses a folder
    that has some, a path names a checkpoint or another run. ``check`` only overfits one batch. ``overrides`` are
    ``key.path=value``. Exit code 0: finished, or stopped by SIGTERM or SIGUSR1 after saving; 130: stopped by Ctrl-C
    after saving; 1: too many steps in a row were not finite, or the average is not, or the check failed. What can be
    known to be wrong before the first step raises ``InputError``.
    """
    config = load_config(name_or_path, overrides)
    command = " ".join(["belvedere train", str(name_or_path), *overrides])
    folder = Path(out or Path("runs") / Path(name_or_path).stem)
    return train_config(config, folder, command, resume=resume, check=check)


def train_config(
    config: TrainConfig, folder: Path, command: str, *, resume: str | Path = "auto", check: bool = False
) -> int:
    """Train a config in a folder; ``command`` is what the card says was called. See ``train``."""
    with policy.deterministic(config.deterministic):
        return _train(config, RunFolder(folder), command, resume, check)


def _train(config: TrainConfig, folder: RunFolder, command: str, resume: str | Path, check: bool) -> int:
    tracker = find_tracker(config.tracker)
    accelerator = Accelerator(log_with=tracker, project_dir=folder.path if tracker else None)
    if check:  # saves nothing, so a signal ends it as it ends any program
        return run_check(config, all_check(partial(begin_task, config)), accelerator.device)
    with StopRequest() as stop, ExitStack() as held:
        require_equal(accelerator, derive(repr(config)), "were started with different configs")
        require_division(config, accelerator.num_processes)
        task = all_check(partial(begin_task, config))
        main_checks(accelerator, partial(prepare_folder, held, folder, task, config))
        start = find_start(accelerator, folder, resume, config)
        tell = partial(start_tracker, accelerator, tracker, folder.path, config, start is None)
        main_checks(accelerator, tell)  # by all: what is installed may differ between machines
        trainer = Trainer(config, task, accelerator, folder, command)
        try:
            trainer.resume(start)
            code, trouble = trainer.run(stop), None
        except Agreed as error:  # its traceback would keep the model
            code, trouble = 2, str(error)
    accelerator.wait_for_everyone()  # else ending aborts now and then
    del task, trainer  # a DDP model that is the last to hold the process group may never get to the end of it:
    accelerator.free_memory()  # it is freed with the GIL held, for which the group's own threads wait
    accelerator.end_training()
    if trouble is not None:
        raise Agreed(trouble)
    return code


def main(arguments: Sequence[str] | None = None) -> int:
    """Run ``train`` from the command line; return the exit code: 2 for bad input."""
    parser = argparse.ArgumentParser(prog="python -m belvedere.apps.train", description=__doc__.split("\n")[0])
    parser.add_argument("--config", required=True, help="a packaged name or a YAML file")
    parser.add_argument("--out", help="folder of the run (default: runs/NAME)")
    parser.add_argument("--resume", default="auto", help="auto, never, a checkpoint or a run's folder")
    parser.add_argument("--check", action="store_true", help="only overfit one batch")
    parser.add_argument("overrides", nargs="*", metavar="key.path=value", help="replaces a value of the config")
    given = vars(parser.parse_intermixed_args(arguments))
    try:
        return train(given.pop("config"), **given)
    except InputError as error:
        if prints(error):
            print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main())
