from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from belvedere.apps.config import TrainConfig, config_names, load_config, parse
from belvedere.apps.tasks import TASKS, _make_network, make_task, save_grid
from belvedere.apps.train import main
from belvedere.generation.dimr import DiMR
from belvedere.generation.dimr_config import VARIANTS
from belvedere.seeds import BatchRng
from tests.apps.training_helpers import CONFIG

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
            model = _make_network(DiMR, VARIANTS, config.model)
        assert model.null_class is not None
        if name == "dimr-imagenet256":
            assert sum(p.numel() for p in model.parameters()) == 505_046_408


def test_the_published_recipe() -> None:
    config = load_config("dimr-imagenet256")
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
