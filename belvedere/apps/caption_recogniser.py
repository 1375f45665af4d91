"""Which colour a toy has and which ground it stands on, read from a picture's statistics.

What is compared are histograms and coarse pictures of many renders, by Fisher's linear discriminants: the class whose
mean is nearest, in units of the spread that all classes share. Nothing is learned of any generator.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from itertools import product

import torch
import torch.nn.functional as F
from torch import Tensor

from belvedere.data.toybox.captions import CAPTION_COLORS, GROUND_WORDS
from belvedere.data.toybox.dataset import CHUNK_PIXELS, KINDS
from belvedere.data.toybox.render import image
from belvedere.data.toybox.scene import Look, build, cameras
from belvedere.seeds import derive

SIDE = 64
"""Of the pictures that are looked at; others are resized."""
BINS = 5
"""Of a histogram, along each of red, green and blue."""
CELLS = 8
"""Of the coarse picture that the ground is read from, along each side."""
SHRINKAGE = 0.1
"""Weight of a sphere in the shared spread, so that no direction without spread decides."""
EXAMPLE_SEED = derive("captions", "examples")


@dataclass(frozen=True)
class Discriminant:
    """Linear scores of c classes: ``weights`` (c, d), ``bias`` (c,), float64."""

    weights: Tensor
    bias: Tensor

    @classmethod
    def fitted(cls, features: Tensor, labels: Tensor) -> "Discriminant":
        """Return the discriminant of examples (n, d) of the classes ``labels`` (n,), all of them equally likely."""
        x = features.double()
        means = torch.stack([x[labels == k].mean(0) for k in range(int(labels.max()) + 1)])  # (c, d)
        rest = x - means[labels]
        spread = rest.T @ rest / len(x)
        sphere = torch.eye(len(spread), dtype=x.dtype) * spread.trace() / len(spread)
        weights = torch.linalg.solve(torch.lerp(spread, sphere, SHRINKAGE), means.T).T  # (c, d)
        return cls(weights, -0.5 * (weights * means).sum(1))

    def __call__(self, features: Tensor) -> Tensor:
        """Return the class (n,) of features (n, d)."""
        return (features.double() @ self.weights.T + self.bias).argmax(1)


class Recogniser:
    """Tells colours, for toys of known kinds, and grounds.

    It knows one render of each kind in each colour on each ground, of ``EXAMPLE_SEED``, so it is always the same.
    """

    def __init__(self, kinds: Sequence[str] = KINDS):
        self.kinds = tuple(kinds)
        self.grounds, self.colors = tuple(GROUND_WORDS), CAPTION_COLORS
        looks = list(product(range(len(self.colors)), range(len(self.grounds))))
        color, ground = torch.tensor(looks).T
        pictures = [self._examples(kind, looks) for kind in range(len(self.kinds))]
        self._colors = [Discriminant.fitted(color_features(x), color) for x in pictures]
        together = ground_features(torch.cat(pictures))
        self._ground = Discriminant.fitted(together, ground.repeat(len(self.kinds)))

    def _examples(self, kind: int, looks: Sequence[tuple[int, int]]) -> Tensor:
        """Return a render (n, 3, h, w) of a kind for each look."""
        given = [Look(self.colors[color], self.grounds[ground]) for color, ground in looks]
        indices = [kind + i * len(self.kinds) for i in range(len(looks))]
        step = CHUNK_PIXELS // SIDE**2
        parts = []
        for at in range(0, len(looks), step):
            scenes = build(EXAMPLE_SEED, indices[at : at + step], self.kinds, given[at : at + step])
            parts.append(image(scenes, cameras(scenes), (SIDE, SIDE), 4, torch.device("cpu")))
        return torch.cat(parts)

    def colors_of(self, images: Tensor, kinds: Tensor) -> list[str]:
        """Return the colours of the toys in pictures (n, 3, h, w) in [-1, 1] that show ``kinds`` (n,)."""
        features = color_features(images)
        return [self.colors[int(self._colors[kind](x[None]))] for x, kind in zip(features, kinds.tolist(), strict=True)]

    def grounds_of(self, images: Tensor) -> list[str]:
        """Return the names of the grounds in pictures (n, 3, h, w) in [-1, 1]."""
        return [self.grounds[k] for k in self._ground(ground_features(images)).tolist()]


@cache
def recogniser_of(kinds: tuple[str, ...]) -> Recogniser:
    """Return the recogniser of ``kinds``: some seconds the first time."""
    return Recogniser(kinds)


def color_features(images: Tensor) -> Tensor:
    """Return how much of pictures (n, 3, h, w) in [-1, 1] has each colour (n, ``BINS`` ** 3), sides and sky left out.

    Roots of shares: a few pixels of a colour where there were none count more than a few more where there are many.
    """
    x = _at_side(images)[:, :, SIDE // 8 : -SIDE // 8, SIDE // 8 : -SIDE // 8]
    place = (x.clamp(-1, 1) + 1) / 2 * (BINS - 1)
    near = (1 - (place[:, :, None] - torch.arange(BINS).view(1, 1, -1, 1, 1)).abs()).clamp(min=0)  # (n, 3, k, h, w)
    red, green, blue = near.flatten(3).unbind(1)  # (n, k, hw) each
    shares = torch.einsum("nip,njp,nkp->nijk", red, green, blue) / red.shape[2]
    return shares.flatten(1).sqrt()


def ground_features(images: Tensor) -> Tensor:
    """Return the colours of the lower cells of pictures (n, 3, h, w) in [-1, 1] and how much they vary inside."""
    x = _at_side(images)
    half = CELLS // 2
    mean = F.adaptive_avg_pool2d(x, CELLS)
    spread = (F.adaptive_avg_pool2d(x.square(), CELLS) - mean.square()).clamp(min=0).sqrt().mean(1, keepdim=True)
    return torch.cat([mean[:, :, half:], spread[:, :, half:]], 1).flatten(1)


def _at_side(images: Tensor) -> Tensor:
    if images.shape[2:] == (SIDE, SIDE):
        return images
    return F.interpolate(images, (SIDE, SIDE), mode="bilinear", antialias=True, align_corners=False)
