from pathlib import Path

import pytest
import torch
from torch import Tensor

from belvedere.apps.config import OptimizerConfig, load_config
from belvedere.apps.optimizers import Together, make_optimizer
from belvedere.apps.task import Task
from belvedere.apps.tasks import make_task
from belvedere.apps.train import train
from belvedere.errors import InputError
from tests.apps.training_helpers import CONFIG, assert_same, rows, tensors, write_config

MUON = CONFIG["optimizer"] | {"name": "muon"}


def tiny_task(folder: Path) -> Task:
    return make_task(load_config(write_config(folder)))


def one_step(task: Task, config: OptimizerConfig) -> dict[str, Tensor]:
    """Return by how much each parameter changes in one step down a random slope; the task is as it was."""
    torch.manual_seed(3)
    optimizer = make_optimizer(task, config)
    before = {name: value.detach().clone() for name, value in task.model.named_parameters()}
    for parameter in task.model.parameters():
        parameter.grad = torch.randn_like(parameter)
    optimizer.step()
    changes = {name: value.detach() - before[name] for name, value in task.model.named_parameters()}
    with torch.no_grad():
        for name, value in task.model.named_parameters():
            value.copy_(before[name])
    return changes


def test_muon_changes_the_matrices_of_blocks_and_adamw_all_else_as_ever(tmp_path: Path) -> None:
    task = tiny_task(tmp_path)
    muon, adamw = (one_step(task, OptimizerConfig(lr=0.01, name=name)) for name in ("muon", "adamw"))
    other = {name for name in muon if not torch.equal(muon[name], adamw[name])}
    hidden = {name for name in muon if "blocks." in name and muon[name].ndim == 2}
    assert other == hidden and 0 < len(hidden) < len(muon) / 2
    for name in hidden:
        values = torch.linalg.svdvals(muon[name]) / (0.2 * 0.01 * max(muon[name].shape) ** 0.5)
        assert values.min() > 0.5 and values.max() < 1.3, name
        assert torch.linalg.svdvals(adamw[name]).max() > 2 * torch.linalg.svdvals(adamw[name]).min(), name


def test_every_parameter_has_one_optimizer_and_keeps_its_decay(tmp_path: Path) -> None:
    task = tiny_task(tmp_path)
    optimizer = make_optimizer(task, OptimizerConfig(lr=0.01, name="muon", weight_decay=0.25))
    assert isinstance(optimizer, Together)
    decays = {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    assert sum(len(group["params"]) for group in optimizer.param_groups) == len(decays)
    plain = make_optimizer(task, OptimizerConfig(lr=0.01, weight_decay=0.25))
    assert decays == {id(p): group["weight_decay"] for group in plain.param_groups for p in group["params"]}
    assert set(decays.values()) == {0.0, 0.25}


def test_how_much_of_a_network_is_muons() -> None:
    """What docs/training.md says of ``nvist-toybox``."""
    config = load_config("nvist-toybox", ["optimizer.name=muon"])
    task = make_task(config)
    optimizer = make_optimizer(task, config.optimizer)
    hidden = sum(p.numel() for group in optimizer.param_groups if "ns_steps" in group for p in group["params"])
    everything = sum(p.numel() for p in task.model.parameters())
    told = f"{hidden / 1e6:.1f} of {everything / 1e6:.1f} million in `nvist-toybox`"
    assert told in (Path(__file__).parents[2] / "docs/training.md").read_text()


def test_the_learning_rate_of_the_run_is_both_optimizers(tmp_path: Path) -> None:
    task = tiny_task(tmp_path)
    optimizer = make_optimizer(task, OptimizerConfig(lr=0.01, name="muon"))
    before = {name: value.detach().clone() for name, value in task.model.named_parameters()}
    for parameter in task.model.parameters():
        parameter.grad = torch.ones_like(parameter)
    for group in optimizer.param_groups:
        group["lr"] = 0.0
    optimizer.step()
    assert all(torch.equal(value, before[name]) for name, value in task.model.named_parameters())


def test_a_run_with_muon_stopped_and_resumed_is_the_same_run(tmp_path: Path) -> None:
    config = write_config(tmp_path, optimizer=MUON, save_every=5)
    assert train(config, out=tmp_path / "straight") == 0
    middle = tmp_path / "straight/checkpoints/step-00000005"
    assert train(config, out=tmp_path / "resumed", resume=middle) == 0
    assert_same(tensors(tmp_path / "straight", 10), tensors(tmp_path / "resumed", 10))
    assert {name.rpartition("/")[2] for name in tensors(tmp_path / "resumed", 10) if name.startswith("optimizer")} == {
        "momentum_buffer",
        "exp_avg",
        "exp_avg_sq",
        "step",
    }
    assert [row["step"] for row in rows(tmp_path / "resumed")] == [6, 7, 8, 9, 10]


def test_a_run_does_not_change_its_optimizer(tmp_path: Path) -> None:
    train(write_config(tmp_path), out=tmp_path / "run")
    with pytest.raises(InputError, match=r"has optimizer.name 'adamw', not 'muon': change it back or use a new --out"):
        train(write_config(tmp_path, optimizer=MUON, steps=11), out=tmp_path / "run")


def test_muon_says_what_it_is_not_for(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"optimizer\.name muon needs whole matrices: choose adamw, or shard: false"):
        train(write_config(tmp_path, optimizer=MUON, shard=True), out=tmp_path / "run")
    with pytest.raises(InputError, match=r"muon is for the linear layers of blocks, and this network has none"):
        train("toybox-classifier", out=tmp_path / "run", overrides=["optimizer.name=muon"])
    with pytest.raises(InputError, match=r"config optimizer\.name: 'sgd' is not one of adamw, muon"):
        train(write_config(tmp_path, optimizer=CONFIG["optimizer"] | {"name": "sgd"}), out=tmp_path / "run")
    parts = ["finetune.weights=fitv2-toybox", "finetune.train=[head]", "optimizer.name=muon"]
    with pytest.raises(InputError, match=r"this network has none that learn: choose adamw"):
        train("fitv2-toybox", out=tmp_path / "run", overrides=parts)
    assert not (tmp_path / "run").exists()
