"""What the networks of ``comparison.py`` are worth: the loss of held-out pictures, and Frechet distances."""

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from comparison_networks import AbsoluteFiTv2
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from belvedere.apps.evaluate import REAL_SEED, frechet_distance
from belvedere.apps.picture_features import ClassifierFeatures
from belvedere.data.folders import Parquet
from belvedere.data.images import to_tensor
from belvedere.data.toybox import KINDS, Toybox
from belvedere.generation import dimr, fitv2
from belvedere.generation.denoising import training_times
from belvedere.generation.dimr import DiMR
from belvedere.generation.fitv2 import FiTv2
from belvedere.generation.fitv2_pipeline import FiTv2Pipeline
from belvedere.generation.flow_training import flow_times
from belvedere.generation.pipelines import DiMRPipeline
from belvedere.generation.schedules import make_schedule
from belvedere.generation.tokens import patchify
from belvedere.seeds import BatchRng, generator

Size = tuple[int, int]
"""(height, width) in pixels."""
TRAINED: tuple[Size, ...] = ((32, 32), (24, 40), (40, 24))
SEEN, UNSEEN = TRAINED[:2], ((16, 64), (48, 48))
"""Sizes that are judged. In patches of 4 they are 8 x 8 and 6 x 10; 4 x 16 and 12 x 12."""
TIME_MEAN = -0.4
HELD_OUT, PICTURES, REAL = 480, 200, 1000
"""Of CIFAR-10: pictures whose loss is taken, pictures made of a network, real ones that these are compared with."""
TOYS, REAL_TOYS = 60, 300
"""Toys of each size: whose loss is taken and that are made; real ones."""
STEPS, GUIDANCE = 10, 1.0
JUDGED = {
    "held_out": HELD_OUT,
    "pictures": PICTURES,
    "real": REAL,
    "toys": TOYS,
    "real_toys": REAL_TOYS,
    "sampling_steps": STEPS,
    "guidance": GUIDANCE,
}
CHUNK = 60


class Judge:
    """Looks at real pictures once, then at those of every network. ``test``: CIFAR-10's test set, parquet."""

    def __init__(self, test: Any):
        self.extractor = ClassifierFeatures(torch.device("cpu"))
        pictures = Parquet(test, 32)
        self.held_out = pictures.batch(range(HELD_OUT))
        self.real = {"cifar-10": self.look(pictures.pixels(i) for i in range(REAL + PICTURES))}
        for size in (*SEEN, *UNSEEN):
            starts = range(0, REAL_TOYS + TOYS, 20)
            toys = (Toybox(size, seed=REAL_SEED).batch(range(start, start + 20))["image"] for start in starts)
            self.real[_name(size)] = self.look(((x + 1) * 127.5).round().byte() for batch in toys for x in batch)

    def look(self, pictures: Iterable[Tensor]) -> Tensor:
        """Return the features (n, d) of pictures, uint8 (3, h, w) each."""
        stacked = torch.stack(list(pictures))
        return torch.cat([self.extractor(part) for part in stacked.split(self.extractor.chunk)])

    def distance(self, kind: str, images: Sequence[Any]) -> float:
        """Return the Frechet distance of generated pictures from real ones of a kind."""
        count = REAL if kind == "cifar-10" else REAL_TOYS
        return frechet_distance(self.look(map(to_tensor, images)), self.real[kind][:count])

    def floors(self) -> dict[str, float]:
        """Return by kind the distance that as many other real pictures have."""
        counts = {kind: REAL if kind == "cifar-10" else REAL_TOYS for kind in self.real}
        return {kind: frechet_distance(seen[counts[kind] :], seen[: counts[kind]]) for kind, seen in self.real.items()}

    @torch.no_grad()
    def dimr(self, network: DiMR) -> dict[str, float]:
        """Return the figures of a DiMR of CIFAR-10; its loss is that of the last stage alone."""
        rng = BatchRng(0, 0, range(HELD_OUT))
        clean, labels = self.held_out["image"], self.held_out["label"]
        noise, times = rng.normal("noise", clean.shape[1:]), training_times(make_schedule("flow"), rng)
        last = [0.0] * (len(network.sizes) - 1) + [1.0]
        parts = zip(*(tensor.split(CHUNK) for tensor in (clean, noise, times, labels)), strict=True)
        losses = [dimr.denoising_loss(network, *part, coefficients=last) for part in parts]
        classes = [i % 10 for i in range(PICTURES)]
        made = _sample(DiMRPipeline(network), classes)
        return {"held_out": torch.cat(losses).mean().item(), "frechet": self.distance("cifar-10", made)}

    def fitv2(self, network: FiTv2) -> dict[str, Any]:
        """Return the figures of a FiTv2 of toys by size; at unseen ones also with positions pressed together."""
        sizes = {_name(size): self._toys(network, size, pressed=False) for size in (*SEEN, *UNSEEN)}
        sizes |= {f"{_name(size)} pressed": self._toys(network, size, pressed=True) for size in UNSEEN}
        return {"sizes": sizes}

    @torch.no_grad()
    def _toys(self, network: FiTv2, size: Size, pressed: bool) -> dict[str, float]:
        absolute = isinstance(network, AbsoluteFiTv2)
        if isinstance(network, AbsoluteFiTv2):
            network.squeezed = pressed
        network.register_to_config(extrapolation="vision-ntk" if pressed and not absolute else "none")
        toys, losses = Toybox(size, seed=REAL_SEED + 1), []
        for start in range(0, TOYS, CHUNK):
            places = range(start, start + CHUNK)
            batch, rng = toys.batch(places), BatchRng(0, 0, places)
            clean = torch.cat([patchify(image, 4) for image in batch["image"]])
            noise = torch.cat([patchify(image, 4) for image in rng.normal("noise", (3, *size))])
            times, grids = flow_times(rng, "lognorm", TIME_MEAN), [(size[0] // 4, size[1] // 4)] * CHUNK
            losses.append(fitv2.denoising_loss(network, clean, noise, times, batch["label"], grids))
        classes = [i % len(KINDS) for i in range(TOYS)]
        made = _sample(FiTv2Pipeline(network), classes, sizes=[size] * TOYS)
        return {"held_out": torch.cat(losses).mean().item(), "frechet": self.distance(_name(size), made)}


def _name(size: Size) -> str:
    return f"{size[1]}x{size[0]}"


def _sample(pipeline: Any, classes: Sequence[int], **sizes: Any) -> list[Any]:
    """Return a picture for each of ``classes``, its noise always the same."""
    sources = [generator("comparison", i) for i in range(len(classes))]
    pipeline.set_progress_bar_config(disable=True)
    made = pipeline(classes, num_inference_steps=STEPS, guidance_scale=GUIDANCE, generator=sources, **sizes)
    return list(made.images)


def operations(network: Any) -> int:
    """Return the operations of one forward pass of one picture of 32 x 32, a product and its sum being two."""
    label = torch.zeros(1, dtype=torch.int64)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        if isinstance(network, DiMR):
            network(torch.zeros(1, 3, 32, 32), torch.zeros(1), label)
        else:
            network(torch.zeros(64, 48), torch.zeros(1), label, sizes=[(8, 8)])
    return counter.get_total_flops()
