"""One network call for images of any size: packed tokens, both guidance halves together, a constant number of rows.

A matrix product may add up in another order for another number of rows, so small images share calls of ``capacity``
rows, the rest of which is one more image that nobody sees. An image then never depends on its neighbours.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from belvedere.generation.fitv2 import FiTv2, Layout
from belvedere.generation.guidance import check_interval, combine, cosine_power_weight, guides
from belvedere.generation.tokens import offsets_of
from belvedere.kernels.graphs import Graphs

TOKENS_PER_CALL = 256
"""Tokens that small images share in a network call on a CPU, for each half of the guidance; a GPU takes more."""
SHARPEST = 0.01
"""A network of clean pictures gives the velocity (clean - x) / (1 - t), with 1 - t no smaller than this."""


@dataclass(frozen=True)
class Guidance:
    """How strongly the class pulls, by time from 0 (noise) to 1 (data)."""

    weight: float
    power: float | None = None
    """Of the cosine form, falling from ``weight`` to 1; None: constant."""
    interval: tuple[float, float] = (0.0, 1.0)
    """Times between which there is guidance at all; see ``guidance.check_interval``."""
    channels: int | None = None
    """Channels of the picture or latent that are guided, the first ones; None: all. Published samples use 3 of 4."""

    def __post_init__(self) -> None:
        check_interval(self.interval)

    def at(self, t: float) -> float:
        """Return the weight at time ``t``; past 1, where the published dopri5 asks too, it is that at 1."""
        t = min(t, 1.0)
        if not guides(self.interval, t):
            return 1.0
        return self.weight if self.power is None else cosine_power_weight(t, self.weight, self.power)


class ModulationTable:
    """The network's modulation rows at the times of a sampler, a block of times in one product for each class."""

    BLOCK = 32

    def __init__(self, network: FiTv2, times: Sequence[float]):
        self.network, self.times = network, list(times)
        self.index = {t: i for i, t in enumerate(self.times)}
        self.block, self.rows = -1, dict[int, Tensor]()

    def __call__(self, t: float, label: int) -> Tensor:
        """Return the row (total,) of a class at time ``t``; one that was not announced is evaluated alone."""
        if t not in self.index:
            return self._evaluate([t], label)[0]
        block, row = divmod(self.index[t], self.BLOCK)
        if block != self.block:
            self.block, self.rows = block, {}
        if label not in self.rows:
            self.rows[label] = self._evaluate(self.times[block * self.BLOCK : (block + 1) * self.BLOCK], label)
        return self.rows[label][row]

    def _evaluate(self, times: Sequence[float], label: int) -> Tensor:
        device = self.network.device
        t = torch.tensor(times, dtype=torch.float32, device=device)
        return self.network.modulate(t, torch.full((len(times),), label, device=device))


def split(lengths: Sequence[int], capacity: int) -> list[range]:
    """Return which neighbouring images share a call: small ones up to ``capacity`` tokens, large ones alone."""
    groups, start, filled = [], 0, 0
    for i, length in enumerate(lengths):
        if i > start and (alone(length, capacity) or filled + length > capacity):
            groups.append(range(start, i))
            start, filled = i, 0
        filled += capacity if alone(length, capacity) else length
    return [*groups, range(start, len(lengths))] if len(lengths) else []


def alone(length: int, capacity: int) -> bool:
    """Return whether an image has a call for itself, of exactly its own rows."""
    return 2 * length > capacity


def pieces(spare: int, capacity: int) -> list[int]:
    """Return the lengths of the sequences that attention takes a call's ``spare`` tokens of filling for.

    As one, they would cost their square. Each has ``TOKENS_PER_CALL`` at most; some may be empty, for their number goes
    by the capacity alone, so that calls of as many images share a recording.
    """
    count = -(-capacity // TOKENS_PER_CALL) if spare else 0
    return [spare * (i + 1) // count - spare * i // count for i in range(count)]


class PackedCall:
    """The guided prediction of the images of one call, at a time for all or one each."""

    def __init__(
        self,
        network: FiTv2,
        sizes: Sequence[tuple[int, int]],
        labels: Sequence[int],
        extrapolations: Sequence[str],
        guidance: Guidance,
        capacity: int,
        times: Sequence[float] = (),
        graphs: Graphs | None = None,
    ):
        self.network, self.sizes, self.labels, self.names = network, list(sizes), list(labels), list(extrapolations)
        self.lengths = [height * width for height, width in sizes]
        self.guidance, self.capacity = guidance, capacity
        self.table = ModulationTable(network, times)
        self.reaches_end = network.reaches_end
        self.layouts: dict[tuple[int, ...], Layout] = {}
        self.graphs = graphs or Graphs()
        self.graphs.follow(network)

    def velocities(self, xs: Sequence[Tensor], ts: Sequence[float], images: Sequence[int]) -> list[Tensor]:
        """Return the velocities of ``images`` of this call, tokens (n_i, c) each, each at its own time; float32."""
        found = self._predict(xs, ts, images)
        if self.network.config.prediction == "velocity":
            return found
        return [(clean - x) / max(1 - t, SHARPEST) for clean, x, t in zip(found, xs, ts, strict=True)]

    def velocity(self, x: Tensor, t: float) -> Tensor:
        """Return the velocity (n, c) of all images, packed, at one time."""
        return torch.cat(self.velocities(x.split(self.lengths), [t] * len(self.lengths), range(len(self.lengths))))

    def clean(self, x: Tensor, t: float) -> Tensor:
        """Return the clean data (n, c) that the network sees in all images, packed, at one time."""
        every = range(len(self.lengths))
        found = torch.cat(self._predict(x.split(self.lengths), [t] * len(every), every))
        return found if self.network.config.prediction == "sample" else x + (1 - t) * found

    def _predict(self, xs: Sequence[Tensor], ts: Sequence[float], images: Sequence[int]) -> list[Tensor]:
        """Return the predictions of ``images``; guided and unguided ones have a call each, as they would alone."""
        weights = [self.guidance.at(t) for t in ts]
        found: dict[int, Tensor] = {}
        for guided in (False, True):
            chosen = [i for i, weight in enumerate(weights) if (weight != 1) == guided]
            if chosen:
                out = self._guided(
                    [xs[i] for i in chosen],
                    [ts[i] for i in chosen],
                    [images[i] for i in chosen],
                    [weights[i] for i in chosen] if guided else None,
                )
                found |= dict(zip(chosen, out.split([len(xs[i]) for i in chosen]), strict=True))
        return [found[i] for i in range(len(xs))]

    def _guided(
        self, xs: Sequence[Tensor], ts: Sequence[float], images: Sequence[int], weights: Sequence[float] | None
    ) -> Tensor:
        x = torch.cat(list(xs))
        if weights is None:
            return self._run([x], ts, images)
        conditional, unconditional = self._run([x, x], ts, images).chunk(2)
        lengths = torch.tensor([len(part) for part in xs], device="cpu")
        shares = torch.tensor(weights, dtype=torch.float32, device="cpu")
        weight = torch.repeat_interleave(shares, lengths).to(x.device)[:, None]  # (n, 1)
        channels = self.guidance.channels
        return combine(conditional, unconditional, weight, channels and channels * self.network.config.patch**2)

    def _run(self, halves: Sequence[Tensor], ts: Sequence[float], images: Sequence[int]) -> Tensor:
        """Return the predictions (n, c) of each half, one behind the other, without the filling image."""
        count, spare = len(halves[0]), self._spare(images)
        filling = halves[0].new_zeros(spare, halves[0].shape[1])
        tokens = torch.cat([part for half in halves for part in (half, filling)])
        null = self.network.null_class
        rows = []
        for nulled in (False, True)[: len(halves)]:
            rows += [self.table(t, null if nulled else self.labels[i]) for t, i in zip(ts, images, strict=True)]
            rows += [self.table(ts[0], null)] if spare else []
        sizes, *places = self._layout(images, spare, len(halves))

        def run(x: Tensor, modulation: Tensor, *places: Tensor) -> Tensor:
            return self.network.run(x, modulation, Layout(sizes, *places))

        fixed = () if self.network.refinement is None else tuple(sizes.flatten().tolist())  # it alone goes by them
        out = self.graphs(run, tokens.to(self.network.dtype), torch.stack(rows), *places, fixed=fixed)
        return torch.cat([half[:count] for half in out.float().split(count + spare)])

    def _spare(self, images: Sequence[int]) -> int:
        used = sum(self.lengths[i] for i in images)
        return 0 if alone(max(self.lengths), self.capacity) else self.capacity - used

    def _layout(self, images: Sequence[int], spare: int, halves: int) -> Layout:
        """Return where the tokens belong; the filling is one image, of which only attention sees ``pieces``."""
        key = (halves, *images)
        if key not in self.layouts:
            sizes = [*(self.sizes[i] for i in images), *([(1, spare)] if spare else [])]
            names = [*(self.names[i] for i in images), *(["none"] if spare else [])]
            layout = self.network.layout(sizes * halves, names * halves, self.network.device)
            offsets = offsets_of([*(self.lengths[i] for i in images), *pieces(spare, self.capacity)] * halves)
            self.layouts[key] = layout._replace(offsets=offsets.to(layout.offsets.device))
        return self.layouts[key]
