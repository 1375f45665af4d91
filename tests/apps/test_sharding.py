"""Checkpoints in any number of parts, and runs whose weights are sharded over two processes."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

import belvedere
from belvedere.apps.average import ShardedEma
from belvedere.apps.sharding import Part, Parts, files_of, fill
from belvedere.apps.task import blocks, cast_weights
from belvedere.errors import InputError
from belvedere.generation.fitv2 import FiTv2
from tests.apps.training_helpers import assert_same, rows
from tests.apps.training_processes import run_one, run_two
from tests.apps.training_systems import FITV2, write_system

STEMS = ("model", "ema", "optimizer", "best")


def tensors(run: Path, step: int) -> dict[str, Tensor]:
    """Return all tensors of a checkpoint, whatever its parts."""
    found = {}
    for stem in STEMS:
        parts = Parts(run / "checkpoints" / f"step-{step:08d}", stem)
        for name in parts.names:
            found[f"{stem}: {name}"] = torch.zeros(parts.shape(name))
            parts.read(name, found[f"{stem}: {name}"])
    return found


def save_parts(folder: Path, tensors: dict[str, Tensor], count: int) -> None:
    """Write ``tensors`` as a run of ``count`` processes does: equal blocks of rows, the last ones shorter or empty."""
    for number in range(count):
        cut = {}
        for name, tensor in tensors.items():
            if tensor.ndim:
                size = -(-len(tensor) // count)
                cut[name] = tensor[number * size : (number + 1) * size].contiguous()
            elif number == 0:
                cut[name] = tensor
        save_file(cut, folder / Part(number, count).file("model"))


@pytest.mark.parametrize("count", [1, 2, 3, 7])
def test_a_tensor_is_its_parts_behind_one_another(tmp_path: Path, count: int) -> None:
    tensors = {"matrix": torch.randn(5, 3), "vector": torch.randn(4), "one": torch.randn(1, 2), "step": torch.tensor(7)}
    save_parts(tmp_path, tensors, count)
    found = {name: torch.zeros_like(tensor) for name, tensor in tensors.items()}
    fill(found, Parts(tmp_path, "model"))
    assert_same(found, tensors)


def test_parts_of_another_model_are_refused(tmp_path: Path) -> None:
    save_parts(tmp_path, {"a": torch.zeros(4, 2), "b": torch.zeros(3)}, 2)
    for own in ({"a": torch.zeros(4, 2)}, {"a": torch.zeros(5, 2), "b": torch.zeros(3)}, {"c": torch.zeros(1)}):
        with pytest.raises(InputError, match=r"another model: tensor '[abc]' is missing or differs"):
            fill(own, Parts(tmp_path, "model"))


def test_a_part_that_is_missing_makes_no_checkpoint() -> None:
    names = ["model-00001-of-00003.safetensors", "model-00003-of-00003.safetensors", "ema.safetensors"]
    assert files_of("model", names) == [] and files_of("optimizer", names) == []
    assert files_of("ema", names) == ["ema.safetensors"]
    assert files_of("model", [*names, "model-00002-of-00003.safetensors"])[1] == "model-00002-of-00003.safetensors"


def test_blocks_are_those_of_the_network() -> None:
    model = FiTv2(**FITV2["model"])
    assert blocks(model) == list(model.blocks) and blocks(nn.Linear(1, 1)) == []


def test_the_frame_of_an_average_has_no_weights_of_its_own() -> None:
    model = FiTv2(**FITV2["model"])
    frame = ShardedEma(model, 0.9, warmup=False).model
    assert all(p.is_meta and not p.requires_grad for p in frame.parameters())
    assert frame.config == model.config and not any(p.is_meta for p in model.parameters())


def test_weights_are_cast_without_a_copy_where_nothing_changes() -> None:
    model = FiTv2(**FITV2["model"])
    same, half = cast_weights(model, "float32"), cast_weights(model, "bfloat16")
    assert same is not model and same.embed.weight.data_ptr() == model.embed.weight.data_ptr()
    assert half.embed.weight.dtype == torch.bfloat16 and model.embed.weight.dtype == torch.float32
    assert torch.equal(half.embed.weight, model.embed.weight.bfloat16())


@pytest.mark.slow
def test_a_sharded_run_is_the_run_of_whole_weights(tmp_path: Path) -> None:
    """Two processes, DDP and shards: also stopped and continued, by two bit for bit, and by one without shards."""
    changes: dict[str, Any] = {"precision": "no", "steps": 6, "save_every": 3, "optimizer": {"lr": 1e-3, "clip": 0.1}}
    early = {"evaluate_every": 3, "held_out": {"seed": 1}, "patience": 3}
    config = write_system("fitv2", tmp_path, **changes | early)
    whole, sharded, again, alone = (tmp_path / name for name in ("whole", "sharded", "again", "alone"))
    run_two(config, whole)
    run_two(config, sharded, "shard=true", "checkpointing=true")
    for key, tolerance in (("loss", 1e-6), ("grad_norm", 1e-5)):
        found, expected = ([row[key] for row in rows(run)] for run in (sharded, whole))
        assert found == pytest.approx(expected, rel=tolerance)
    expected_tensors, found_tensors = tensors(whole, 6), tensors(sharded, 6)
    assert found_tensors.keys() == expected_tensors.keys()
    for name, tensor in found_tensors.items():
        torch.testing.assert_close(tensor, expected_tensors[name], rtol=0, atol=1e-5, msg=name)

    folder = sharded / "checkpoints/step-00000003"
    sizes = [(folder / Part(number, 2).file("model")).stat().st_size for number in range(2)]
    assert 0.8 < sizes[0] / sizes[1] < 1.25 and not (folder / "model.safetensors").exists()
    assert set(json.loads((folder / "manifest.json").read_text())) == {
        *(Part(number, 2).file(stem) for number in range(2) for stem in STEMS),
        "state.json",
    }
    average = {name: value for name, value in found_tensors.items() if name.startswith("ema")}
    network = belvedere.load(sharded / "model").network
    assert_same({f"ema: {name}": value for name, value in network.state_dict().items()}, average)
    assert (sharded / "sheets/step-00000006.png").is_file()

    run_two(config, again, "shard=true", "checkpointing=true", "--resume", str(folder))
    assert_same(tensors(again, 6), found_tensors)
    run_one(config, alone, "--resume", str(folder))
    assert [row["loss"] for row in rows(alone)] == pytest.approx([row["loss"] for row in rows(whole)][3:], rel=1e-5)
    assert "model.safetensors" in {path.name for path in (alone / "checkpoints/step-00000006").iterdir()}
