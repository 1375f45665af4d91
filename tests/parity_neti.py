"""Golden cases of NeTI: the mapper and its encodings, the text encoder, cross-attention, a U-Net with both."""

from collections.abc import Iterator
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from diffusers.models.attention_processor import Attention
from torch import Tensor
from transformers import CLIPTextConfig, CLIPTextModel

from belvedere.checkpoints.official_neti import official_mapper
from belvedere.generation.neti import FourierEncoding, NeTIMapper
from belvedere.generation.neti_attention import LayerAttention, cross_attentions, install
from belvedere.generation.neti_text import TextEncoder

Cases = Iterator[tuple[str, Tensor, Tensor]]
LAYERS = 16


def run(description: dict[str, Any], tensors: dict[str, Tensor]) -> Cases:
    """Yield (case, ours, official) for everything the file holds."""
    cases = {"mapper": _mappers, "text_encoder": _text_encoder, "attention": _attention, "unet": _unet}
    name = description["file"].removeprefix("neti_").removesuffix(".safetensors")
    with torch.no_grad():
        yield from cases[name](description, tensors)


def _part(tensors: dict[str, Tensor], start: str) -> dict[str, Tensor]:
    return {name.removeprefix(start): tensor for name, tensor in tensors.items() if name.startswith(start)}


def _mappers(description: dict[str, Any], tensors: dict[str, Tensor]) -> Cases:
    t, layer = tensors["in.timestep"], tensors["in.layer"]
    encoding = FourierEncoding(1024, 0.03, 2.0)
    encoding.w = tensors["pe.w"]
    yield "pe.encoded", encoding(t, layer), tensors["pe.encoded"]
    yield "pe.encoded_int_t100_l2", encoding(torch.tensor(100), torch.tensor(2)), tensors["pe.encoded_int_t100_l2"]
    sigmas = {"sigma_t": description["pe_sigma_t"], "sigma_l": description["pe_sigma_l"]}
    for name, variant in description["variants"].items():
        mapper = _variant(variant, _part(tensors, f"sd.{name}.mapper."), sigmas, tensors)
        hidden = mapper.mlp(mapper.project_in(mapper.encode(t, layer)))
        yield f"{name}.hidden", hidden, tensors[f"{name}.hidden"]
        for case, want in _part(tensors, f"{name}.out.trunc_").items():
            yield f"{name}.out.trunc_{case}", mapper(t, layer, None if case == "None" else int(case)), want
        if name == "full":
            mapper.start_anchors()
            yield "pe.init_layer", mapper.project_in.weight, tensors["pe.init_layer"]


def _variant(
    variant: dict[str, Any], weights: dict[str, Tensor], sigmas: dict[str, float], tensors: dict[str, Tensor]
) -> NeTIMapper:
    fourier = variant.get("pe", True)
    if fourier:
        first = _part(tensors, "sd.full.mapper.input_layer.")
        weights = weights | {f"input_layer.{name}": x for name, x in first.items()} | {"encoder.w": tensors["pe.w"]}
    fields = {
        "target_norm": variant["norm"],
        "output_bypass": variant["bypass"],
        "use_nested_dropout": variant.get("nested", True),
        "use_positional_encoding": fourier,
        "num_pe_time_anchors": variant["num_time_anchors"],
        "pe_sigmas": sigmas,
    }
    return official_mapper(weights, fields)


def _text_encoder(description: dict[str, Any], tensors: dict[str, Tensor]) -> Cases:
    encoder = TextEncoder(_clip(description["clip_text_config"], _part(tensors, "sd.text_model.")))
    sizes = description["mapper"]
    fields = {
        "target_norm": sizes["norm_scale"],
        "output_bypass": sizes["output_bypass"],
        "num_pe_time_anchors": sizes["num_time_anchors"],
        "pe_sigmas": {"sigma_t": sizes["sigma_t"], "sigma_l": sizes["sigma_l"]},
    }
    mapper = official_mapper(_part(tensors, "sd.mapper.") | {"encoder.w": tensors["pe.w"]}, fields)
    yield "out.plain_ids", encoder.plain(tensors["in.plain_ids"]), tensors["out.plain_ids"]
    ids, placeholder = tensors["in.input_ids"], description["placeholder_token_id"]
    prompt = encoder.begin(ids, [placeholder])
    for case in ("None", "16"):
        truncation = None if case == "None" else int(case)
        vectors = mapper.vectors(mapper(tensors["in.timesteps"], tensors["in.layers"], truncation)[:, None])
        contexts = encoder.contexts(prompt, encoder.encode(prompt, vectors))  # (b, 1, 2, n, c)
        key, value = contexts[:, 0].unbind(1)
        yield f"out.trunc_{case}.plain", key, tensors[f"out.trunc_{case}.plain"]
        yield f"out.trunc_{case}.bypass", value, tensors[f"out.trunc_{case}.bypass"]
        pooled = key[torch.arange(len(ids)), ids.argmax(1)]
        yield f"out.trunc_{case}.pooled_plain", pooled, tensors[f"out.trunc_{case}.pooled_plain"]
    prompt = encoder.begin(ids[:1], [placeholder])
    for t in (999, 500):
        vectors = mapper.vectors(mapper(torch.tensor([[t]]), torch.arange(LAYERS)))
        key, value = encoder.contexts(prompt, encoder.encode(prompt, vectors))[0].unbind(1)
        yield f"out.cond_t{t}.key", key, tensors[f"out.cond_t{t}.key"]
        yield f"out.cond_t{t}.value", value, tensors[f"out.cond_t{t}.value"]


def _clip(sizes: dict[str, Any], weights: dict[str, Tensor]) -> CLIPTextModel:
    model = CLIPTextModel(CLIPTextConfig(**sizes, pad_token_id=0, bos_token_id=0, eos_token_id=1)).eval()
    getattr(model, "text_model", model).load_state_dict(weights)
    return model


def _attention(description: dict[str, Any], tensors: dict[str, Tensor]) -> Cases:
    x = tensors["in.hidden"]
    conditioning = torch.stack((tensors["in.ctx_key"], tensors["in.ctx_value"]), 1).permute(2, 0, 1, 3, 4)
    for name in ("cross", "crossnorm"):
        attention = _layer(description, _part(tensors, f"sd.{name}."), name == "crossnorm")
        want = tensors[f"out.{name}.18calls"]
        for call, index in enumerate(tensors[f"out.{name}.idx_before"].tolist()):
            got = LayerAttention(index, LAYERS)(attention, x, conditioning)
            yield f"out.{name}.18calls[{call}]", got, want[call]
        if name == "cross":
            context = tensors["in.ctx_key"]
            got = LayerAttention(0, LAYERS)(attention, x, context[3])
            yield "out.cross.tensor_ctx3", got, tensors["out.cross.tensor_ctx3"]
            got = LayerAttention(5, LAYERS)(attention, x, conditioning[:, :, :1].expand_as(conditioning))
            yield "out.cross.nobypass_idx5", got, tensors["out.cross.nobypass_idx5"]
    attention = _layer(description, _part(tensors, "sd.self."), False, own=True)
    yield "out.self", LayerAttention(0, LAYERS)(attention, x), tensors["out.self"]


def _layer(description: dict[str, Any], weights: dict[str, Tensor], norm: bool, own: bool = False) -> Attention:
    attention = Attention(
        description["query_dim"],
        None if own else description["cross_attention_dim"],
        heads=description["heads"],
        dim_head=description["dim_head"],
        bias=own,
        cross_attention_norm="layer_norm" if norm else None,
    )
    attention.load_state_dict(weights)
    return attention


def _unet(description: dict[str, Any], tensors: dict[str, Tensor]) -> Cases:
    unet = UNet2DConditionModel(**description["unet_config"]).eval()
    unet.load_state_dict({name: x.float() for name, x in _part(tensors, "sd.").items()})
    order = description["cross_attention_execution_order"]
    yield "cross_attention_execution_order", torch.tensor(cross_attentions(unet) == order), torch.tensor(True)
    install(unet)
    x, t, context = tensors["in.sample"], tensors["in.timesteps"], tensors["in.ctx_key"]
    conditioning = torch.stack((context, tensors["in.ctx_value"]), 1).permute(2, 0, 1, 3, 4)  # (b, layers, 2, n, c)
    yield "out.dict", unet(x, t, conditioning).sample, tensors["out.dict"]
    yield "out.tensor_ctx0", unet(x, t, context[0]).sample, tensors["out.tensor_ctx0"]
