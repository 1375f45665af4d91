"""FiTv2: a diffusion transformer for any resolution and aspect ratio, without padding (Wang et al., arXiv 2410.13925).

    pictures ─► tokens, packed ─► blocks: x + gate attention(adaLN x), x + gate MLP(adaLN x) ─► adaLN, linear ─► tokens
    (time, class) ─► one modulation row an image, for all blocks at once ──┘
    grid positions ─► 2-D rotary angles of queries and keys ───────────────┘

Time runs from 0 (noise) to 1 (data): x_t = t x_1 + (1 - t) x_0, and the network predicts the velocity x_1 - x_0.
"""

import math
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from torch import Tensor, nn

from belvedere import kernels
from belvedere.data.ragged import unpack_images
from belvedere.errors import InputError
from belvedere.generation.extrapolation import each, frequencies, grid_rotations, rotations
from belvedere.generation.fitv2_config import VARIANTS, check_config, mlp_width
from belvedere.generation.fitv2_initial import initialise
from belvedere.generation.fitv2_modulation import Modulation
from belvedere.generation.fitv2_refine import Refinement
from belvedere.generation.flow_training import flow_loss, flow_times
from belvedere.generation.tokens import Padded, offsets_of, patchify
from belvedere.seeds import BatchRng


class Layout(NamedTuple):
    """Where the tokens of a packed batch belong."""

    sizes: Tensor
    """The (height, width) of each image in patches: int64 (s, 2), on the CPU."""
    offsets: Tensor
    """Where each image begins: int32 (s + 1,); of a layout without memory it has some, for attention may read it."""
    image: Tensor
    """The number of each token's image: int64 (n,)."""
    cos: Tensor
    """Of the rotary angles: float32 (n, 1, head_dim / 2)."""
    sin: Tensor

    @classmethod
    def of(cls, sizes: Sequence[Sequence[int]], turned: Sequence[tuple[Tensor, Tensor]], device: Any) -> "Layout":
        """Return the layout of images with these ``rotations``."""
        lengths = [len(cos) for cos, _ in turned]
        counts = torch.tensor(lengths, device="cpu")
        image = torch.repeat_interleave(torch.arange(len(lengths), device="cpu"), counts, output_size=sum(lengths))
        cos, sin = (torch.cat(parts) for parts in zip(*turned, strict=True))
        offsets = offsets_of(lengths)
        offsets = offsets if torch.device(device).type == "meta" else offsets.to(device)
        grids = torch.tensor([[*size] for size in sizes], device="cpu")
        return cls(grids, offsets, *(x.to(device) for x in (image, cos, sin)))


def _norm_of(name: str) -> kernels.Norm:
    return {"layernorm": "layer", "w_layernorm": "layer", "w_rmsnorm": "rms", "none": "none"}[name]  # type: ignore[return-value]


def _weight_of(name: str, dim: int) -> nn.Parameter | None:
    return nn.Parameter(torch.ones(dim)) if name.startswith("w_") else None


class AdaptiveNorm(nn.Module):
    """adaLN: norm, scale and shift by rows of the image."""

    def __init__(self, name: str, dim: int):
        super().__init__()
        self.norm, self.weight = _norm_of(name), _weight_of(name, dim)

    def forward(self, x: Tensor, shift: Tensor, scale: Tensor, index: Tensor) -> Tensor:
        return kernels.modulate_norm(x, shift, scale, index, norm=self.norm, weight=self.weight)

    def after(self, x: Tensor, y: Tensor, gate: Tensor, *rows: Tensor) -> tuple[Tensor, Tensor]:
        """Return x + gate y, and it normalised."""
        return kernels.gated_residual_norm(x, y, gate, *rows, norm=self.norm, weight=self.weight)


class Attention(nn.Module):
    """Self-attention of each image over its own tokens, positions by rotation."""

    def __init__(self, config: Any):
        super().__init__()
        self.heads, self.rotate_v = config.heads, config.rotate_v
        head_dim = config.dim // config.heads
        self.q_norm, self.k_norm = _norm_of(config.q_norm), _norm_of(config.k_norm)
        self.q_weight, self.k_weight = _weight_of(config.q_norm, head_dim), _weight_of(config.k_norm, head_dim)
        self.qkv = nn.Linear(config.dim, 3 * config.dim)
        self.out = nn.Linear(config.dim, config.dim)

    def forward(self, x: Tensor, layout: Layout) -> Tensor:
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).unbind(1)  # (n, h, d)
        q, k = kernels.qk_norm_rope(
            q,
            k,
            layout.cos,
            layout.sin,
            q_norm=self.q_norm,
            k_norm=self.k_norm,
            q_weight=self.q_weight,
            k_weight=self.k_weight,
        )
        if self.rotate_v:
            v = kernels.rotate_pairs(v, layout.cos, layout.sin)
        return self.out(kernels.attend(q, k, v, offsets=layout.offsets).flatten(-2))


class MLP(nn.Module):
    """SwiGLU on a fused projection, or GELU (tanh)."""

    def __init__(self, config: Any):
        super().__init__()
        hidden, self.gated = mlp_width(config), config.mlp != "gelu"
        self.project_in = nn.Linear(config.dim, 2 * hidden if self.gated else hidden)
        self.project_out = nn.Linear(hidden, config.dim)

    def forward(self, x: Tensor) -> Tensor:
        x = self.project_in(x)
        return self.project_out(kernels.gated_mlp(x, "silu") if self.gated else F.gelu(x, approximate="tanh"))


class Block(nn.Module):
    """x + gate attention(adaLN x), x + gate MLP(adaLN x) on packed tokens (n, c)."""

    def __init__(self, config: Any):
        super().__init__()
        self.norm1, self.norm2 = AdaptiveNorm(config.norm, config.dim), AdaptiveNorm(config.norm, config.dim)
        self.attention, self.mlp = Attention(config), MLP(config)

    def forward(self, x: Tensor, modulation: Tensor, layout: Layout) -> Tensor:
        shift1, scale1, gate1, shift2, scale2, gate2 = modulation.chunk(6, -1)  # (s, c) each
        y = self.attention(self.norm1(x, shift1, scale1, layout.image), layout)
        x, y = self.norm2.after(x, y, gate1, shift2, scale2, layout.image)
        return kernels.gated_residual(x, self.mlp(y), gate2, layout.image)


class FiTv2(ModelMixin, ConfigMixin):
    """The network. Every field of its config is a keyword of the constructor.

    ``channels``, ``patch``: of the picture or latent, and the side of a token's cell. ``dim``, ``depth``, ``heads``:
    of the transformer. ``num_classes``: classes and the null class, which is the last. ``mlp``, ``mlp_ratio``,
    ``norm``, ``q_norm``, ``k_norm``, ``adaln``: see ``fitv2_config.CHOICES``; ``adaln_rank`` of adaLN-LoRA.
    ``rotate_v``: values turn too. ``rope_theta``; ``trained_side``: side in patches of the square grid it was trained
    on, from which extrapolation counts; ``extrapolation``: used where a call names none. ``time_shift``: times move
    towards data. ``learn_sigma``: twice the channels come out. ``channels_first``: the padded layout is (b, c, n), as
    in FiT of version 1.

    Ours, with defaults that give the published network: ``prediction`` "sample": the output is the clean picture,
    not the velocity; ``class_std`` is the deviation of class embeddings at the start; ``refine_depth`` convolutional
    blocks of ``refine_dim`` channels correct the prediction (``fitv2_refine``; 0: none).
    """

    _supports_gradient_checkpointing = True
    gradient_checkpointing = False
    _gradient_checkpointing_func: Any = None

    @register_to_config
    def __init__(
        self,
        *,
        dim: int,
        depth: int,
        heads: int,
        num_classes: int,
        channels: int = 4,
        patch: int = 2,
        mlp: str = "swiglu",
        mlp_ratio: float = 4.0,
        norm: str = "layernorm",
        q_norm: str = "layernorm",
        k_norm: str = "layernorm",
        adaln: str = "lora",
        adaln_rank: int = 0,
        rotate_v: bool = False,
        rope_theta: float = 10000.0,
        trained_side: int = 16,
        extrapolation: str = "none",
        time_shift: float = 1.0,
        learn_sigma: bool = False,
        channels_first: bool = False,
        prediction: str = "velocity",
        class_std: float = 0.02,
        refine_depth: int = 0,
        refine_dim: int = 128,
    ):
        super().__init__()
        config: Any = self.config
        check_config(config)
        self.embed = nn.Linear(channels * patch**2, dim)
        self.time_embed = nn.Sequential(nn.Linear(256, dim), nn.SiLU(), nn.Linear(dim, dim))
        self.class_embed = nn.Embedding(num_classes, dim)
        self.modulation = Modulation(config)
        self.blocks = nn.ModuleList(Block(config) for _ in range(depth))
        self.head_norm = AdaptiveNorm(norm, dim)
        self.head = nn.Linear(dim, channels * patch**2 * (2 if learn_sigma else 1))
        self.refinement = Refinement(config) if refine_depth else None
        initialise(self)

    @classmethod
    def from_variant(cls, name: str) -> "FiTv2":
        """Return a fresh network of a named size; see ``VARIANTS``."""
        if name not in VARIANTS:
            raise InputError(f"no FiTv2 variant {name!r}: choose from {', '.join(VARIANTS)}")
        return cls(**VARIANTS[name])

    @property
    def null_class(self) -> int:
        """The label that stands for no class."""
        return self.config.num_classes - 1

    @property
    def reaches_end(self) -> bool:
        """Whether it tells a velocity at t = 1; a network of clean pictures does not."""
        return bool(self.config.prediction == "velocity")

    def modulate(self, t: Tensor, y: Tensor) -> Tensor:
        """Return the modulation rows (b, total) for times ``t`` (b,) in [0, 1] and labels ``y`` (b,).

        A sampler evaluates its whole grid of times for a class in one call and passes rows to ``forward``.
        """
        shift = self.config.time_shift
        t = (shift * t.float() / (1 + (shift - 1) * t.float())).clamp(max=1)
        octaves = torch.arange(128, dtype=torch.float32, device=t.device) / 128
        turns = t[:, None] * torch.exp(-math.log(10000) * octaves)
        waves = torch.cat((turns.cos(), turns.sin()), -1).to(self.embed.weight.dtype)  # (b, 256)
        return self.modulation(self.time_embed(waves) + self.class_embed(y))

    def forward(
        self,
        x: Tensor,
        t: Tensor | None = None,
        y: Tensor | None = None,
        grid: Tensor | None = None,
        mask: Tensor | None = None,
        *,
        sizes: Sequence[tuple[int, int]] | None = None,
        modulation: Tensor | None = None,
        extrapolation: str | Sequence[str] | None = None,
    ) -> Tensor:
        """Predict for every token; an image's result depends on its own tokens, time and class alone.

        Packed: ``x`` (n, c), all images behind one another, row by row; ``sizes``: (h, w) in patches of each of the s
        images; ``t``, ``y`` (s,), or ``modulation`` (s, total) from ``modulate``. Returns (n, c).

        Padded, the official layout: ``x`` (b, N, c); ``grid`` (b, 2, N), columns and rows of each token; ``mask``
        (b, N), 0 for padding, images of one row told apart by their numbers; ``t``, ``y`` (b,); ``sizes`` (s of them)
        only for extrapolation, by default those of the grid. Returns (b, N, c), zero on padding.

        ``extrapolation``: a name of ``extrapolation.EXTRAPOLATIONS`` for all images or one each.
        """
        names = self.config.extrapolation if extrapolation is None else extrapolation
        if grid is not None and mask is not None:
            return self._forward_padded(x, t, y, grid, mask, sizes, names)
        if sizes is None or x.ndim != 2:
            raise InputError("FiTv2 takes packed tokens (n, c) with sizes=, or padded ones with grid and mask")
        lengths = [height * width for height, width in sizes]
        if sum(lengths) != len(x):
            raise InputError(f"sizes {list(sizes)[:8]} have {sum(lengths)} tokens, x has {len(x)}")
        return self.run(x, self._rows(t, y, modulation, len(lengths)), self.layout(sizes, names, x.device))

    @property
    def _rope(self) -> tuple[int, float, int]:
        """What rotary positions depend on besides size and extrapolation."""
        config = self.config
        return config.dim // config.heads, config.rope_theta, config.trained_side

    def layout(self, sizes: Sequence[tuple[int, int]], extrapolation: str | Sequence[str], device: Any) -> Layout:
        """Return the layout of packed images of these ``sizes``; the same for every step of a sampler."""
        names = each(extrapolation, len(sizes))
        traced = torch.compiler.is_compiling()  # then tensors are not real ones, which a cache may not keep
        table = grid_rotations.__wrapped__ if traced else grid_rotations
        turned = [table(tuple(size), *self._rope, name) for size, name in zip(sizes, names, strict=True)]
        return Layout.of(sizes, turned, device)

    def run(self, x: Tensor, modulation: Tensor, layout: Layout) -> Tensor:
        """Return the prediction (n, c) for packed tokens ``x`` (n, c) and one row of ``modulation`` an image."""
        dim, depth = self.config.dim, self.config.depth
        *blocks, head, refine = modulation.split(
            [6 * dim] * depth + [2 * dim, modulation.shape[-1] - 6 * dim * depth - 2 * dim], -1
        )
        noisy, x = x, self.embed(x)
        for block, rows in zip(self.blocks, blocks, strict=True):
            if self.gradient_checkpointing and torch.is_grad_enabled():
                x = self._gradient_checkpointing_func(block, x, rows, layout)
            else:
                x = block(x, rows, layout)
        shift, scale = head.chunk(2, -1)
        x = self.head_norm(x, shift, scale, layout.image)
        if self.refinement is None:
            return self.head(x)
        return self.head(x) + self.refinement(x, noisy, refine, layout.image, layout.sizes)

    def _rows(self, t: Tensor | None, y: Tensor | None, modulation: Tensor | None, count: int) -> Tensor:
        if modulation is None:
            if t is None or y is None:
                raise InputError("FiTv2 needs t and y, or modulation")
            modulation = self.modulate(t, y)
        if len(modulation) != count:
            raise InputError(f"{len(modulation)} times or labels for {count} images: give one each")
        return modulation

    def _forward_padded(
        self,
        x: Tensor,
        t: Tensor | None,
        y: Tensor | None,
        grid: Tensor,
        mask: Tensor,
        sizes: Sequence[tuple[int, int]] | None,
        extrapolation: str | Sequence[str],
    ) -> Tensor:
        first = self.config.channels_first
        places = Padded.of(mask).row_by_row(grid)
        positions = places.take(grid.transpose(1, 2)).flip(-1).float().cpu()  # (n, 2), rows and columns
        layout = self._layout_at(positions.split(places.offsets.diff().tolist()), sizes, extrapolation, x.device)
        rows = self._rows(t, y, None, len(x))[places.sequence]
        out = places.put(self.run(places.take(x.transpose(1, 2) if first else x), rows, layout), mask)
        return out.transpose(1, 2) if first else out

    def _layout_at(
        self,
        positions: Sequence[Tensor],
        sizes: Sequence[tuple[int, int]] | None,
        extrapolation: str | Sequence[str],
        device: Any,
    ) -> Layout:
        """Return the layout of packed images whose tokens are at any ``positions`` (n_i, 2), rows and columns."""
        if sizes is None:
            ends = [places.amax(0).long() + 1 for places in positions]
            sizes = [(int(height), int(width)) for height, width in ends]
        if len(sizes) != len(positions):
            raise InputError(f"{len(sizes)} sizes for {len(positions)} images: give one (h, w) each")
        names = each(extrapolation, len(positions))
        turned = [
            rotations(places, *frequencies(size, *self._rope, name))
            for places, size, name in zip(positions, sizes, names, strict=True)
        ]
        return Layout.of(sizes, turned, device)


def loss(
    model: FiTv2,
    batch: dict[str, Tensor],
    rng: BatchRng,
    *,
    class_dropout: float = 0.1,
    times: Literal["lognorm", "uniform"] = "lognorm",
    time_mean: float = 0.0,
) -> tuple[Tensor, dict[str, float]]:
    """Return the rectified-flow loss of a ragged batch (equation 3), and what to log.

    ``batch``: ``image`` (flat), clean data of about unit scale, ``size`` (b, 2) and ``label`` (b,), as made by
    ``belvedere.data.ragged``. Labels are dropped to the null class with probability ``class_dropout``. ``times``: the
    logit-normal (around ``time_mean``; 0 as published) or the uniform distribution.
    """
    patch = model.config.patch
    images = unpack_images(batch["image"], batch["size"], model.config.channels)
    clean = torch.cat([patchify(image, patch) for image in images])  # (n, c)
    noise = torch.cat([patchify(part, patch) for part in rng.ragged("noise", [image.shape for image in images])])
    sizes = [(height // patch, width // patch) for height, width in batch["size"].tolist()]
    labels = torch.where(rng.uniform("class dropout") < class_dropout, model.null_class, batch["label"])
    value = denoising_loss(model, clean, noise, flow_times(rng, times, time_mean), labels, sizes).mean()
    return value, {"loss": value.item(), "tokens": float(len(clean))}


def denoising_loss(
    model: FiTv2, clean: Tensor, noise: Tensor, t: Tensor, labels: Tensor, sizes: Sequence[tuple[int, int]]
) -> Tensor:
    """Return the mean squared error of the velocity of each packed image (s,), at times ``t`` (s,) in [0, 1].

    A network that predicts the clean picture has the same error, bounded near t = 1: divided by max(1 - t, 0.1)^2.
    """
    layout = model.layout(sizes, model.config.extrapolation, clean.device)
    share = t[layout.image, None]  # (n, 1)
    prediction = model.run(share * clean + (1 - share) * noise, model.modulate(t, labels), layout)
    prediction = prediction[:, : clean.shape[1]]  # without sigma
    if model.config.prediction == "velocity":
        return flow_loss(prediction, clean - noise, layout.offsets)
    return flow_loss(prediction, clean, layout.offsets) / (1 - t).clamp(min=0.1).square()


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Return AdamW groups: all parameters that are trained, with one decay (0 as published)."""
    return [{"params": [p for p in model.parameters() if p.requires_grad], "weight_decay": weight_decay}]
