"""Cross-attention whose keys and values come from contexts of its own layer, in any U-Net of SD 1.x, 2.x and XL.

The conditioning of a step is one tensor (b, layers, 2, n, c), keys' context first, passed as the U-Net's
``encoder_hidden_states``: a batch axis in front lets both guidance halves share a call, and since it is one tensor and
processors keep nothing, gradient checkpointing (which gives gradients to tensors only) and ``torch.compile`` hold.
A plain context (b, n, c) is still taken, the same for all layers, so a U-Net can keep these processors.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from belvedere import kernels
from belvedere.errors import InputError

KEY, VALUE = 0, 1
"""Places on the third axis of a conditioning."""
_PARTS = ("down_blocks", "mid_block", "up_blocks")


@dataclass(frozen=True)
class LayerAttention:
    """The attention processor of a cross-attention, which takes the contexts of layer ``index`` of ``layers``."""

    index: int
    layers: int

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        temb: Tensor | None = None,
    ) -> Tensor:
        """Return the output (b, n, c) of a diffusers ``Attention`` for queries from ``hidden_states`` (b, n, c).

        ``encoder_hidden_states``: conditioning (b, layers, 2, m, c), a plain context (b, m, c), or None for
        self-attention. ``attention_mask`` is added to the logits, as diffusers passes it. Raises ``InputError`` for
        conditioning of another number of layers.
        """
        key, value = self.contexts(hidden_states if encoder_hidden_states is None else encoder_hidden_states)
        if encoder_hidden_states is not None and attn.norm_cross is not None:
            key, value = attn.norm_encoder_hidden_states(key), attn.norm_encoder_hidden_states(value)
        q, k, v = (
            linear(x).unflatten(-1, (attn.heads, -1))  # (b, n, h, d)
            for linear, x in ((attn.to_q, hidden_states), (attn.to_k, key), (attn.to_v, value))
        )
        if attention_mask is not None:
            mask = attn.prepare_attention_mask(attention_mask, key.shape[1], len(key))
            attention_mask = mask.unflatten(0, (-1, attn.heads))  # (b, h, 1, m)
        x = kernels.attend(q, k, v, bias=attention_mask, scale=attn.scale)
        return attn.to_out[1](attn.to_out[0](x.flatten(-2)))

    def contexts(self, conditioning: Tensor) -> tuple[Tensor, Tensor]:
        """Return the contexts of keys and values (b, n, c)."""
        if conditioning.ndim != 5:
            return conditioning, conditioning
        if conditioning.shape[1] != self.layers:
            raise InputError(f"conditioning of {conditioning.shape[1]} layers for a U-Net prepared for {self.layers}")
        return conditioning[:, self.index, KEY], conditioning[:, self.index, VALUE]


def cross_attentions(unet: Any) -> list[str]:
    """Return the names of a U-Net's cross-attentions in the order in which it runs them: down, middle, up."""
    unet = getattr(unet, "_orig_mod", unet)  # of a compiled one
    names = [
        name
        for name, module in unet.named_modules()
        if ".transformer_blocks." in name and getattr(module, "is_cross_attention", False)
    ]
    return sorted(names, key=_order)


def _order(name: str) -> tuple[int, list[int], str]:
    part, *rest = name.split(".")
    return _PARTS.index(part), [int(piece) for piece in rest if piece.isdigit()], rest[-1]


def layer_indexes(unet: Any, layers: int | None = None) -> dict[str, int]:
    """Return the layer of each cross-attention of a U-Net by name.

    ``layers``: how many there are to be; by default each cross-attention is one (16 in SD 1.x and 2.x, 70 in SDXL).
    Fewer must be the number of transformers, whose cross-attentions are one layer then (11 in SDXL): the text encoders
    run once a layer. Raises ``InputError`` for another number.
    """
    names = cross_attentions(unet)
    transformers = list(dict.fromkeys(name.split(".transformer_blocks.")[0] for name in names))
    if not names:
        raise InputError("this network has no cross-attention in transformer blocks; give the U-Net of an SD model")
    if layers in (None, len(names)):
        return {name: index for index, name in enumerate(names)}
    if layers == len(transformers):
        return {name: transformers.index(name.split(".transformer_blocks.")[0]) for name in names}
    more = "" if len(names) == len(transformers) else f" in {len(transformers)} transformers"
    raise InputError(f"made for {layers} layers, this U-Net has {len(names)} cross-attentions{more}: use its own base")


def install(unet: Any, layers: int | None = None) -> int:
    """Give each cross-attention of a U-Net the processor of its layer, by ``layer_indexes``; return how many layers."""
    indexes = layer_indexes(unet, layers)
    count = len(set(indexes.values()))
    for name, index in indexes.items():
        unet.get_submodule(name).set_processor(LayerAttention(index, count))
    return count


def with_negative(negative: Tensor, conditioning: Tensor) -> Tensor:
    """Return one batch (2 b, layers, 2, n, c) of both guidance halves, the negative one first.

    ``negative``: the plain context (b or 1, n, c) of the negative prompt, the same for all layers, keys and values.
    """
    return torch.cat((negative[:, None, None].expand_as(conditioning).to(conditioning.dtype), conditioning))
