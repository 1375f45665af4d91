"""What is seen in pictures: by Inception-v3, as published numbers are made, or by the embedded classifier of toys."""

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple, Protocol

import torch
from torch import Tensor, nn

from belvedere.apps.evaluate import load_classifier
from belvedere.checkpoints.inception import load_inception
from belvedere.errors import InputError
from belvedere.generation.inception import CLASSES, POOL, SPATIAL

FEATURES = ("classifier", "inception")


class Widths(NamedTuple):
    """Numbers of a picture that make its features."""

    pool: int
    """Of the distance, precision, recall and the kernel distance."""
    spatial: int = 0
    """Of the spatial distance; 0: there is none."""
    logits: int = 0
    """Of the Inception Score; 0: there is none."""


class Extractor(Protocol):
    """A network that looks at pictures. ``chunk`` of them at once, always, so that rounding does not depend on how many
    there are."""

    name: str
    chunk: int
    widths: Widths
    preprocessing: str
    """What is done to pixels."""
    digest: str
    """SHA-256 of its weights."""

    def __call__(self, pictures: Tensor) -> Tensor:
        """Return the features (n, pool + spatial + logits), float32 on the CPU, of pictures (n, 3, h, w), uint8."""
        ...


class InceptionFeatures:
    """Features of FID, sFID and the Inception Score; ``path``: see ``load_inception``."""

    name = "inception"
    widths = Widths(POOL, SPATIAL, CLASSES)
    preprocessing = "bilinear to 299x299 as in TensorFlow 1; (x - 128) / 128"

    def __init__(self, path: Path | None, device: torch.device):
        self.network, self.device = load_inception(path), device
        self.digest = digest(self.network)
        self.network.to(device)
        self.chunk = 64 if device.type == "cuda" else 4  # a CPU is no faster with more

    @torch.inference_mode()
    def __call__(self, pictures: Tensor) -> Tensor:
        with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
            return torch.cat(self.network(pictures.to(self.device)), 1).cpu()


class ClassifierFeatures:
    """Features of the embedded classifier of toys, which any picture has: an offline distance."""

    name = "toybox-classifier"
    preprocessing = "middle square; antialiased bilinear to the classifier's size; x / 127.5 - 1"
    chunk = 64

    def __init__(self, device: torch.device):
        self.network, self.device = load_classifier(), device
        self.digest = digest(self.network)
        self.network.to(device)
        self.widths = Widths(4 * self.network.config["width"])

    @torch.inference_mode()
    def __call__(self, pictures: Tensor) -> Tensor:
        return self.network.features(pictures.to(self.device).float() / 127.5 - 1).cpu()


class Unseen:
    """Looks at nothing: for pictures that are only written."""

    name, preprocessing, digest, chunk, widths = "none", "", "", 64, Widths(0)

    def __call__(self, pictures: Tensor) -> Tensor:
        return torch.empty(len(pictures), 0)


def open_extractor(name: str | None, inception: Path | None, device: torch.device) -> Extractor:
    """Return the network by its name in ``FEATURES``; None: Inception-v3 if weights are named, else the classifier."""
    name = name or ("classifier" if inception is None else "inception")
    if name not in FEATURES:
        raise InputError(f"--features must be {' or '.join(FEATURES)}, not {name[:80]!r}")
    if name == "inception":
        return InceptionFeatures(inception, device)
    if inception is not None:
        raise InputError("--inception belongs to --features inception: leave one of them out")
    return ClassifierFeatures(device)


def digest(network: nn.Module) -> str:
    """Return the SHA-256 of a network's weights: names, shapes and numbers in the order of the names."""
    total = hashlib.sha256()
    for part in _parts(network):
        total.update(part)
    return total.hexdigest()


def _parts(network: nn.Module) -> Iterator[bytes]:
    for name, tensor in sorted(network.state_dict().items()):
        if tensor.is_floating_point():
            yield f"{name} {tuple(tensor.shape)}\n".encode()
            yield tensor.float().contiguous().numpy().tobytes()
