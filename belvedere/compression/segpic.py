"""SegPIC: image compression with transforms that adapt to regions (Liu et al., ECCV 2024, arXiv 2403.00628).

    x ─► analysis1 ─► RAT ─► analysis2 ─► y ─► context, rounding ─► latent ─► synthesis1 ─► RAT ─► synthesis2 ─► x'
            │          ▲                  │            ▲                                     ▲
            └► prototypes1, rounded ──────│────────────│─────────────────────────────────────┘
                    prototypes2, rounded ◄┤            │ means, scales
                        │   ▲             ▼            │
                        │   └── y        RAT ─► hyper analysis ─► z, rounded ─► hyper syntheses ─► RATs
                        └──────────────────┴──────────────────────────────────────────────────────┘

A prototype is the mean of a map over a region: in training of a label map, which is never sent; at inference over
the cells of a fixed grid. A RAT (region-adaptive transform) makes the filter of each pixel from its prototype.
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from torch import Tensor, nn

from belvedere import kernels
from belvedere.compression.context import Context
from belvedere.compression.gain import Gain
from belvedere.compression.layers import GDN, AttentionModule, Down, Up
from belvedere.compression.probabilities import Bottleneck, gaussian_likelihood, rate_noise, round_through
from belvedere.compression.rate_distortion import ms_ssim
from belvedere.compression.regions import Places, places
from belvedere.compression.segpic_config import STRIDE, VARIANTS, check_config
from belvedere.errors import InputError
from belvedere.seeds import BatchRng

SLOPE = 0.1
"""Of the leaky ReLUs."""
AUXILIARY = 1e-3
"""Weight of the auxiliary loss. Adam moves the quantiles alike for any; clipping does not see one as small as this."""


class Coded(NamedTuple):
    """What became of a batch of pictures."""

    reconstruction: Tensor
    """Pictures as a decoder makes them, not clamped: (b, 3, h, w)."""
    likelihoods: dict[str, Tensor]
    """The probability of every coded number, by what it is of: y, z, prototypes1, prototypes2."""


class RegionAdaptiveTransform(nn.Module):
    """x + a filter of its own for each pixel and channel, made from the pixel and its region's prototype (RAT)."""

    def __init__(self, channels: int):
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(channels, channels, 1), nn.LeakyReLU(SLOPE), nn.Conv2d(channels, channels, 1)
        )
        self.from_features = nn.Conv2d(channels, channels, 1)
        self.from_prototypes = nn.Conv2d(channels, channels, 1, bias=False)
        self.blend = nn.Conv2d(channels, channels, 3, padding=1)
        self.taps = nn.Conv2d(channels, 9 * channels, 3, padding=1, groups=channels)
        self.gate = nn.Sequential(
            nn.Conv2d(channels, channels, 1), nn.LeakyReLU(SLOPE), nn.Conv2d(channels, channels, 1)
        )
        self.out = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor, prototypes: Tensor, place: Places) -> Tensor:
        """Return the transform of ``x`` (b, c, h, w) by ``prototypes`` at ``place``."""
        features = self.features(x)
        # One map of 1x1 over features and spread prototypes together, in two halves: the second before it is spread.
        mixed = self.from_features(features) + place.spread(self.from_prototypes(prototypes), x.shape[-2:])
        blended = F.leaky_relu(self.blend(F.leaky_relu(mixed, SLOPE)), SLOPE)
        filtered = kernels.region_filter(features, blended, *self.taps.parameters())
        gate = torch.sigmoid(self.gate(filtered.mean((2, 3), keepdim=True)))  # (b, c, 1, 1)
        return x + self.out(filtered * gate)


class PrototypeCoder(nn.Module):
    """Prototypes as few numbers, their rounding and their probability."""

    def __init__(self, widths: Sequence[int], code: Sequence[int]):
        """``widths``: from the prototypes to the code; ``code``: from the code to the prototypes."""
        super().__init__()
        self.encoder, self.decoder = _pointwise(widths, inverse=False), _pointwise(code, inverse=True)
        self.bottleneck = Bottleneck(code[0])

    def forward(self, x: Tensor, place: Places, rng: BatchRng | None, name: str) -> tuple[Tensor, Tensor]:
        """Return the prototypes at ``place`` of a map ``x`` as a decoder has them, and the code's likelihood."""
        code = self.encoder(place.pool(x)).float()
        code, likelihood = self.bottleneck(code, rate_noise(rng, name, code, place.counts))
        return self.decoder(code), likelihood


def _pointwise(widths: Sequence[int], inverse: bool) -> nn.Sequential:
    """Return convolutions of 1x1 with GDN, or its inverse, between them."""
    layers: list[nn.Module] = []
    for inputs, outputs in pairwise(widths):
        layers += [nn.Conv2d(inputs, outputs, 1), GDN(outputs, inverse)]
    return nn.Sequential(*layers[:-1])


def _hyper_analysis(latent: int, widths: Sequence[int]) -> nn.Sequential:
    layers: list[nn.Module] = []
    for i, (inputs, outputs) in enumerate(pairwise((latent, latent, *widths))):
        layers += [nn.Conv2d(inputs, outputs, 3, stride=2 if i in (2, 4) else 1, padding=1), nn.GELU()]
    return nn.Sequential(*layers[:-1])


def _hyper_synthesis(latent: int, widths: Sequence[int]) -> nn.Sequential:
    layers: list[nn.Module] = []
    for i, (inputs, outputs) in enumerate(pairwise((widths[-1], *reversed(widths), latent))):
        wider = nn.Sequential(nn.Conv2d(inputs, 4 * outputs, 3, padding=1), nn.PixelShuffle(2))
        layers += [wider if i in (1, 3) else nn.Conv2d(inputs, outputs, 3, padding=1), nn.GELU()]
    return nn.Sequential(*layers[:-1])


class SegPIC(ModelMixin, ConfigMixin):
    """The network. Every field of its config is a keyword of the constructor.

    ``channels``: of the maps at a quarter of the resolution. ``latent``: channels of the latent, at a sixteenth;
    ``slices`` it is coded in, and ``support``, how many of the first ones the others see. ``head``: channels before
    the last convolution. ``hyper``: widths of the hyper analysis, the last those of the hyper latent, at a 64th.
    ``prototype``: widths of the prototype coders, the last that of the code. ``context``: widths of the context
    networks. ``heads``, ``windows``: of the attention at a quarter and at a sixteenth. ``grid``: cells a side where
    no regions are given. ``rates``: how many rates one network has (``Gain``); 0 as published, a network a rate.
    """

    @register_to_config
    def __init__(
        self,
        *,
        channels: int = 192,
        latent: int = 320,
        head: int = 32,
        hyper: Sequence[int] = (288, 256, 224, 192),
        prototype: Sequence[int] = (128, 96),
        context: Sequence[int] = (224, 176, 128, 64),
        slices: int = 10,
        support: int = 5,
        heads: int = 8,
        windows: Sequence[int] = (8, 4),
        grid: int = 4,
        rates: int = 0,
    ):
        super().__init__()
        check_config(self.config)
        wide, narrow = AttentionModule(channels, heads, windows[0]), AttentionModule(latent, heads, windows[1])
        self.analysis1 = nn.Sequential(Down(3, channels), Down(channels, channels), wide)
        self.analysis2 = nn.Sequential(Down(channels, channels), Down(channels, latent), narrow)
        wide, narrow = AttentionModule(channels, heads, windows[0]), AttentionModule(latent, heads, windows[1])
        self.synthesis1 = nn.Sequential(narrow, Up(latent, channels), Up(channels, channels))
        self.synthesis2 = nn.Sequential(wide, Up(channels, channels), Up(channels, head), nn.Conv2d(head, 3, 1))
        middle, code = prototype
        self.prototypes1 = PrototypeCoder((channels, middle, code, code), (code, middle, channels, channels))
        self.prototypes2 = PrototypeCoder((latent, channels, middle, code), (code, middle, channels, latent))
        self.encoder_rat, self.decoder_rat = RegionAdaptiveTransform(channels), RegionAdaptiveTransform(channels)
        self.hyper_rat = RegionAdaptiveTransform(latent)
        self.means_rat, self.scales_rat = RegionAdaptiveTransform(latent), RegionAdaptiveTransform(latent)
        self.hyper_analysis = _hyper_analysis(latent, hyper)
        self.hyper_means, self.hyper_scales = _hyper_synthesis(latent, hyper), _hyper_synthesis(latent, hyper)
        self.bottleneck = Bottleneck(hyper[-1])
        self.channel_context = Context(self.config)
        self.gain = Gain(rates, latent) if rates else None

    @classmethod
    def from_variant(cls, name: str) -> "SegPIC":
        """Return a fresh network of a named size; see ``VARIANTS``."""
        if name not in VARIANTS:
            raise InputError(f"no SegPIC variant {name!r}: choose from {', '.join(VARIANTS)}")
        return cls(**VARIANTS[name])

    def forward(
        self,
        x: Tensor,
        regions: Tensor | None = None,
        *,
        quality: Tensor | None = None,
        grid: int | None = None,
        rng: BatchRng | None = None,
    ) -> Coded:
        """Return what a decoder makes of pictures ``x`` (b, 3, h, w) in [0, 1], and how probable what it reads is.

        ``h`` and ``w`` are multiples of 64. ``regions``: labels of the pixels, integers (b, h, w), numbered from 0 in
        each picture; without them a grid of ``grid`` cells a side, by default the config's. ``quality`` (b,): the rate
        of each picture, from 0 to the config's ``rates`` - 1, for a network that has rates. ``rng``: likelihoods are
        those of latents with uniform noise, for training; without it those of the rounded ones. The reconstruction is
        from rounded latents either way.
        """
        if x.ndim != 4 or x.shape[1] != 3 or x.shape[2] % STRIDE or x.shape[3] % STRIDE or not x.numel():
            raise InputError(f"pictures {tuple(x.shape)}: SegPIC takes (b, 3, h, w), sides multiples of {STRIDE}")
        quarter, sixteenth = places(x, regions, self.config.grid if grid is None else grid)
        likelihoods: dict[str, Tensor] = {}
        features = self.analysis1(x)
        prototypes1, likelihoods["prototypes1"] = self.prototypes1(features, quarter, rng, "prototypes1")
        gain, inverse = self.gains(quality)
        y = self.analysis2(self.encoder_rat(features, prototypes1, quarter)).float() * gain
        prototypes2, likelihoods["prototypes2"] = self.prototypes2(y, sixteenth, rng, "prototypes2")
        z = self.hyper_analysis(self.hyper_rat(y, prototypes2, sixteenth)).float()
        z, likelihoods["z"] = self.bottleneck(z, rate_noise(rng, "z", z, [1] * len(z)))
        means, scales = self.hyper_synthesis(z, prototypes2, sixteenth)
        latent, likelihoods["y"] = self.code(y, means, scales, rate_noise(rng, "y", y, [1] * len(y)))
        return Coded(self.synthesise(latent * inverse, prototypes1, quarter), likelihoods)

    def gains(self, quality: Tensor | None) -> tuple[Tensor | float, Tensor | float]:
        """Return the factors (b, c, 1, 1) of the latent before and after rounding; 1 for a network of one rate."""
        if (quality is None) != (self.gain is None):
            rates = self.config.rates
            found = f"{rates} rates: give a quality" if rates else "one rate: give no quality"
            raise InputError(f"this network has {found}")
        return (1.0, 1.0) if self.gain is None or quality is None else self.gain(quality)

    def hyper_synthesis(self, z: Tensor, prototypes: Tensor, place: Places) -> tuple[Tensor, Tensor]:
        """Return the maps (b, c, h, w) that means and scales of the latent are made from, of rounded ``z``."""
        means = self.means_rat(self.hyper_means(z), prototypes, place)
        return means, self.scales_rat(self.hyper_scales(z), prototypes, place)

    def code(self, y: Tensor, means: Tensor, scales: Tensor, noise: Tensor | None) -> tuple[Tensor, Tensor]:
        """Return ``y`` (b, c, h, w) as a decoder has it, and its likelihood, of y + ``noise`` if there is some."""
        parts = y.chunk(self.config.slices, 1)
        noises = [None] * len(parts) if noise is None else noise.chunk(len(parts), 1)
        likelihoods = []

        def rounded(i: int, mean: Tensor, scale: Tensor) -> Tensor:
            residual = parts[i] - mean.float()
            likelihoods.append(gaussian_likelihood(residual, scale.float(), noises[i]))
            return round_through(residual) + mean

        latent = self.channel_context(means, scales, rounded)
        return latent, torch.cat(likelihoods, 1)

    def synthesise(self, latent: Tensor, prototypes: Tensor, place: Places) -> Tensor:
        """Return the pictures (b, 3, h, w), not clamped, of a decoded latent and the prototypes of the first kind."""
        return self.synthesis2(self.decoder_rat(self.synthesis1(latent), prototypes, place))

    def quantile_loss(self) -> Tensor:
        """Return the auxiliary loss, by which the quantiles of the three bottlenecks follow their distributions."""
        bottlenecks = (self.bottleneck, self.prototypes1.bottleneck, self.prototypes2.bottleneck)
        return sum((bottleneck.quantile_loss() for bottleneck in bottlenecks), torch.zeros(()))


def loss(
    model: SegPIC,
    batch: dict[str, Tensor],
    rng: BatchRng,
    *,
    weights: Sequence[float] = (0.013,),
    prototype_share: float = 1.0,
    distortion: str = "mse",
) -> tuple[Tensor, dict[str, float]]:
    """Return the rate-distortion loss of a batch plus the auxiliary loss, and what to log.

    ``batch``: ``image`` (b, 3, h, w) in [-1, 1] and, unless the grid is to be used, ``regions``, integers (b, h, w).
    ``weights``: lambda, published from 0.0018 to 0.0483; of a network of many rates one for each, from the lowest, and
    every picture of the batch draws its rate. ``prototype_share``: what counts of the prototypes' bits; below 1 where
    crops stand for larger pictures, which pay for as many prototypes. ``distortion``: see ``rate_distortion``.
    """
    x = (batch["image"] + 1) / 2
    quality, weight = None, torch.full((len(x),), weights[0], device=x.device)
    if model.config.rates:
        drawn = (rng.uniform("quality") * len(weights)).long()
        quality, weight = drawn.float(), torch.tensor(weights, device=x.device)[drawn]
    coded = model(x, batch.get("regions"), quality=quality, rng=rng)
    value, logs = rate_distortion(coded, x, weight, prototype_share, distortion)
    auxiliary = model.quantile_loss()
    return value + AUXILIARY * auxiliary, logs | {"auxiliary": auxiliary.item()}


def rate_distortion(
    coded: Coded, x: Tensor, weight: float | Tensor, prototype_share: float = 1.0, distortion: str = "mse"
) -> tuple[Tensor, dict[str, float]]:
    """Return weight * distortion + bits a pixel, and its parts, for pictures ``x`` in [0, 1].

    ``weight``: one for all or one a picture (b,). ``distortion``: "mse", the mean squared error times 255^2, or
    "ms-ssim", 1 less the similarity, of pictures of 161 pixels a side or more.
    """
    pixels = x.shape[0] * x.shape[2] * x.shape[3]
    bits = {name: -torch.log2(likelihood).sum() for name, likelihood in coded.likelihoods.items()}
    shares = {name: prototype_share if name.startswith("prototypes") else 1.0 for name in bits}
    rate = sum((shares[name] * count for name, count in bits.items()), x.new_zeros(())) / pixels
    found = coded.reconstruction.float()
    errors = F.mse_loss(found, x, reduction="none").mean((1, 2, 3))  # (b,)
    worse = 1 - ms_ssim(found, x) if distortion == "ms-ssim" else 255**2 * errors  # (b,)
    value = (weight * worse).mean() + rate
    side = sum((count for name, count in bits.items() if name != "y"), x.new_zeros(())) / pixels
    logs = {"loss": value, "bpp": rate, "bpp_side": side, "mse": errors.mean()}
    return value, {name: number.item() for name, number in logs.items()}


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Return Adam groups: the network, and the quantiles of its bottlenecks.

    Only the auxiliary loss moves the quantiles in training; as published they learn at 1e-3 where the rest learns at
    1e-4: ``lr_scale`` 10, and do not decay.
    """
    named = list(model.named_parameters())
    quantiles = [p for name, p in named if name.endswith(".quantiles")]
    rest = [p for name, p in named if not name.endswith(".quantiles")]
    return [
        {"params": rest, "weight_decay": weight_decay, "lr_scale": 1.0},
        {"params": quantiles, "weight_decay": 0.0, "lr_scale": 10.0},
    ]
