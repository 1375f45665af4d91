"""The optimizer's steps: the parts of a batch that this process has, one loss and one gradient of all processes."""

from contextlib import nullcontext

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from belvedere.apps.average import Ema, ShardedEma
from belvedere.apps.config import TrainConfig
from belvedere.apps.feed import Feed
from belvedere.apps.objective import Objective, learning_rate, uses_bf16
from belvedere.apps.optimizers import make_optimizer
from belvedere.apps.order import Order
from belvedere.apps.sharding import WHOLE, Part, shard, total_norm
from belvedere.apps.stop import StopRequest
from belvedere.apps.task import Task
from belvedere.apps.training_log import StepResult, Window
from belvedere.apps.training_state import Progress, RunState
from belvedere.kernels.layout import place
from belvedere.seeds import BatchRng, derive


class Steps:
    """The network of a task on its device, whole or in shards, what else changes with it, and how."""

    def __init__(self, config: TrainConfig, task: Task, accelerator: Accelerator):
        self.config, self.task, self.accelerator = config, task, accelerator
        self.device, self.world = accelerator.device, accelerator.num_processes
        self.sharded = config.shard and self.world > 1
        self.order = Order(len(task.dataset), config.seed, config.batch, self.world * config.accumulate)
        self.parts = range(accelerator.process_index, self.order.parts, self.world)
        self.objective, ema = self._place(Objective(task, uses_bf16(config.precision, self.device)))
        part = Part(accelerator.process_index, self.world) if self.sharded else WHOLE
        self.state = RunState(task.model, ema, make_optimizer(task, config.optimizer), Progress(), part)
        self.parameters = [p for p in task.model.parameters() if p.requires_grad]

    def _place(self, objective: nn.Module) -> tuple[nn.Module, Ema]:
        """Bring the model to the device; return what makes a loss, wrapped, and the average."""
        model, average = self.task.model, self.config.ema
        if not self.sharded:
            ema = Ema(place(model, self.device), average.decay, average.warmup)
            return self.accelerator.prepare(objective), ema
        sharded = ShardedEma(model, average.decay, average.warmup)
        shard(objective, model, self.device)
        sharded.follow(model)
        return objective, sharded

    def step(self, step: int, feed: Feed, window: Window, stop: StopRequest) -> StepResult:
        """Do one step, or skip it when the loss or the gradient is not finite."""
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
