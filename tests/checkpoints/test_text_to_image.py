"""Stable Diffusion's folders: as published and as diffusers writes them now; what does not fit is one line."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load, save_file

import belvedere
from belvedere.checkpoints import store
from belvedere.errors import InputError
from tests.generation.neti_models import save_tiny_base, tiny_pipeline, tiny_xl_pipeline


def latents(pipe: Any) -> torch.Tensor:
    noise = torch.Generator().manual_seed(0)
    return pipe("a photo of cat", num_inference_steps=2, generator=noise, output_type="latent").images


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_base(tmp_path_factory.mktemp("models") / "sd")


@pytest.fixture
def folder(published: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(published, tmp_path / "sd"))


def test_the_published_layout_loads(published: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names = {path.name for path in published.rglob("*") if path.is_file()}
    assert {"vocab.json", "merges.txt", "scheduler_config.json", "diffusion_pytorch_model.safetensors"} <= names
    pipe = belvedere.load(published)
    assert type(pipe).__name__ == "StableDiffusionPipeline" and pipe.safety_checker is None
    assert torch.equal(latents(pipe), latents(tiny_pipeline()))
    assert capsys.readouterr().err == ""
    assert belvedere.load(published, "bfloat16", "cpu").unet.dtype == torch.bfloat16


def test_as_diffusers_saves_it(tmp_path: Path) -> None:
    tiny_pipeline().save_pretrained(tmp_path / "new")
    assert torch.equal(latents(belvedere.load(tmp_path / "new")), latents(tiny_pipeline()))
    tiny_xl_pipeline().save_pretrained(tmp_path / "xl")
    torch.testing.assert_close(
        latents(belvedere.load(tmp_path / "xl")), latents(tiny_xl_pipeline()), atol=1e-3, rtol=1e-3
    )


def test_the_vocabulary_is_part_of_the_digest(folder: Path) -> None:
    before = store.digest(folder)
    (folder / "tokenizer" / "merges.txt").write_text("#version: 0.2\n")
    assert store.digest(folder) != before


def _index(**values: Any) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        path = folder / "model_index.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | values))

    return change


def _config(part: str, **values: Any) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        path = folder / part / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | values))

    return change


def _without(part: str, name: str) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        (path,) = (folder / part).glob("*.safetensors")
        save_file({key: x for key, x in load(path.read_bytes()).items() if not key.endswith(name)}, path)

    return change


def _pickled(folder: Path) -> None:
    (path,) = (folder / "unet").glob("*.safetensors")
    path.rename(folder / "unet" / "diffusion_pytorch_model.bin")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_index(unet=["diffusers", "Other"]), "class 'Other' is not one Belvedere loads"),
        (_index(scheduler=["os", "system"]), "scheduler of class 'system' is not one"),
        (_index(vae=["diffusers"]), "component vae must be"),
        (_config("unet", cross_attention_dim=32), "do not fit its config.json"),
        (_config("unet", block_out_channels=[8, 10**9]), "1000000000 is larger than any size"),
        (_config("unet", layers_per_block=60_000), "60000 is larger than any size"),
        (_config("unet", down_block_types=["DownBlock2D"] * 65), "a list of 65 is longer"),
        (_config("text_encoder", num_hidden_layers=1000), "1000 is larger than any size"),
        (_config("text_encoder", hidden_size=65_000), "do not fit its config.json"),
        (_config("text_encoder", vocab_size=10**9), "1000000000 is larger than any size"),
        (_config("vae", latent_channels=8), "do not fit its config.json"),
        (_without("text_encoder", "final_layer_norm.bias"), "do not fit .* final_layer_norm.bias"),
        (_without("unet", "conv_in.bias"), "1 missing .conv_in.bias"),
        (_pickled, "no diffusion_pytorch_model.safetensors"),
        (lambda folder: shutil.rmtree(folder / "tokenizer"), "tokenizer: missing; the model is incomplete"),
        (lambda folder: (folder / "vae" / "config.json").write_text("{"), "not readable JSON"),
    ],
)
def test_what_does_not_fit_is_named(folder: Path, change: Callable[[Path], object], message: str) -> None:
    change(folder)
    with pytest.raises(InputError, match=message) as error:
        belvedere.load(folder)
    assert "\n" not in str(error.value)
