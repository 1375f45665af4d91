"""Models in folders: found, checked before memory is taken, loaded as they were saved."""

import json
import re
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from belvedere.checkpoints import store
from belvedere.errors import InputError
from tests.conftest import save_tiny_model

WEIGHTS = "network/diffusion_pytorch_model.safetensors"


@pytest.fixture
def copy(tiny_model: Path, tmp_path: Path) -> Path:
    """A model folder of one's own, without a card: its digest is not known."""
    shutil.copytree(tiny_model, tmp_path / "tiny")
    (tmp_path / "tiny/card.json").unlink()
    return tmp_path / "tiny"


def edit(path: Path, **changes: object) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_loads_what_was_saved(tiny_model: Path) -> None:
    pipeline = store.load(tiny_model)
    saved = load_file(tiny_model / WEIGHTS)
    state = pipeline.network.state_dict()
    assert state.keys() == saved.keys()
    assert all(torch.equal(state[key], saved[key]) for key in saved)
    assert not pipeline.network.training
    assert pipeline.config.default_steps == 4
    assert pipeline.config.id2label["1"] == "boat"


def test_converts_the_number_format(tiny_model: Path) -> None:
    assert store.load(tiny_model, dtype="bfloat16").network.dtype == torch.bfloat16
    assert store.load(tiny_model, dtype=torch.float32).network.dtype == torch.float32


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("no-such-model", r"no model 'no-such-model': .* hub id owner/name"),
        ("./nowhere/at/all", "no model './nowhere/at/all'"),
        ("../../etc/passwd", "no model"),
        ("~nobody-there/x", "no model"),
    ],
)
def test_an_unknown_model_is_named(name: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        store.resolve(name)


def test_a_hub_id_that_is_not_in_the_cache_is_refused_offline() -> None:
    with pytest.raises(InputError, match="not on this machine; --model owner/name fetches it"):
        store.resolve("owner/name", download=False)


def test_a_hub_id_is_found_in_the_cache_by_its_revision(
    tiny_model: Path, other_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The cache as huggingface_hub lays it out: a snapshot a commit, and which commit a revision is."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    repository = tmp_path / "models--me--toys"
    for revision, commit, model in (("main", "a" * 40, tiny_model), ("v2", "b" * 40, other_model)):
        shutil.copytree(model, repository / "snapshots" / commit)
        (repository / "refs").mkdir(exist_ok=True)
        (repository / "refs" / revision).write_text(commit)
    for name, model in (("me/toys", tiny_model), ("me/toys@v2", other_model), (f"me/toys@{'b' * 40}", other_model)):
        for download in (False, True):
            assert store.digest(store.resolve(name, download=download)) == store.digest(model)
    with pytest.raises(InputError, match="me/toys@v3 is not on this machine"):
        store.resolve("me/toys@v3", download=False)
    with pytest.raises(InputError, match="me/toys@v3: no such folder, and the hub did not give it"):
        store.resolve("me/toys@v3")


def test_a_folder_without_a_model_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no model_index\.json there"):
        store.resolve(tmp_path)


def test_every_flipped_byte_changes_the_digest(copy: Path) -> None:
    before = store.digest(copy)
    for name in (WEIGHTS, "network/config.json", "model_index.json"):
        content = bytearray((copy / name).read_bytes())
        content[len(content) // 2] ^= 1
        (copy / name).write_bytes(content)
        assert store.digest(copy) != before
        content[len(content) // 2] ^= 1
        (copy / name).write_bytes(content)
    assert store.digest(copy) == before


def test_a_model_that_does_not_match_its_card_is_refused(tiny_model: Path, tmp_path: Path) -> None:
    folder = tmp_path / "changed"
    shutil.copytree(tiny_model, folder)
    content = bytearray((folder / WEIGHTS).read_bytes())
    content[-1] ^= 1
    (folder / WEIGHTS).write_bytes(content)
    with pytest.raises(InputError, match=r"changed: its files do not match the digest in card.json"):
        store.load(folder)


def test_a_card_is_amended_without_touching_the_rest(copy: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    before = store.save(store.load(copy), folder, {"steps": 7})
    store.amend_card(folder, {"quality": {"recognised": 0.5}})
    assert store.card(folder) == {"steps": 7, "digest": before, "quality": {"recognised": 0.5}}
    assert store.verify(folder) == before
    (folder / "card.json").unlink()
    with pytest.raises(InputError, match=r"no card\.json"):
        store.amend_card(folder, {})


def test_foreign_weights_are_listed(copy: Path) -> None:
    weights = load_file(copy / WEIGHTS)
    first = sorted(weights)[0]
    weights["stranger"] = weights.pop(first)
    second = sorted(weights)[0]
    weights[second] = torch.zeros(7)
    save_file(weights, copy / WEIGHTS)
    with pytest.raises(
        InputError, match=r"do not fit its config.json: .*1 missing .*1 unexpected \(stranger\).*\(7,\)"
    ) as e:
        store.load(copy)
    assert first in str(e.value) and second in str(e.value)


def test_broken_weights_are_refused(copy: Path) -> None:
    weights = load_file(copy / WEIGHTS)
    weights[sorted(weights)[3]].view(-1)[0] = float("nan")
    save_file(weights, copy / WEIGHTS)
    with pytest.raises(InputError, match="holds NaN"):
        store.load(copy)
    whole = {key: value.to(torch.int8) if value.isfinite().all() else value for key, value in weights.items()}
    save_file({key: torch.zeros_like(value, dtype=torch.int8) for key, value in whole.items()}, copy / WEIGHTS)
    with pytest.raises(InputError, match="quantised weights are not supported"):
        store.load(copy)
    (copy / WEIGHTS).unlink()
    with pytest.raises(InputError, match=r"no \.safetensors file"):
        store.load(copy)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"surprise": 1}, "unknown key 'surprise'"),
        ({"stage_configs": 5}, "config.json: "),
        ({"stage_configs": [{"kind": "transformer", "attention": "os.system"}]}, "unknown stage key 'attention'"),
        ({"channels": 10**9}, "larger than any size"),
        ({"norm": "LOUD"}, "norm 'LOUD'"),
        ({"num_classes": 6}, "of another shape"),
    ],
)
def test_a_wrong_config_is_refused(copy: Path, changes: dict[str, object], message: str) -> None:
    edit(copy / "network/config.json", **changes)
    with pytest.raises(InputError, match=message):
        store.load(copy)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"_class_name": "os.system"}, "class 'os.system' is not one Belvedere loads"),
        ({"network": ["subprocess", "Popen"]}, "class 'Popen' is not one Belvedere loads"),
        ({"vae": ["diffusers", "StableDiffusionPipeline"]}, "component vae of class 'StableDiffusionPipeline'"),
        ({"scheduler": ["os", "system"]}, "component scheduler of class 'system'"),
        ({"scheduler": ["diffusers", "SchedulerMixin"]}, "component scheduler of class 'SchedulerMixin'"),
        ({"helper": ["os", "system"]}, "unknown key 'helper'"),
        ({"unet": ["diffusers", "UNet2DConditionModel"]}, "unknown key 'unet'"),
        ({"default_step": 3}, "unknown key 'default_step'"),
        ({"id2label": [1, 2]}, "component id2label"),
        ({"id2label": [1, 2, 3]}, "model_index.json: "),
    ],
)
def test_a_hostile_index_is_refused(copy: Path, changes: dict[str, object], message: str) -> None:
    edit(copy / "model_index.json", **changes)
    with pytest.raises(InputError, match=message):
        store.load(copy)


@pytest.mark.parametrize("text", ["", "[]", "{", "[" * 100_000, '{"a": ' + "9" * 5000 + "}"])
def test_a_damaged_json_file_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "x.json").write_text(text)
    with pytest.raises(InputError, match=r"x\.json: "):
        store.read_json(tmp_path / "x.json")


def test_saving_replaces_a_model_and_nothing_else(tmp_path: Path) -> None:
    folder = save_tiny_model(tmp_path / "model")
    before = store.digest(folder)
    save_tiny_model(folder, seed=5)
    assert store.digest(folder) != before
    assert store.card(folder)["digest"] == store.digest(folder)
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
    assert {path.stat().st_mode for path in folder.rglob("*.*")} == {(folder / "card.json").stat().st_mode}
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos/me.jpg").write_bytes(b"x")
    with pytest.raises(InputError, match="not empty and not a model"):
        save_tiny_model(tmp_path / "photos")


@pytest.mark.parametrize("name", ["notes.txt", ".git/config", ".hidden", "network/old.safetensors", "elsewhere"])
def test_saving_removes_nothing_that_is_not_a_models(name: str, tmp_path: Path) -> None:
    folder = save_tiny_model(tmp_path / "model")
    (folder / name).parent.mkdir(exist_ok=True)
    if name == "elsewhere":
        (folder / name).symlink_to(tmp_path)
    else:
        (folder / name).write_text("mine")
    before = store.digest(folder)
    with pytest.raises(InputError, match=f"holds {re.escape(name)}, which is no part of its model"):
        save_tiny_model(folder, seed=5)
    assert store.digest(folder) == before and (folder / name).exists()


def test_a_model_of_others_is_not_removed(tmp_path: Path) -> None:
    folder = save_tiny_model(tmp_path / "model")
    (folder / "manifest.json").unlink()
    with pytest.raises(InputError, match="not empty and not a model that Belvedere wrote"):
        save_tiny_model(folder, seed=5)
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos/card.json").write_text("{}")
    for path in (tmp_path / "photos", folder / "card.json"):
        with pytest.raises(InputError, match="choose a"):
            store.check_target(path)
    for path in (tmp_path / "none", tmp_path / "a/b"):
        store.check_target(path)


def test_a_folder_is_replaced_however_it_is_called(tmp_path: Path) -> None:
    save_tiny_model(tmp_path / "real")
    (tmp_path / "link").symlink_to("real")
    for path in (tmp_path / "link", tmp_path / "real/../real"):
        save_tiny_model(path, seed=5)
        assert (tmp_path / "link").is_symlink() and store.faults(tmp_path / "real") == []
        assert sorted(path.name for path in tmp_path.iterdir()) == ["link", "real"]


@pytest.mark.parametrize("stop", [OSError, SystemExit])
def test_a_save_that_ends_between_two_names_leaves_the_old_model(
    stop: type[BaseException], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = save_tiny_model(tmp_path / "model")
    before, rename = store.digest(folder), Path.rename

    def broken(self: Path, target: Path) -> Path:
        if self.suffix == ".tmp":
            raise stop("stopped")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", broken)
    with pytest.raises(stop):
        save_tiny_model(folder, seed=5)
    assert store.digest(folder) == before
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_a_failed_save_leaves_the_old_model(tmp_path: Path) -> None:
    folder = save_tiny_model(tmp_path / "model")
    before = store.digest(folder)
    with pytest.raises(TypeError):
        store.save(store.load(folder), folder, {"not JSON": object()})
    assert store.digest(folder) == before
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_devices_and_dtypes_that_are_not_there_are_refused() -> None:
    cpu = torch.device("cpu")
    assert store.choose_device("cpu") == cpu
    assert store.choose_dtype(None, cpu) == torch.float32
    with pytest.raises(InputError, match="no device cuda:99"):
        store.choose_device("cuda:99")
    with pytest.raises(InputError, match="no device 'toaster'"):
        store.choose_device("toaster")
    with pytest.raises(InputError, match="float16 is unusably slow on a CPU"):
        store.choose_dtype("float16", cpu)
    with pytest.raises(InputError, match="no dtype 'float8'"):
        store.choose_dtype("float8", cpu)
