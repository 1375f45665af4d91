"""DiMR: class-conditional diffusion by a cascade of resolutions (Liu et al., NeurIPS 2024, arXiv 2406.09416).

    noisy image ─┬─► stage 0, transformer, low resolution ──► prediction at its resolution
                 │        │ every block's activation
                 │        ▼ upsample: norm, linear, pixel shuffle
                 └─► stage 1, ConvNeXt, high resolution ────► the prediction           (and so on for 3R)

Time enters only through the parameters of the norms ("time-dependent layer normalisation", section 3.2).
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from torch import Tensor, nn

from belvedere import kernels
from belvedere.errors import InputError
from belvedere.generation.denoising import loss_weight, multiscale_targets, training_times
from belvedere.generation.dimr_config import VARIANTS, StageConfig, check_config
from belvedere.generation.dimr_norms import AdaptiveRMSNorm, TimeLayerNorm, TimeParameter, Values, make_norm
from belvedere.generation.samplers import add_noise, prediction_target
from belvedere.generation.schedules import make_schedule
from belvedere.seeds import BatchRng


class GatedMLP(nn.Module):
    """Norm, fused projection, GEGLU, projection."""

    def __init__(self, dim: int, hidden: int, norm: str):
        super().__init__()
        self.norm = make_norm(norm, dim)
        self.project_in = nn.Linear(dim, 2 * hidden)
        self.project_out = nn.Linear(hidden, dim)

    def forward(self, x: Tensor, time: Values) -> Tensor:
        return self.project(self.norm(x, time))

    def project(self, normal: Tensor) -> Tensor:
        """Return what the MLP makes of its normalised input."""
        return self.project_out(kernels.gated_mlp(self.project_in(normal)))


class AxialRoPE(nn.Module):
    """Learned rotary frequencies along both axes; queries and keys are normalised first (optional, unpublished)."""

    def __init__(self, heads: int, head_dim: int):
        super().__init__()
        ends = math.log(math.pi), math.log(5 * math.pi)
        frequencies = torch.linspace(*ends, head_dim // 4).repeat(heads, 1)  # (h, d/4)
        self.freqs_h, self.freqs_w = nn.Parameter(frequencies.clone()), nn.Parameter(frequencies.clone())
        self.scale = nn.Parameter(torch.full((heads,), math.log(10)))
        self.head_dim = head_dim

    def forward(self, q: Tensor, k: Tensor, grid: tuple[int, int]) -> tuple[Tensor, Tensor]:
        centres = kernels.cell_centres(*grid, device=q.device)  # (n, 2)
        angles = [centres[:, i, None, None] * f.float().exp() for i, f in enumerate((self.freqs_h, self.freqs_w))]
        angle = torch.cat(angles, -1)  # (n, h, d/2)
        angle = F.pad(angle, (0, 0, 0, 0, q.shape[1] - len(angle), 0))  # a class token stays unrotated
        logarithm = self.scale.float()
        logarithm = logarithm - (logarithm - math.log(100)).clamp(min=0).detach()  # a bound the gradient ignores
        gain = (0.5 * logarithm - 0.25 * math.log(self.head_dim)).exp()  # (h,)
        return kernels.qk_norm_rope(q, k, angle.cos(), angle.sin(), q_weight=gain[:, None], k_weight=gain[:, None])


class Attention(nn.Module):
    """Norm, self-attention, projection."""

    def __init__(self, dim: int, heads: int, norm: str, rotary: bool):
        super().__init__()
        self.heads = heads
        self.norm = make_norm(norm, dim)
        self.qkv = nn.Linear(dim, 3 * dim, bias=False)
        self.out = nn.Linear(dim, dim)
        self.rope = AxialRoPE(heads, dim // heads) if rotary else None

    def forward(self, x: Tensor, time: Values, grid: tuple[int, int]) -> Tensor:
        q, k, v = self.qkv(self.norm(x, time)).unflatten(-1, (3, self.heads, -1)).unbind(2)  # (b, n, h, d)
        if self.rope is not None:
            q, k = self.rope(q, k, grid)
        return self.out(kernels.attend(q, k, v).flatten(-2))


class TransformerBlock(nn.Module):
    """x + attention, x + MLP on tokens (b, n, c)."""

    def __init__(self, stage: StageConfig, norm: str, rotary: bool):
        super().__init__()
        self.attention = Attention(stage.dim, stage.heads, norm, rotary)
        self.mlp = GatedMLP(stage.dim, stage.hidden, norm)

    def forward(self, x: Tensor, time: Values, grid: tuple[int, int]) -> Tensor:
        x, normal = self.mlp.norm.after(x, self.attention(x, time, grid), time)
        return x + self.mlp.project(normal)


class ConvNeXtBlock(nn.Module):
    """x + depthwise convolution (no norm before it), x + MLP on an image (b, h, w, c)."""

    def __init__(self, stage: StageConfig, norm: str, rotary: bool):
        super().__init__()
        self.conv = nn.Conv2d(stage.dim, stage.dim, stage.kernel, padding=stage.kernel // 2, groups=stage.dim)
        self.mlp = GatedMLP(stage.dim, stage.hidden, norm)

    def forward(self, x: Tensor, time: Values, grid: tuple[int, int]) -> Tensor:
        x = kernels.depthwise_residual(x, self.conv.weight, self.conv.bias)  # type: ignore[arg-type]  # it has a bias
        return x + self.mlp(x, time)


class Upsample(nn.Module):
    """All activations of the lower stage -> features of this one: norm, linear, pixel shuffle, norm.

    Activations are folded in as they appear, from ``begin`` to ``end``, so none has to be kept; what is made of a
    class token, the first row, is dropped at the end, for to drop it before is to copy every activation.
    """

    def __init__(self, low: StageConfig, stage: StageConfig):
        super().__init__()
        self.factor = stage.height // low.height
        channels = low.dim * (low.depth + 1)
        self.norm = TimeLayerNorm(channels)
        self.linear = nn.Linear(channels, stage.dim * self.factor**2)
        self.out_norm = TimeLayerNorm(stage.dim)

    def begin(self, x: Tensor, time: Values) -> kernels.Accumulated:
        return kernels.concat_begin(x, self.norm.weight.read(time), self.linear.weight)

    def end(self, seen: kernels.Accumulated, grid: tuple[int, int], time: Values) -> Tensor:
        gain, bias = self.norm.weight.read(time), self.norm.bias.read(time)
        x = kernels.concat_end(seen, gain, bias, self.linear.weight, self.linear.bias)
        x = x[:, -grid[0] * grid[1] :].to(self.linear.weight.dtype)
        x = x.unflatten(-1, (self.factor, self.factor, -1)).unflatten(1, grid)  # (b, h, w, r, r, c)
        x = x.permute(0, 1, 3, 2, 4, 5).flatten(3, 4).flatten(1, 2)  # (b, h r, w r, c)
        return self.out_norm(x, time)


class Stage(nn.Module):
    """One resolution: embed, blocks with long skips, predict."""

    gradient_checkpointing = False
    _gradient_checkpointing_func: Any = None

    def __init__(self, stage: StageConfig, low: StageConfig | None, config: Any):
        super().__init__()
        self.stage, transformer = stage, stage.kind == "transformer"
        rotary = transformer and config.position == "Axial_RoPE"
        self.embed = nn.Conv2d(config.channels, stage.dim, stage.patch, stage.patch)
        self.position = None if rotary else nn.Embedding(stage.height * stage.width, stage.dim)
        classes = config.num_classes if transformer or config.class_everywhere else None
        self.class_embed = nn.Embedding(classes, stage.dim) if classes else None
        self.token, self.add_class = transformer and bool(classes), bool(classes) and config.class_everywhere
        self.upsample = Upsample(low, stage) if low else None
        block = TransformerBlock if transformer else ConvNeXtBlock
        self.blocks = nn.ModuleList(block(stage, config.norm, rotary) for _ in range(stage.depth))
        self.skips = nn.ModuleList(nn.Linear(2 * stage.dim, stage.dim) for _ in range(stage.depth // 2))
        self.head_norm = TimeLayerNorm(stage.dim)
        outputs = config.channels * stage.head_patch**2
        self.head = nn.Conv2d(stage.dim, outputs, stage.head_kernel, padding=stage.head_kernel // 2)

    def forward(
        self,
        images: Tensor,
        low: Tensor | None,
        labels: Tensor | None,
        time: Values,
        up: Upsample | None,
        detach: bool,
    ) -> tuple[Tensor, kernels.Accumulated | None]:
        """Return the prediction of ``images`` (b, c, H, W) and, when ``up`` is given, what it saw of this stage."""
        x = self._embed(images, low, labels)  # (b, h, w, c)
        grid = (x.shape[1], x.shape[2])
        if self.stage.kind == "transformer":
            x = x.flatten(1, 2)  # (b, n, c)
            if self.token and self.class_embed is not None:
                x = torch.cat((self.class_embed(labels)[:, None], x), 1)
        x, seen = self._run(x, grid, time, up, detach)
        return self._predict(self._cells(x).unflatten(1, grid), time), seen

    def _embed(self, images: Tensor, low: Tensor | None, labels: Tensor | None) -> Tensor:
        if self.stage.pool > 1:
            images = F.avg_pool2d(images, self.stage.pool)
        x = self.embed(images).permute(0, 2, 3, 1)  # (b, h, w, c)
        if self.position is not None:
            table = self.position.weight.unflatten(0, (self.stage.height, self.stage.width))
            x = x + table[: x.shape[1], : x.shape[2]]
        if self.add_class and self.class_embed is not None:
            x = x + self.class_embed(labels)[:, None, None]
        return x if low is None else x + low

    def _cells(self, x: Tensor) -> Tensor:
        """Return (b, n, c) without the class token."""
        if self.stage.kind != "transformer":
            return x.flatten(1, 2)
        return x[:, 1:] if self.token else x

    def _run(
        self, x: Tensor, grid: tuple[int, int], time: Values, up: Upsample | None, detach: bool
    ) -> tuple[Tensor, kernels.Accumulated | None]:
        seen = up.begin(x.flatten(1, -2), time) if up else None
        stack: list[Tensor] = []
        half = len(self.blocks) // 2
        for i in range(len(self.blocks) + 1):
            if seen is not None:
                rows = x.flatten(1, -2)  # (b, n, c)
                seen = kernels.concat_add(seen, rows.detach() if detach else rows)
            if i == len(self.blocks):
                break
            if 1 <= i <= half:
                stack.append(x)
            if i > half:
                x = self.skips[i - half - 1](torch.cat((x, stack.pop()), -1))
            x = self._block(self.blocks[i], x, time, grid)
        return x, seen

    def _block(self, block: nn.Module, x: Tensor, time: Values, grid: tuple[int, int]) -> Tensor:
        if self.gradient_checkpointing and torch.is_grad_enabled():
            return self._gradient_checkpointing_func(block, x, time, grid)
        return block(x, time, grid)

    def _predict(self, x: Tensor, time: Values) -> Tensor:
        x = self.head(self.head_norm(x, time).permute(0, 3, 1, 2))
        return F.pixel_shuffle(x, self.stage.head_patch) if self.stage.head_patch > 1 else x


class DiMR(ModelMixin, ConfigMixin):
    """The network. Every field of its config is a keyword of the constructor.

    ``channels``: of the image or latent. ``num_classes``: classes and the null class, which is the last; None for
    an unconditional model, which has no pipeline. ``stage_configs``: mappings of ``StageConfig`` fields, lowest
    resolution first. ``norm``: LN (time-dependent), RMSN, TDRMSN (published) or ADARMSN. ``position``: APE (published)
    or Axial_RoPE. ``detach_lowres``: no gradient from a stage into the one below.

    Ours, with defaults that give the published network: ``class_everywhere`` adds a class embedding to every
    position of every stage; ``class_std`` is the deviation of class embeddings at the start; ``prediction`` is what
    the output means (epsilon, velocity or sample), ``schedule`` the noise schedule (scaled_linear or flow).
    """

    _supports_gradient_checkpointing = True

    @register_to_config
    def __init__(
        self,
        *,
        channels: int,
        stage_configs: list[dict[str, Any]],
        num_classes: int | None = None,
        norm: str = "TDRMSN",
        position: str = "APE",
        detach_lowres: bool = False,
        class_everywhere: bool = False,
        class_std: float = 0.02,
        prediction: str = "epsilon",
        schedule: str = "scaled_linear",
    ):
        super().__init__()
        self.sizes = [StageConfig.parse(stage) for stage in stage_configs]
        check_config(self.config, self.sizes)
        lows = [None, *self.sizes[:-1]]
        self.stages = nn.ModuleList(Stage(s, low, self.config) for s, low in zip(self.sizes, lows, strict=True))
        self.times = [module for module in self.modules() if isinstance(module, TimeParameter)]
        for place, parameter in enumerate(self.times):
            parameter.place = place
        self.apply(self._initialise)

    @classmethod
    def from_variant(cls, name: str) -> "DiMR":
        """Return a fresh network of a named size; see ``VARIANTS``."""
        if name not in VARIANTS:
            raise InputError(f"no DiMR variant {name!r}: choose from {', '.join(VARIANTS)}")
        return cls(**VARIANTS[name])

    def _initialise(self, module: nn.Module) -> None:
        if isinstance(module, nn.Linear | nn.Embedding):
            nn.init.trunc_normal_(module.weight, std=0.02)
        if isinstance(module, nn.Linear) and module.bias is not None:
            nn.init.zeros_(module.bias)
        if isinstance(module, AdaptiveRMSNorm):
            nn.init.zeros_(module.linear.weight)
        if isinstance(module, Stage) and module.class_embed is not None:
            nn.init.trunc_normal_(module.class_embed.weight, std=self.config.class_std)

    @property
    def null_class(self) -> int | None:
        """The label that stands for no class."""
        return None if self.config.num_classes is None else self.config.num_classes - 1

    def evaluate_time(self, log_snr: Tensor) -> Tensor:
        """Return all time-dependent parameters at ``log_snr`` (b,): float32 (b, total).

        One row serves a whole batch that shares its time. A sampler evaluates all its steps in one call and
        passes one row a step as ``time``.
        """

        def join(name: str) -> Tensor:
            return torch.cat([getattr(parameter, name) for parameter in self.times]).float()

        tau = log_snr.float()[:, None] / 4
        blend = torch.sigmoid(torch.addcmul(join("nodecay_bias"), tau, join("nodecay_weight") + 1))
        clean = join("param1")
        return torch.addcmul(clean, blend, join("param0") - clean)

    def forward(
        self, x: Tensor, log_snr: Tensor | None = None, y: Tensor | None = None, time: Tensor | None = None
    ) -> list[Tensor]:
        """Predict at every resolution, lowest first; the last has the resolution of ``x``.

        ``x`` (b, c, h, w); ``log_snr`` (b,) or (1,), which is 8 t - 4 for the time t in (0, 1], 1 = pure noise
        (the official name; it is no log-SNR); ``y`` (b,) labels when the model has classes. ``time`` (b or 1,
        total), from ``evaluate_time``, replaces ``log_snr``. Output i: (b, c, h / r_i, w / r_i).
        """
        if time is None:
            if log_snr is None:
                raise InputError("DiMR needs log_snr or time")
            time = self.evaluate_time(log_snr)
        self._check_input(x, y)
        values = time.split([len(p.param0) for p in self.times], 1)  # a slice for each would be pulled as the whole
        predictions, low, seen = [], None, None
        for i, stage in enumerate(self.stages):
            if isinstance(stage.upsample, Upsample) and seen is not None:
                below = self.sizes[i - 1].ratio
                low = stage.upsample.end(seen, (x.shape[2] // below, x.shape[3] // below), values)
            up = self.stages[i + 1].upsample if i + 1 < len(self.stages) else None
            prediction, seen = stage(x, low, y, values, up, self.config.detach_lowres)
            predictions.append(prediction)
        return predictions

    def _check_input(self, x: Tensor, y: Tensor | None) -> None:
        unit = max(stage.ratio for stage in self.sizes)
        tallest, widest = (min(getattr(s, side) * s.ratio for s in self.sizes) for side in ("height", "width"))
        height, width = x.shape[-2:]
        if height % unit or width % unit or not 0 < height <= tallest or not 0 < width <= widest:
            raise InputError(f"input {height}x{width}: this DiMR takes multiples of {unit} up to {tallest}x{widest}")
        if self.config.num_classes is not None and y is None:
            raise InputError("this DiMR is class-conditional: pass y, with the null class for unconditional rows")


def loss(
    model: DiMR, batch: dict[str, Tensor], rng: BatchRng, *, class_dropout: float = 0.1
) -> tuple[Tensor, dict[str, float]]:
    """Return the multi-scale denoising loss of a batch, and what to log.

    ``batch``: ``image`` (b, c, h, w), clean data of about unit scale, and ``label`` (b,). Labels are dropped to
    the null class with probability ``class_dropout``.
    """
    clean = batch["image"]
    t = training_times(make_schedule(model.config.schedule), rng)
    noise = rng.normal("noise", clean.shape[1:])
    labels = None
    if model.null_class is not None:
        labels = torch.where(rng.uniform("class dropout") < class_dropout, model.null_class, batch["label"])
    value = denoising_loss(model, clean, noise, t, labels).mean()
    return value, {"loss": value.item()}


def denoising_loss(
    model: DiMR,
    clean: Tensor,
    noise: Tensor,
    t: Tensor,
    labels: Tensor | None,
    coefficients: Sequence[float] | None = None,
) -> Tensor:
    """Return the loss of each sample (b,) for given noise and times ``t`` (b,) in (0, 1] (paper, section 3.1).

    ``coefficients`` weigh the stages' errors; by default a stage that predicts at 1/k of the last one's resolution
    weighs 1/k^2.
    """
    schedule, kind = make_schedule(model.config.schedule), model.config.prediction
    predictions = model(add_noise(clean, noise, t, schedule), 8 * t - 4, labels)
    widths = [prediction.shape[-1] for prediction in predictions]
    if coefficients is None:
        coefficients = [(width / widths[-1]) ** 2 for width in widths]
    goal = prediction_target(clean, noise, t, schedule, kind)
    targets = multiscale_targets(goal, widths, unit_variance=kind != "sample")
    total = torch.zeros_like(t)
    for prediction, target, coefficient in zip(predictions, targets, coefficients, strict=True):
        total = total + coefficient * (prediction.float() - target).square().mean((1, 2, 3))  # (b,)
    return total * loss_weight(schedule, kind, t)


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Return AdamW groups: everything decays but the two blend parameters of each ``TimeParameter``."""
    named = list(model.named_parameters())
    free = [p for name, p in named if name.rsplit(".", 1)[-1].startswith("nodecay_")]
    rest = [p for name, p in named if not name.rsplit(".", 1)[-1].startswith("nodecay_")]
    return [{"params": rest, "weight_decay": weight_decay}, {"params": free, "weight_decay": 0.0}]
