"""The one training loop: `belvedere train NAME`, or `accelerate launch -m belvedere.apps.train --config NAME`.

    order(seed, epoch) ─► dataset.batch(indices) ─► loss(model, batch, rng(seed, step, sample)) ─► AdamW ─► EMA
                                        every so often: log, sample sheet, checkpoint; at the end: the model

It knows a ``Task`` and nothing else about a system. Every random number is a function of (seed, step, sample), so a
resumed run continues bit for bit and another number of processes sees the same batches and the same noise.
"""

import argparse
import dataclasses
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast
from safetensors import SafetensorError
from torch import Tensor, nn

import belvedere
from belvedere.apps import policy, training_state
from belvedere.apps.agreement import (
    Agreed,
    all_check,
    first_trouble,
    main_checks,
    prints,
    require_division,
    require_equal,
)
from belvedere.apps.average import Ema, ShardedEma
from belvedere.apps.config import TrainConfig, load_config
from belvedere.apps.feed import Feed
from belvedere.apps.objective import Objective, held_out_loss, learning_rate, run_check, uses_bf16
from belvedere.apps.optimizers import make_optimizer
from belvedere.apps.order import Order, make_loader
from belvedere.apps.sharding import WHOLE, Part, shard, total_norm
from belvedere.apps.start import MODEL, begin_task, find_start, prepare_folder
from belvedere.apps.stop import StopRequest
from belvedere.apps.task import Task
from belvedere.apps.training_log import StepResult, TrainingLog, Window, device_name, find_tracker, start_tracker
from belvedere.apps.training_state import Progress, RunState
from belvedere.errors import InputError
from belvedere.kernels.layout import place
from belvedere.seeds import BatchRng, derive


class Trainer:
    """One run in folder ``out``: ``checkpoints/``, ``sheets/``, ``log.jsonl`` and, at the end, ``model/``."""

    def __init__(self, config: TrainConfig, task: Task, accelerator: Accelerator, out: Path, command: str):
        self.config, self.task, self.accelerator, self.out, self.command = config, task, accelerator, out, command
        self.device, self.world = accelerator.device, accelerator.num_processes
        self.order = Order(len(task.dataset), config.seed, config.batch, self.world * config.accumulate)
        self.parts = range(accelerator.process_index, self.order.parts, self.world)
        self.log = TrainingLog(out if accelerator.is_main_process else None, config.steps)
        self.objective, ema = self._place(Objective(task, uses_bf16(config.precision, self.device)))
        part = Part(accelerator.process_index, self.world) if self.sharded else WHOLE
        self.state = RunState(task.model, ema, make_optimizer(task, config.optimizer), Progress(), part)
        self.parameters = [p for p in task.model.parameters() if p.requires_grad]

    @property
    def sharded(self) -> bool:
        """Whether each process holds a part of the weights only."""
        return self.config.shard and self.world > 1

    def _place(self, objective: nn.Module) -> tuple[nn.Module, Ema]:
        """Bring the model to the device, whole or in shards; return what makes a loss, wrapped, and the average."""
        model, average = self.task.model, self.config.ema
        if not self.sharded:
            ema = Ema(place(model, self.device), average.decay, average.warmup)
            return self.accelerator.prepare(objective), ema
        sharded = ShardedEma(model, average.decay, average.warmup)
        shard(objective, model, self.device)
        sharded.follow(model)
        return objective, sharded

    @property
    def checkpoints(self) -> Path:
        """Where the checkpoints of this run are."""
        return self.out / "checkpoints"

    def resume(self, start: Path | None) -> None:
        """Take up the state in a checkpoint; None: begin."""
        if start is not None:
            all_check(partial(self.state.load, start))
        step = self._saved = self.state.progress.step
        if self.accelerator.is_main_process:
            training_state.set_aside(self.checkpoints, step)
            self.log.rewind(step)
            self.log.event(step, f"resumed from {start}" if start else "began")
        self.accelerator.wait_for_everyone()

    def run(self, stop: StopRequest) -> int:
        """Train to the last step or until asked to stop; return the exit code.

        Samples that cannot be had raise ``Agreed`` on every process, when the state is saved.
        """
        progress = self.state.progress
        last = progress.step if progress.tired(self.config.patience) else self.config.steps
        steps = range(progress.step, last)
        pin = self.device.type == "cuda" and self.config.workers > 0
        loader = make_loader(self.task.dataset, self.order, steps, self.parts, self.config.workers, pin)
        feed, window = Feed(loader, len(self.parts)), Window(self.config, self.device)
        feed.draw()
        self._require_batch(feed)
        self.task.model.train()
        for step in steps:
            began = time.perf_counter()
            result = self.step(step, feed, window, stop)
            progress.add(result.loss, result.bad, time.perf_counter() - began)
            window.add(result, time.perf_counter() - began)
            if result.bad and self._too_many_bad(result):
                return 1
            if self._due(self.config.log_every) or result.stop or result.starved:
                self._log(self.log.step, window.close(progress.step))
            if self._due(self.config.evaluate_every):
                self.evaluate()
            if result.stop:
                return self._stopped(stop)
            if self._due(self.config.save_every):
                self.save(final=False)
            if self._due(self.config.sheet_every):
                self.sheet()
            if progress.tired(self.config.patience):
                self.log.event(progress.step, f"ends here: no lower held-out loss in {progress.looks} looks")
                break
            if result.starved:
                self._require_batch(feed)
        self._finish()
        return 0

    def step(self, step: int, feed: Feed, window: Window, stop: StopRequest) -> StepResult:
        """Do one optimizer step, or skip it when the loss or the gradient is not finite."""
        torch.manual_seed(derive(self.config.seed, "step", step, self.accelerator.process_index))
        total = torch.zeros((), device=self.device)
        with window.counting():
            for part, batch in zip(self.parts, feed.take(), strict=True):
                batch = {key: value.to(self.device, non_blocking=True) for key, value in batch.items()}
                share, logs = self._backward(step, part, batch)
                total += share
        window.waited += feed.draw()
        loss, stopping, starved = self._agree(total, stop, feed)
        rate = learning_rate(self.config.optimizer, self.config.steps, step)
        result = StepResult(loss, total_norm(self._gradients()), rate, stopping, logs, starved)
        if not result.bad:
            self._apply(step, result)
        self.state.optimizer.zero_grad()
        return result

    def _backward(self, step: int, part: int, batch: dict[str, Tensor]) -> tuple[Tensor, dict[str, float]]:
        """Add one part's gradient; return its share of the loss and what the task logs."""
        rng = BatchRng(self.config.seed, step, self.order.positions(part), self.device)
        last = part == self.parts[-1]
        with nullcontext() if last else self.accelerator.no_sync(self.objective):
            value, logs = self.objective(batch, rng)
            share = value / len(self.parts)
            share.backward()
        return share.detach(), logs

    def _agree(self, loss: Tensor, stop: StopRequest, feed: Feed) -> tuple[float, bool, bool]:
        """Return the mean loss over all processes, and whether any was asked to stop or has no next batch."""
        asked, starved = stop.signal > 0, feed.trouble is not None
        if self.world == 1:
            return loss.item(), asked, starved
        flags = torch.tensor((asked, starved), dtype=loss.dtype, device=self.device)
        mean, *sums = self.accelerator.reduce(torch.cat((loss[None] / self.world, flags))).tolist()
        return mean, sums[0] > 0, sums[1] > 0

    def _require_batch(self, feed: Feed) -> None:
        with self._saving():
            all_check(feed.check)

    @contextmanager
    def _saving(self) -> Iterator[None]:
        """Save before an error that all processes have ends the run."""
        try:
            yield
        except Agreed as error:
            self.save(final=True)
            self.log.event(self.state.progress.step, f"stopped: {error}")
            raise

    def _gradients(self) -> list[Tensor]:
        return [p.grad for p in self.parameters if p.grad is not None]

    def _apply(self, step: int, result: StepResult) -> None:
        clip = self.config.optimizer.clip
        if clip is not None and result.grad_norm > clip:
            torch._foreach_mul_(self._gradients(), clip / result.grad_norm)
        for group in self.state.optimizer.param_groups:
            group["lr"] = result.lr * group.get("lr_scale", 1.0)
        self.state.optimizer.step()
        self.state.ema.update(step)

    def _log(self, tell: Callable[[dict[str, Any]], None], row: dict[str, Any]) -> None:
        tell(row)
        try:
            self.accelerator.log(row, step=row["step"])
        except OSError as error:  # a full disk must not end the run
            self.accelerator.trackers.clear()
            self.log.event(row["step"], f"the tracker is told no more: {error}")

    def _log_figures(self, figures: Mapping[str, float]) -> None:
        self._log(self.log.figures, {"step": self.state.progress.step, **figures})

    def _due(self, every: int) -> bool:
        return every > 0 and self.state.progress.step % every == 0

    def _too_many_bad(self, result: StepResult) -> bool:
        progress = self.state.progress
        self.log.event(progress.step, f"skipped: loss {result.loss}, gradient norm {result.grad_norm}")
        if progress.bad_steps < self.config.optimizer.max_bad_steps:
            return False
        self.log.event(progress.step, f"stopped: {progress.bad_steps} steps in a row were not finite")
        return True

    def save(self, final: bool) -> None:
        """Write a checkpoint, unless this step has one, and drop old ones."""
        if self._saved == self.state.progress.step:
            return
        staged = not self.sharded or self._write("checkpoint", partial(self.state.stage, self.checkpoints), final, True)
        if staged and self._write("checkpoint", self._save, final):
            self._saved = self.state.progress.step

    def _save(self) -> None:
        self.state.save(self.checkpoints, dataclasses.asdict(self.config))
        training_state.prune(self.checkpoints, self.config.keep)

    def sheet(self) -> None:
        """Write a sample sheet of the averaged weights; log the figures that the task has of it."""
        if (show := self.task.sheet) is not None:
            whole = self.state.ema.whole()
            path = self.out / "sheets" / f"step-{self.state.progress.step:08d}.png"
            figures: dict[str, float] = {}
            self._write("sample sheet", lambda: figures.update(show(whole.to(self.device), path) or {}), final=False)
            if figures:
                self._log_figures(figures)

    def evaluate(self) -> None:
        """Log the loss of held-out samples by the averaged weights; the first process looks at them, all are told."""
        whole = self.state.ema.whole()
        loss = torch.zeros((), dtype=torch.float64, device=self.device)
        with self._saving():
            main_checks(self.accelerator, partial(self._look, whole, loss))
        self.state.progress.look(broadcast(loss).item())

    def _look(self, whole: nn.Module, loss: Tensor) -> None:
        chunk = len(self.order.positions(0))
        loss += held_out_loss(self.config, self.task, whole.to(self.device), chunk, self.device)
        self._log_figures({"held_out_loss": loss.item()})

    def _write(self, what: str, write: Callable[[], object], final: bool, everywhere: bool = False) -> bool:
        """Let the main process write, or every one; return whether all could.

        A failure is fatal only when there will be no next time.
        """
        trouble = None
        if everywhere or self.accelerator.is_main_process:
            try:
                write()
            except (OSError, SafetensorError) as error:
                trouble = str(error)
        if (trouble := first_trouble(trouble)) is None:
            return True
        main_checks(self.accelerator, partial(training_state.remove_leftovers, self.checkpoints))
        self.log.event(self.state.progress.step, f"{what} not written: {trouble}")
        if final:
            raise Agreed(f"cannot write the {what} in {self.out}: {trouble}; make room")
        return False

    def _stopped(self, stop: StopRequest) -> int:
        self.save(final=True)
        self.log.event(self.state.progress.step, "stopped by a signal; the same command continues")
        return 130 if stop.signal == signal.SIGINT else 0

    def _finish(self) -> None:
        """Save, look, write the model; and draw the last sheet after it, so that one that fails does not cost it."""
        self.save(final=True)
        if self.config.evaluate_every and not self._due(self.config.evaluate_every):
            self.evaluate()
        export = partial(self.task.export, self.state.ema.whole(), self.out / MODEL, self._card())
        self._write("model", export, final=True)
        self.log.event(self.state.progress.step, f"model written to {self.out / MODEL}")
        if not self._due(self.config.sheet_every):
            self.sheet()

    def _card(self) -> dict[str, Any]:
        progress = self.state.progress
        return {
            "config": dataclasses.asdict(self.config),
            **({"began_with": self.task.began_with} if self.task.began_with else {}),
            "samples": len(self.task.dataset),
            "classes": list(self.task.dataset.classes),
            "steps": progress.step,
            "train_loss": progress.loss,
            "seconds": round(progress.seconds, 1),
            "processes": self.world,
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
    after saving; 1: too many steps in a row were not finite, or the check failed. What can be known to be wrong
    before the first step raises ``InputError``.
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
        return _train(config, folder, command, resume, check)


def _train(config: TrainConfig, folder: Path, command: str, resume: str | Path, check: bool) -> int:
    tracker = find_tracker(config.tracker)
    accelerator = Accelerator(log_with=tracker, project_dir=folder if tracker else None)
    if check:  # saves nothing, so a signal ends it as it ends any program
        return run_check(config, begin_task(config), accelerator.device)
    with StopRequest() as stop, ExitStack() as held:
        require_equal(accelerator, derive(repr(config)), "were started with different configs")
        require_division(config, accelerator.num_processes)
        task = all_check(partial(begin_task, config))
        main_checks(accelerator, partial(prepare_folder, held, folder, task, config.keep))
        start = find_start(accelerator, folder, resume, config)
        if tracker:
            main_checks(accelerator, partial(start_tracker, accelerator, tracker, folder, config, start is None))
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
