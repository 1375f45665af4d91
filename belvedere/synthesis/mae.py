"""Masked autoencoding: how NViST's encoder is trained before NViST (He et al., CVPR 2022, arXiv 2111.06377).

    a quarter of the patches ─► encoder ─► in their places, mask tokens in the others ─► decoder ─► pixels of all

The loss is on the patches that were not seen. The encoder, without the rest, is where NViST begins:
``NViST.encoder.load_state_dict(MAE.encoder.state_dict())``.
"""

from typing import Any

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from torch import Tensor, nn

from belvedere.errors import InputError
from belvedere.seeds import BatchRng, generator
from belvedere.synthesis.nvist_config import MAE_VARIANTS, check_mae_config
from belvedere.synthesis.vit import (
    EPS,
    INPUT_NORMS,
    Block,
    Blocks,
    Encoder,
    initialise,
    patchify,
    position_codes,
    unpatchify,
)


class MAE(ModelMixin, ConfigMixin):
    """The network. Every field of its config is a keyword of the constructor.

    ``patch``, ``dim``, ``encoder_*``, ``input_norm``: of the encoder, as in ``NViST``. ``decoder_dim``, ``depth`` and
    ``heads``: of the decoder, which has the encoder's MLP ratio. It takes pictures of any multiple of the patch.
    """

    _supports_gradient_checkpointing = True

    @register_to_config
    def __init__(
        self,
        *,
        patch: int = 5,
        dim: int = 768,
        encoder_depth: int = 12,
        encoder_heads: int = 12,
        encoder_mlp_ratio: float = 4.0,
        input_norm: str = "imagenet",
        decoder_dim: int = 512,
        decoder_depth: int = 8,
        decoder_heads: int = 16,
    ):
        super().__init__()
        check_mae_config(self.config)
        self.encoder = Encoder(
            patch=patch,
            dim=dim,
            depth=encoder_depth,
            heads=encoder_heads,
            mlp_ratio=encoder_mlp_ratio,
            input_norm=input_norm,
        )
        self.norm = nn.LayerNorm(dim, EPS)
        self.decoder_embed = nn.Linear(dim, decoder_dim)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, decoder_dim))
        self.decoder_blocks = Blocks(Block(decoder_dim, decoder_heads, encoder_mlp_ratio) for _ in range(decoder_depth))
        self.decoder_norm = nn.LayerNorm(decoder_dim, EPS)
        self.head = nn.Linear(decoder_dim, 3 * patch**2)
        nn.init.normal_(self.mask_token, std=0.02)
        for module in (self.decoder_embed, self.decoder_blocks, self.head):
            initialise(module)

    @classmethod
    def from_variant(cls, name: str) -> "MAE":
        """Return a fresh network that trains the encoder of the NViST of that name; see ``MAE_VARIANTS``."""
        if name not in MAE_VARIANTS:
            raise InputError(f"no MAE variant {name!r}: choose from {', '.join(MAE_VARIANTS)}")
        return cls(**MAE_VARIANTS[name])

    def forward(self, image: Tensor, visible: Tensor) -> Tensor:
        """Return the normalised pixels (b, n, 3 patch^2) that it expects in every patch, as ``vit.patchify`` has them.

        ``image`` (b, 3, h, w) in [0, 1]; ``visible`` int64 (b, m), the numbers of the patches that it may look at.
        """
        patch = self.config.patch
        rows, columns = image.shape[-2] // patch, image.shape[-1] // patch
        seen = self.decoder_embed(self.norm(self.encoder(image, visible)))  # (b, 1 + m, c)
        batch, _, dim = seen.shape
        masks = self.mask_token.to(seen.dtype).expand(batch, rows * columns, -1)
        patches = masks.scatter(1, visible[..., None].expand(-1, -1, dim), seen[:, 1:])  # (b, n, c)
        patches = patches + position_codes(rows, columns, dim, patches)
        x = self.decoder_blocks(torch.cat((seen[:, :1], patches), 1))
        return self.head(self.decoder_norm(x))[:, 1:]


def loss(
    model: MAE, batch: dict[str, Tensor], rng: BatchRng, *, mask_ratio: float = 0.75
) -> tuple[Tensor, dict[str, float]]:
    """Return the mean squared error of the masked patches' normalised pixels, and what to log.

    ``batch``: ``image`` (b, 3, h, w) in [-1, 1]. ``mask_ratio``: the share of patches that is masked, the same number
    in every picture, drawn for each.
    """
    image = (batch["image"] + 1) / 2
    patch = model.config.patch
    count = (image.shape[-2] // patch) * (image.shape[-1] // patch)
    kept = round(count * (1 - mask_ratio))
    if not 0 < kept < count:
        raise InputError(f"mask_ratio {mask_ratio}: leaves {kept} of {count} patches; some must be left, some not")
    order = rng.normal("mask", (count,)).argsort(1)  # (b, n), each permutation as likely as any other
    visible, masked = order.split((kept, count - kept), 1)
    prediction = model(image, visible).float()
    target = patchify(model.encoder.normalise(image), patch)  # (b, n, c)
    errors = (prediction - target).square().mean(-1)  # (b, n)
    value = errors.gather(1, masked).mean()
    return value, {"loss": value.item()}


@torch.no_grad()
def complete(model: MAE, image: Tensor, mask_ratio: float = 0.75) -> tuple[Tensor, Tensor]:
    """Return pictures (b, 3, h, w) in [0, 1]: what is left of ``image`` under a fixed mask, and what is made of that.

    Masked patches of the first are grey, those of the second as the network expects them.
    """
    patch, (rows, columns) = model.config.patch, (side // model.config.patch for side in image.shape[-2:])
    order = torch.randperm(rows * columns, generator=generator("mask")).to(image.device)
    visible = order[: max(1, round(len(order) * (1 - mask_ratio)))].expand(len(image), -1)
    pixels = patchify(image, patch)  # (b, n, c)
    seen = torch.zeros_like(pixels[..., :1]).scatter_(1, visible[..., None], 1.0)
    mean, deviation = (pixels.new_tensor(x).repeat(patch**2) for x in INPUT_NORMS[model.config.input_norm])
    expected = (model(image, visible) * deviation + mean).clamp(0, 1)
    pictures = (pixels * seen + other * (1 - seen) for other in (torch.full_like(pixels, 0.5), expected))
    left, made = (unpatchify(picture, (rows, columns)) for picture in pictures)
    return left, made


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Return AdamW groups: all parameters, with one decay."""
    return [{"params": list(model.parameters()), "weight_decay": weight_decay}]
