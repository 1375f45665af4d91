import json
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL, StableDiffusionPipeline
from PIL import Image

import belvedere
from belvedere.apps.config import TrainConfig, parse
from belvedere.apps.tasks import make_task
from belvedere.checkpoints import store
from belvedere.errors import InputError
from belvedere.seeds import BatchRng
from tests.apps.diffusion_helpers import AUTOENCODER, DIFFUSION, TEXT, train_config


@pytest.fixture(scope="module")
def autoencoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train_config(AUTOENCODER, tmp_path_factory.mktemp("autoencoder") / "run")


@pytest.fixture(scope="module")
def diffusion(autoencoder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train_config(DIFFUSION | {"vae": str(autoencoder)}, tmp_path_factory.mktemp("diffusion") / "run")


def test_an_autoencoder_is_a_diffusers_folder_of_unit_scale(autoencoder: Path) -> None:
    vae = AutoencoderKL.from_pretrained(autoencoder, torch_dtype=torch.float32)
    images = make_task(parse(TrainConfig, AUTOENCODER)).dataset.batch(range(48))["image"]
    latents = vae.encode(images).latent_dist.mean
    assert latents.shape == (48, 2, 8, 8)
    assert (latents * vae.config.scaling_factor).std().item() == pytest.approx(1, rel=0.01)
    assert json.loads((autoencoder / "card.json").read_text())["digest"] == store.digest(autoencoder)
    sheet = Image.open(autoencoder.parent / "sheets" / "step-00000002.png")
    assert sheet.size == (12 * 16, 4 * 16)


def test_an_untrained_autoencoder_lets_its_noise_be_and_learns() -> None:
    task = make_task(parse(TrainConfig, AUTOENCODER))
    batch = task.dataset.batch(range(8))
    posterior = task.model.encode(batch["image"]).latent_dist  # type: ignore[operator]
    assert posterior.std.mean() < 0.3
    optimizer = torch.optim.AdamW(task.groups(task.model, 0.01), lr=3e-3)
    losses = []
    for _ in range(30):
        value, logs = task.loss(task.model, batch, BatchRng(0, 0, range(8)))
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        losses.append(value.item())
    assert losses[-1] < 0.6 * losses[0]
    assert value.item() == pytest.approx(logs["pixels"] + logs["edges"] + 1e-3 * logs["kl"], rel=1e-5)


def test_a_model_of_text_is_a_plain_stable_diffusion_pipeline(diffusion: Path) -> None:
    pipeline = StableDiffusionPipeline.from_pretrained(diffusion, local_files_only=True)
    pipeline.set_progress_bar_config(disable=True)
    assert {part.dtype for part in (pipeline.unet, pipeline.vae, pipeline.text_encoder)} == {torch.float32}
    seed = torch.Generator().manual_seed(1)
    made = pipeline("a red car on sand", generator=seed, num_inference_steps=2, output_type="pt", width=16, height=16)
    assert made.images.shape == (1, 3, 16, 16) and made.images.isfinite().all()
    assert pipeline.tokenizer.model_max_length == 20 and pipeline.scheduler.config.prediction_type == "v_prediction"
    names = {path.relative_to(diffusion).as_posix() for path in diffusion.rglob("*") if path.is_file()}
    assert {"tokenizer/vocab.json", "tokenizer/merges.txt", "unet/config.json", "vae/config.json"} <= names
    assert {"text_encoder/model.safetensors", "scheduler/scheduler_config.json", "model_index.json"} <= names


def test_the_store_loads_it_verified(diffusion: Path) -> None:
    pipeline = belvedere.load(diffusion)
    assert isinstance(pipeline, StableDiffusionPipeline) and pipeline.unet.dtype == torch.float32
    assert store.verify(diffusion) == store.card(diffusion)["digest"]


def test_a_sheet_has_a_prompt_a_column(diffusion: Path) -> None:
    assert Image.open(diffusion.parent / "sheets" / "step-00000002.png").size == (12 * 16, 2 * 16)


def test_what_is_learned_is_the_text_model_and_the_unet(autoencoder: Path) -> None:
    task = make_task(parse(TrainConfig, DIFFUSION | {"vae": str(autoencoder)}))
    value, _ = task.loss(task.model, task.dataset.batch(range(6)), BatchRng(0, 0, range(6)))
    value.backward()
    assert {name.split(".")[0] for name, _ in task.model.named_parameters()} == {"text_encoder", "unet"}
    assert task.model.unet.conv_out.weight.grad.abs().sum() > 0  # type: ignore[union-attr]
    assert value.item() == pytest.approx(1, abs=0.25)  # predicts nothing yet, of a target of unit variance


def test_captions_reach_the_loss_unless_they_are_dropped(autoencoder: Path) -> None:
    """After a step, when the U-Net predicts something; with every caption dropped, other captions change nothing."""
    for dropout, same in ((0.0, False), (1.0, True)):
        changes = {"vae": str(autoencoder), "loss": {"caption_dropout": dropout}}
        task = make_task(parse(TrainConfig, DIFFUSION | changes))
        batch, rng = task.dataset.batch(range(6)), BatchRng(0, 0, range(6))
        optimizer = torch.optim.SGD(task.model.parameters(), lr=0.1)
        for _ in range(3):
            optimizer.zero_grad()
            task.loss(task.model, batch, rng)[0].backward()
            optimizer.step()
        other = batch | {"caption": batch["caption"].roll(1, 0)}
        values = [task.loss(task.model, one, rng)[0].item() for one in (batch, other)]
        assert (values[0] == values[1]) == same


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"vae": None}, "config vae"),
        ({"model": {"text": TEXT | {"heads": 3}, "unet": {"channels": [8, 16], "heads": 2}}}, "3 heads"),
        ({"model": {"text": TEXT, "unet": {"channels": [8], "heads": 2}}}, "2 levels or more"),
        ({"model": {"text": TEXT, "unet": {"channels": [8, 12], "heads": 2}}}, "multiples of 8"),
        ({"model": {"text": TEXT, "unet": {"heads": 2}}}, "model.unet.channels"),
        ({"model": {"text": {}, "unet": {"channels": [8, 16], "heads": 2}}}, "model.text.width"),
        ({"model": DIFFUSION["model"] | {"prediction": "x"}}, "epsilon or v_prediction"),
        ({"data": {"kind": "toybox", "size": 16, "samples": 1}}, "has no captions"),
        ({"loss": {"dropout": 0.1}}, "loss.dropout"),
    ],
)
def test_bad_configs(autoencoder: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        make_task(parse(TrainConfig, DIFFUSION | {"vae": str(autoencoder)} | changes))


@pytest.mark.parametrize("model", [{"latent_channels": 0}, {"layers": 0}, {"channels": [8, 12]}])
def test_bad_autoencoders(model: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=r"1 or more|multiples of 8"):
        make_task(parse(TrainConfig, AUTOENCODER | {"model": AUTOENCODER["model"] | model}))
