"""Small models in the layout of Stable Diffusion, of random weights, and a CLIP tokenizer made by code."""

from typing import Any

import torch
from diffusers import UNet2DConditionModel
from torch import Tensor
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

WORDS = ("a", "photo", "of", "painting", "cat", "dog", "red")
LENGTH = 12
START, END = "<|startoftext|>", "<|endoftext|>"


def tiny_tokenizer() -> CLIPTokenizer:
    """Return a tokenizer that knows ``WORDS`` as one token each and spells others."""
    pieces = [chr(code) for code in range(97, 123)] + ["<", ">", "-"]
    vocab = pieces + [f"{piece}</w>" for piece in pieces]
    merges = []
    for word in WORDS:
        left, *rest = [*word[:-1], f"{word[-1]}</w>"]
        for right in rest:
            merges.append((left, right))
            left += right
            vocab.append(left)
    ids = {piece: index for index, piece in enumerate(dict.fromkeys([*vocab, START, END]))}
    return CLIPTokenizer(vocab=ids, merges=list(dict.fromkeys(merges)), model_max_length=LENGTH)


def tiny_text_model(
    width: int = 16, projection: bool = False, seed: int = 0
) -> CLIPTextModel | CLIPTextModelWithProjection:
    """Return a text model of three blocks for ``tiny_tokenizer``."""
    torch.manual_seed(seed)
    tokenizer = tiny_tokenizer()
    config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=3,
        num_attention_heads=4,
        max_position_embeddings=LENGTH,
        projection_dim=width,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    model = (CLIPTextModelWithProjection if projection else CLIPTextModel)(config).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return model


def tiny_unet(channels: int = 16, seed: int = 0, **config: Any) -> UNet2DConditionModel:
    """Return a U-Net of SD 1.x's form with 7 cross-attentions on contexts of ``channels``; other fields as given."""
    torch.manual_seed(seed)
    sizes = {
        "sample_size": 8,
        "layers_per_block": 1,
        "block_out_channels": (8, 16),
        "norm_num_groups": 4,
        "attention_head_dim": 4,
        "down_block_types": ("CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
    }
    return UNet2DConditionModel(**{**sizes, "cross_attention_dim": channels, **config}).eval()


def tiny_xl_unet(channels: int) -> UNet2DConditionModel:
    """Return a U-Net of SDXL's form: 6 transformers of 1, 2 or 3 cross-attentions, pooled text and sizes beside."""
    return tiny_unet(
        channels,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        transformer_layers_per_block=(1, 3),
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=4,
        projection_class_embeddings_input_dim=6 * 4 + 16,
    )


def random(*shape: int, seed: int = 0) -> Tensor:
    """Return normal numbers."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))
