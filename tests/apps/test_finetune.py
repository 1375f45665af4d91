"""Training that begins with given weights: all of a model, some of its parts, or a published file."""

from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import nn

from belvedere.apps.config import load_config
from belvedere.apps.finetune import is_part
from belvedere.apps.tasks import make_task
from belvedere.apps.train import train
from belvedere.checkpoints import store
from belvedere.checkpoints.tensors import read_state_dict
from belvedere.errors import InputError
from tests.apps.training_helpers import assert_same, write_config
from tests.apps.training_systems import write_system

EXPORT = {"dtype": "float32"}


def make(config: str, seed: int, **finetune: Any) -> nn.Module:
    """Return the network that a run of ``seed`` begins with."""
    torch.manual_seed(seed)
    return make_task(load_config(config, [f"finetune.{key}={value}" for key, value in finetune.items()])).model


@pytest.mark.slow
@pytest.mark.parametrize("system", ["dimr", "fitv2", "nvist", "segpic"])
def test_all_of_a_network_goes_on_from_a_model(tmp_path: Path, system: str) -> None:
    config = write_system(system, tmp_path, steps=1, optimizer={"lr": 1e-3}, export=EXPORT)
    assert train(config, out=tmp_path / "run") == 0
    (weights,) = (tmp_path / "run" / "model" / "network").glob("*.safetensors")
    model = make(config, 1, weights=tmp_path / "run" / "model")
    assert_same(read_state_dict(weights), {name: tensor.contiguous() for name, tensor in model.state_dict().items()})
    assert all(parameter.requires_grad for parameter in model.parameters())
    began = tmp_path / "run" / "model"
    assert train(config, out=tmp_path / "more", overrides=[f"finetune.weights={began}"]) == 0
    assert store.card(tmp_path / "more" / "model")["began_with"] == store.digest(began)
    assert "began_with" not in store.card(began)


@pytest.mark.slow
@pytest.mark.parametrize("reset", ["false", "true"])
def test_some_parts_learn(tmp_path: Path, reset: str) -> None:
    config = write_system("nvist", tmp_path, steps=1, optimizer={"lr": 1e-3}, export=EXPORT)
    assert train(config, out=tmp_path / "run") == 0
    weights = tmp_path / "run" / "model"
    given = make(config, 1, weights=weights).state_dict()
    model = make(config, 2, weights=weights, train="[encoder, bias]", reset=reset)
    for name, parameter in model.named_parameters():
        learns = name.startswith("encoder.") or name.endswith("bias")
        assert parameter.requires_grad == learns, name
        if not learns:
            assert torch.equal(parameter, given[name]), name
    kept = all(torch.equal(tensor, given[name]) for name, tensor in model.state_dict().items())
    assert kept == (reset == "false")


@pytest.mark.slow
def test_a_volume_is_resized_where_it_is_asked_for(tmp_path: Path) -> None:
    config = write_system("nvist", tmp_path, steps=1, optimizer={"lr": 1e-3}, export=EXPORT)
    assert train(config, out=tmp_path / "run") == 0
    weights = tmp_path / "run" / "model"
    finer = [f"finetune.weights={weights}", "model.resolution=12", "model.volume_patch=3"]
    with pytest.raises(InputError, match=r"resolution 8 is not the 12 of model; finetune.resize=true"):
        make_task(load_config(config, finer))
    model = make_task(load_config(config, [*finer, "finetune.resize=true"])).model
    given = make(config, 1, weights=weights).state_dict()
    kept = [name for name, tensor in model.state_dict().items() if torch.equal(tensor, given[name])]
    assert {name.rsplit(".", 2)[0] for name in given.keys() - kept} == {
        "decoder.line_heads.linears",
        "decoder.plane_heads.linears",
    }
    with pytest.raises(InputError, match="do not fit"):
        make_task(load_config(config, [*finer, "finetune.resize=true", "model.density=3"]))
    with pytest.raises(InputError, match="new_classes: this network has no table of classes"):
        make(config, 1, weights=weights, new_classes="true")


def write_classes(folder: Path, kind: str) -> list[str]:
    """Write pictures of two classes; return what makes the config of an embedded model one of them."""
    for name in ("left", "right"):
        (folder / name).mkdir(parents=True)
        Image.new("RGB", (64, 64)).save(folder / name / "a.png")
    data = f"data={{kind: folder, path: {folder}, size: 64{', unit: 8' if kind == 'fitv2' else ''}}}"
    return [data, "evaluate_every=0", "model.num_classes=3", f"finetune.weights={kind}-toybox"]


@pytest.mark.parametrize(("kind", "parts"), [pytest.param("dimr", [], marks=pytest.mark.slow), ("fitv2", ["head"])])
def test_other_classes_begin_anew_where_it_is_asked_for(tmp_path: Path, kind: str, parts: list[str]) -> None:
    values = [*write_classes(tmp_path / "pictures", kind), f"finetune.train={parts}"]
    with pytest.raises(InputError, match=r"of 12 classes, not the 2 of model; finetune\.new_classes=true begins"):
        make_task(load_config(f"{kind}-toybox", values))
    model = make_task(load_config(f"{kind}-toybox", [*values, "finetune.new_classes=true"])).model
    given = make(f"{kind}-toybox", 1, weights=f"{kind}-toybox").state_dict()
    for name, parameter in model.named_parameters():
        table = name.endswith("class_embed.weight")
        assert table or torch.equal(parameter, given[name]), name
        assert not table or len(parameter) == 3
        assert parameter.requires_grad == (table or not parts or is_part(name, parts)), name


@pytest.mark.parametrize(
    ("finetune", "message"),
    [
        ({"weights": "no/model"}, "no/model"),
        ({"weights": "dimr-toybox"}, "weights do not fit the config"),
        ({"weights": "dimr-toybox", "resize": "true"}, "finetune.resize: only a model of ours for task nvist"),
        ({"weights": "dimr-toybox", "new_classes": "true"}, "weights do not fit the config"),
        ({"weights": "dimr-toybox", "train": "[tail]"}, "finetune.train: no part 'tail' in this network: choose"),
    ],
)
def test_what_does_not_fit_is_refused(tmp_path: Path, finetune: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        make(write_config(tmp_path), 1, **finetune)


def test_a_task_without_published_weights_is_told() -> None:
    with pytest.raises(InputError, match="finetune: task toybox-classifier has none; it is for dimr, fitv2, nvist"):
        make("toybox-classifier", 1, weights="toybox-classifier")
