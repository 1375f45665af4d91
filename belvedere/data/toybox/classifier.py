"""A small convolutional network that names toys and rejects what is none: it measures generated pictures.

A classifier of toys alone is fooled by coloured smears, so this one also learns from damaged pictures.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from torch import Tensor, nn

from belvedere.data.toybox.damage import damage, recolour
from belvedere.errors import InputError
from belvedere.seeds import BatchRng

DAMAGED = 0.3
"""Share of the training pictures that are damaged."""


class Block(nn.Sequential):
    """3 x 3 convolution, group norm, SiLU: (b, c_in, h, w) to (b, c_out, h / stride, w / stride)."""

    def __init__(self, c_in: int, c_out: int, stride: int):
        convolution = nn.Conv2d(c_in, c_out, 3, stride, 1, bias=False)
        super().__init__(convolution, nn.GroupNorm(8, c_out), nn.SiLU())


class ToyClassifier(ModelMixin, ConfigMixin):  # type: ignore[misc]
    """Toybox kinds, and one more class, the last, for pictures of none of them (``reject``).

    0.3 million parameters. ``classes`` are the kinds' names; ``size`` is the side of the square it looks at;
    ``width`` is a multiple of 8. Raises ``InputError`` for other numbers.
    """

    @register_to_config
    def __init__(self, classes: Sequence[str], width: int = 32, size: int = 64):
        super().__init__()
        if width < 8 or width % 8 or size < 1:
            raise InputError(f"a classifier of width {width} and size {size}: a multiple of 8, and 1 or more")
        c1, c2, c3, c4 = width, 2 * width, 3 * width, 4 * width
        self.body = nn.Sequential(
            Block(3, c1, 2), Block(c1, c2, 2), Block(c2, c2, 1), Block(c2, c3, 2), Block(c3, c3, 1), Block(c3, c4, 2)
        )
        self.head = nn.Linear(c4, len(classes) + 1)

    @property
    def reject(self) -> int:
        """The number of the class ``reject``."""
        return len(self.config["classes"])

    def features(self, x: Tensor) -> Tensor:
        """Return what the network sees in pictures (b, 3, h, w) in [-1, 1] of any size: (b, 4 * width).

        Of an oblong picture it looks at the square in the middle, where the toy is.
        """
        side = min(x.shape[2:])
        top, left = (x.shape[2] - side) // 2, (x.shape[3] - side) // 2
        x = x[:, :, top : top + side, left : left + side]
        size = (self.config["size"],) * 2
        if x.shape[2:] != size:
            x = F.interpolate(x, size, mode="bilinear", antialias=True, align_corners=False)
        return self.body(x).mean((2, 3))  # (b, d)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits (b, kinds + 1) of pictures (b, 3, h, w) in [-1, 1]."""
        return self.classify(self.features(x))

    def classify(self, features: Tensor) -> Tensor:
        """Return the logits (b, kinds + 1) that go with ``features`` (b, d)."""
        return self.head(features)


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Return the optimizer's groups: weight decay for matrices and kernels, none for norms and biases."""
    parameters = list(model.parameters())
    return [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": weight_decay},
        {"params": [p for p in parameters if p.ndim == 1], "weight_decay": 0.0},
    ]


def loss(model: ToyClassifier, batch: dict[str, Tensor], rng: BatchRng) -> tuple[Tensor, dict[str, float]]:
    """Return the cross-entropy of a batch (``image``, ``label``), some of it damaged, and its figures.

    All pictures change colours and may be mirrored; a share ``DAMAGED`` of them becomes ``reject``.
    """
    damaged = rng.uniform("damaged") < DAMAGED
    clean = recolour(batch["image"], rng)
    image = torch.where(damaged[:, None, None, None], damage(clean, rng), clean)
    label = torch.where(damaged, model.reject, batch["label"])
    logits = model(image)
    value = F.cross_entropy(logits, label)
    right = (logits.argmax(1) == label).float().mean()
    return value, {"loss": value.item(), "accuracy": right.item()}
