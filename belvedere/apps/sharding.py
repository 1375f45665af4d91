"""Networks too large for one process: each holds some rows of every tensor (``shard: true``; FSDP2, ``fully_shard``).

    weights, gradients, average, moments: rows of each ─► a block's weights whole, while it computes ─► rows
    checkpoint: model-00001-of-00002.safetensors, ...: a tensor is its parts behind one another

A row is an index of dimension 0. A checkpoint of any number of parts, one among them, is read into any other number.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from belvedere.apps.task import blocks
from belvedere.errors import InputError

LAYERS = (nn.Linear, nn.Conv2d, nn.Embedding)
"""Modules of blocks whose weights are put together for a block; DiMR uses other parameters outside of theirs."""


def shard(objective: nn.Module, model: nn.Module, device: torch.device) -> None:
    """Leave each process its rows of the parameters of ``model``, on ``device``; ``objective`` is what calls it.

    The layers of blocks become whole one block after another, the rest for a whole step. Every process calls this, with
    equal weights.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh(device.type, (torch.distributed.get_world_size(),))
    for block in blocks(model):
        fully_shard([layer for layer in block.modules() if isinstance(layer, LAYERS)], mesh=mesh)
    fully_shard(objective, mesh=mesh)
    objective.to(device)


def is_sharded(tensor: Tensor) -> bool:
    """Whether a tensor is a ``DTensor``, whose module takes a second to import."""
    return hasattr(tensor, "to_local")


@torch.no_grad()
def local(tensors: Iterable[Tensor]) -> list[Tensor]:
    """Return the rows of each tensor that are here: all of one that is not sharded. Writing to them writes to it."""
    return [tensor.to_local() if is_sharded(tensor) else tensor for tensor in tensors]  # type: ignore[attr-defined]


def total_norm(gradients: list[Tensor]) -> float:
    """Return the norm of gradients, of all their rows."""
    norm: Any = torch.nn.utils.get_total_norm(gradients, foreach=True)
    return (norm.full_tensor() if is_sharded(norm) else norm).item()


@dataclass(frozen=True)
class Part:
    """Which share of a checkpoint's tensors a process writes."""

    number: int = 0
    """From 0."""
    count: int = 1

    def file(self, stem: str) -> str:
        """Return the name of the file of this part."""
        return _file(stem, self.number, self.count)

    def write(self, tensors: Mapping[str, Tensor], path: Path) -> None:
        """Write the rows that are here; of tensors that every process holds whole the first writes all."""
        here = {name: value for name, value in tensors.items() if self.number == 0 or is_sharded(value)}
        rows = local(value.detach() for value in here.values())
        save_file({name: value.contiguous() for name, value in zip(here, rows, strict=True)}, path)


def _file(stem: str, number: int, count: int) -> str:
    return f"{stem}.safetensors" if count == 1 else f"{stem}-{number + 1:05d}-of-{count:05d}.safetensors"


def files_of(stem: str, names: Iterable[str]) -> list[str]:
    """Return those of the file ``names`` that are the parts of ``stem``, in order; none when one is missing."""
    names = set(names)
    counts = [re.fullmatch(rf"{re.escape(stem)}-00001-of-(\d{{5}})\.safetensors", name) for name in names]
    count = next((int(match[1]) for match in counts if match), 1)
    files = [_file(stem, number, count) for number in range(count)]
    return files if names.issuperset(files) else []


WHOLE = Part()
"""Of a run that is not sharded."""


class Parts:
    """The tensors of a checkpoint's files ``stem``, however many parts they are in; damage raises ``InputError``."""

    def __init__(self, directory: Path, stem: str):
        self.name = f"{directory / stem}.safetensors"
        files = files_of(stem, (path.name for path in directory.iterdir()))
        try:
            opened = [safe_open(directory / file, "pt") for file in files]
        except (OSError, SafetensorError) as error:
            raise InputError(f"checkpoint file {self.name}: {' '.join(str(error).split())}") from None
        self._parts: dict[str, list[Any]] = {}
        for part in opened:
            for name in part.keys():  # noqa: SIM118
                self._parts.setdefault(name, []).append(part)

    @property
    def names(self) -> set[str]:
        """Of all tensors."""
        return set(self._parts)

    def shape(self, name: str) -> tuple[int, ...]:
        """Return the shape of a whole tensor."""
        shapes = [part.get_slice(name).get_shape() for part in self._parts[name]]
        if len(shapes) == 1:
            return tuple(shapes[0])
        return (sum(shape[0] for shape in shapes), *shapes[0][1:])

    def read(self, name: str, target: Tensor) -> None:
        """Fill ``target``, whole or sharded, with its rows of a tensor of the same shape."""
        (rows,) = local([target.detach()])
        if not target.ndim:
            rows.copy_(self._parts[name][0].get_tensor(name))
            return
        first, begin = first_row(target), 0
        for part in (part.get_slice(name) for part in self._parts[name]):
            end = begin + part.get_shape()[0]
            low, high = max(begin, first), min(end, first + len(rows))
            if low < high:
                rows[low - first : high - first].copy_(part[low - begin : high - begin])
            begin = end


def first_row(tensor: Tensor) -> int:
    """Return the number of the first row that is here: rows are dealt out in equal blocks, the last ones shorter."""
    if not is_sharded(tensor):
        return 0
    mesh = tensor.device_mesh  # type: ignore[attr-defined]
    return min(len(tensor), mesh.get_local_rank() * -(-len(tensor) // mesh.size()))


def fill(tensors: Mapping[str, Tensor], parts: Parts) -> None:
    """Read ``tensors``, whole or sharded, from a checkpoint, which must have just these, of these shapes."""
    own = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    wrong = [n for n in own.keys() | parts.names if n not in own or n not in parts.names or own[n] != parts.shape(n)]
    if wrong:
        raise InputError(f"checkpoint of another model: tensor {sorted(wrong)[0]!r} is missing or differs")
    for name, tensor in tensors.items():
        parts.read(name, tensor)
