"""NeTI: a concept as two vectors for each time and each layer of a U-Net (Alaluf et al., arXiv 2305.15391).

    time, layer ─► Fourier features ─► linear, one output an anchor ─► MLP ─► truncation ─► linear ─► norm
                                                                                                       │
                      word: takes the place of the placeholder's embedding in front of the text encoder ◄┤
                      bypass: is added to what the text encoder makes of the placeholder ◄───────────────┘

Times count from 0 to 999, layers from 0 in the order in which the U-Net runs them.
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from torch import Tensor, nn

from belvedere.errors import InputError
from belvedere.seeds import BatchRng

TIMES = 1000
"""Of the noise schedule of the diffusion models that it is made for."""
CHOICES = {"encoding": ("fourier", "basic"), "norm_form": ("full", "half")}
LARGEST = {"layers": 1024, "anchors": TIMES, "hidden": 8192, "frequencies": 8192}
LARGEST_NORM = 1e4
"""Of an embedding, to which outputs are scaled."""
LARGEST_WEIGHT = 1 << 26
"""Numbers in the first linear map, the largest."""


class Vectors(NamedTuple):
    """What a text encoder is given for a placeholder."""

    word: Tensor
    """In place of the token's embedding: (..., c)."""
    bypass: Tensor | None
    """Direction of what is added to the placeholder's output (..., c); None for a mapper without."""


class FourierEncoding(nn.Module):
    """Unit vectors sin(w (t, l)), cos(w (t, l)) over sqrt(f), w Gaussian and fixed (section 4.1 of the paper)."""

    def __init__(self, frequencies: int, sigma_time: float, sigma_layer: float):
        super().__init__()
        self.w: Tensor
        self.register_buffer("w", torch.randn(frequencies, 2) * torch.tensor([sigma_time, sigma_layer]))

    def forward(self, t: Tensor, layer: Tensor) -> Tensor:
        """Return codes (..., 2 f), float32, for times and layers that broadcast to (...)."""
        w = self.w.float()
        angle = t[..., None].float() * w[:, 0] + layer[..., None].float() * w[:, 1]  # no matmul: autocast leaves it
        return torch.cat((angle.sin(), angle.cos()), -1) / math.sqrt(len(w))


class BasicEncoding(nn.Module):
    """The time and the layer themselves, each brought to [-1, 1]."""

    def __init__(self, layers: int):
        super().__init__()
        self.layers = layers

    def forward(self, t: Tensor, layer: Tensor) -> Tensor:
        """Return codes (..., 2), float32, for times and layers that broadcast to (...)."""
        parts = t.float() / (TIMES - 1), layer.float() / max(self.layers - 1, 1)
        return 2 * torch.stack(torch.broadcast_tensors(*parts), -1) - 1


class NeTIMapper(ModelMixin, ConfigMixin):
    """The network of one concept, always in float32. Every field of its config is a keyword of the constructor.

    ``widths``: of the token embeddings of each text encoder. ``layers``: of the U-Net. ``anchors``: times at which the
    first linear map begins as the encoding itself. ``hidden``: channels of the MLP. ``encoding``: "fourier", with
    ``frequencies`` and their deviations ``sigma_time``, ``sigma_layer``, or "basic". ``bypass``: whether there is one.
    ``target_norms``: norm of the super-category's embedding in each encoder, to which outputs are scaled; None: not.
    ``norm_form``: "full", as published: word and bypass together are given that norm, so that a word alone is shorter;
    "half": each of them is. ``nested_dropout``: whether training truncates, with ``dropout_probability``; without,
    truncation does nothing, as published.
    """

    @register_to_config
    def __init__(
        self,
        *,
        widths: Sequence[int] = (768,),
        layers: int = 16,
        anchors: int = 10,
        hidden: int = 128,
        encoding: str = "fourier",
        frequencies: int = 1024,
        sigma_time: float = 0.03,
        sigma_layer: float = 2.0,
        bypass: bool = True,
        target_norms: Sequence[float] | None = None,
        norm_form: str = "full",
        nested_dropout: bool = True,
        dropout_probability: float = 0.5,
    ):
        super().__init__()
        check_config(self.config)
        self.project_in: nn.Module = nn.Identity()
        self.encode: BasicEncoding | FourierEncoding = BasicEncoding(layers)
        inputs = 2
        if encoding == "fourier":
            self.encode = FourierEncoding(frequencies, sigma_time, sigma_layer)
            inputs = anchors * layers
            self.project_in = nn.Linear(2 * frequencies, inputs)
            self.start_anchors()
        self.mlp = nn.Sequential(
            nn.Linear(inputs, hidden),
            nn.LayerNorm(hidden),
            nn.LeakyReLU(),
            nn.Linear(hidden, hidden),
            nn.LayerNorm(hidden),
            nn.LeakyReLU(),
        )
        self.head = nn.Linear(hidden, sum(widths) * (2 if bypass else 1))

    @torch.no_grad()
    def start_anchors(self) -> None:
        """Let each row of the first linear map be the code of an anchor: times 0, 1000 // a, ... of all layers each."""
        count, layers = self.config.anchors, self.config.layers
        times = torch.arange(count) * (TIMES // count)
        codes = self.encode(times[:, None], torch.arange(layers))  # (a, layers, 2 f)
        self.project_in.get_parameter("weight").copy_(codes.flatten(0, 1))

    def forward(self, t: Tensor, layer: Tensor, truncation: int | Tensor | None = None) -> Tensor:
        """Return the output (..., o), float32, for times and layers that broadcast to (...).

        ``truncation``: how many channels of the hidden vector are kept, the first ones; one number for all or a
        tensor that broadcasts to (...); None keeps all. ``vectors`` cuts the output. Raises ``InputError`` for a
        number out of range.
        """
        x = self.truncate(self.mlp(self.project_in(self.encode(t, layer))), truncation)
        return self._scale(self.head(x))

    def truncate(self, x: Tensor, truncation: int | Tensor | None) -> Tensor:
        """Return the hidden vectors (..., hidden) with zeros from the index ``truncation`` on."""
        if truncation is None or not self.config.nested_dropout:
            return x
        hidden = self.config.hidden
        if isinstance(truncation, int):
            if not 0 <= truncation <= hidden:
                raise InputError(f"truncation {truncation}: must be from 0 to {hidden}, the channels of the mapper")
            truncation = torch.tensor(truncation, device="cpu")
        return x * (torch.arange(hidden, device=x.device) < truncation.to(x.device)[..., None])

    def _scale(self, output: Tensor) -> Tensor:
        if self.config.target_norms is None:
            return output
        blocks = output.split(self._blocks, -1)
        return torch.cat([self._scale_block(*pair) for pair in zip(blocks, self.config.target_norms, strict=True)], -1)

    def _scale_block(self, block: Tensor, norm: float) -> Tensor:
        parts = block.chunk(2, -1) if self.config.bypass and self.config.norm_form == "half" else (block,)
        return torch.cat([F.normalize(part, dim=-1) * norm for part in parts], -1)

    @property
    def _blocks(self) -> list[int]:
        """How many outputs each text encoder has: word, then bypass."""
        return [width * (2 if self.config.bypass else 1) for width in self.config.widths]

    def vectors(self, output: Tensor) -> list[Vectors]:
        """Return what each text encoder is given, from outputs (..., o)."""
        blocks = output.split(self._blocks, -1)
        if not self.config.bypass:
            return [Vectors(block, None) for block in blocks]
        return [Vectors(*block.chunk(2, -1)) for block in blocks]

    def draw_truncation(self, rng: BatchRng) -> Tensor | None:
        """Return the truncations of a training batch (b, layers), a coin each; None without nested dropout."""
        if not self.config.nested_dropout:
            return None
        names = [f"layer {layer}" for layer in range(self.config.layers)]
        coin = torch.stack([rng.uniform(f"nested dropout, {name}") for name in names], 1)
        index = torch.stack([rng.uniform(f"truncation, {name}") for name in names], 1)
        return nested_truncation(coin, index, self.config.hidden, self.config.dropout_probability)

    @torch.no_grad()
    def start_at(self, words: Sequence[Tensor]) -> None:
        """Begin with these words (c,), one a text encoder, at every time and layer, and bypasses of about their norm.

        Not published, where the first words are random and only their norm is the super-category's.
        """
        for weight, bias, word in zip(
            self.head.weight.split(self._blocks), self.head.bias.split(self._blocks), words, strict=True
        ):
            count = len(word)
            weight[:count], bias[:count] = 0, word
            weight[count:] *= word.norm() * (6 / count) ** 0.5  # a fresh output has a variance of about 1 / 6
            bias[count:] = 0


def nested_truncation(coin: Tensor, index: Tensor, hidden: int, probability: float) -> Tensor:
    """Return the truncations, int64, of a training batch: uniform in [0, hidden) with ``probability``, else ``hidden``.

    ``coin`` and ``index`` are uniform in [0, 1) and broadcast, to (b, layers) for example: nested dropout (Rippel et
    al., arXiv 1402.0915). A coin of shape (1, layers) is the published one, shared by the samples of a mapper call.
    """
    return torch.where(coin < probability, (index * hidden).long(), hidden)


def check_config(config: Any) -> None:
    """Raise ``InputError`` unless the fields of a mapper's config are known and fit together."""
    for field, names in CHOICES.items():
        if config[field] not in names:
            raise InputError(f"{field} {config[field]!r}: choose from {', '.join(names)}")
    for field, top in LARGEST.items():
        if not _whole(config[field], top):
            raise InputError(f"{field} {config[field]!r}: must be an integer from 1 to {top}")
    widths = config.widths
    if not isinstance(widths, list | tuple) or not 1 <= len(widths) <= 4 or not all(_whole(c, 65536) for c in widths):
        raise InputError(f"widths {widths!r}: must be integers from 1 to 65536, one a text encoder")
    if 2 * config.frequencies * config.anchors * config.layers > LARGEST_WEIGHT:
        raise InputError(f"frequencies x anchors x layers: more than {LARGEST_WEIGHT // 2}, choose fewer")
    for field in ("sigma_time", "sigma_layer"):
        if not _number(config[field]) or config[field] <= 0:
            raise InputError(f"{field} {config[field]!r}: must be a number above 0")
    norms = config.target_norms
    if norms is not None and not (
        isinstance(norms, list | tuple)
        and len(norms) == len(widths)
        and all(_number(x) and 0 < x <= LARGEST_NORM for x in norms)
    ):
        most = f"above 0 and at most {LARGEST_NORM:g}"
        raise InputError(f"target_norms {norms!r}: must be numbers {most}, one a text encoder, or null")
    for field in ("bypass", "nested_dropout"):
        if not isinstance(config[field], bool):
            raise InputError(f"{field} {config[field]!r}: must be true or false")
    if not _number(config.dropout_probability) or not 0 <= config.dropout_probability <= 1:
        raise InputError(f"dropout_probability {config.dropout_probability!r}: must be from 0 to 1")


def _whole(value: Any, top: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= top


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
