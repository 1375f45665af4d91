import json
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL
from PIL import Image
from safetensors.torch import save_file

import belvedere
from belvedere.apps.config import TrainConfig, config_names, load_config, parse
from belvedere.apps.task import make_network, save_grid
from belvedere.apps.tasks import TASKS, make_task
from belvedere.apps.train import main, train
from belvedere.data.latents import mixed_shard
from belvedere.errors import InputError
from belvedere.generation.dimr import DiMR
from belvedere.generation.dimr_config import VARIANTS
from belvedere.generation.fitv2 import FiTv2
from belvedere.generation.fitv2_config import VARIANTS as FITV2_VARIANTS
from belvedere.generation.fitv2_pipeline import FiTv2Pipeline
from belvedere.seeds import BatchRng
from tests.apps.training_helpers import CONFIG, MODEL, assert_same, rows, tensors, write_config
from tests.apps.training_systems import FITV2, segpic
from tests.checkpoints.test_autoencoder import save_tiny_autoencoder

CLASSIFIER = {
    "task": "toybox-classifier",
    "model": {"width": 8, "size": 16},
    "data": {"kind": "toybox", "size": 16, "length": 24},
    "optimizer": {"lr": 1e-3},
    "steps": 2,
    "batch": 12,
    "workers": 0,
    "export": {"dtype": "float16"},
}


@pytest.mark.parametrize("name", config_names())
def test_packaged_configs_name_a_task_and_build_its_model(name: str) -> None:
    config = load_config(name)
    assert config.task in TASKS
    if config.task == "dimr":
        with torch.device("meta"):
            model = make_network(DiMR, VARIANTS, config.model)
        assert model.null_class is not None
        published = {"dimr-imagenet256": 505_046_408, "dimr-g-imagenet256": 1_056_352_904}
        if name in published:
            assert sum(p.numel() for p in model.parameters()) == published[name]


@pytest.mark.parametrize("name", ["dimr-imagenet256", "dimr-g-imagenet256", "dimr-imagenet512"])
def test_the_published_recipe(name: str) -> None:
    config = load_config(name)
    optimizer = config.optimizer
    assert (optimizer.lr, optimizer.betas, optimizer.weight_decay) == (2e-4, (0.99, 0.99), 0.03)
    assert (optimizer.warmup_steps, optimizer.decay, optimizer.clip) == (5000, "none", None)
    assert (config.steps, config.batch, config.seed) == (1_000_000, 1024, 1234)
    assert (config.ema.decay, config.ema.warmup, config.loss) == (0.9999, False, {"class_dropout": 0.1})


def test_blend_parameters_do_not_decay() -> None:
    task = make_task(parse(TrainConfig, CONFIG))
    decaying, free = task.groups(task.model, 0.03)
    names = {id(p): name for name, p in task.model.named_parameters()}
    assert decaying["weight_decay"] == 0.03 and free["weight_decay"] == 0.0
    assert {names[id(p)].rsplit(".", 1)[1] for p in free["params"]} == {"nodecay_weight", "nodecay_bias"}
    assert not any("nodecay" in names[id(p)] for p in decaying["params"])
    assert len(decaying["params"]) + len(free["params"]) == len(names)


def test_the_classifier_trains_and_exports(tmp_path: Path) -> None:
    from belvedere.data.toybox.classifier import ToyClassifier

    task = make_task(parse(TrainConfig, CLASSIFIER))
    batch = task.dataset.batch(range(12))
    value, logs = task.loss(task.model, batch, BatchRng(0, 0, range(12)))
    assert value.isfinite() and 0 <= logs["accuracy"] <= 1
    task.export(task.model, tmp_path / "model", {"steps": 2})
    loaded = ToyClassifier.from_pretrained(tmp_path / "model", torch_dtype=torch.float32)
    with torch.no_grad():
        torch.testing.assert_close(loaded(batch["image"]), task.model(batch["image"]), rtol=0.02, atol=0.02)


def test_fitv2_toybox_fits_the_bound_of_embedded_weights() -> None:
    config = load_config("fitv2-toybox")
    with torch.device("meta"):
        model = make_network(FiTv2, FITV2_VARIANTS, config.model)
    assert 2 * sum(p.numel() for p in model.parameters()) < 16e6
    assert all(side % model.config.patch == 0 for size in config.data["sizes"] for side in size)


def test_fitv2_trains_and_leaves_a_sheet_and_a_model_that_loads(tmp_path: Path) -> None:
    run = tmp_path / "run"
    config = write_config(tmp_path, **FITV2, steps=2, optimizer={"lr": 1e-3})
    assert train(config, out=run) == 0
    assert [row["step"] for row in rows(run)] == [1, 2] and rows(run)[0]["loss"] > 0
    with Image.open(run / "sheets/step-00000002.png") as page:
        assert page.size == (12 * 148 + 4, 3 * 164 + 4)  # 24 x 24 pixels hold the largest sides, six times enlarged
    pipeline = belvedere.load(run / "model")
    assert isinstance(pipeline, FiTv2Pipeline) and pipeline.labels["car"] == 0
    average = {name: value for name, value in tensors(run, 2).items() if name.startswith("ema")}
    assert_same({f"ema: {name}": value for name, value in pipeline.network.state_dict().items()}, average)
    assert [image.size for image in pipeline(["car", "mug"], sizes=[(8, 20), (16, 16)]).images] == [(20, 8), (16, 16)]


def test_sheets_and_models_of_the_high_resolution_variant_are_of_its_size(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """32 patches of 4 pixels a side, which its network, as that of XL/2, does not tell."""
    model = {key: value for key, value in FITV2["model"].items() if key != "trained_side"}
    task = make_task(parse(TrainConfig, CONFIG | FITV2 | {"model": model | {"variant": "HR-XL/2"}}))
    asked: list[tuple[int, int]] = []

    def blank(pipeline: FiTv2Pipeline, labels: list[int], *, sizes: list[tuple[int, int]], **options: Any) -> Any:
        asked.extend(sizes)
        return SimpleNamespace(images=[Image.new("RGB", (width, height)) for height, width in sizes])

    monkeypatch.setattr(FiTv2Pipeline, "__call__", blank)
    assert task.sheet is not None and task.export is not None
    task.sheet(task.model, tmp_path / "sheet.png")
    assert set(asked) == {(128, 128), (192, 96), (96, 192)}
    task.export(task.model, tmp_path / "model", {})
    assert belvedere.load(tmp_path / "model", device="cpu").default_size == (128, 128)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (FITV2 | {"loss": {"time_means": 1}}, "unknown config key 'loss.time_means': did you mean 'time_mean'"),
        (FITV2 | {"loss": {"times": "cosine"}}, "loss.times 'cosine': choose lognorm"),
        (FITV2 | {"loss": {"time_mean": math.inf}}, "loss.time_mean: inf is not a finite number"),
        ({"loss": {"class_dropout": 10}}, "loss.class_dropout: 10 must be at least 0 and at most 1"),
        ({"loss": {"class_dropout": -1}}, "loss.class_dropout: -1 must be at least 0"),
        ({"loss": {"class_dropout": math.nan}}, "loss.class_dropout: nan is not a finite number"),
        ({"loss": {"class_dropout": "much"}}, "loss.class_dropout: 'much' is not a finite number"),
        (FITV2 | {"model": FITV2["model"] | {"num_classes": 5}}, "12 classes in the data need 13"),
        (FITV2 | {"model": {"variant": "huge"}}, "config model.variant 'huge': choose from B/2"),
        (FITV2 | {"data": FITV2["data"] | {"sizes": [[16, 16], [16, 18]]}}, "18x16"),
        (FITV2 | {"data": {"kind": "toybox", "size": 18}}, "pictures of 18x18 do not divide into patches of 4"),
        (FITV2 | {"model": FITV2["model"] | {"channels": 4}}, "pictures of 3 channels, the model has 4: give their"),
        ({"model": MODEL | {"channels": 4}}, "give their autoencoder as vae, or model.channels=3"),
        ({"model": MODEL | {"num_classes": None}}, "12 classes in the data need 13 .* not None"),
        ({"model": MODEL | {"num_classes": 1}}, "12 classes in the data need 13 .* not 1"),
        ({"data": FITV2["data"]}, "mixed-toybox"),
        ({"data": {"kind": "toybox", "size": 8}}, "pictures of 8x8, the model makes 16x16: give data of that size"),
        ({"data": {"kind": "toybox", "size": [16, 8]}}, "pictures of 8x16, the model makes 16x16"),
    ],
)
def test_what_does_not_fit_is_refused_before_the_first_step(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        make_task(parse(TrainConfig, CONFIG | changes))


@pytest.mark.parametrize(("system", "classes"), [({}, 13), ({}, 1), ({}, None), (FITV2, 13), (FITV2, 1)])
def test_pictures_without_classes_are_refused(tmp_path: Path, system: dict[str, Any], classes: int | None) -> None:
    Image.new("RGB", (16, 16)).save(tmp_path / "a.png")
    data = {"kind": "folder", "path": str(tmp_path), "size": 16}
    changes = system | {"data": data, "model": system.get("model", MODEL) | {"num_classes": classes}}
    with pytest.raises(InputError, match="1 items without classes: put the pictures into one subfolder a class"):
        make_task(parse(TrainConfig, CONFIG | changes))


def test_latents_without_classes_are_told_how_to_have_one(tmp_path: Path) -> None:
    changes = write_latents(tmp_path / "old")
    moments = torch.randn(2, 8, 16, 16)
    save_file({"moments": moments, "label": torch.zeros(2, dtype=torch.int64)}, tmp_path / "old/a.safetensors")
    (tmp_path / "old/classes.json").write_text("[]")
    with pytest.raises(InputError, match=r"old: 2 items without classes: name the classes in classes\.json"):
        make_task(parse(TrainConfig, CONFIG | changes))
    (tmp_path / "old/classes.json").write_text('["all"]')
    changes["model"] = changes["model"] | {"num_classes": 2}
    assert make_task(parse(TrainConfig, CONFIG | changes)).dataset.classes == ("all",)


def write_latents(folder: Path, channels: int = 4, side: int = 16) -> dict[str, Any]:
    """Write latents of two classes; return what makes ``CONFIG`` a run on them."""
    folder.mkdir()
    moments = torch.randn(6, 2 * channels, side, side)
    save_file({"moments": moments, "label": torch.arange(6) % 2}, folder / "a.safetensors")
    (folder / "classes.json").write_text(json.dumps(["left", "right"]))
    model = MODEL | {"num_classes": 3, "channels": channels}
    return {"data": {"kind": "latents", "path": str(folder)}, "model": model}


def test_every_size_of_mixed_latents_is_looked_at(tmp_path: Path) -> None:
    changes = write_latents(tmp_path / "mixed")
    shard = mixed_shard([torch.randn(8, *size) for size in ((8, 8), (8, 4), (8, 6))], torch.tensor([0, 1, 1]))
    save_file(shard, tmp_path / "mixed/a.safetensors")
    changes = FITV2 | {"data": changes["data"] | {"kind": "mixed-latents"}}
    changes["model"] = FITV2["model"] | {"num_classes": 3, "channels": 4, "patch": 2}
    assert len(make_task(parse(TrainConfig, CONFIG | changes)).dataset) == 3
    changes["model"]["patch"] = 4
    with pytest.raises(InputError, match="config data: latents of 6x8 do not divide into patches of 4"):
        make_task(parse(TrainConfig, CONFIG | changes))


def test_latents_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    small, wide = write_latents(tmp_path / "small", side=8), write_latents(tmp_path / "wide", channels=8)
    vae = {"vae": str(save_tiny_autoencoder(tmp_path / "vae"))}
    for changes, message in (
        (small, "latents of 8x8, the model makes 16x16"),
        (wide | {"model": wide["model"] | {"channels": 4}}, "latents of 8 channels, the model has 4: model.channels=8"),
        (wide | vae, "config vae: has 4 channels, the model 8"),
        ({"data": {"kind": "toybox", "size": 16}, "model": MODEL | {"channels": 4}} | vae, "latents of 8x8, the model"),
        (vae, "config vae: has 4 channels, the model 3"),
    ):
        with pytest.raises(InputError, match=message):
            make_task(parse(TrainConfig, CONFIG | changes))


@pytest.mark.parametrize("encoded", [True, False])
def test_an_autoencoder_of_another_scale_is_refused(tmp_path: Path, encoded: bool) -> None:
    fits = {"data": {"kind": "toybox", "size": 32}, "model": MODEL | {"channels": 4}}
    changes = fits if encoded else write_latents(tmp_path / "latents")
    vae = save_tiny_autoencoder(tmp_path / "sd")
    assert make_task(parse(TrainConfig, CONFIG | changes | {"vae": str(vae)})).model is not None
    vae = save_tiny_autoencoder(tmp_path / "sdxl", scaling_factor=0.13025)
    with pytest.raises(InputError, match=r"scales latents by 0\.13025, training by 0\.18215"):
        make_task(parse(TrainConfig, CONFIG | changes | {"vae": str(vae)}))


def test_the_autoencoder_goes_where_the_network_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Latents that were made before never take it there."""
    vae = {"vae": str(save_tiny_autoencoder(tmp_path / "vae"))}
    task = make_task(parse(TrainConfig, CONFIG | write_latents(tmp_path / "latents") | vae))
    went, to = list[Any](), AutoencoderKL.to
    monkeypatch.setattr(
        AutoencoderKL, "to", lambda self, *where, **more: went.append(where) or to(self, *where, **more)
    )
    assert task.sheet is not None
    task.sheet(task.model, tmp_path / "sheet.png")
    assert went == [(task.model.device,)] and (tmp_path / "sheet.png").is_file()


def test_the_codec_learns_from_pictures_of_one_size_in_multiples_of_64(tmp_path: Path) -> None:
    config = CONFIG | segpic(tmp_path)
    toys = {"kind": "toybox", "size": 64, "samples": 1, "length": 4}
    task = make_task(parse(TrainConfig, config | {"data": toys}))
    value, _ = task.loss(task.model, task.dataset.batch([0, 1]), BatchRng(0, 0, range(2)))
    assert value.isfinite()
    for data, message in (
        (toys | {"size": [64, 96]}, "config data.size: 96x64 must be multiples of 64"),
        (FITV2["data"], "config data.kind 'mixed-toybox': the codec learns from pictures of one size"),
        (write_latents(tmp_path / "latents")["data"], "config data.kind 'latents': the codec learns from pictures"),
    ):
        with pytest.raises(InputError, match=message):
            make_task(parse(TrainConfig, config | {"data": data}))


def test_a_grid_shows_the_pictures_in_rows(tmp_path: Path) -> None:
    images = torch.arange(5).view(5, 1, 1, 1).expand(5, 3, 4, 6) / 5
    save_grid(images, 3, tmp_path / "grid.png")
    pixels = np.asarray(Image.open(tmp_path / "grid.png"))
    assert pixels.shape == (8, 18, 3)
    assert pixels[::4, ::6, 0].tolist() == [[0, 51, 102], [153, 204, 255]]


def test_data_that_is_not_there_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("dimr-flowers", "dimr-cifar10", "dimr-imagenet256"):
        assert main(["--config", name, "--out", str(tmp_path / "run"), "data.path=no/such/data"]) == 2
        assert "no/such/data" in capsys.readouterr().err
