import json
from collections.abc import Callable
from pathlib import Path

import diffusers
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from belvedere.data import Dataset
from belvedere.data.latents import (
    SCALE,
    Latents,
    MixedLatents,
    check_scale,
    mixed_shard,
    sample_latents,
    sample_mixed_latents,
)
from belvedere.data.ragged import unpack_images
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


def test_only_autoencoders_of_this_scale_fit() -> None:
    sizes = {"block_out_channels": (8,), "norm_num_groups": 4}
    check_scale(diffusers.AutoencoderKL(**sizes))
    for other in ({"scaling_factor": 0.13025}, {"shift_factor": 0.1}):
        with pytest.raises(InputError, match=r"scales latents by .*, training by 0\.18215: use Stable Diffusion's"):
            check_scale(diffusers.AutoencoderKL(**sizes, **other))


def test_folders_of_another_form_are_input_errors(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no latents in"):
        Latents(tmp_path)
    write(tmp_path, classes=2)
    with pytest.raises(InputError, match="beyond the 2 names"):
        Latents(tmp_path)
    (tmp_path / "shard-1.safetensors").write_bytes(b"not safetensors")
    with pytest.raises(InputError, match="cannot be read"):
        Latents(tmp_path)
    (tmp_path / "classes.json").write_text('{"car": 0}')
    with pytest.raises(InputError, match=r"classes\.json cannot be read: not a list of names"):
        Latents(tmp_path)


def test_shards_of_several_sizes_are_input_errors(tmp_path: Path) -> None:
    write(tmp_path)
    shard = {"moments": torch.zeros(1, 8, 4, 2), "label": torch.zeros(1, dtype=torch.int64)}
    save_file(shard, tmp_path / "shard-2.safetensors")
    with pytest.raises(InputError, match=r"shard-2\.safetensors cannot be read: .* not \(n, 2 c, h, w\) of one size"):
        Latents(tmp_path)


def test_an_unfinished_folder_is_named(tmp_path: Path) -> None:
    write(tmp_path)
    (tmp_path / "classes.json").rename(tmp_path / "prepare.json")
    with pytest.raises(InputError, match="not complete: continue 'belvedere train prepare'"):
        Latents(tmp_path)


SIZES = [(4, 6), (2, 2), (8, 1), (4, 6), (1, 3)]


def write_mixed(folder: Path, damage: Callable[[dict[str, Tensor]], object] = lambda shard: None) -> list[Tensor]:
    """Write shards of three and two items, the second after ``damage``; return the moments of all."""
    moments = [torch.randn(8, *size).half() for size in SIZES]
    for i, part in enumerate((range(3), range(3, 5))):
        shard = mixed_shard([moments[item] for item in part], torch.tensor(part))
        if i:
            damage(shard)
        save_file(shard, folder / f"shard-{i}.safetensors")
    (folder / "classes.json").write_text(json.dumps([f"class {i}" for i in range(5)]))
    return [item.float() for item in moments]


def test_mixed_items_come_from_their_shards(tmp_path: Path) -> None:
    moments = write_mixed(tmp_path)
    data: Dataset = MixedLatents(tmp_path)
    assert len(data) == 5 and data.classes[3] == "class 3" and MixedLatents(tmp_path).channels == 4
    for i in range(5):
        assert torch.equal(data[i]["moments"], moments[i]) and data[i]["label"] == i
    batch = data.batch([4, 0, 3])
    assert batch["label"].tolist() == [4, 0, 3] and batch["size"].tolist() == [[1, 3], [4, 6], [4, 6]]
    assert batch["moments"].dtype == torch.float32
    for found, i in zip(unpack_images(batch["moments"], batch["size"], 8), (4, 0, 3), strict=True):
        assert torch.equal(found, moments[i])


def test_an_item_that_weighs_two_is_there_twice(tmp_path: Path) -> None:
    moments = write_mixed(tmp_path, lambda shard: shard.update(weight=torch.tensor([2, 1])))
    data = MixedLatents(tmp_path)
    assert data.batch(range(len(data)))["label"].tolist() == [0, 1, 2, 3, 3, 4]
    assert all(torch.equal(data[i]["moments"], moments[j]) for i, j in enumerate([0, 1, 2, 3, 3, 4]))


def test_an_empty_shard_is_passed_over(tmp_path: Path) -> None:
    moments = write_mixed(tmp_path)
    save_file(mixed_shard([], torch.tensor([], dtype=torch.int64)), tmp_path / "a.safetensors")
    assert torch.equal(MixedLatents(tmp_path)[4]["moments"], moments[4])
    for path in tmp_path.glob("shard-*"):
        path.unlink()
    with pytest.raises(InputError, match="not one item"):
        MixedLatents(tmp_path)


def test_mixed_latents_are_drawn_like_those_of_one_size(tmp_path: Path) -> None:
    write_mixed(tmp_path)
    batch = MixedLatents(tmp_path).batch(range(5))
    noise = [torch.randn(4, *size) for size in SIZES]
    latents = sample_mixed_latents(batch["moments"], batch["size"], noise)
    moments = unpack_images(batch["moments"], batch["size"], 8)
    for found, item, one in zip(unpack_images(latents, batch["size"], 4), moments, noise, strict=True):
        assert torch.equal(found, sample_latents(item[None], one[None])[0])


def change(name: str, place: int | tuple[int, int], value: int) -> Callable[[dict[str, Tensor]], object]:
    return lambda shard: shard[name].__setitem__(place, value)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda s: s.pop("offset"), "offset"),
        (lambda s: s.update(size=s["size"][:1].clone()), r"size is I64 \[1, 2\], not integers of shape \[2, 2\]"),
        (lambda s: s.update(size=s["size"].float()), "size is F32"),
        (lambda s: s.update(label=s["label"][:, None]), "label is I64"),
        (lambda s: s.update(moments=s["moments"].int()), "moments are I32"),
        (lambda s: s.update(moments=s["moments"][:, None]), "not flat with size and offset"),
        (lambda s: s.update(moments=s["moments"][:-8].clone()), "offset does not run from 0 to 208"),
        (change("offset", 0, 8), "offset does not run"),
        (change("offset", 1, -8), "offset does not run"),
        (change("offset", 1, 1 << 62), "offset does not run"),
        (change("offset", 1, 200), "offset does not leave 2 c moments"),
        (change("size", (0, 0), 2), "offset does not leave"),
        (change("size", (1, 1), 0), "size has sides outside"),
        (change("size", (1, 1), 1 << 62), "size has sides outside"),
        (lambda s: s.update(weight=torch.tensor([1, 3])), "weight has numbers other than 1 and 2"),
        (lambda s: s.update(weight=torch.tensor([1, 2, 1])), r"weight is I64 \[3\], not integers of shape \[2\]"),
        (change("label", 1, 5), "labels go beyond the 5 names"),
        (change("label", 1, -1), "labels go beyond"),
    ],
)
def test_a_shard_that_contradicts_itself_is_refused(
    tmp_path: Path, damage: Callable[[dict[str, Tensor]], object], message: str
) -> None:
    write_mixed(tmp_path, damage)
    with pytest.raises(InputError, match=message):
        MixedLatents(tmp_path)


def test_one_form_does_not_pass_for_the_other(tmp_path: Path) -> None:
    write_mixed(tmp_path)
    with pytest.raises(InputError, match="cannot be read"):
        Latents(tmp_path)
    for path in tmp_path.iterdir():
        path.unlink()
    write(tmp_path)
    with pytest.raises(InputError, match="not flat"):
        MixedLatents(tmp_path)
