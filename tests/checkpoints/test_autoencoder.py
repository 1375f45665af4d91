"""An autoencoder by itself: found, checked before it is used."""

import json
from pathlib import Path

import diffusers
import pytest
import torch
from safetensors.torch import load_file, save_file

from belvedere.checkpoints.autoencoder import find_autoencoder, load_autoencoder
from belvedere.errors import InputError

WEIGHTS = "diffusion_pytorch_model.safetensors"
CPU = torch.device("cpu")


def save_tiny_autoencoder(folder: Path, seed: int = 0, **config: object) -> Path:
    """Write an autoencoder of random weights with 2 pixels a latent to ``folder``."""
    torch.manual_seed(seed)
    sizes = {"block_out_channels": (8, 8), "norm_num_groups": 4, "latent_channels": 4}
    blocks = {"down_block_types": ["DownEncoderBlock2D"] * 2, "up_block_types": ["UpDecoderBlock2D"] * 2}
    diffusers.AutoencoderKL(**sizes, **blocks, **config).save_pretrained(folder)
    return folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return save_tiny_autoencoder(tmp_path / "pipeline/vae")


def test_it_is_found_by_itself_and_in_a_pipeline(folder: Path) -> None:
    assert find_autoencoder(folder) == find_autoencoder(str(folder.parent)) == folder
    for nothing in (folder.parent.parent, folder / "missing", "no-such-model"):
        with pytest.raises(InputError, match=r"no autoencoder .*: give a folder with config\.json"):
            find_autoencoder(nothing)


def test_a_hub_id_is_asked_of_the_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(InputError, match="autoencoder owner/none@v1: no such folder, and the hub did not give it"):
        find_autoencoder("owner/none@v1")


def test_loads_what_was_saved(folder: Path) -> None:
    vae, saved = load_autoencoder(folder, torch.float32, CPU), load_file(folder / WEIGHTS)
    assert all(torch.equal(value, saved[key]) for key, value in vae.state_dict().items())
    assert not vae.training and not any(p.requires_grad for p in vae.parameters())
    assert load_autoencoder(folder, torch.bfloat16, CPU).dtype == torch.bfloat16


def test_damaged_weights_are_refused(folder: Path) -> None:
    weights = load_file(folder / WEIGHTS)
    save_file({key: value for key, value in weights.items() if key != "encoder.conv_in.weight"}, folder / WEIGHTS)
    with pytest.raises(InputError, match=r"do not fit its config.json: tensors 1 missing \(encoder\.conv_in\.weight\)"):
        load_autoencoder(folder, torch.float32, CPU)
    weights["encoder.conv_in.bias"][3] = float("nan")
    save_file(weights, folder / WEIGHTS)
    with pytest.raises(InputError, match=r"tensor 'encoder\.conv_in\.bias' holds NaN"):
        load_autoencoder(folder, torch.float32, CPU)
    (folder / WEIGHTS).write_bytes(b"junk")
    with pytest.raises(InputError, match="is damaged"):
        load_autoencoder(folder, torch.float32, CPU)


def test_pickles_and_other_classes_are_refused(folder: Path) -> None:
    torch.save(load_file(folder / WEIGHTS), folder / "diffusion_pytorch_model.bin")
    (folder / WEIGHTS).unlink()
    with pytest.raises(InputError, match=r"no diffusion_pytorch_model\.safetensors"):
        load_autoencoder(folder, torch.float32, CPU)
    for name in ("UNet2DModel", "NoSuchClass", None, 3):
        (folder / "config.json").write_text(json.dumps({"_class_name": name}))
        with pytest.raises(InputError, match="is not one Belvedere loads"):
            load_autoencoder(folder, torch.float32, CPU)


def test_an_index_to_a_pickle_beside_the_weights_is_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.load", lambda *_, **__: pytest.fail("a pickle was opened"))
    torch.save(load_file(folder / WEIGHTS), folder / "x.bin")
    (folder / f"{WEIGHTS}.index.json").write_text(json.dumps({"weight_map": {"encoder.conv_in.weight": "x.bin"}}))
    with pytest.raises(InputError, match="does not list the tensors of the files beside it"):
        load_autoencoder(folder, torch.float32, CPU)
    (folder / WEIGHTS).unlink()
    with pytest.raises(InputError, match=r"'x\.bin' is no file of weights beside it"):
        load_autoencoder(folder, torch.float32, CPU)


def test_the_attention_of_older_files_has_other_names(folder: Path) -> None:
    weights = load_file(folder / WEIGHTS)
    names = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}

    def older(name: str) -> str:
        for today, before in names.items():
            name = name.replace(f".{today}.", f".{before}.")
        return name

    old = {older(key): value for key, value in weights.items()}
    assert len(old.keys() - weights.keys()) == 16  # weights and biases, of encoder and decoder
    save_file(old, folder / WEIGHTS)
    vae = load_autoencoder(folder, torch.float32, CPU)
    assert all(torch.equal(value, weights[key]) for key, value in vae.state_dict().items())
    save_file(weights | {key: value.clone() for key, value in old.items()}, folder / WEIGHTS)
    with pytest.raises(InputError, match="a tensor is there twice, under its older name too"):
        load_autoencoder(folder, torch.float32, CPU)


def test_sizes_are_checked_before_it_is_built(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    for change, message in (
        ({"layers_per_block": 10**9}, "larger than any size"),
        ({"layers_per_block": 200}, "tensors for 400 blocks"),
        ({"quantization_config": {"quant_method": "gptq"}}, "is not that of Belvedere's int8"),
        ({"wings": 2}, "unknown key 'wings'"),
        ({"norm_num_groups": 3}, "cannot be loaded"),
    ):
        (folder / "config.json").write_text(json.dumps(config | change))
        with pytest.raises(InputError, match=message):
            load_autoencoder(folder, torch.float32, CPU)
