"""Manifests: any flipped bit of any file is found, also of card and manifest; what is missing or added is named."""

import json
import shutil
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from belvedere.apps import models
from belvedere.checkpoints import manifest, store
from belvedere.errors import InputError
from tests.conftest import save_tiny_model

WEIGHTS = "network/diffusion_pytorch_model.safetensors"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_model(tmp_path_factory.mktemp("manifest") / "model")


@pytest.fixture
def copy(model: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(model, tmp_path / "model"))


def test_all_that_the_package_carries_is_as_it_was_written() -> None:
    assert "toybox-classifier" in models.carried()
    assert {name: models.verify(name) for name in models.carried()} == {n: [] for n in models.carried()}


def test_the_package_carries_16_mb_a_model_and_96_mb_at_most() -> None:
    folders = [[*(store.EMBEDDED / name).rglob("*")] for name in models.carried()]
    sizes = [sum(path.stat().st_size for path in folder if path.is_file()) for folder in folders]
    assert max(sizes) <= 16_000_000 and sum(sizes) <= 96_000_000


def test_a_model_has_a_card_for_hubs_and_a_manifest(model: Path) -> None:
    assert set(manifest.read(model)) == {"README.md", "card.json", "model_index.json", "network/config.json", WEIGHTS}
    head = (model / "README.md").read_text().split("---\n")[1]
    assert 'library_name: "belvedere"' in head and "dimr" in head
    assert store.faults(model) == []


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_flipped_bit_is_found(model: Path, data: st.DataObject) -> None:
    names = sorted(path.relative_to(model).as_posix() for path in model.rglob("*") if path.is_file())
    path = model / data.draw(st.sampled_from(names))
    content = bytearray(path.read_bytes())
    place = data.draw(st.integers(0, 8 * len(content) - 1))
    content[place // 8] ^= 1 << place % 8
    before = path.read_bytes()
    path.write_bytes(content)
    try:
        assert models.verify(str(model)) != []
    except InputError:
        assert path.name in ("model_index.json", "card.json")  # so damaged that it is no model any more
    finally:
        path.write_bytes(before)


def test_what_is_missing_or_added_is_named(copy: Path) -> None:
    (copy / "network/extra.json").write_text("{}")
    (copy / "README.md").unlink()
    assert manifest.differences(copy) == ["README.md is missing", "network/extra.json is not in manifest.json"]


def test_what_is_not_a_models_own_is_named_hidden_or_not(copy: Path) -> None:
    assert manifest.strangers(copy) == []
    (copy / ".git").mkdir()
    assert manifest.strangers(copy) == []
    (copy / ".git/HEAD").write_text("ref")
    (copy / "network/.tmp").write_text("x")
    (copy / "link").symlink_to("network")
    assert manifest.strangers(copy) == [".git/HEAD", "link", "network/.tmp"]


def test_a_large_file_is_read_only_when_asked(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(manifest, "SMALL", 10_000)
    content = bytearray((copy / WEIGHTS).read_bytes())
    content[-1] ^= 1
    (copy / WEIGHTS).write_bytes(content)
    assert store.verify(copy, full=False) == store.card(copy)["digest"]
    assert models.verify(str(copy))[0] == f"{WEIGHTS} has other bytes than it had"
    with pytest.raises(InputError, match=rf"digest in card.json \({WEIGHTS} has other bytes than it had\)"):
        store.load(copy, device="cpu")
    (copy / WEIGHTS).write_bytes(content[:-1])
    assert "bytes, not" in manifest.differences(copy, full=False)[0]


def test_the_card_may_change_and_weights_may_not(copy: Path) -> None:
    store.amend_card(copy, {"licence": "CC0-1.0"})
    assert store.faults(copy) == [] and 'license: "CC0-1.0"' in (copy / "README.md").read_text()
    with (copy / WEIGHTS).open("ab") as file:
        file.write(b"\0")
    store.amend_card(copy, {"steps": 3})
    assert any(line.startswith(WEIGHTS) for line in store.faults(copy))


@pytest.mark.parametrize("text", ["{}", "[]", '{"version": 2, "files": {}}', '{"version": 1, "files": {"a": 3}}'])
def test_a_damaged_manifest_is_refused(copy: Path, text: str) -> None:
    (copy / manifest.NAME).write_text(text)
    with pytest.raises(InputError, match=r"manifest\.json"):
        manifest.read(copy)


def test_a_model_without_a_manifest_cannot_be_verified(copy: Path) -> None:
    (copy / manifest.NAME).unlink()
    assert "no manifest.json" in store.faults(copy)[0]
    store.load(copy, device="cpu")


def test_weights_in_shards_load_and_are_checked(model: Path, tmp_path: Path) -> None:
    pipeline = store.load(model, device="cpu")
    digest = store.save(pipeline, tmp_path / "shards", {}, shard=100_000)
    files = sorted((tmp_path / "shards/network").glob("*.safetensors"))
    assert len(files) > 1 and all(file.stat().st_size < 130_000 for file in files)
    again = store.load(tmp_path / "shards", device="cpu").network.state_dict()
    assert all((again[key] == x).all() for key, x in pipeline.network.state_dict().items())
    assert store.verify(tmp_path / "shards") == digest
    (tmp_path / "shards/card.json").unlink()
    index = tmp_path / "shards/network/diffusion_pytorch_model.safetensors.index.json"
    content = json.loads(index.read_text())
    content["weight_map"][next(iter(content["weight_map"]))] = "../../elsewhere.safetensors"
    index.write_text(json.dumps(content))
    with pytest.raises(InputError, match="does not list the tensors of the files beside it"):
        store.load(tmp_path / "shards", device="cpu")
