"""Measuring a concept: figures over editability, photographs held out apart, by toys' classifier or by CLIP."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image

from belvedere.apps.concept_judges import ClipJudge, DinoJudge, Lens, ToyJudge
from belvedere.apps.evaluate_concept import PROMPTS, parse_values
from belvedere.checkpoints.concepts import save_concept
from belvedere.checkpoints.text_to_image import load_text_to_image
from belvedere.data.images import to_tensor
from belvedere.data.toybox import Toybox
from belvedere.errors import InputError
from belvedere.generation.neti_training import FrozenBase
from tests.apps.conftest import Done, assert_refused, fill_results
from tests.generation.neti_models import save_clip, save_dino, save_photographs, save_tiny_base

Command = Callable[..., Done]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base, a concept that was not trained, photographs and others, prompts, a small CLIP."""
    folder = tmp_path_factory.mktemp("world")
    base = save_tiny_base(folder / "base")
    index = json.loads((base / "model_index.json").read_text())
    torch.manual_seed(0)
    frozen = FrozenBase(load_text_to_image(base, index, torch.float32))
    save_concept(frozen.concept("<toy>", "cat", str(base), hidden=32, frequencies=32), folder / "toy.safetensors")
    save_photographs(folder / "photos")
    save_photographs(folder / "others", 2, "webp")
    (folder / "prompts.txt").write_text("a photo of {}\na red {}\n")
    save_clip(folder / "clip")
    save_dino(folder / "dino")
    return folder


def measure(command: Command, world: Path, *options: object) -> Done:
    given = ("--photos", world / "photos", "--prompts", world / "prompts.txt", "--steps", 1, "-n", 1)
    return command("evaluate", "concept", world / "toy.safetensors", *given, *options)


@pytest.mark.slow
def test_the_curve_over_editability(
    world: Path, command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "results"
    options = ("--editability", "1,0", "--held-out", world / "others", "--out", out, "--json")
    found = json.loads(measure(command, world, *options).out)
    assert [(row["editability"], row["truncation"]) for row in found["curve"]] == [(0.0, 32), (1.0, 16)]
    for row in (*found["curve"], found["word"]):
        assert -1 <= row["image_similarity"] <= 1 and -1 <= row["held_out_similarity"] <= 1
        assert row["text_similarity"] is None and row["recognised"] is None  # no toy of Toybox is called cat
    assert found["among"].keys() == {"photographs", "held_out", "image_similarity", "held_out_similarity"}
    assert found["judge"] == "toybox-classifier" and found["count"] == 2 and len(found["concepts"]) == 64
    assert json.loads((out / "result.json").read_text()) == found and (out / "sheet.png").is_file()
    assert measure(command, world, *options).code == 0  # results are replaced
    fill_results(monkeypatch)
    done = measure(command, world, *options)
    assert done.code == 2 and json.loads(done.out)["curve"] == found["curve"]
    assert "cannot write" in done.error and "No space left on device" in done.error


def test_clip_reads_prompts(world: Path, command: Command) -> None:
    done = measure(command, world, "--clip", world / "clip", "--editability", "0")
    assert "text similarity" in done.out and "editability 0" in done.out and "the word alone" in done.out
    found = json.loads(measure(command, world, "--clip", world / "clip", "--editability", "0", "--json").out)
    assert -1 <= found["curve"][0]["text_similarity"] <= 1 and found["judge"] == "CLIP clip"


def test_dino_looks_too(world: Path, command: Command) -> None:
    options = ("--clip", world / "clip", "--dino", world / "dino", "--held-out", world / "others", "--editability", "0")
    found = json.loads(measure(command, world, *options, "--json").out)
    for row in (found["curve"][0], found["word"], found["among"]):
        assert -1 <= row["dino_image_similarity"] <= 1 and -1 <= row["dino_held_out_similarity"] <= 1
    assert found["judge"] == "CLIP clip, DINO dino" and "dino_text_similarity" not in found["curve"][0]
    assert found["curve"][0]["dino_image_similarity"] != found["curve"][0]["image_similarity"]
    assert "dino held out similarity" in measure(command, world, *options).out


@pytest.mark.parametrize("kind", ["vit", "dinov2"])
def test_dino_sees_class_tokens_of_normalised_pixels(tmp_path: Path, kind: str) -> None:
    save_dino(tmp_path / "dino", kind)
    judge = DinoJudge(tmp_path / "dino")
    picture = Image.effect_noise((32, 32), 90).convert("RGB")
    seen = judge.pictures([picture])
    pixels = torch.frombuffer(bytearray(picture.tobytes()), dtype=torch.uint8).view(32, 32, 3).permute(2, 0, 1) / 255
    mean, std = torch.tensor((0.485, 0.456, 0.406)), torch.tensor((0.229, 0.224, 0.225))
    with torch.no_grad():
        hidden = judge.model(((pixels - mean[:, None, None]) / std[:, None, None])[None]).last_hidden_state
    torch.testing.assert_close(seen, torch.nn.functional.normalize(hidden[:, 0], dim=1))
    assert judge.texts(["a cat"]) is None and judge.recognised([picture], "car") is None


@pytest.mark.parametrize(
    ("told", "edge"),
    [
        ({"crop_size": {"height": 32, "width": 32}, "size": {"shortest_edge": 37}}, 37),
        ({"crop_size": 32, "size": 40}, 40),
        ({"crop_size": {"height": 32, "width": 32}, "size": {"height": 32, "width": 32}}, 32),
        ({"crop_size": {"height": 32, "width": 32}}, 32),
        ({"crop_size": None, "size": None}, 32),
        ({"size": {"shortest_edge": 20}}, 32),
    ],
    ids=str,
)
def test_pictures_are_scaled_and_cut_as_a_folder_says(tmp_path: Path, told: dict[str, object], edge: int) -> None:
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(told))
    picture = Image.effect_noise((150, 91), 90).convert("RGB")
    scaled = picture.resize((150 * edge // 91, edge), Image.Resampling.BICUBIC)
    left, upper = (scaled.width - 32) // 2, (edge - 32) // 2
    wanted = to_tensor(scaled.crop((left, upper, left + 32, upper + 32)))
    found = Lens(tmp_path, 32, (0, 0, 0), (1, 1, 1))([picture])[0] * 255
    assert (found - wanted).abs().max() <= 1


def test_photographs_like_each_other_are_told_from_others() -> None:
    toys = Toybox(64, seed=5, kinds=("car", "mug"))
    pictures = [Image.fromarray(((toys[i]["image"] + 1) * 127.5).byte().permute(1, 2, 0).numpy()) for i in range(12)]
    labels = torch.tensor([toys[i]["label"] for i in range(12)])
    judge = ToyJudge()
    seen = judge.pictures(pictures)
    torch.testing.assert_close(seen.norm(dim=1), torch.ones(12))
    same = labels[:, None] == labels
    alike, apart = (seen @ seen.T)[same & ~torch.eye(12, dtype=torch.bool)].mean(), (seen @ seen.T)[~same].mean()
    assert alike > apart + 0.3
    cars = [picture for picture, label in zip(pictures, labels, strict=True) if label == 0]
    assert (judge.recognised(cars, "car") or 0) >= 0.8 and judge.recognised(cars, "castle in the air") is None


def test_clip_sees_the_middle_square(world: Path) -> None:
    judge = ClipJudge(world / "clip")
    square = Image.effect_noise((32, 32), 90).convert("RGB")
    wide = Image.new("RGB", (64, 32))
    wide.paste(square, (16, 0))
    seen = judge.pictures([square, wide, Image.new("RGB", (40, 40))])
    torch.testing.assert_close(seen[0], seen[1])
    assert not torch.allclose(seen[0], seen[2], atol=1e-3)
    texts = judge.texts(["a cat", "a red dog", "red " * 200])
    assert texts is not None and texts.shape == (3, 8) and texts.isfinite().all()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--held-out", "photos"], ["is among the photographs"]),
        (["--photos", "base"], ["no PNG, JPEG or WebP files"]),
        (["--clip", "photos"], ["no CLIP model in"]),
        (["--clip", "base/vae"], ["not a CLIP model"]),
        (["--dino", "photos"], ["no DINO model in"]),
        (["--dino", "clip"], ["a model of type clip: give one of vit, dinov2"]),
        (["--editability", "0,x"], ["editability '0,x'"]),
        (["--editability", "2"], ["editability 2.0: must be from 0"]),
        (["-n", "0"], ["nothing to measure"]),
        (["--model", "dimr-toybox"], ["makes pictures of classes"]),
        (["--prompts", "nowhere.txt"], ["no templates"]),
        (["--out", "prompts.txt"], ["is a file: name a folder"]),
    ],
)
def test_bad_input_is_one_line(world: Path, command: Command, options: list[str], words: list[str]) -> None:
    paths = [world / option if (world / option).exists() else option for option in options]
    assert_refused(measure(command, world, *paths), *words)


def test_a_file_cannot_make_this_machine_download(world: Path, command: Command, tmp_path: Path) -> None:
    index = json.loads((world / "base" / "model_index.json").read_text())
    frozen = FrozenBase(load_text_to_image(world / "base", index, torch.float32))
    made = frozen.concept("<toy>", "cat", "some-owner/some-model", hidden=32, frequencies=32)
    save_concept(made, tmp_path / "toy.safetensors")
    refused = command("evaluate", "concept", tmp_path / "toy.safetensors", "--photos", world / "photos")
    assert_refused(refused, "model some-owner/some-model is not on this machine")


def test_fifteen_prompts_and_values() -> None:
    assert len(set(PROMPTS)) == 15 and all(prompt.count("{}") == 1 for prompt in PROMPTS)
    assert parse_values("1,0,0.5,1") == (0.0, 0.5, 1.0)
    with pytest.raises(InputError):
        parse_values("")
