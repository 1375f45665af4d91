"""NViST: one photograph -> a radiance field, in one pass (Jang and Agapito, CVPR 2024, arXiv 2312.08568).

    image ─► encoder ─► latent tokens ──► keys and values of every second block
                         │ class token                │
    tokens of the volume ┴─► decoder: attention(adaLN x, latent), attention(adaLN x), ... ─► planes, lines ─► Field
    (camera distance, focal) ─► adaLN of all blocks ──┘

The field lives in the frame of the input camera: turned as it is, the origin in the middle of the scene, the camera at
(0, 0, -distance).
"""

import math
from collections.abc import Sequence
from typing import Any, ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from torch import Tensor, nn

from belvedere import kernels
from belvedere.errors import InputError
from belvedere.synthesis.field import Field, FieldDecoder
from belvedere.synthesis.nvist_config import VARIANTS, check_config
from belvedere.synthesis.vit import EPS, MLP, Blocks, Encoder, initialise, position_codes


class Attention(nn.Module):
    """Attention of queries over keys and values from elsewhere: (b, n, c), (b, m, c), (b, m, c) -> (b, n, c)."""

    def __init__(self, dim: int, heads: int):
        super().__init__()
        self.heads = heads
        self.q, self.k, self.v, self.out = (nn.Linear(dim, dim) for _ in range(4))

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        q, k, v = (
            layer(x).unflatten(-1, (self.heads, -1)) for layer, x in ((self.q, q), (self.k, k), (self.v, v))
        )  # (b, n, h, d)
        return self.out(kernels.attend(q, k, v).flatten(-2))


class AdaptiveBlock(nn.Module):
    """x + gate attention(adaLN x), x + gate MLP(adaLN x), the rows of adaLN from a condition (b, c).

    ``cross``: keys and values are the normalised memory; else they are the queries, the modulated tokens.
    """

    def __init__(self, dim: int, heads: int, mlp_ratio: float, cross: bool):
        super().__init__()
        self.modulation = nn.Linear(dim, 6 * dim)
        self.attention, self.mlp = Attention(dim, heads), MLP(dim, mlp_ratio)
        self.cross = cross
        if cross:
            self.norm_k, self.norm_v = nn.LayerNorm(dim, EPS), nn.LayerNorm(dim, EPS)

    def forward(self, x: Tensor, memory: Tensor, condition: Tensor) -> Tensor:
        rows = self.modulation(F.silu(condition))
        shift1, scale1, gate1, shift2, scale2, gate2 = rows.chunk(6, -1)  # (b, c) each
        q = kernels.modulate_norm(x, shift1, scale1, eps=EPS)
        k, v = (self.norm_k(memory), self.norm_v(memory)) if self.cross else (q, q)
        x, y = kernels.gated_residual_norm(x, self.attention(q, k, v), gate1, shift2, scale2, eps=EPS)
        return kernels.gated_residual(x, self.mlp(y), gate2)


class PlainBlock(nn.Module):
    """x + attention(norm x, norms of the memory or of x), x + MLP(norm x): where the condition is one of the tokens."""

    def __init__(self, dim: int, heads: int, mlp_ratio: float, cross: bool):
        super().__init__()
        self.cross = cross
        self.norm1, self.norm2, self.norm_k, self.norm_v = (nn.LayerNorm(dim, EPS) for _ in range(4))
        self.attention, self.mlp = Attention(dim, heads), MLP(dim, mlp_ratio)

    def forward(self, x: Tensor, memory: Tensor, condition: Tensor) -> Tensor:
        source = memory if self.cross else x
        x = x + self.attention(self.norm1(x), self.norm_k(source), self.norm_v(source))
        return x + self.mlp(self.norm2(x))


def camera_waves(conditions: Tensor, frequencies: int) -> Tensor:
    """Return numbers (b, i), then sines, then cosines of them times 2^k pi, k inner: (b, i (1 + 2 frequencies))."""
    octaves = math.pi * 2.0 ** torch.arange(frequencies, dtype=torch.float32, device=conditions.device)
    angles = (conditions[..., None].float() * octaves).flatten(1)  # (b, i f)
    return torch.cat((conditions.float(), angles.sin(), angles.cos()), -1)


class Volume(NamedTuple):
    """What the decoder makes of b pictures, as ``Field`` takes it."""

    planes: Tensor | None
    lines: Tensor | None
    background: Tensor | None


class Heads(nn.Module):
    """Tokens of three planes or of three lines (b, 3 n, c) -> what each stands for (b, 3, n, o)."""

    def __init__(self, dim: int, outputs: int):
        super().__init__()
        self.norm = nn.LayerNorm(dim, EPS)
        self.linears = nn.ModuleList(nn.Linear(dim, outputs) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        thirds = F.gelu(self.norm(x)).chunk(3, 1)
        return torch.stack([linear(third) for linear, third in zip(self.linears, thirds, strict=True)], 1)


class VolumeDecoder(nn.Module):
    """Latent tokens and the camera -> planes and lines of the volume. Its fields are those of ``NViST``."""

    def __init__(self, config: Any):
        super().__init__()
        dim, patch, channels = config.dim, config.volume_patch, config.density + config.colour
        self.side, self.patch, self.append = config.resolution // patch, patch, config.conditioning == "concat"
        planes = 0 if config.form == "cp" else 3 * self.side**2
        lines = 0 if config.form == "triplane" else 3 * self.side
        self.parts = (1, planes, lines)
        height, width = config.image
        memory = height * width // config.patch**2
        self.token = nn.Parameter(torch.zeros(1, 1, dim))
        self.memory_positions = nn.Parameter(torch.zeros(1, memory, dim))
        self.positions = nn.Parameter(torch.zeros(planes + lines, dim)) if config.positions == "learned" else None
        self.numbers, self.frequencies = 2 if config.focal else 1, config.camera_frequencies
        waves = self.numbers * (1 + 2 * self.frequencies)
        self.conditioning = nn.Sequential(nn.Linear(waves, dim), nn.ReLU(), nn.Linear(dim, dim))
        block = PlainBlock if self.append else AdaptiveBlock
        ratio = config.decoder_mlp_ratio
        self.blocks = Blocks(block(dim, config.decoder_heads, ratio, i % 2 == 0) for i in range(config.decoder_depth))
        self.plane_heads = Heads(dim, patch**2 * channels) if planes else None
        self.line_heads = Heads(dim, patch * channels) if lines else None
        self.background = nn.Linear(dim, 3) if config.background == "learned" else None
        self._initialise()

    def _initialise(self) -> None:
        initialise(self)
        nn.init.normal_(self.token, std=0.02)
        nn.init.normal_(self.memory_positions, std=0.01)
        if self.positions is not None:
            with torch.no_grad():
                self.positions.copy_(self._places(self.positions))

    def codes(self, like: Tensor) -> Tensor:
        """Return the fixed position codes (n, c) of the volume's tokens, as published.

        They are those of a grid with the planes beneath one another and the lines as one more column, but dealt out
        row by row to all tokens of planes, then to those of lines: each is unique, none tells where its token belongs.
        """
        _, planes, lines = self.parts
        rows = 3 * self.side
        return position_codes(rows, (planes + lines) // rows, like.shape[-1], like, start=0.5)

    def _places(self, like: Tensor) -> Tensor:
        """Return the codes (n, c) with each token at its own place of the grid, where learned positions begin."""
        grid = self.codes(like).unflatten(0, (3 * self.side, -1))  # (h, w, c)
        columns = self.side if self.parts[1] else 0
        return torch.cat((grid[:, :columns].flatten(0, 1), grid[:, columns:].flatten(0, 1)))

    def forward(self, latent: Tensor, conditions: Tensor) -> Volume:
        """Return planes (b, 3, c, r, r), lines (b, 3, c, r) and background (b, 3), or None where there are none."""
        waves = camera_waves(conditions[:, : self.numbers], self.frequencies)
        condition = self.conditioning(waves.to(latent.dtype))  # (b, c)
        first, memory = latent[:, :1], latent[:, 1:] + self.memory_positions
        codes = self.codes(latent) if self.positions is None else self.positions
        x = torch.cat((first, (self.token + codes).to(first.dtype).expand(len(first), -1, -1)), 1)  # (b, 1 + n, c)
        if self.append:
            memory = torch.cat((memory, condition[:, None].to(memory.dtype)), 1)
        first, planes, lines = self.blocks(x, memory, condition).split(self.parts, 1)
        return Volume(self._planes(planes), self._lines(lines), self._background(first))

    def _background(self, x: Tensor) -> Tensor | None:
        return None if self.background is None else self.background(F.layer_norm(x[:, 0], x.shape[2:])).sigmoid()

    def _planes(self, x: Tensor) -> Tensor | None:
        if self.plane_heads is None:
            return None
        cells = self.plane_heads(x).unflatten(2, (self.side, self.side))  # (b, 3, h, w, o)
        cells = cells.unflatten(-1, (self.patch, self.patch, -1))  # (b, 3, h, w, patch, patch, c)
        return cells.permute(0, 1, 6, 2, 4, 3, 5).flatten(5).flatten(3, 4)  # (b, 3, c, r, r)

    def _lines(self, x: Tensor) -> Tensor | None:
        if self.line_heads is None:
            return None
        cells = self.line_heads(x).unflatten(-1, (self.patch, -1))  # (b, 3, h, patch, c)
        return cells.permute(0, 1, 4, 2, 3).flatten(3)  # (b, 3, c, r)


def _keep_wide(module: nn.Module, *_: Any) -> None:
    """Put into float32 what a field is decoded with, whose queries are in it."""
    module.float()


class NViST(ModelMixin, ConfigMixin):
    """The network. Every field of its config is a keyword of the constructor.

    ``image``: height and width of the pictures in pixels; ``patch`` of a token. ``dim``: width of encoder and decoder;
    ``encoder_*``, ``decoder_*``: depth, heads and MLP ratio of each. ``input_norm``: see ``vit.INPUT_NORMS``.
    ``resolution``: texels a side of planes and lines; ``volume_patch`` of a token. ``form``: see ``field.FORMS``.
    ``density``, ``colour``: channels of each plane and line for either; ``hidden`` and ``direction_frequencies`` of the
    colour network. ``camera_frequencies``: of the encoding of the conditions; ``focal``: whether the focal length is
    one of them. ``conditioning``: "adaln", or "concat", the condition as one more token that the decoder looks at.
    ``positions`` of the volume's tokens: "sincos", as published (``VolumeDecoder.codes``), or "learned".
    ``half_side`` of the box and ``padding`` outside: see ``Field``. ``background``: "black" (published) or "learned",
    a colour made of the class token, which is else decoded for nothing. ``near``, ``far``, ``samples``: how rays are
    sampled in training, and so to be rendered. Published weights come without ``near`` and ``far``.
    """

    _supports_gradient_checkpointing = True
    _keep_in_fp32_modules: ClassVar = ["field_decoder"]

    @register_to_config
    def __init__(
        self,
        *,
        image: Sequence[int] = (160, 90),
        patch: int = 5,
        dim: int = 768,
        encoder_depth: int = 12,
        encoder_heads: int = 12,
        encoder_mlp_ratio: float = 4.0,
        decoder_depth: int = 12,
        decoder_heads: int = 12,
        decoder_mlp_ratio: float = 4.0,
        input_norm: str = "imagenet",
        resolution: int = 48,
        volume_patch: int = 3,
        form: str = "vector_matrix",
        density: int = 8,
        colour: int = 24,
        hidden: int = 64,
        direction_frequencies: int = 4,
        camera_frequencies: int = 4,
        focal: bool = True,
        conditioning: str = "adaln",
        positions: str = "sincos",
        half_side: float = 0.8,
        padding: str = "zeros",
        background: str = "black",
        near: float = 0.1,
        far: float = 1.8,
        samples: int = 48,
    ):
        super().__init__()
        config: Any = self.config
        check_config(config)
        self.encoder = Encoder(
            patch=patch,
            dim=dim,
            depth=encoder_depth,
            heads=encoder_heads,
            mlp_ratio=encoder_mlp_ratio,
            input_norm=input_norm,
        )
        self.decoder = VolumeDecoder(config)
        self.field_decoder = FieldDecoder(
            form=form, density=density, colour=colour, hidden=hidden, frequencies=direction_frequencies
        )
        self.field_decoder.register_load_state_dict_post_hook(_keep_wide)

    @classmethod
    def from_variant(cls, name: str) -> "NViST":
        """Return a fresh network of a named size; see ``VARIANTS``."""
        if name not in VARIANTS:
            raise InputError(f"no NViST variant {name!r}: choose from {', '.join(VARIANTS)}")
        return cls(**VARIANTS[name])

    def forward(self, image: Tensor, conditions: Tensor) -> Field:
        """Return the field of pictures ``image`` (b, 3, h, w) in [0, 1], of the size that the config tells.

        ``conditions`` (b, 2): the distance from the camera to the middle of the scene, in the scene's unit of length,
        and the focal length in heights of the picture. A network without ``focal`` does not look at the second.
        """
        size = tuple(self.config.image)
        if image.ndim != 4 or image.shape[1] != 3 or tuple(image.shape[2:]) != size:
            raise InputError(f"image {tuple(image.shape)}: this network takes (b, 3, {size[0]}, {size[1]}); resize it")
        volume = self.decode(self.encode(image), conditions)
        parts = {"half_side": self.config.half_side, "padding": self.config.padding, "background": volume.background}
        return Field(volume.planes, volume.lines, self.field_decoder, **parts)

    def encode(self, image: Tensor) -> Tensor:
        """Return the latent tokens (b, 1 + n, c), the class token first, of pictures (b, 3, h, w) in [0, 1]."""
        return self.encoder(image)

    def decode(self, latent: Tensor, conditions: Tensor) -> Volume:
        """Return the volume of latent tokens under ``conditions`` (b, 2), float32; None for what it does without."""
        expected = 1 + self.decoder.memory_positions.shape[1]
        if latent.ndim != 3 or latent.shape[1] != expected:
            raise InputError(f"latent {tuple(latent.shape)}: give (b, {expected}, c), of pictures of the config's size")
        if conditions.shape != (len(latent), 2):
            raise InputError(f"conditions {tuple(conditions.shape)}: give distance and focal, ({len(latent)}, 2)")
        return Volume(*(None if part is None else part.float() for part in self.decoder(latent, conditions)))
