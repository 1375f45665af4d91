"""From photographs to a concept's file and from there to pictures, by the commands, on a small Stable Diffusion."""

import dataclasses
import json
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from belvedere.apps import record, tasks, tasks_concept
from belvedere.apps.concept_judges import ClipJudge
from belvedere.apps.config import TrainConfig
from belvedere.apps.personalize import Plan, make_config, parse_regions
from belvedere.apps.tasks_concept import open_base
from belvedere.apps.training_state import checkpoints
from belvedere.checkpoints import store
from belvedere.checkpoints.concepts import load_concept
from belvedere.data.images import centre_crop, open_image
from belvedere.errors import InputError
from belvedere.seeds import BatchRng
from tests.apps.conftest import Done, assert_refused
from tests.generation.neti_models import save_clip, save_photographs, save_tiny_base

pytestmark = pytest.mark.usefixtures("one_thread")

Command = Callable[..., Done]
SMALL = ("model.hidden=32", "model.frequencies=32", "model.anchors=5", "export.default_steps=1", "batch=2")
SMALL += ("accumulate=2", "save_every=1", "sheet_every=0", 'data.shown=["a {}"]')


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with two bases, photographs and, once asked for, a concept; nothing in it is changed."""
    folder = tmp_path_factory.mktemp("world")
    save_tiny_base(folder / "base")
    save_tiny_base(folder / "other", seed=1)
    save_photographs(folder / "photos")
    return folder


def learn(command: Command, world: Path, out: Path, *options: object, **changes: object) -> Done:
    given = {"token": "<toy>", "like": "cat", "base": world / "base", "steps": 2, "out": out} | changes
    photos = given.pop("photos", world / "photos")
    named = [part for name, value in given.items() for part in (f"--{name}", value)]
    return command("personalize", photos, *SMALL, *named, *options)


@pytest.fixture
def concept(world: Path, command: Command) -> Path:
    file = world / "toy.concept.safetensors"
    if not file.exists():
        assert learn(command, world, file).code == 0
    return file


def test_photographs_become_a_concept_and_the_base_stays_as_it_is(
    world: Path, command: Command, tmp_path: Path
) -> None:
    before = store.digest(world / "base")
    out = tmp_path / "new" / "toy.concept.safetensors"
    done = learn(command, world, out, "--json")
    found = json.loads(done.out)
    assert found["code"] == 0 and found["file"] == str(out) and found["steps"] == 2 and found["base"] == before
    assert done.error.startswith("step 0: began\n")
    made = load_concept(out)
    assert (made.token, made.super_category, made.base.name) == ("<toy>", "cat", str(world / "base"))
    assert made.mapper.config.layers == 7 and made.mapper.config.hidden == 32 and len(made.base.digests) == 1
    assert store.digest(world / "base") == before
    run = out.with_name("toy.concept.run")
    assert (run / "sheets" / "step-00000002.png").is_file() and (run / "log.jsonl").is_file()
    card = json.loads((run / "model" / "card.json").read_text())
    assert card["config"]["model"]["token"] == "<toy>" and card["command"].startswith("belvedere personalize")
    content = out.read_bytes()
    assert learn(command, world, out).code == 0  # done already: the same command gives the same file
    assert out.read_bytes() == content
    out.unlink()
    assert learn(command, world, out).code == 0 and out.read_bytes() == content


def test_photographs_that_are_left_out_are_named_at_the_start(world: Path, command: Command, tmp_path: Path) -> None:
    save_photographs(tmp_path / "photos")
    (tmp_path / "photos" / "IMG_1.HEIC").touch()
    done = learn(command, world, tmp_path / "toy.safetensors", photos=tmp_path / "photos", steps=1)
    assert done.code == 0
    assert done.error.startswith("3 photographs; left out: IMG_1.HEIC: save as JPEG\n")


def test_clip_draws_curves_of_the_sheets(world: Path, command: Command, tmp_path: Path) -> None:
    save_clip(tmp_path / "clip")
    shown = ("sheet_every=1", 'data.shown=["a photo of {}","a red {}"]')
    assert learn(command, world, tmp_path / "toy.safetensors", *shown, "--clip", tmp_path / "clip").code == 0
    rows = [json.loads(line) for line in (tmp_path / "toy.run" / "log.jsonl").read_text().splitlines()]
    curve = {row["step"]: row for row in rows if "image_similarity" in row}
    assert curve.keys() == {1, 2}
    judge, side = ClipJudge(tmp_path / "clip"), open_base(str(world / "base")).size
    with Image.open(tmp_path / "toy.run" / "sheets" / "step-00000002.png") as sheet:
        cells = [[sheet.crop((x * side, y * side, (x + 1) * side, (y + 1) * side)) for x in range(4)] for y in range(2)]
    photographs = [centre_crop(open_image(file), side) for file in sorted((world / "photos").iterdir())]
    truth, rows_seen = judge.pictures(photographs), [judge.pictures(row) for row in cells]
    texts = judge.texts(["a photo of cat", "a red cat"])
    assert texts is not None
    own = torch.stack([(seen @ text).mean() for seen, text in zip(rows_seen, texts, strict=True)]).mean()
    assert curve[2]["image_similarity"] == pytest.approx((torch.cat(rows_seen) @ truth.T).mean().item(), abs=1e-5)
    assert curve[2]["text_similarity"] == pytest.approx(own.item(), abs=1e-5)


def _interrupted(monkeypatch: pytest.MonkeyPatch, at: int, act: Callable[[], object]) -> None:
    """Let ``act`` happen in step ``at``, once."""
    original, acted = tasks.TASKS["neti"], list[int]()

    def disturbed(config: TrainConfig) -> Any:
        task = original(config)

        def loss(model: Any, batch: dict[str, torch.Tensor], rng: BatchRng) -> Any:
            if rng.step == at and not acted:
                acted.append(at)
                act()
            return task.loss(model, batch, rng)

        return dataclasses.replace(task, loss=loss)

    monkeypatch.setitem(tasks.TASKS, "neti", disturbed)


def _die() -> None:
    raise RuntimeError("killed")


@pytest.mark.parametrize(
    ("act", "code"), [(_die, 1), (lambda: os.kill(os.getpid(), signal.SIGINT), 130)], ids=["killed", "interrupted"]
)
def test_the_same_command_goes_on_where_it_stopped(
    world: Path, command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, act: Callable[[], object], code: int
) -> None:
    straight, broken = tmp_path / "straight.safetensors", tmp_path / "broken.safetensors"
    assert learn(command, world, straight, steps=3).code == 0
    _interrupted(monkeypatch, 1, act)
    assert learn(command, world, broken, steps=3).code == code
    assert not broken.exists() and 1 <= len(checkpoints(tmp_path / "broken.run" / "checkpoints")) <= 2
    assert learn(command, world, broken, steps=3).code == 0
    assert broken.read_bytes() == straight.read_bytes()
    assert "resumed from" in (tmp_path / "broken.run" / "log.jsonl").read_text()


def test_a_run_does_not_go_on_as_another(world: Path, command: Command, tmp_path: Path) -> None:
    out, base = tmp_path / "toy.safetensors", shutil.copytree(world / "base", tmp_path / "base")
    assert learn(command, world, out, base=base).code == 0
    out.unlink()
    save_photographs(tmp_path / "photos", 2)
    for changes, words in (
        ({"like": "dog"}, "toy.run was begun with other --like: choose another -o"),
        ({"photos": tmp_path / "photos"}, "was begun with other photographs"),
        ({"base": world / "base"}, "was begun with other --base"),
    ):
        assert_refused(learn(command, world, out, **({"base": base} | changes)), words)
    shutil.copytree(world / "other" / "unet", base / "unet", dirs_exist_ok=True)
    assert_refused(learn(command, world, out, base=base), "was begun with other files of --base")
    assert not out.exists()


@pytest.mark.parametrize(("decay", "expected"), [([], 2), (["optimizer.decay_steps=1"], 1)])
def test_fewer_steps_than_the_decay_of_the_recipe(world: Path, decay: list[str], expected: int) -> None:
    plan = Plan(world / "photos", "<toy>", "cat", "x", world / "x", recipe="neti-toybox", overrides=decay, steps=2)
    config = make_config(plan)
    assert (config.steps, config.optimizer.decay, config.optimizer.decay_steps) == (2, "linear", expected)


def test_what_is_no_part_of_a_concept_is_not_replaced(world: Path, command: Command, tmp_path: Path) -> None:
    (tmp_path / "toy.run/model").mkdir(parents=True)
    notes = tmp_path / "toy.run/model/notes.txt"
    notes.touch()
    done = learn(command, world, tmp_path / "toy.safetensors")
    assert_refused(done, "holds notes.txt, which is no part of a concept")
    assert notes.exists() and not (tmp_path / "toy.run/log.jsonl").exists()


def test_it_ends_when_photographs_kept_apart_show_nothing_better(
    world: Path, command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tasks_concept, "LOOKED", 8)
    save_photographs(tmp_path / "apart", count=2)
    out = tmp_path / "toy.concept.safetensors"
    early = ("evaluate_every=1", "patience=2", f"held_out.path={tmp_path / 'apart'}", "optimizer.lr=0.0", "--json")
    for _ in range(2):
        done = learn(command, world, out, *early, steps=9)
        assert done.code == 0, done.error
        assert json.loads(done.out)["steps"] == 3
    assert load_concept(out).token == "<toy>"


def test_pictures_of_a_concept_and_again(world: Path, command: Command, concept: Path, tmp_path: Path) -> None:
    out, sheet = tmp_path / "out", tmp_path / "sheet.png"
    asked = ("generate", "--model", world / "base", "--concept", concept, "--steps", 2, "--out", out)
    texts = ("--prompt", "a photo of <toy>", "--prompt", "a red <toy> of <toy>", "--negative", "a dog")
    done = command(*asked, *texts, "--editability", 0.5, "-n", 3, "--grid", sheet, "--json")
    made = json.loads(done.out)["pictures"]
    assert [entry["class"] for entry in made] == ["a photo of <toy>", "a red <toy> of <toy>", "a photo of <toy>"]
    assert len({entry["pixels"] for entry in made}) == 3 and sheet.is_file()
    second = Path(made[1]["file"])
    told = record.read(second)
    assert told.request.editability == 0.5 and told.request.negative == "a dog" and told.kind == made[1]["class"]
    assert len(told.concepts) == 64 and told.label == 1
    again = command("regenerate", second, "--out", tmp_path / "again")
    assert again.code == 0 and again.out.startswith("bit-identical: a red <toy> of <toy>, picture 1")
    assert record.read(tmp_path / "again" / second.name) == told
    moved = Path(shutil.move(shutil.copy(concept, tmp_path / "c.safetensors"), tmp_path / "moved.safetensors"))
    assert command("regenerate", second, "--concept", moved).code == 0
    same = command(*asked, "--prompt", "a photo of <toy>", "--negative", "a dog", "--editability", 0.5, "-n", 1)
    assert same.code == 0  # the same picture, whatever else was asked for: it may be written again
    other = command(*asked, "--prompt", "a red <toy>", "-n", 1)
    assert_refused(other, "exists and is another picture")


def test_another_concept_under_the_same_name_is_told(
    world: Path, command: Command, concept: Path, tmp_path: Path
) -> None:
    file = tmp_path / "toy.safetensors"
    shutil.copy(concept, file)
    asked = ("generate", "--model", world / "base", "--concept", file, "--prompt", "a <toy>", "-n", 1)
    asked += ("--steps", 3, "--guidance", 100)
    assert command(*asked, "--out", tmp_path / "out").code == 0
    assert learn(command, world, file, "--force", "--seed", 3, "--run", tmp_path / "run").code == 0
    (picture,) = (tmp_path / "out").iterdir()
    again = command("regenerate", picture)
    assert again.code == 1 and "concepts: their files are not what they were" in again.out


def test_text_without_a_concept(world: Path, command: Command, tmp_path: Path) -> None:
    asked = ("generate", "--model", world / "base", "--steps", 1, "-n", 1, "--out", tmp_path / "out")
    assert command(*asked, "--prompt", "a red dog", "--size", "24x16").code == 0
    (picture,) = (tmp_path / "out").iterdir()
    assert record.read(picture).request.sizes == ((24, 16),)
    assert command("regenerate", picture).code == 0


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"photos": "one"}, ["one photograph in", "give 2 or more"]),
        ({"photos": "empty"}, ["no PNG, JPEG or WebP files in"]),
        ({"photos": "nowhere"}, ["no folder"]),
        ({"token": "cat</w>"}, ["the model has this word already"]),
        ({"token": "Cat"}, ["token Cat: the model has this word already"]),
        ({"token": "my toy"}, ["must be one word"]),
        ({"like": "cat dog"}, ["super-category 'cat dog': must be one token"]),
        ({"like": "zebra"}, ["super-category 'zebra': must be one token"]),
        ({"base": "nope"}, ["no model 'nope'"]),
        ({"base": "photos"}, ["no model_index.json"]),
        ({"base": "dimr-toybox"}, ["makes no pictures of text", "Stable Diffusion"]),
        ({"out": "toy.pt"}, ["ends in .safetensors"]),
        ({"out": "taken.safetensors"}, ["taken.safetensors exists", "--force"]),
        ({"recipe": "mae-mvimgnet"}, ["is of task mae", "neti"]),
        ({"templates": "people"}, ["no templates 'people'"]),
        ({"region": "9.png=0,0,4,4"}, ["has no such photograph"]),
        ({"region": "0.png"}, ["write FILE=X,Y,WIDTH,HEIGHT"]),
        ({"clip": "empty"}, ["no CLIP model in", "config.json"]),
        ({"": "data.judge=[1]"}, ["config data.judge [1]", "a folder with a CLIP model"]),
        ({"steps": "0"}, ["config steps: 0"]),
        ({"": "model.hiden=3"}, ["unknown config key 'model.hiden'", "hidden"]),
    ],
    ids=lambda value: " ".join(f"{k} {v}" for k, v in value.items()) if isinstance(value, dict) else "",
)
def test_what_cannot_be_learned_is_one_line_and_leaves_nothing(
    world: Path, command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: dict[str, str],
    words: list[str],
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    save_photographs(tmp_path / "one", 1)
    (tmp_path / "empty").mkdir()
    (tmp_path / "photos").mkdir()
    (tmp_path / "taken.safetensors").write_bytes(b"mine")
    before = sorted(path.name for path in tmp_path.iterdir())
    extra = [change[""]] if "" in change else []
    changes: dict[str, Any] = {name: value for name, value in change.items() if name}
    out = Path(changes.pop("out", "x.safetensors"))
    assert_refused(learn(command, world, out, *extra, **changes), *words)
    assert sorted(path.name for path in tmp_path.iterdir()) == before
    assert (tmp_path / "taken.safetensors").read_bytes() == b"mine"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--prompt", "a photo of a cat"], ["lacks the concept, write <toy> into it"]),
        (["--prompt", "<toy>" + " red" * 90], ["tokens, this model reads 77"]),
        (["--prompt", "<toy>", "--negative", "<toy>"], ["negative prompt", "cannot hold a concept"]),
        (["--prompt", "<toy>", "--editability", "2"], ["editability must be a number from 0 to 1"]),
        (["--prompt", "<toy>", "--size", "17x16"], ["multiples of 8 pixels"]),
        (["--prompt", "<toy>", "--extrapolation", "pi"], ["knows no extrapolation"]),
        (["--prompt", "<toy>", "--classes", "car"], ["leave one out"]),
        (["--prompt", " "], ["prompts must be plain text"]),
        ([], ["concepts and editability belong to prompts"]),
        (["--prompt", "<toy>", "--model", "OTHER"], ["learned with another text encoder", "load it into"]),
        (["--prompt", "<toy>", "--model", "dimr-toybox"], ["makes pictures of classes: give --classes"]),
        (["--prompt", "<toy>", "--concept", "missing.safetensors"], ["no concept file at missing.safetensors"]),
        (["--prompt", "<toy>", "--concept", "CONCEPT"], ["two concepts are called <toy>"]),
    ],
)
def test_what_cannot_be_shown_is_one_line_and_leaves_nothing(
    world: Path, command: Command, concept: Path, tmp_path: Path, options: list[str], words: list[str]
) -> None:
    names = {"OTHER": world / "other", "CONCEPT": concept}
    asked = ("generate", "--model", world / "base", "--concept", concept, "--steps", 1, "--out", tmp_path / "out")
    assert_refused(command(*asked, *(names.get(option, option) for option in options)), *words)
    assert list(tmp_path.iterdir()) == []


def test_a_model_of_text_needs_text(world: Path, command: Command, tmp_path: Path) -> None:
    assert_refused(command("generate", "--model", world / "base", "--out", tmp_path), "give --prompt TEXT, not classes")


def test_regions_are_read_from_text() -> None:
    assert parse_regions(["a=b.jpg=1,2,30,40", "c.png=0,0,1,1"]) == {"a=b.jpg": (1, 2, 30, 40), "c.png": (0, 0, 1, 1)}
    for wrong in ("", "a.jpg", "a.jpg=1,2,3", "a.jpg=1,2,3,-4"):
        with pytest.raises(InputError, match="write FILE=X,Y,WIDTH,HEIGHT"):
            parse_regions([wrong])
