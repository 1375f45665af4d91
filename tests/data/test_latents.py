import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from belvedere.data.latents import SCALE, Latents, sample_latents
from belvedere.errors import InputError


def write(folder: Path, counts: tuple[int, ...] = (3, 2), classes: int = 4) -> torch.Tensor:
    """Write shards of random moments; return all of them."""
    moments = torch.randn(sum(counts), 8, 4, 4).half()
    labels = torch.arange(sum(counts)) % 4
    start = 0
    for i, count in enumerate(counts):
        part = slice(start, start + count)
        save_file({"moments": moments[part], "label": labels[part]}, folder / f"shard-{i}.safetensors")
        start += count
    (folder / "classes.json").write_text(json.dumps([f"class {i}" for i in range(classes)]))
    return moments.float()


def test_items_come_from_their_shards(tmp_path: Path) -> None:
    moments = write(tmp_path)
    data = Latents(tmp_path)
    assert len(data) == 5 and data.classes[3] == "class 3"
    batch = data.batch([4, 0, 3])
    assert torch.equal(batch["moments"], moments[[4, 0, 3]])
    assert batch["label"].tolist() == [0, 0, 3] and data[4]["label"] == 0
    with pytest.raises(IndexError):
        data[5]


def test_latents_have_the_moments(tmp_path: Path) -> None:
    moments = torch.cat((torch.full((1, 4, 64, 64), 3.0), torch.full((1, 4, 64, 64), 2.0).log()), 1)
    latents = sample_latents(moments, torch.randn(1, 4, 64, 64, generator=torch.Generator().manual_seed(0)))
    assert latents.mean() / SCALE == pytest.approx(3, abs=0.05)
    assert latents.var() / SCALE**2 == pytest.approx(2, rel=0.05)


def test_folders_of_another_form_are_input_errors(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no latents in"):
        Latents(tmp_path)
    write(tmp_path, classes=2)
    with pytest.raises(InputError, match="beyond the 2 names"):
        Latents(tmp_path)
    (tmp_path / "shard-1.safetensors").write_bytes(b"not safetensors")
    with pytest.raises(InputError, match="cannot be read"):
        Latents(tmp_path)
