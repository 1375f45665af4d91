"""What diffusers and transformers publish: configs as they are, libraries that see no folder, nothing unknown."""

import errno
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from diffusers.training_utils import EMAModel
from safetensors.torch import load_file, save_file
from transformers import CLIPModel, CLIPTextModel, CLIPTextModelWithProjection, Dinov2Model, ViTModel

from belvedere.checkpoints.published import CLASSES, load_component, load_text_model, load_transformers, reading
from belvedere.errors import InputError
from tests.generation.neti_models import save_clip, save_dino, tiny_pipeline, tiny_text_model

SCHEDULERS = CLASSES["scheduler"]
SD1 = {
    "_name_or_path": "openai/clip-vit-large-patch14", "architectures": ["CLIPTextModel"], "attention_dropout": 0.0,
    "dropout": 0.0, "hidden_act": "quick_gelu", "initializer_factor": 1.0, "initializer_range": 0.02,
    "layer_norm_eps": 1e-05, "model_type": "clip_text_model", "torch_dtype": "float32",
    "transformers_version": "4.22.0.dev0",
}  # fmt: skip
"""What the text encoder of Stable Diffusion 1.5 says of itself, but for sizes; 2.1 and XL have no other keys."""


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Text models with and without a projection, as transformers saves them."""
    folder = tmp_path_factory.mktemp("text")
    for name, projection in (("plain", False), ("projected", True)):
        tiny_text_model(projection=projection).save_pretrained(folder / name)
    return folder


@pytest.fixture
def copied(saved: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(saved / "plain", tmp_path / "text"))


@pytest.fixture
def no_pickles(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.load", lambda *_, **__: pytest.fail("a pickle was opened"))


def edit(folder: Path, change: dict[str, Any]) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))


@pytest.mark.parametrize(("name", "cls"), [("plain", CLIPTextModel), ("projected", CLIPTextModelWithProjection)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_text_model_is_as_its_library_loads_it(saved: Path, name: str, cls: Any, dtype: torch.dtype) -> None:
    ours, theirs = load_text_model(cls, saved / name, dtype), cls.from_pretrained(saved / name, dtype=dtype)
    assert not ours.training and not any(p.requires_grad for p in ours.parameters())
    assert {key: x.dtype for key, x in ours.state_dict().items()} == dict.fromkeys(theirs.state_dict(), dtype)
    assert all(torch.equal(x, theirs.state_dict()[key]) for key, x in ours.state_dict().items())
    assert dict(ours.named_buffers()).keys() == dict(theirs.named_buffers()).keys()
    words = torch.tensor([[3, 5, 1, 0]])
    with torch.no_grad():
        a, b = (model(words, output_hidden_states=True) for model in (ours, theirs))
    for x, y in zip((*a.hidden_states, a[0]), (*b.hidden_states, b[0]), strict=True):
        torch.testing.assert_close(x, y)  # products of memory that begins elsewhere may be rounded otherwise


def test_what_published_text_models_say_of_themselves_is_known(copied: Path) -> None:
    edit(copied, SD1)
    want = load_text_model(CLIPTextModel, copied, torch.float32).state_dict()
    edit(copied, {"_commit_hash": None, "_attn_implementation_autoset": True, "torch_dtype": "float16"})
    found = load_text_model(CLIPTextModel, copied, torch.float32).state_dict()
    assert all(torch.equal(x, want[key]) for key, x in found.items())


@pytest.mark.parametrize(
    "key",
    [
        "transformers_weights", "configuration_files", "attn_implementation", "_attn_implementation",
        "experts_implementation", "_experts_implementation", "auto_map", "fusion_config", "gguf_file", "text_config",
    ],
)  # fmt: skip
def test_a_key_that_leads_elsewhere_is_unknown(copied: Path, key: str, no_pickles: None) -> None:
    torch.save(load_file(copied / "model.safetensors"), copied / "adapter_model.bin")
    edit(copied, {key: "adapter_model.bin"})
    with pytest.raises(InputError, match=f"config.json: unknown key '{key}'"):
        load_text_model(CLIPTextModel, copied, torch.float32)


def test_files_of_other_readers_are_not_read(saved: Path, copied: Path, no_pickles: None) -> None:
    (copied / "shard-00001-model-00001-of-00001.safetensors").write_bytes(b"junk")
    (copied / "adapter_config.json").write_text('{"base_model_name_or_path": "../x"}')
    (copied / "config.9.9.9.json").write_text("{")
    torch.save({}, copied / "pytorch_model.bin")
    folders = (copied, saved / "plain")
    found, want = (load_text_model(CLIPTextModel, path, torch.float32).state_dict() for path in folders)
    assert all(torch.equal(x, want[key]) for key, x in found.items())


def test_every_scheduler_in_the_table_is_made_from_its_config(tmp_path: Path) -> None:
    for name in SCHEDULERS:
        cls: Any = getattr(diffusers, name)
        made = cls(num_train_timesteps=77)
        made.save_pretrained(tmp_path / "scheduler")
        again = load_component(tmp_path / "scheduler", "scheduler", ["diffusers", name], torch.float32)
        assert type(again) is cls and again.config.num_train_timesteps == 77


def test_a_scheduler_may_have_been_another(tmp_path: Path) -> None:
    diffusers.PNDMScheduler(skip_prk_steps=True, steps_offset=1).save_pretrained(tmp_path / "scheduler")
    made = load_component(tmp_path / "scheduler", "scheduler", ["diffusers", "DDIMScheduler"], torch.float32)
    assert type(made).__name__ == "DDIMScheduler" and made.config.steps_offset == 1
    assert diffusers.PNDMScheduler.from_config(made.config).config.skip_prk_steps is True


@pytest.mark.parametrize(
    ("cls", "save", "options"),
    [
        (CLIPModel, save_clip, {}),
        (ViTModel, save_dino, {"add_pooling_layer": False}),
        (Dinov2Model, lambda folder: save_dino(folder, "dinov2"), {}),
    ],
)
def test_a_whole_model_is_as_its_library_loads_it(
    cls: Any, save: Callable[[Path], None], options: dict[str, Any], tmp_path: Path, no_pickles: None
) -> None:
    save(tmp_path)
    want = cls.from_pretrained(tmp_path, **options)
    torch.save({}, tmp_path / "adapter_model.bin")
    edit(tmp_path, {"transformers_weights": "adapter_model.bin", "attn_implementation": "a/b", "auto_map": {"x": "y"}})
    found = load_transformers(cls, tmp_path, **options)
    assert found.state_dict().keys() == want.state_dict().keys() and not found.training
    assert all(torch.equal(x, want.state_dict()[key]) for key, x in found.state_dict().items())
    buffers = dict(want.named_buffers())
    assert all(torch.equal(x, buffers[name]) for name, x in found.named_buffers())
    assert not hasattr(found.config, "transformers_weights")


def test_a_whole_model_has_weights_enough_and_finite_ones(tmp_path: Path) -> None:
    save_dino(tmp_path)
    config, weights = (tmp_path / "config.json").read_text(), load_file(tmp_path / "model.safetensors")
    for change, message in (
        ({"intermediate_size": 60_000}, "do not fit its config.json: .* numbers, .* are asked for"),
        ({"num_hidden_layers": 1000}, "larger than any size"),
    ):
        edit(tmp_path, change)
        with pytest.raises(InputError, match=message):
            load_transformers(ViTModel, tmp_path, add_pooling_layer=False)
        (tmp_path / "config.json").write_text(config)
    weights[next(iter(weights))].view(-1)[0] = float("nan")
    save_file(weights, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(InputError, match="holds NaN"):
        load_transformers(ViTModel, tmp_path, add_pooling_layer=False)


@pytest.mark.parametrize(
    ("cls", "save", "name"),
    [
        (CLIPModel, save_clip, "visual_projection.weight"),
        (Dinov2Model, lambda folder: save_dino(folder, "dinov2"), "embeddings.cls_token"),
    ],
)
def test_a_whole_model_has_its_own_tensors(
    cls: Any, save: Callable[[Path], None], name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save(tmp_path)
    weights, file = load_file(tmp_path / "model.safetensors"), tmp_path / "model.safetensors"
    capsys.readouterr()
    for change, message in (
        ({"another": weights[name]}, rf"1 missing \({name}\)"),
        ({name: weights[name][..., :-1].contiguous(), "another": torch.ones(99)}, rf"1 of another shape .*\({name}\)"),
    ):
        save_file({key: x for key, x in weights.items() if key != name} | change, file, {"format": "pt"})
        with pytest.raises(InputError, match=f"do not fit its config.json: tensors {message}") as error:
            load_transformers(cls, tmp_path)
        assert "\n" not in str(error.value) and capsys.readouterr().err == ""


def test_averages_as_diffusers_saves_them(tmp_path: Path) -> None:
    made = tiny_pipeline().unet
    average = EMAModel(made.parameters(), model_cls=diffusers.UNet2DConditionModel, model_config=made.config)
    average.optimization_step = 900_000
    average.save_pretrained(tmp_path / "unet")
    assert json.loads((tmp_path / "unet/config.json").read_text())["optimization_step"] == 900_000
    found = load_component(tmp_path / "unet", "unet", ["diffusers", "UNet2DConditionModel"], torch.float32)
    assert all(torch.equal(x, made.state_dict()[key]) for key, x in found.state_dict().items())
    assert not {"decay", "optimization_step"} & found.config.keys()


def test_what_the_machine_lacks_is_no_fault_of_a_model(tmp_path: Path) -> None:
    of_the_machine = [
        MemoryError(),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory"),
        FileNotFoundError(errno.ENOENT, "No usable temporary directory found in ['/tmp']"),
        OSError(errno.ENOSPC, "No space left on device", str(tmp_path / "vocab.json")),
        PermissionError(errno.EACCES, "Permission denied", "/tmp/x"),
    ]
    for error in of_the_machine:
        with pytest.raises(type(error)) as raised, reading(tmp_path):
            raise error
        assert raised.value is error
    of_the_model = [
        PermissionError(errno.EACCES, "Permission denied", str(tmp_path / "config.json")),
        OSError("Can't load the tokenizer: it has no file of the right name"),
        RuntimeError("shape mismatch"),
    ]
    for error in of_the_model:
        with pytest.raises(InputError, match=r"cannot be loaded .*; get the model again"), reading(tmp_path):
            raise error
