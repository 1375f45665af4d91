"""How far pictures are from others, by the statistics of their features: the formulas, on tensors.

Moments and the Inception Score are summed in float64 while features stream by; what compares single pictures
(precision, recall, kernel distance) takes features (n, d) and goes through them in blocks.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from belvedere.apps.order import permute
from belvedere.seeds import derive, generator

LEAST = 20
"""Pictures that can be measured: two for each part of the Inception Score and of the kernel distance."""
SPLITS = 10
"""Parts of the Inception Score and, at least, of the kernel distance."""
NEIGHBOURS = 3
SUBSET = 1000
"""Pictures in a part of the kernel distance, at most."""
BLOCK = 2048
"""Rows, and columns, of distances held at once."""


class Gaussian(NamedTuple):
    """Mean (d,) and covariance (d, d), float64."""

    mean: Tensor
    covariance: Tensor


class Moments:
    """Mean and covariance of rows that come in blocks, in float64.

    Blocks are joined by the formula of Chan, Golub and LeVeque 1983, which does not cancel as sums of squares do.
    """

    def __init__(self, width: int):
        self.count = 0
        self._mean = torch.zeros(width, dtype=torch.float64)
        self._scatter = torch.zeros(width, width, dtype=torch.float64)

    def add(self, rows: Tensor) -> None:
        """Take in rows (n, d)."""
        rows = rows.double()
        mean, total = rows.mean(0), self.count + len(rows)
        centred, step = rows - mean, mean - self._mean
        self._scatter.addmm_(centred.T, centred)
        self._scatter.addr_(step, step, alpha=self.count * len(rows) / total)
        self._mean += step * (len(rows) / total)
        self.count = total

    def gaussian(self) -> Gaussian:
        """Return the normal distribution of the rows so far, at least two; the covariance is the unbiased one."""
        return Gaussian(self._mean, self._scatter / (self.count - 1))


class InceptionScore:
    """exp E KL(p(y|x) || p(y)) over parts of the pictures in their order (Salimans et al. 2016, arXiv 1606.03498).

    Picture i of ``count`` belongs to part i * 10 // count; of pictures ``by_class``, whose neighbours are alike, the
    i-th of a permutation that is always the same does. Of each part only sums are kept.
    """

    def __init__(self, count: int, classes: int, by_class: bool = False):
        self.count, self.by_class, self._seen = count, by_class, 0
        self._sizes = torch.zeros(SPLITS, dtype=torch.float64)
        self._sums = torch.zeros(SPLITS, classes, dtype=torch.float64)
        self._negentropy = torch.zeros(SPLITS, dtype=torch.float64)

    def add(self, logits: Tensor) -> None:
        """Take in the logits (n, k) of the next n pictures."""
        logs = logits.double().log_softmax(1)
        places = np.arange(self._seen, self._seen + len(logs))
        if self.by_class:
            places = permute(places, self.count, derive("inception score"))
        part = torch.from_numpy(places * SPLITS // self.count)  # (n,)
        self._sizes.index_add_(0, part, torch.ones(len(logs), dtype=torch.float64))
        self._sums.index_add_(0, part, logs.exp())
        self._negentropy.index_add_(0, part, (logs.exp() * logs).sum(1))
        self._seen += len(logs)

    def score(self) -> tuple[float, float]:
        """Return mean and standard deviation over the parts."""
        marginal = self._sums / self._sizes[:, None]  # (parts, k)
        scores = (self._negentropy / self._sizes - torch.xlogy(marginal, marginal).sum(1)).exp()
        return scores.mean().item(), scores.std(correction=0).item()


@dataclass(frozen=True)
class PrecisionRecall:
    """Share of made pictures that look real, and share of real ones that could have been made."""

    precision: float
    recall: float


def precision_recall(made: Tensor, real: Tensor, neighbours: int = NEIGHBOURS) -> PrecisionRecall:
    """Compare features (n, d) and (m, d) as Kynkäänniemi et al. 2019, arXiv 1904.06991, equations (1) and (2).

    A picture counts when it lies in one of the balls around those of the other kind, each of which reaches to its
    ``neighbours``-th nearest of its own kind; there must be more pictures than that. Needs memory for ``BLOCK`` squared
    distances.
    """
    middle = real.float().mean(0)  # distances stay as they are, and lose fewer digits
    made, real = made.float() - middle, real.float() - middle
    return PrecisionRecall(_within(made, real, _radii(real, neighbours)), _within(real, made, _radii(made, neighbours)))


def _radii(rows: Tensor, neighbours: int) -> Tensor:
    """Return the squared distance of each row (n, d) from its k-th nearest other one: (n,)."""
    found = []
    for i, block in enumerate(rows.split(BLOCK)):
        nearest = rows.new_full((len(block), neighbours), torch.inf)
        for j, others in enumerate(rows.split(BLOCK)):
            distances = _squared_distances(block, others)  # (b, m)
            if i == j:
                distances.fill_diagonal_(torch.inf)
            nearest = torch.cat((nearest, distances), 1).topk(neighbours, 1, largest=False).values
        found.append(nearest.amax(1))
    return torch.cat(found)


def _within(rows: Tensor, centres: Tensor, radii: Tensor) -> float:
    """Return the share of rows (n, d) that lie in a ball around one of the centres (m, d)."""
    inside = 0
    for block in rows.split(BLOCK):
        found = torch.zeros(len(block), dtype=torch.bool, device=rows.device)
        for others, reach in zip(centres.split(BLOCK), radii.split(BLOCK), strict=True):
            found |= (_squared_distances(block, others) <= reach).any(1)
        inside += int(found.sum())
    return inside / len(rows)


def _squared_distances(a: Tensor, b: Tensor) -> Tensor:
    """Return |a_i - b_j|^2 of rows (n, d) and (m, d): (n, m)."""
    squares = a.square().sum(1)[:, None] + b.square().sum(1)
    return squares.addmm_(a, b.T, alpha=-2).clamp_(min=0)


class KernelDistance(NamedTuple):
    """A squared kernel distance, which may be below 0, and the standard error of its mean."""

    value: float
    error: float


def kernel_distance(a: Tensor, b: Tensor) -> KernelDistance:
    """Return KID of features (n, d) and (m, d), at least 20 of each (Bińkowski et al. 2018, arXiv 1801.01401).

    The mean of the unbiased squared MMD with the kernel (x . y / d + 1)^3 over parts of 1000 pictures, or of a tenth
    where there are fewer than 10,000. Parts are drawn at random, always alike, and no picture is in two, so that they
    are independent and their spread tells the error.
    """
    fewer = min(len(a), len(b))
    size = min(SUBSET, fewer // SPLITS)
    parts = fewer // size
    orders = [
        torch.randperm(len(rows), generator=generator("kernel distance", name)) for rows, name in ((a, 0), (b, 1))
    ]
    values = []
    for part in range(parts):
        mine, others = (order[part * size : (part + 1) * size] for order in orders)
        values.append(_mmd(a[mine.to(a.device)].double(), b[others.to(b.device)].double()))
    found = torch.stack(values)
    return KernelDistance(found.mean().item(), (found.std() / parts**0.5).item())


def _mmd(a: Tensor, b: Tensor) -> Tensor:
    """Return the unbiased squared MMD of rows (n, d) and (n, d) (Gretton et al. 2012, lemma 6)."""
    count = len(a)
    within = sum(k.sum() - k.trace() for k in (_kernel(a, a), _kernel(b, b))) / (count * (count - 1))
    return within - 2 * _kernel(a, b).mean()


def _kernel(a: Tensor, b: Tensor) -> Tensor:
    return (a @ b.T / a.shape[1] + 1) ** 3
