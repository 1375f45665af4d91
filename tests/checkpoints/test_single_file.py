"""Stable Diffusion in one file: the same pictures as from its folder, of either kind of file; others are refused."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from belvedere.apps.models_exchange import import_official
from belvedere.checkpoints import store
from belvedere.checkpoints.single_file import load_single_file
from belvedere.errors import InputError
from tests.generation.neti_models import save_tiny_base, tiny_pipeline

LAYERS = 1
"""Residual blocks a level of the small U-Net."""
RESIDUAL = {
    "norm1": "in_layers.0", "conv1": "in_layers.2", "time_emb_proj": "emb_layers.1", "norm2": "out_layers.0",
    "conv2": "out_layers.3", "conv_shortcut": "skip_connection",
}  # fmt: skip
OUTER = {
    "time_embedding.linear_1": "time_embed.0", "time_embedding.linear_2": "time_embed.2", "conv_in": "input_blocks.0.0",
    "conv_norm_out": "out.0", "conv_out": "out.2",
}  # fmt: skip
ATTENTION = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}


def _unet_name(name: str) -> str:
    """Return what CompVis calls a tensor of the U-Net."""
    stem, kind = name.rsplit(".", 1)
    if stem in OUTER:
        return f"{OUTER[stem]}.{kind}"
    if found := re.match(r"(down|up)_blocks\.(\d)\.(resnets|attentions)\.(\d)\.(.*)", name):
        side, level, what, layer, rest = found.groups()
        per = LAYERS + 1
        place = f"input_blocks.{1 + int(level) * per + int(layer)}" if side == "down" else None
        place = place or f"output_blocks.{int(level) * per + int(layer)}"
        return f"{place}.{what == 'attentions':d}.{_residual(rest) if what == 'resnets' else rest}"
    if found := re.match(r"(down|up)_blocks\.(\d)\.(?:down|up)samplers\.0\.conv\.(.*)", name):
        side, level, rest = found.groups()
        last = int(level) * (LAYERS + 1) + LAYERS
        return f"input_blocks.{last + 1}.0.op.{rest}" if side == "down" else f"output_blocks.{last}.2.conv.{rest}"
    what, index, rest = re.match(r"mid_block\.(resnets|attentions)\.(\d)\.(.*)", name).groups()  # type: ignore[union-attr]
    place = 1 if what == "attentions" else 2 * int(index)
    return f"middle_block.{place}.{_residual(rest) if what == 'resnets' else rest}"


def _residual(rest: str) -> str:
    stem, kind = rest.rsplit(".", 1)
    return f"{RESIDUAL[stem]}.{kind}"


def _vae_tensor(name: str, x: Tensor, levels: int) -> tuple[str, Tensor]:
    """Return what CompVis calls a tensor of the autoencoder, and in which shape it keeps it."""
    name = name.replace("conv_shortcut", "nin_shortcut").replace("conv_norm_out", "norm_out")
    name = re.sub(r"down_blocks\.(\d)\.resnets", r"down.\1.block", name)
    name = re.sub(r"down_blocks\.(\d)\.downsamplers\.0", r"down.\1.downsample", name)
    name = re.sub(r"up_blocks\.(\d)\.resnets", lambda m: f"up.{levels - 1 - int(m[1])}.block", name)
    name = re.sub(r"up_blocks\.(\d)\.upsamplers\.0", lambda m: f"up.{levels - 1 - int(m[1])}.upsample", name)
    name = re.sub(r"mid_block\.resnets\.(\d)", lambda m: f"mid.block_{int(m[1]) + 1}", name)
    if found := re.match(r"(.*)mid_block\.attentions\.0\.(.*)\.(weight|bias)", name):
        name = f"{found[1]}mid.attn_1.{ATTENTION[found[2]]}.{found[3]}"
        x = x[:, :, None, None] if x.ndim == 2 else x
    return name, x.contiguous()


def single(pipe: Any) -> dict[str, Tensor]:
    """Return the tensors of a pipeline as one file has them."""
    named = {f"model.diffusion_model.{_unet_name(name)}": x for name, x in pipe.unet.state_dict().items()}
    for name, x in pipe.vae.state_dict().items():
        theirs, tensor = _vae_tensor(name, x, levels=2)
        named[f"first_stage_model.{theirs}"] = tensor
    for name, x in pipe.text_encoder.state_dict().items():
        named[f"cond_stage_model.transformer.text_model.{name.removeprefix('text_model.')}"] = x
    return named


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with ``layout``, a model folder without its weights, and ``model.safetensors`` beside it."""
    folder = tmp_path_factory.mktemp("single")
    save_tiny_base(folder / "layout")
    for weights in folder.glob("layout/*/*.safetensors"):
        weights.unlink()
    save_file(single(tiny_pipeline()), folder / "model.safetensors")
    return folder


def picture(pipe: Any) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.as_tensor(pipe("a cat", num_inference_steps=2, generator=generator, output_type="np").images)


@pytest.mark.parametrize("ending", ["safetensors", pytest.param("ckpt", marks=pytest.mark.slow)])
def test_the_file_makes_the_pictures_of_the_folder(ending: str, world: Path, tmp_path: Path) -> None:
    file = tmp_path / f"model.{ending}"
    if ending == "ckpt":
        torch.save({"state_dict": single(tiny_pipeline()), "global_step": 3}, file)
    else:
        shutil.copy(world / "model.safetensors", file)
    assert torch.equal(picture(load_single_file(file, world / "layout")), picture(tiny_pipeline()))


def test_what_is_missing_or_of_another_size_is_told(
    world: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    tensors = single(tiny_pipeline())
    file = tmp_path / "model.safetensors"
    for change, told in (
        ({name: x for name, x in tensors.items() if not name.startswith("first_stage")}, "first_stage_model"),
        ({name: x for name, x in tensors.items() if "final_layer_norm" not in name}, "weights are missing"),
        ({name: x for name, x in tensors.items() if "middle_block.0.in_layers.0" not in name}, "weights are missing"),
        (tensors | {"model.diffusion_model.out.2.bias": torch.zeros(5)}, "does not fit the layout"),
        (tensors | {"model.diffusion_model.out.2.bias": torch.full((4,), torch.nan)}, "NaN or infinity"),
    ):
        save_file(change, file)
        with pytest.raises(InputError, match=told):
            load_single_file(file, world / "layout")
    assert capfd.readouterr().err == ""


def test_a_layout_must_be_one(world: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"model_index\.json"):
        load_single_file(world / "model.safetensors", tmp_path)
    layout = shutil.copytree(world / "layout", tmp_path / "layout")
    config = (layout / "unet" / "config.json").read_text()
    (layout / "unet" / "config.json").write_text(config.replace('"sample_size": 8', '"sample_size": 80000000'))
    with pytest.raises(InputError, match="larger than any size"):
        load_single_file(world / "model.safetensors", layout)


def test_nothing_of_a_layout_is_read_but_what_was_checked(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.load", lambda *_, **__: pytest.fail("a pickle was opened"))
    layout = Path(shutil.copytree(world / "layout", tmp_path / "layout"))

    def change(file: str, **values: Any) -> None:
        path = layout / file
        path.write_text(json.dumps(json.loads(path.read_text()) | values))

    torch.save(tiny_pipeline().text_encoder.state_dict(), layout / "text_encoder" / "pytorch_model.bin")
    change("model_index.json", unet=["subprocess", "UNet2DConditionModel"], image_encoder=["os", "system"])
    change("unet/config.json", _class_name="StableDiffusionPipeline")
    change("tokenizer/tokenizer_config.json", gguf_file="../x.gguf")
    assert torch.equal(picture(load_single_file(world / "model.safetensors", layout)), picture(tiny_pipeline()))
    for file, values, message in (
        ("model_index.json", {"scheduler": ["os", "system"]}, "scheduler of class 'system' is not one"),
        ("text_encoder/config.json", {"attn_implementation": "kernels-community/x"}, "unknown key 'attn_implement"),
        ("unet/config.json", {"transformer_layers_per_block": 255}, "tensors for 510 blocks"),
        ("scheduler/scheduler_config.json", {"num_train_timesteps": 10**9}, "larger than any size"),
    ):
        before = (layout / file).read_text()
        change(file, **values)
        with pytest.raises(InputError, match=message):
            load_single_file(world / "model.safetensors", layout)
        (layout / file).write_text(before)


def test_it_becomes_a_model_folder(world: Path, tmp_path: Path) -> None:
    file = world / "model.safetensors"
    with pytest.raises(InputError, match="needs --layout"):
        import_official(file, "stable-diffusion", tmp_path / "sd")
    with pytest.raises(InputError, match="--layout goes with stable-diffusion"):
        import_official(file, "dimr", tmp_path / "sd", layout=world / "layout")
    with pytest.raises(InputError, match="'belvedere models import' makes a folder"):
        store.resolve(file)
    import_official(file, "stable-diffusion", tmp_path / "sd", layout=world / "layout")
    pipeline = store.load(tmp_path / "sd", device="cpu", dtype="float32")
    assert store.card(tmp_path / "sd")["imported from"]["file"] == "model.safetensors"
    assert torch.equal(picture(pipeline), picture(tiny_pipeline()))
