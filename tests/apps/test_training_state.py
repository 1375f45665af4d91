import json
from pathlib import Path

import pytest
import torch
from torch import nn

from belvedere.apps.average import Ema
from belvedere.apps.training_state import (
    Progress,
    RunState,
    atomic_directory,
    checkpoints,
    last_good,
    prune,
    seal,
    verify,
)
from belvedere.errors import InputError


def make_state(width: int = 3) -> RunState:
    """Return the state of a small model after one step."""
    model = nn.Sequential(nn.Linear(2, width), nn.BatchNorm1d(width))
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, fused=True)
    model(torch.randn(5, 2)).square().sum().backward()
    optimizer.step()
    ema = Ema(model, 0.9, warmup=False)
    return RunState(model, ema, optimizer, Progress(step=7, bad_steps=1, seconds=2.5, loss=0.25))


def test_the_average_is_its_equation() -> None:
    model = nn.Linear(3, 3)
    ema = Ema(model, 0.8, warmup=True)
    expected = model.weight.detach().clone().double()
    for step in range(30):
        with torch.no_grad():
            model.weight.add_(torch.randn(3, 3))
        ema.update(step)
        decay = min(0.8, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * model.weight.detach().double()
    torch.testing.assert_close(ema.model.weight.double(), expected, rtol=1e-5, atol=1e-6)
    assert not ema.model.weight.requires_grad


def test_a_state_comes_back_whole(tmp_path: Path) -> None:
    torch.manual_seed(0)
    saved = make_state()
    directory = saved.save(tmp_path, {"task": "none"})
    assert verify(directory) is None and last_good(tmp_path) == directory
    assert {path.name for path in directory.iterdir()} == {
        "model.safetensors",
        "ema.safetensors",
        "optimizer.safetensors",
        "state.json",
        "manifest.json",
    }
    other = make_state()
    other.load(directory)
    assert other.progress == saved.progress
    for mine, theirs in zip(other.model.parameters(), saved.model.parameters(), strict=True):
        assert torch.equal(mine, theirs)
        for slot, value in saved.optimizer.state[theirs].items():
            assert torch.equal(other.optimizer.state[mine][slot], value)
    for name, value in saved.ema.model.state_dict().items():
        assert torch.equal(other.ema.model.state_dict()[name], value)


def test_a_checkpoint_of_another_model_is_refused(tmp_path: Path) -> None:
    directory = make_state(3).save(tmp_path, {})
    with pytest.raises(InputError, match=r"another model: tensor '0\.bias' is missing or differs"):
        make_state(4).load(directory)


@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.safetensors", "state.json", "manifest.json"])
def test_damage_is_found(tmp_path: Path, name: str) -> None:
    older = make_state().save(tmp_path, {})
    state = make_state()
    state.progress.step = 8
    newer = state.save(tmp_path, {})
    content = (newer / name).read_bytes()
    (newer / name).write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    told: list[str] = []
    assert last_good(tmp_path, told.append) == older and len(told) == 1
    (newer / name).unlink()
    assert last_good(tmp_path) == older


@pytest.mark.parametrize(
    "manifest", ["[]", "{}", "{}x", '{"../x": {"bytes": 1, "sha256": ""}}', '{"state.json": 3}', "null"]
)
def test_a_foreign_manifest_is_no_checkpoint(tmp_path: Path, manifest: str) -> None:
    directory = make_state().save(tmp_path, {})
    (tmp_path / "x").write_text("x")
    (directory / "manifest.json").write_text(manifest)
    assert verify(directory) is not None


def test_a_block_that_fails_leaves_the_old_directory(tmp_path: Path) -> None:
    target = tmp_path / "step-00000001"
    with atomic_directory(target) as directory:
        (directory / "a").write_text("old")
    with pytest.raises(KeyboardInterrupt), atomic_directory(target) as directory:
        (directory / "a").write_text("new")
        raise KeyboardInterrupt
    assert [path.name for path in tmp_path.iterdir()] == [target.name] and (target / "a").read_text() == "old"
    with atomic_directory(target) as directory:
        (directory / "a").write_text("new")
    assert [path.name for path in tmp_path.iterdir()] == [target.name] and (target / "a").read_text() == "new"


def test_old_checkpoints_and_leftovers_go(tmp_path: Path) -> None:
    for step in (1, 2, 10, 100_000_000):
        (tmp_path / f"step-{step:08d}").mkdir()
    (tmp_path / ".step-00000011.abcd.tmp").mkdir()
    (tmp_path / "step-notes").mkdir()
    prune(tmp_path, 2)
    assert [path.name for path in checkpoints(tmp_path)] == ["step-00000010", "step-100000000"]
    assert not (tmp_path / ".step-00000011.abcd.tmp").exists() and (tmp_path / "step-notes").exists()


def test_seal_covers_every_file(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("a")
    seal(tmp_path)
    assert json.loads((tmp_path / "manifest.json").read_text())["a"]["bytes"] == 1
