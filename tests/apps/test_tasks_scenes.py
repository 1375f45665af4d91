"""The tasks of NViST and its pre-training: a run of each leaves what its users load, and wrong configs are refused."""

from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from belvedere.apps.config import TrainConfig, load_config, parse
from belvedere.apps.tasks import make_task
from belvedere.apps.train import train
from belvedere.checkpoints.views import open_scene_model
from belvedere.errors import InputError
from belvedere.synthesis.mae import MAE
from tests.apps.training_helpers import CONFIG, assert_same, rows, tensors, write_config
from tests.apps.training_systems import ENCODER, NVIST
from tests.data.test_mvimgnet import write_scene

MAE_CONFIG: dict[str, Any] = {
    "task": "mae",
    "model": ENCODER | {"decoder_dim": 8, "decoder_depth": 1, "decoder_heads": 2},
    "data": {"kind": "toybox", "size": 32, "samples": 1, "length": 24},
    "loss": {},
    "optimizer": {"lr": 1e-3},
}


def test_nvist_trains_and_leaves_a_sheet_and_a_model_that_knows_its_camera(tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert train(write_config(tmp_path, **NVIST, steps=2), out=run) == 0
    logs = rows(run)
    assert [row["step"] for row in logs] == [1, 2] and {"psnr", "perceptual", "distance", "opacity"} <= set(logs[0])
    with Image.open(run / "sheets/step-00000002.png") as sheet:
        assert sheet.size == (7 * 32, 6 * 32)  # the input, and two views as they are, as they are made, their depth
        assert len(set(sheet.tobytes())) > 50
    model = open_scene_model(run / "model")
    assert 15 < model.pitch < 32
    assert model.distance == pytest.approx(2.0, abs=1e-4) and model.fov == pytest.approx(28.07, abs=0.01)
    assert (model.network.config.near, model.network.config.far) == pytest.approx((1.16, 2.84))
    average = {name: value for name, value in tensors(run, 2).items() if name.startswith("ema")}
    loaded = {f"ema: {name}": value for name, value in model.network.state_dict().items()}
    assert loaded.keys() == average.keys()
    for name, value in loaded.items():
        torch.testing.assert_close(value, average[name], rtol=0.01, atol=1e-3)  # stored in half the numbers' length


def test_nvist_begins_with_the_encoder_of_its_pre_training(tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert train(write_config(tmp_path, **MAE_CONFIG, steps=2, export={"dtype": "float32"}), out=run) == 0
    with Image.open(run / "sheets/step-00000002.png") as sheet:
        assert sheet.size == (6 * 32, 3 * 32)
    trained = MAE.from_pretrained(run / "model")
    model = NVIST["model"] | {"encoder_weights": str(run / "model")}
    task = make_task(parse(TrainConfig, CONFIG | NVIST | {"model": model}))
    assert_same(trained.encoder.state_dict(), task.model.encoder.state_dict())  # type: ignore[union-attr]
    assert [group["lr_scale"] for group in task.groups(task.model, 0.0)] == [0.2, 1.0]


def test_the_published_recipes() -> None:
    pre, main = load_config("mae-mvimgnet"), load_config("nvist-mvimgnet")
    assert (pre.steps, pre.batch, pre.optimizer.lr, pre.optimizer.warmup_steps) == (30_000, 84, 1e-4, 1000)
    assert (main.steps, main.batch, main.optimizer.lr, main.optimizer.warmup_steps) == (300_000, 22, 3e-4, 10_000)
    assert main.loss["patch"] == [160, 90] and main.loss["rays"] == 600 and main.data["views"] == 4
    assert pre.data["views"] == 0
    assert (main.loss["perceptual_weight"], main.loss["distortion_weight"]) == (0.1, 0.001)


def test_views_beside_the_input_are_needed(tmp_path: Path) -> None:
    for number in range(2):
        write_scene(tmp_path / "7" / f"scene{number}", 20)
    data = {"kind": "mvimgnet", "path": str(tmp_path), "size": [32, 18], "views": 0}
    with pytest.raises(InputError, match=r"data\.views 0: nvist learns from views beside the input"):
        make_task(parse(TrainConfig, CONFIG | NVIST | {"data": data}))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data": NVIST["data"] | {"size": 64}}, "data.size: \\[64, 64\\] does not fit model.image \\[32, 32\\]"),
        ({"data": MAE_CONFIG["data"]}, "toybox-views or mvimgnet"),
        ({"loss": {"perceptual": "lpips"}}, "loss.lpips='\\[vgg16-397923af.pth, vgg.pth\\]'"),
        ({"loss": {"perceptual": "ssim"}}, "choose from structure, lpips, none"),
        ({"loss": {"perceptual": "lpips", "lpips": "vgg.pth"}}, "must be a list of files"),
        ({"loss": {"perceptual": "lpips", "lpips": ["no/vgg.pth"]}}, "no/vgg.pth"),
        ({"loss": {"ray": 3}}, "unknown config key 'loss.ray'"),
        ({"loss": {"rays": 16.5}}, "loss.rays: 16.5 is not a whole number"),
        ({"loss": {"rays": 0}}, "loss.rays: 0 must be at least 1"),
        ({"loss": {"distortion_weight": -1}}, "loss.distortion_weight: -1 must be at least 0"),
        ({"loss": {"distance_weight": 0.1}, "data": NVIST["data"] | {"distances": False}}, "data.distances"),
        ({"model": NVIST["model"] | {"encoder_weights": "no/model"}}, "no/model"),
        ({"model": NVIST["model"] | {"half_side": -1}}, "half_side -1"),
        (MAE_CONFIG | {"data": MAE_CONFIG["data"] | {"size": 30}}, "30x30 is no multiple of patches of 8"),
    ],
)
def test_what_does_not_fit_is_refused_before_the_first_step(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        make_task(parse(TrainConfig, CONFIG | NVIST | changes))
