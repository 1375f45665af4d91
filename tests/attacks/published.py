"""Folders as diffusers and transformers publish models, made to have their libraries read what nobody checked."""

import json
import os
import shutil
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

import belvedere
from belvedere.checkpoints.autoencoder import load_autoencoder
from belvedere.checkpoints.single_file import load_single_file
from tests.attacks.corpus import Attack, written
from tests.attacks.pickles import GIGABYTE, as_archive
from tests.checkpoints.test_single_file import single
from tests.generation.neti_models import save_tiny_base, tiny_pipeline, tiny_vae

VAE = "diffusion_pytorch_model.safetensors"
Change = Callable[[Path], object]


def published(folder: Path, pixels: Path) -> Iterator[Attack]:
    """Write the files below ``folder``; ``pixels``: a DiMR model folder without a card."""
    base = save_tiny_base(folder / "base")
    text = load_file(base / "text_encoder/model.safetensors")["text_model.final_layer_norm.weight"]
    right = partial(_same, text)
    yield Attack("published: a right one", partial(belvedere.load, base, device="cpu"), "", right)
    pickle = as_archive(GIGABYTE)
    for name, change, message in (*_texts(pickle), *_networks(pickle), *_schedulers(), *_tokenizers()):
        path = folder / name
        shutil.copytree(base, path)
        change(path)
        yield Attack(f"published: {name}", partial(belvedere.load, path, device="cpu"), message, right)
    yield from _alone(folder, pixels, pickle)
    yield from _layouts(folder, base, pickle)


def _same(text: torch.Tensor, pipeline: Any) -> bool:
    """Whether a pipeline has the weights and the vocabulary of the base."""
    found = pipeline.text_encoder.state_dict()
    weight = next(x for key, x in found.items() if key.endswith("final_layer_norm.weight"))
    return torch.equal(weight, text) and len(pipeline.tokenizer("a photo of cat").input_ids) == 6


def _edit(file: str, **change: Any) -> Change:
    def edit(folder: Path) -> None:
        path = folder / file
        path.write_text(json.dumps({**(json.loads(path.read_text()) if path.exists() else {}), **change}))

    return edit


def _put(file: str, content: bytes | str) -> Change:
    return lambda folder: written(folder / file, content)


def _all(*changes: Change) -> Change:
    def change(folder: Path) -> None:
        for one in changes:
            one(folder)

    return change


def _texts(pickle: bytes) -> Iterator[tuple[str, Change, str]]:
    """Text encoders."""
    beside = _put("text_encoder/adapter_model.bin", pickle)
    config = "text_encoder/config.json"
    for key, value in {
        "transformers_weights": "adapter_model.bin",
        "configuration_files": ["config.4.0.0.json"],
        "attn_implementation": "kernels-community/x",
        "_attn_implementation": "kernels-community/x",
        "experts_implementation": "kernels-community/x",
        "auto_map": {"AutoModel": "owner/name--x.Y"},
        "fusion_config": {"x": True},
        "per_layer_config": [{"hidden_size": 1 << 15}],
    }.items():
        change = _all(beside, _edit(config, **{key: value}))
        yield f"{key} of a text encoder", change, f"config.json: unknown key '{key}'"
    change = _all(beside, _edit(config, transformers_weights="deep/x.safetensors"))
    yield "weights deeper than a digest looks", change, "unknown key 'transformers_weights'"
    quantised = _edit(config, quantization_config={"quant_method": "gptq"})
    yield "a quantiser of a text encoder", quantised, "is not that of Belvedere's int8"
    shard = _put("text_encoder/shard-00001-model-00001-of-00001.safetensors", b"\0" * 99)
    adapter = _put("text_encoder/adapter_config.json", '{"base_model_name_or_path": "../../x"}')
    other = _put("text_encoder/config.4.0.0.json", "[]")
    index = _put("text_encoder/pytorch_model.bin", pickle)
    yield "files of other readers beside a text encoder", _all(beside, shard, adapter, other, index), ""


def _pickled_index(part: str, pickle: bytes, tensor: str = "encoder.conv_in.weight") -> Change:
    index = {"metadata": {"total_size": 1}, "weight_map": {tensor: "x.bin"}}
    return _all(_put(f"{part}{VAE}.index.json", json.dumps(index)), _put(f"{part}x.bin", pickle))


def _reweigh(part: str, change: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]) -> Change:
    return lambda folder: save_file(change(load_file(folder / part / VAE)), folder / part / VAE)


def _networks(pickle: bytes) -> Iterator[tuple[str, Change, str]]:
    """Autoencoders and denoisers."""
    other = "does not list the tensors of the files beside it"
    yield "an autoencoder's index to a pickle", _pickled_index("vae/", pickle), other
    old = _reweigh("vae", lambda x: {key.replace("to_q", "query"): tensor for key, tensor in x.items()})
    yield "the same beside older names", _all(_pickled_index("vae/", pickle), old), other
    both = _reweigh("vae", lambda x: x | {key.replace("to_q", "query"): tensor.clone() for key, tensor in x.items()})
    yield "older and newer names", both, "there twice, under its older name"
    yield "a denoiser's index to a pickle", _pickled_index("unet/", pickle, "conv_in.weight"), other
    yield "autoencoder of NaN", _reweigh("vae", lambda x: {k: v * float("nan") for k, v in x.items()}), "holds NaN"
    yield "autoencoder cut short", _reweigh("vae", lambda x: dict(list(x.items())[1:])), "1 missing"
    for name, part, change, message in (
        ("autoencoder without end", "vae", {"layers_per_block": 10**9}, "larger than any size"),
        ("autoencoder of 250 layers", "vae", {"layers_per_block": 250}, "tensors for 500 blocks"),
        ("a quantiser of an autoencoder", "vae", {"quantization_config": {"quant_method": "x"}}, "Belvedere's int8"),
        ("denoiser of 250 transformers", "unet", {"transformer_layers_per_block": 250}, "tensors for 500 blocks"),
        ("the same in lists", "unet", {"transformer_layers_per_block": [1, [[250]]]}, "tensors for 500 blocks"),
        ("many of everything", "unet", {"layers_per_block": 256, "block_out_channels": [8] * 64}, "for 16384 blocks"),
        ("denoiser with a key of a class", "unet", {"auto_map": {"AutoModel": "x--y.Z"}}, "unknown key 'auto_map'"),
        ("nested 900 deep", "unet", {"dropout": json.loads("[" * 900 + "]" * 900)}, "cannot be loaded|config.json"),
    ):
        yield name, _edit(f"{part}/config.json", **change), message
    names = {f"{part}/config.json": "StableDiffusionPipeline" for part in ("unet", "vae")}
    names["scheduler/scheduler_config.json"] = "FluxPipeline"
    yield "configs that name other classes", _all(*(_edit(f, _class_name=name) for f, name in names.items())), ""


def _schedulers() -> Iterator[tuple[str, Change, str]]:
    config = "scheduler/scheduler_config.json"
    yield "two thousand million steps", _edit(config, num_train_timesteps=2 * 10**9), "larger than any size"
    for name in ("StableDiffusionPipeline", "SchedulerMixin", "system"):
        entry = _edit("model_index.json", scheduler=["diffusers", name])
        yield f"scheduler of class {name}", entry, f"component scheduler of class '{name}' is not one"


def _tokenizers() -> Iterator[tuple[str, Change, str]]:
    settings = "tokenizer/tokenizer_config.json"
    for key, value in {
        "tokenizer_file": "/etc/passwd",
        "vocab_file": "../../x",
        "gguf_file": "../../x.gguf",
        "fast_tokenizer_files": ["tokenizer.4.0.0.json"],
        "init_inputs": ["/etc/passwd"],
        "auto_map": {"AutoTokenizer": ["x--y.Z", None]},
        "chat_template": "{{ x }}",
    }.items():
        yield f"{key} of a tokenizer", _edit(settings, **{key: value}), ""
    yield "the same in its special tokens", _edit("tokenizer/special_tokens_map.json", gguf_file="x.gguf"), ""
    other = _put("tokenizer/tokenizer.model", b"\x0a\x05junk")
    template = _put("tokenizer/chat_template.jinja", "{{ x }}")
    version = _put("tokenizer/tokenizer.4.0.0.json", "{")
    mistral = _put("tokenizer/tekken.json", "{")
    yield "other vocabularies beside a tokenizer", _all(other, template, version, mistral), ""
    yield "prompts of a thousand million tokens", _edit(settings, model_max_length=10**9), "larger than any size"
    yield "words of a thousand million", _edit("tokenizer/vocab.json", x=10**9), "larger than any size"
    yield "no words", lambda path: (path / "tokenizer/merges.txt").unlink(), "neither tokenizer.json nor vocab.json"
    for name, target in (("vocab.json", "/dev/zero"), ("merges.txt", "/dev/zero")):
        yield f"a device for {name}", partial(_link, f"tokenizer/{name}", target), "no plain file"
    yield "a pipe for a tokenizer's settings", partial(_pipe, settings), "no plain file"


def _link(file: str, target: str, folder: Path) -> None:
    (folder / file).unlink()
    (folder / file).symlink_to(target)


def _pipe(file: str, folder: Path) -> None:
    (folder / file).unlink()
    os.mkfifo(folder / file)


def _alone(folder: Path, pixels: Path, pickle: bytes) -> Iterator[Attack]:
    """Autoencoders and schedulers of our own pipelines, and autoencoders by themselves."""
    index = json.loads((pixels / "model_index.json").read_text())
    with_vae = {"vae": ["diffusers", "AutoencoderKL"]}
    for name, change, message, entries in (
        ("autoencoder beside ours", _pickled_index("vae/", pickle), "does not list the tensors", with_vae),
        ("its layers", _edit("vae/config.json", layers_per_block=10**9), "larger than any size", with_vae),
        ("its NaN", _reweigh("vae", lambda x: {k: v * float("nan") for k, v in x.items()}), "holds NaN", with_vae),
        ("its lack", _reweigh("vae", lambda x: dict(list(x.items())[1:])), "1 missing", with_vae),
        (
            "scheduler beside ours",
            _put("scheduler/scheduler_config.json", json.dumps({"num_train_timesteps": 2 * 10**9})),
            "larger than any size",
            {"scheduler": ["diffusers", "DDIMScheduler"]},
        ),
    ):
        path = folder / name
        shutil.copytree(pixels, path)
        tiny_vae().save_pretrained(path / "vae")
        (path / "model_index.json").write_text(json.dumps(index | entries))
        change(path)
        yield Attack(f"published: {name}", partial(belvedere.load, path, device="cpu"), message)
    lone = folder / "lone"
    tiny_vae().save_pretrained(lone)
    _pickled_index("", pickle)(lone)
    load = partial(load_autoencoder, lone, torch.float32, torch.device("cpu"))
    yield Attack("published: an autoencoder by itself", load, "does not list the tensors of the files beside it")


def _layouts(folder: Path, base: Path, pickle: bytes) -> Iterator[Attack]:
    """Layouts beside a checkpoint in one file."""
    save_file(single(tiny_pipeline()), folder / "one.safetensors")
    text = load_file(base / "text_encoder/model.safetensors")["text_model.final_layer_norm.weight"]
    for name, change, message in (
        ("right", lambda path: None, ""),
        ("library", _edit("model_index.json", unet=["subprocess", "UNet2DConditionModel"]), ""),
        ("scheduler", _edit("model_index.json", scheduler=["os", "system"]), "is not one Belvedere loads"),
        ("kernel", _edit("text_encoder/config.json", attn_implementation="a/b"), "unknown key"),
        ("depth", _edit("unet/config.json", transformer_layers_per_block=250), "tensors for 500 blocks"),
        ("steps", _edit("scheduler/scheduler_config.json", num_train_timesteps=2 * 10**9), "larger than any"),
        ("pickles", _put("text_encoder/pytorch_model.bin", pickle), ""),
    ):
        path = folder / f"layout-{name}"
        shutil.copytree(base, path)
        for weights in path.glob("*/*.safetensors"):
            weights.unlink()
        change(path)
        load = partial(load_single_file, folder / "one.safetensors", path)
        yield Attack(f"published: layout: {name}", load, message, partial(_same, text))
