"""Measuring a generator of toys: does it make what was asked for, and how far is that from the real thing."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from belvedere.apps import work
from belvedere.apps.requests import GenerateRequest, parse_sizes
from belvedere.checkpoints import store
from belvedere.checkpoints.components import load_network
from belvedere.data.images import to_tensor
from belvedere.data.toybox import Toybox
from belvedere.data.toybox.classifier import ToyClassifier
from belvedere.errors import InputError
from belvedere.seeds import derive

CLASSIFIER = "toybox-classifier"
REAL_SEED = derive("evaluation", "real")
"""Of the renders that generated pictures are compared with; no network is trained on this seed."""
REAL_SETS = 3
"""Sets of renders whose mean distance from the reference is the floor; one alone is off by a quarter."""
CHUNK = 64
"""Pictures looked at in one go."""


@dataclass(frozen=True)
class Quality:
    """What the classifier says about n pictures, as many of each kind."""

    count: int
    recognised: float
    """Share of pictures recognised as the kind that was asked for."""
    recognised_by_kind: dict[str, float]
    named: dict[str, int]
    """How many pictures were taken for each kind, or rejected."""
    frechet: float
    """Frechet distance from n fresh renders."""
    frechet_real: float
    """The same distance of other n fresh renders, mean of several: what perfect pictures would have."""
    ratio: float
    """``frechet / frechet_real``."""


def load_classifier(folder: Path | None = None) -> ToyClassifier:
    """Return the classifier in a folder (``config.json`` and weights), by default the embedded one."""
    folder = folder or store.EMBEDDED / CLASSIFIER
    store.verify(folder)
    classifier: ToyClassifier = load_network(folder, ToyClassifier, torch.float32)
    return classifier.eval()


def evaluate_generation(
    model: str,
    *,
    count: int = 240,
    size: str = "",
    classifier: ToyClassifier | None = None,
    progress: work.Progress | None = None,
    **asked: Any,
) -> dict[str, Any]:
    """Make ``count`` toys with a model, as many of each kind, and return how they were made and their ``Quality``.

    ``size``: "WIDTHxHEIGHT", by default the model's own. ``asked``: other fields of ``GenerateRequest``, such as
    ``steps``. The result is plain JSON. A model that lacks one of the Toybox kinds, or a ``count`` that is no multiple
    of their number, raises ``InputError``.
    """
    sizes = parse_sizes(size)
    if len(sizes) > 1:
        raise InputError(f"cannot evaluate the sizes {size} together: give one")
    classifier = classifier or load_classifier()
    kinds = tuple(classifier.config["classes"])
    _check_balance(count, kinds)
    job = work.prepare(GenerateRequest(model, kinds, count, sizes=sizes, **asked))
    Toybox(job.size(0))  # refuses what no render can be compared with, before any picture is made
    pictures = [to_tensor(p.image) for p in work.run(job, range(count), progress=progress)]
    images = torch.stack(pictures).float() / 127.5 - 1  # (n, 3, h, w)
    quality = evaluate_images(images, torch.arange(count) % len(kinds), classifier)
    height, width = job.size(0)
    return {**how_made(job), "size": f"{width}x{height}", **asdict(quality)}


def how_made(job: work.Job) -> dict[str, Any]:
    """Return what is told of the pictures of a job beside their figures."""
    keys = ("model", "steps", "guidance", "seed", "dtype", "extrapolation")
    return {**{key: getattr(job.request, key) for key in keys}, **job.request.sampling, "weights": job.weights}


@torch.no_grad()
def evaluate_images(images: Tensor, labels: Tensor, classifier: ToyClassifier) -> Quality:
    """Judge pictures (n, 3, h, w) in [-1, 1] that should show the kinds ``labels`` (n,), as many of each.

    The renders they are compared with have the size of the pictures.
    """
    kinds, count = tuple(classifier.config["classes"]), len(images)
    _check_balance(count, kinds)
    if (labels.bincount(minlength=len(kinds)) != count // len(kinds)).any():
        raise InputError("pictures must be balanced: as many of each kind")
    toys = Toybox((images.shape[2], images.shape[3]), seed=REAL_SEED, kinds=kinds)
    made = _features(classifier, images.split(CHUNK))
    starts = range(0, (1 + REAL_SETS) * count, count)
    reference, *real = [_features(classifier, _renders(toys, range(start, start + count))) for start in starts]
    found = classifier.classify(made).argmax(1)  # (n,)
    right = (found == labels).double()
    shares = {kind: right[labels == i].mean().item() for i, kind in enumerate(kinds)}
    names = [*kinds, "reject"]
    named = dict(zip(names, found.bincount(minlength=len(names)).tolist(), strict=True))
    distance = frechet_distance(made, reference)
    floor = sum(frechet_distance(other, reference) for other in real) / REAL_SETS
    return Quality(count, right.mean().item(), shares, named, distance, floor, distance / floor)


def _check_balance(count: int, kinds: Sequence[str]) -> None:
    if count < 2 * len(kinds) or count % len(kinds):
        raise InputError(f"cannot evaluate {count} pictures: give a multiple of {len(kinds)}, two of each kind or more")


def _renders(toys: Toybox, indices: range) -> Iterator[Tensor]:
    return (toys.batch(indices[i : i + CHUNK])["image"] for i in range(0, len(indices), CHUNK))


def _features(classifier: ToyClassifier, batches: Iterable[Tensor]) -> Tensor:
    return torch.cat([classifier.features(batch) for batch in batches])  # (n, d)


def frechet_distance(a: Tensor, b: Tensor) -> float:
    """Return the Frechet distance of the normal distributions fitted to features a (n, d) and b (m, d)."""
    a, b = a.double(), b.double()
    return gaussian_distance(a.mean(0), torch.cov(a.T), b.mean(0), torch.cov(b.T))


def gaussian_distance(mean_a: Tensor, cov_a: Tensor, mean_b: Tensor, cov_b: Tensor) -> float:
    """Return |mean_a - mean_b|^2 + tr(A + B - 2 (A^(1/2) B A^(1/2))^(1/2)) of covariances A, B (d, d), float64.

    Dowson and Landau 1982; used for pictures by Heusel et al. 2017, arXiv 1706.08500. With A = F F' and B = G G', the
    trace of the last root is the sum of the singular values of F' G: exact also for fewer pictures than features.
    """
    overlap = torch.linalg.svdvals(_factor(cov_a).T @ _factor(cov_b)).sum()
    return ((mean_a - mean_b).square().sum() + cov_a.trace() + cov_b.trace() - 2 * overlap).item()


def _factor(covariance: Tensor) -> Tensor:
    """Return F (d, r), of rank r, with F F' the covariance (d, d); what is a rounding error of 0 is left out."""
    values, vectors = torch.linalg.eigh(covariance)
    real = values > values[-1] * len(values) * torch.finfo(values.dtype).eps  # (d,)
    return vectors[:, real] * values[real].sqrt()  # (d, r)
