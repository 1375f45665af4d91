"""Small models in the layout of Stable Diffusion, of random weights, and a CLIP tokenizer made by code."""

import json
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    EulerDiscreteScheduler,
    PNDMScheduler,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from PIL import Image
from safetensors.torch import load, save_file
from torch import Tensor
from transformers import (
    CLIPConfig,
    CLIPModel,
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    Dinov2Config,
    Dinov2Model,
    ViTConfig,
    ViTModel,
)

WORDS = ("a", "photo", "of", "painting", "cat", "dog", "red")
LENGTH = 12
BETAS = {"beta_start": 0.00085, "beta_end": 0.012}
START, END = "<|startoftext|>", "<|endoftext|>"


def tiny_tokenizer(length: int = LENGTH) -> CLIPTokenizer:
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
    return CLIPTokenizer(vocab=ids, merges=list(dict.fromkeys(merges)), model_max_length=length)


def tiny_text_model(
    width: int = 16, projection: bool = False, seed: int = 0, length: int = LENGTH
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
        max_position_embeddings=length,
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


def tiny_vae(seed: int = 0) -> AutoencoderKL:
    """Return an autoencoder of SD's form: latents of 4 channels at half the resolution."""
    torch.manual_seed(seed)
    blocks = {"down_block_types": ("DownEncoderBlock2D",) * 2, "up_block_types": ("UpDecoderBlock2D",) * 2}
    return AutoencoderKL(block_out_channels=(8, 8), norm_num_groups=4, latent_channels=4, **blocks).eval()


def tiny_pipeline(seed: int = 0) -> StableDiffusionPipeline:
    """Return a whole Stable Diffusion pipeline: pictures of 16 x 16 pixels, prompts of 77 tokens, PNDM as published."""
    pipe = StableDiffusionPipeline(
        vae=tiny_vae(seed),
        text_encoder=tiny_text_model(seed=seed, length=77),
        tokenizer=tiny_tokenizer(77),
        unet=tiny_unet(seed=seed),
        scheduler=PNDMScheduler(beta_schedule="scaled_linear", skip_prk_steps=True, steps_offset=1, **BETAS),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def tiny_xl_pipeline() -> StableDiffusionXLPipeline:
    """Return a whole SDXL pipeline with two text encoders."""
    pipe = StableDiffusionXLPipeline(
        vae=tiny_vae(),
        text_encoder=tiny_text_model(length=77),
        text_encoder_2=tiny_text_model(projection=True, seed=1, length=77),
        tokenizer=tiny_tokenizer(77),
        tokenizer_2=tiny_tokenizer(77),
        unet=tiny_xl_unet(32),
        scheduler=EulerDiscreteScheduler(beta_schedule="scaled_linear", **BETAS),
        add_watermarker=False,
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def save_tiny_base(folder: Path, seed: int = 0) -> Path:
    """Write ``tiny_pipeline`` as Stable Diffusion 1.4 was published: file names, tensor names, a safety checker."""
    pipe = tiny_pipeline(seed)
    pipe.save_pretrained(folder)
    index = json.loads((folder / "model_index.json").read_text())
    index |= {"safety_checker": ["stable_diffusion", "StableDiffusionSafetyChecker"]}
    index |= {"feature_extractor": ["transformers", "CLIPFeatureExtractor"]}
    (folder / "model_index.json").write_text(json.dumps(index))
    whole = json.loads((folder / "tokenizer" / "tokenizer.json").read_text())["model"]
    (folder / "tokenizer" / "tokenizer.json").unlink()
    (folder / "tokenizer" / "vocab.json").write_text(json.dumps(whole["vocab"]))
    pairs = [pair if isinstance(pair, str) else " ".join(pair) for pair in whole["merges"]]
    (folder / "tokenizer" / "merges.txt").write_text("\n".join(["#version: 0.2", *pairs, ""]))
    weights = folder / "text_encoder" / "model.safetensors"
    named = {f"text_model.{name}": x for name, x in load(weights.read_bytes()).items()}
    named["text_model.embeddings.position_ids"] = torch.arange(77)[None]
    save_file(named, weights, {"format": "pt"})
    return folder


def save_photographs(folder: Path, count: int = 3, suffix: str = "png") -> Path:
    """Write photographs of 40 x 24 pixels and more, each of two colours."""
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(count):
        image = Image.new("RGB", (40 + i, 24), (200, 40 * i % 256, 30))
        image.paste((20, 90, 160), (4 + i, 4, 20, 18))
        image.save(folder / f"{i}.{suffix}")
    return folder


def random(*shape: int, seed: int = 0) -> Tensor:
    """Return normal numbers."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def save_clip(folder: Path) -> None:
    """Write a CLIP model of random weights, as transformers saves it."""
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    tokenizer = tiny_tokenizer(77)
    text = sizes | {"vocab_size": len(tokenizer), "eos_token_id": tokenizer.eos_token_id}
    text |= {"bos_token_id": tokenizer.bos_token_id, "pad_token_id": tokenizer.pad_token_id}
    torch.manual_seed(0)
    vision = sizes | {"image_size": 32, "patch_size": 16}
    CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=8)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def save_dino(folder: Path, kind: str = "vit", side: int = 32) -> None:
    """Write a DINO ("vit") or DINOv2 ("dinov2") model of random weights for pictures of ``side`` pixels."""
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    sizes |= {"image_size": side if kind == "vit" else 48, "patch_size": 16}
    torch.manual_seed(0)
    if kind == "vit":
        ViTModel(ViTConfig(**sizes), add_pooling_layer=False).save_pretrained(folder)
    else:
        Dinov2Model(Dinov2Config(**sizes)).save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps({"crop_size": {"height": side, "width": side}}))
