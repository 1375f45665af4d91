"""Networks that make scenes, as model folders: what is stored, what comes back, what is refused."""

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from belvedere.checkpoints import store
from belvedere.checkpoints.views import FOV, load_scene_model, open_scene_model, save_scene_model
from belvedere.errors import InputError
from belvedere.synthesis.nvist import NViST
from tests.synthesis.test_nvist import conditions, photographs, small, volumes


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    save_scene_model(small(near=1.0, far=4.0), "float16", tmp_path / "model", {"steps": 7})
    return tmp_path / "model"


def rounded(model: NViST) -> NViST:
    """The network with all but the field's decoder rounded to half precision."""
    stored: NViST = nn.Module.to(copy.deepcopy(model), torch.float16)
    stored.field_decoder = model.field_decoder
    return nn.Module.to(stored, torch.float32)


def fields(model: NViST) -> dict[str, Any]:
    return {name: value for name, value in model.config.items() if not name.startswith("_")}


def test_what_is_saved_comes_back(folder: Path) -> None:
    model = load_scene_model(str(folder), "cpu")
    expected = rounded(small(near=1.0, far=4.0))
    assert fields(model) == fields(expected)
    assert not model.training and all(p.dtype == torch.float32 for p in model.parameters())
    arguments: tuple[Tensor, Tensor] = photographs(), conditions()
    assert (volumes(model, *arguments) == volumes(expected, *arguments)).all()


def test_the_field_is_decoded_in_float32(folder: Path) -> None:
    weights = load_file(folder / "network" / "diffusion_pytorch_model.safetensors")
    wide = {name for name, weight in weights.items() if weight.dtype == torch.float32}
    assert wide == {name for name in weights if name.startswith("field_decoder.")}
    trained = small().field_decoder.state_dict()
    assert all((weights[f"field_decoder.{name}"] == weight).all() for name, weight in trained.items())


def test_a_network_in_bfloat16_makes_fields_in_float32(folder: Path) -> None:
    half = load_scene_model(folder, "cpu", "bfloat16")
    assert {p.dtype for name, p in half.named_parameters() if not name.startswith("field_decoder.")} == {torch.bfloat16}
    assert {p.dtype for p in half.field_decoder.parameters()} == {torch.float32}
    arguments = photographs(), conditions()
    made, exact = volumes(half, *arguments), volumes(load_scene_model(folder, "cpu"), *arguments)
    assert made.dtype == torch.float32 and 0 < (made - exact).norm() / exact.norm() < 0.03
    with pytest.raises(InputError, match="float16 is unusably slow on a CPU"):
        load_scene_model(folder, "cpu", "float16")


def test_a_card_has_the_digest(folder: Path) -> None:
    assert store.card(folder) == {"steps": 7, "digest": store.digest(folder)}
    assert open_scene_model(folder).digest == store.digest(folder)


def test_what_a_picture_does_not_tell(folder: Path, tmp_path: Path) -> None:
    assert open_scene_model(folder)[2:] == (2.5, FOV, 0.0)
    save_scene_model(small(), "float32", tmp_path / "other", {}, distance=6.0, fov=28.0, pitch=20.0)
    assert open_scene_model(tmp_path / "other")[2:] == (6.0, 28.0, 20.0)


@pytest.mark.parametrize("value", [0, -1, "30", None, [], float("nan"), 1e9])
def test_defaults_that_are_none(folder: Path, value: object) -> None:
    (folder / "card.json").unlink()
    for name in ("default_distance", "default_fov"):
        (folder / "model_index.json").write_text(json.dumps({"_class_name": "NViSTModel", name: value}))
        with pytest.raises(InputError, match=f"{name} .* must be above 0"):
            load_scene_model(folder)


@pytest.mark.parametrize("value", [90, -90, "20", None, True])
def test_a_pitch_that_is_none(folder: Path, value: object) -> None:
    (folder / "card.json").unlink()
    (folder / "model_index.json").write_text(json.dumps({"_class_name": "NViSTModel", "default_pitch": value}))
    with pytest.raises(InputError, match=r"default_pitch .* must be between -90 and 90"):
        load_scene_model(folder)


def test_near_that_is_not_before_far(folder: Path) -> None:
    (folder / "card.json").unlink()
    config = folder / "network" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"near": 4.0}))
    with pytest.raises(InputError, match=r"config\.json: near 4\.0, far 4\.0: give 0 <= near < far"):
        load_scene_model(folder)


def test_each_kind_of_model_is_named_where_another_is_asked_for(folder: Path, tiny_model: Path) -> None:
    with pytest.raises(InputError, match="makes scenes: belvedere view"):
        store.load(folder)
    with pytest.raises(InputError, match="makes no scenes of pictures"):
        load_scene_model(tiny_model)


def test_a_changed_model_is_refused(folder: Path) -> None:
    with (folder / "model_index.json").open("a") as file:
        file.write(" ")
    with pytest.raises(InputError, match="do not match the digest"):
        load_scene_model(folder)
    with pytest.raises(InputError, match="no model 'nvist-none'"):
        load_scene_model("nvist-none")
