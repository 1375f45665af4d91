"""Processes that torchrun or accelerate started for one piece of work: who is who, and what they tell each other."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from belvedere.apps.batch_workers import launched
from belvedere.checkpoints import store


@dataclass(frozen=True)
class Processes:
    """This process, number ``rank`` of ``world``; the first one, 0, is told by the others."""

    rank: int = 0
    world: int = 1
    local: int = 0
    """Number of this process on its machine."""

    @property
    def first(self) -> bool:
        return self.rank == 0

    def gather(self, mine: Tensor) -> Tensor | None:
        """Return the rows (n, ...) of every process, of the same shape in all, taking turns: (n world, ...).

        Row i is row i // world of process i % world. Only the first process is told; the others get None.
        """
        if self.world == 1:
            return mine
        mine = mine.contiguous()
        rows = [torch.empty_like(mine) for _ in range(self.world)] if self.first else None
        dist.gather(mine, rows)
        return None if rows is None else torch.stack(rows, 1).flatten(0, 1)  # (n world, ...)

    def agree(self, answer: bool) -> bool:
        """Return the first process's answer in all of them."""
        if self.world == 1:
            return answer
        told = torch.tensor([answer], dtype=torch.uint8)
        dist.broadcast(told, 0)
        return bool(told.item())

    def device(self, name: str) -> torch.device:
        """Return the device asked for; ``auto`` gives every process of a machine a GPU of its own."""
        if name == "auto" and torch.cuda.is_available():
            name = f"cuda:{self.local % torch.cuda.device_count()}"
        return store.choose_device(name)


@contextmanager
def joined_processes() -> Iterator[Processes]:
    """Meet the others that were started with this process, on CPUs' gloo; alone, there is nobody to meet."""
    local, here, machine, machines = launched()
    found = Processes(machine * here + local, here * machines, local)
    if found.world == 1 or dist.is_initialized():
        yield found
        return
    dist.init_process_group("gloo", rank=found.rank, world_size=found.world)
    try:
        yield found
    finally:
        dist.destroy_process_group()
