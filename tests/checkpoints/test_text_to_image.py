"""Stable Diffusion's folders: as published and as diffusers writes them now; what does not fit is one line."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
from huggingface_hub.utils import filter_repo_objects
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


UNREAD = (
    "unet/diffusion_pytorch_model.fp16.safetensors",
    "unet/diffusion_pytorch_model.non_ema-00001-of-00002.safetensors",
    "text_encoder/model.fp16.safetensors",
    "vae/onnx/model.safetensors",
    "safety_checker/model.safetensors",
    "safety_checker/config.json",
    "v1-5-pruned.safetensors",
)


def with_variants(folder: Path) -> Path:
    for name in UNREAD:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text("{}")
    return folder


def test_what_is_not_read_is_no_part_of_the_digest(folder: Path, published: Path) -> None:
    assert store.digest(with_variants(folder)) == store.digest(published)
    assert torch.equal(latents(belvedere.load(folder)), latents(belvedere.load(published)))
    for path in [path for path in published.rglob("*") if path.is_file()]:
        changed = folder / path.relative_to(published)
        content = changed.read_bytes()
        changed.write_bytes(content + b" ")
        assert store.digest(folder) != store.digest(published)
        changed.write_bytes(content)
    (folder / "manifest.json").touch()  # as in what Belvedere wrote, whose digest is promised
    assert store.digest(folder) != store.digest(published)


def test_of_a_hub_only_what_is_read_is_fetched(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with_variants(sharded(folder))
    shutil.copytree(folder / "unet", folder / "unet_ema")

    def snapshot(repository: str, *, allow_patterns: list[str], **options: Any) -> str:
        names = [path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()]
        for name in filter_repo_objects(names, allow_patterns=allow_patterns):
            (tmp_path / "cache" / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(folder / name, tmp_path / "cache" / name)
        return str(tmp_path / "cache")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot)
    fetched = store.resolve("someone/sd")
    files = {path.relative_to(fetched).as_posix() for path in fetched.rglob("*") if path.is_file()}
    assert not files & {*UNREAD} and not (fetched / "unet_ema").exists()
    assert store.digest(fetched) == store.digest(folder)
    assert torch.equal(latents(belvedere.load("someone/sd")), latents(belvedere.load(folder)))


def test_of_a_hub_all_of_a_model_of_ours_is_fetched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def snapshot(repository: str, *, allow_patterns: list[str], **options: Any) -> str:
        asked.extend(allow_patterns)
        return str(store.EMBEDDED / "segpic-photo")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot)
    store.resolve("someone/codec")
    listed = json.loads((store.EMBEDDED / "segpic-photo" / "manifest.json").read_text())["files"]
    assert set(filter_repo_objects(listed, allow_patterns=asked)) == {*listed}


def test_of_a_hub_no_weights_are_fetched_of_a_model_that_is_not_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "model_index.json").write_text('{"_class_name": "FluxPipeline"}')
    asked: list[list[str]] = []

    def snapshot(repository: str, *, allow_patterns: list[str], **options: Any) -> str:
        asked.append(allow_patterns)
        return str(tmp_path)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot)
    with pytest.raises(InputError, match=r"model someone/flux: Belvedere loads no 'FluxPipeline'; give one of DiMR"):
        store.resolve("someone/flux")
    assert len(asked) == 1 and not any("safetensors" in pattern for pattern in asked[0])


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


def _scheduler(**values: Any) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        path = folder / "scheduler" / "scheduler_config.json"
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
        (_index(unet=[None, None]), "component unet is left out"),
        (_config("unet", cross_attention_dim=32), "do not fit its config.json"),
        (_config("unet", block_out_channels=[8, 10**9]), "1000000000 is larger than any size"),
        (_config("unet", layers_per_block=60_000), "60000 is larger than any size"),
        (_config("unet", down_block_types=["DownBlock2D"] * 65), "a list of 65 is longer"),
        (_config("unet", transformer_layers_per_block=250), "tensors for 500 blocks"),
        (_config("unet", transformer_layers_per_block=[1, [[250]]]), "tensors for 500 blocks"),
        (_config("unet", layers_per_block=256, block_out_channels=[8] * 64), "tensors for 16384 blocks"),
        (_config("vae", layers_per_block=250), "tensors for 500 blocks"),
        (_config("unet", wings=2), "unknown key 'wings'"),
        (_config("vae", wings=2), "unknown key 'wings'"),
        (_scheduler(num_train_timesteps=2 * 10**9), "2000000000 is larger than any size"),
        (_index(scheduler=["diffusers", "SchedulerMixin"]), "scheduler of class 'SchedulerMixin' is not one"),
        (_config("text_encoder", num_hidden_layers=1000), "1000 is larger than any size"),
        (_config("text_encoder", hidden_size=65_000), "do not fit its config.json"),
        (_config("text_encoder", vocab_size=10**9), "1000000000 is larger than any size"),
        (_config("vae", latent_channels=8), "do not fit its config.json"),
        (
            _config("vae", quantization_config={"quant_method": "belvedere-int8", "version": 1}),
            "only a denoiser may be",
        ),
        (_config("text_encoder", quantization_config={"quant_method": "gptq"}), "is not that of Belvedere's int8"),
        (_without("text_encoder", "final_layer_norm.bias"), "do not fit .*final_layer_norm.bias"),
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


PARTS = {
    "unet": "diffusion_pytorch_model",
    "vae": "diffusion_pytorch_model",
    "text_encoder": "model",
}


def sharded(folder: Path) -> Path:
    """Cut the weights of every part in three, as diffusers and transformers do with more than 5 GB."""
    for part, name in PARTS.items():
        weights = load((folder / part / f"{name}.safetensors").read_bytes())
        (folder / part / f"{name}.safetensors").unlink()
        places = {key: f"{name}-{1 + i % 3:05d}-of-00003.safetensors" for i, key in enumerate(sorted(weights))}
        for file in set(places.values()):
            held = {key: x for key, x in weights.items() if places[key] == file}
            save_file(held, folder / part / file, {"format": "pt"})
        size = sum(x.nbytes for x in weights.values())
        index = {"metadata": {"total_size": size}, "weight_map": places}
        (folder / part / f"{name}.safetensors.index.json").write_text(json.dumps(index))
    return folder


def test_parts_in_shards_load(published: Path, folder: Path) -> None:
    before = store.digest(sharded(folder))
    pipe = belvedere.load(folder, device="cpu")
    assert torch.equal(latents(pipe), latents(belvedere.load(published, device="cpu")))
    shard = folder / "text_encoder" / "model-00002-of-00003.safetensors"
    shard.write_bytes(shard.read_bytes()[:-1] + b"\x7f")
    assert store.digest(folder) != before


def test_as_diffusers_shards_it(tmp_path: Path) -> None:
    tiny_xl_pipeline().save_pretrained(tmp_path / "xl", max_shard_size="20KB")
    assert len(list((tmp_path / "xl/unet").glob("*.safetensors"))) > 1
    assert len(list((tmp_path / "xl/text_encoder_2").glob("*.safetensors"))) > 1
    torch.testing.assert_close(
        latents(belvedere.load(tmp_path / "xl")), latents(tiny_xl_pipeline()), atol=1e-3, rtol=1e-3
    )


def _map(part: str, change: Callable[[dict[str, Any]], Any]) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        path = folder / part / f"{PARTS[part]}.safetensors.index.json"
        content = json.loads(path.read_text())
        path.write_text(json.dumps({**content, "weight_map": change(content["weight_map"])}))

    return edit


def _elsewhere(name: object) -> Callable[[dict[str, Any]], dict[str, Any]]:
    return lambda places: {**places, min(places): name}


def _twice(folder: Path) -> None:
    first, second = (folder / "unet" / f"diffusion_pytorch_model-0000{i}-of-00003.safetensors" for i in (1, 2))
    save_file({**load(first.read_bytes()), **load(second.read_bytes())}, first, {"format": "pt"})


def _key_twice(folder: Path) -> None:
    path = folder / "vae" / "diffusion_pytorch_model.safetensors.index.json"
    text = path.read_text()
    path.write_text(text.replace('"weight_map": {', '"weight_map": {"encoder.conv_in.bias": "x", '))


def _unlink(part: str) -> Callable[[Path], None]:
    return lambda folder: (folder / part / f"{PARTS[part]}-00002-of-00003.safetensors").unlink()


SHARDS: dict[str, tuple[Callable[[Path], object], str]] = {
    "a name with ..": (
        _map("unet", _elsewhere("../vae/diffusion_pytorch_model-00001-of-00003.safetensors")),
        "no file",
    ),
    "an absolute name": (_map("vae", _elsewhere("/etc/passwd")), "'/etc/passwd' is no file of weights beside it"),
    "a pickle": (_map("text_encoder", _elsewhere("pytorch_model.bin")), "'pytorch_model.bin' is no file of weights"),
    "a number": (_map("unet", _elsewhere(3)), "must give the file of each tensor"),
    "no map": (_map("unet", lambda _: [1]), "must give the file of each tensor"),
    "an empty map": (_map("vae", lambda _: {}), "must give the file of each tensor"),
    "another shard": (
        _map("unet", _elsewhere("diffusion_pytorch_model-00003-of-00003.safetensors")),
        "does not list the tensors of the files beside it",
    ),
    "a tensor too many": (
        _map("text_encoder", lambda places: {**places, "x": places[min(places)]}),
        "does not list the tensors of the files beside it",
    ),
    "a shard too many": (
        _map("vae", _elsewhere("diffusion_pytorch_model-00004-of-00003.safetensors")),
        "00004-of-00003.safetensors: missing",
    ),
    "a missing shard": (_unlink("text_encoder"), "model-00002-of-00003.safetensors: missing"),
    "tensors in two shards": (_twice, "tensors in two of its files"),
    "a key twice": (_key_twice, "a key is there twice"),
}


@pytest.mark.parametrize("name", SHARDS)
def test_an_index_that_misleads_is_refused(folder: Path, name: str) -> None:
    change, message = SHARDS[name]
    change(sharded(folder))
    with pytest.raises(InputError, match=message) as error:
        belvedere.load(folder, device="cpu")
    assert "\n" not in str(error.value)


def test_weights_that_are_not_numbers_are_refused(folder: Path) -> None:
    for part in PARTS:
        copy = Path(shutil.copytree(folder, folder.with_name(part)))
        (path,) = (copy / part).glob("*.safetensors")
        weights = load(path.read_bytes())
        weights[next(key for key, x in weights.items() if x.is_floating_point())].view(-1)[0] = float("nan")
        save_file(weights, path, {"format": "pt"})
        with pytest.raises(InputError, match="holds NaN or infinity"):
            belvedere.load(copy, device="cpu")
