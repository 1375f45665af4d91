"""The front door: every kind of model by a name, a folder or a file; what is none of these is one line."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

import belvedere
from belvedere.checkpoints import manifest, store
from belvedere.compression.codec import Codec
from belvedere.errors import InputError
from belvedere.synthesis.cameras import conditions, input_camera
from belvedere.synthesis.nvist import NViST
from belvedere.synthesis.render import render_view
from tests.checkpoints.test_official import golden
from tests.conftest import DEFAULTS, by_default


@pytest.mark.parametrize("name", ["x.pth", "weights/x.pth", "a/b.safetensors", "mapper-final.pt", "x.pth.tar"])
def test_a_file_that_is_not_there_is_no_model_of_the_hub(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store, "_fetch", lambda *_: pytest.fail("the hub was asked"))
    with pytest.raises(InputError, match=f"no weights file at {name} ?.*; check the path"):
        belvedere.load(name)


def test_the_home_of_a_user_may_be_written_short(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config, state, _ = golden()
    save_file(state, tmp_path / "dimr.safetensors")
    monkeypatch.setenv("HOME", str(tmp_path))
    network = belvedere.load("~/dimr.safetensors", device="cpu", config=config)
    assert isinstance(network, belvedere.DiMR)


def test_a_folder_may_be_called_like_a_file(tiny_model: Path, tmp_path: Path) -> None:
    (tmp_path / "toys.pth").symlink_to(tiny_model)
    assert isinstance(belvedere.load(tmp_path / "toys.pth"), belvedere.DiMRPipeline)


@pytest.mark.parametrize("kind", [["x"], {"x": 1}, 3, None])
def test_a_class_that_is_no_name_is_refused(kind: object, tmp_path: Path) -> None:
    (tmp_path / "model_index.json").write_text(json.dumps({"_class_name": kind}))
    with pytest.raises(InputError, match="is not one Belvedere loads"):
        belvedere.load(tmp_path)


@pytest.mark.parametrize("name", ["segpic-photo", "nvist-toybox", "dimr-toybox"])
def test_fast_reads_small_files_only(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[str] = []
    of = manifest.Entry.of
    monkeypatch.setattr(manifest, "SMALL", 1 << 20)
    monkeypatch.setattr(manifest.Entry, "of", lambda path: read.append(path.name) or of(path))
    weights = "diffusion_pytorch_model.safetensors"
    belvedere.load(name, device="cpu", fast=True)
    assert read and weights not in read
    belvedere.load(name, device="cpu")
    assert weights in read


# Defaults of PyTorch


def compressed(codec: Codec) -> Any:
    noise = np.random.default_rng(0).integers(0, 256, (40, 48, 3), dtype=np.uint8)
    data = belvedere.encode(Image.fromarray(noise), codec, quality=3.08)
    return data, belvedere.decode(data, codec).tobytes()


def seen(network: NViST) -> Any:
    config: Any = network.config
    camera = input_camera(config.image, distance=1.3, fov=50)
    picture = torch.linspace(0, 1, 3 * camera.size[0] * camera.size[1], dtype=torch.float32, device="cpu")
    with torch.no_grad():
        field = network(picture.view(1, 3, *camera.size), conditions([camera]))
    return render_view(field, camera, near=config.near, far=config.far, samples=8).colour.numpy().tobytes()


@pytest.mark.slow
@pytest.mark.parametrize("default", DEFAULTS)
@pytest.mark.parametrize(("name", "use"), [("segpic-photo", compressed), ("nvist-toybox", seen)])
def test_defaults_of_pytorch_change_no_bit(name: str, use: Callable[[Any], Any], default: str) -> None:
    want = use(belvedere.load(name, device="cpu"))
    with by_default(default):
        assert use(belvedere.load(name, device="cpu")) == want


@pytest.mark.parametrize("default", DEFAULTS)
def test_a_model_of_text_loads_whatever_the_defaults_of_pytorch(default: str) -> None:
    def made() -> torch.Tensor:
        noise = torch.Generator().manual_seed(0)
        return pipe("a red car", num_inference_steps=1, generator=noise, output_type="latent").images

    pipe = belvedere.load("toybox-diffusion", device="cpu")
    want = made()
    with by_default(default):
        pipe = belvedere.load("toybox-diffusion", device="cpu")
    assert torch.equal(made(), want)
