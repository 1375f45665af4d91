"""The Toybox as a dataset: purity, balance, what a sample carries, and what it refuses."""

from typing import Any

import numpy as np
import pytest
import torch

from belvedere.data.toybox import HELD_OUT, KINDS, Toybox
from belvedere.data.toybox.views import ToyboxViews
from belvedere.errors import InputError

ALL = KINDS + HELD_OUT


def test_the_kinds() -> None:
    trained = "car boat plane rocket house tree mushroom lamp chair table mug robot"
    assert tuple(trained.split()) == KINDS and HELD_OUT == ("castle", "train")


def test_a_batch_has_the_form_of_the_protocol() -> None:
    toys = Toybox((16, 24), length=50)
    batch = toys.batch(range(26))
    assert toys.classes == KINDS and len(toys) == 50
    assert batch["image"].shape == (26, 3, 16, 24) and batch["image"].dtype == torch.float32
    assert batch["image"].min() >= -1 and batch["image"].max() <= 1
    assert batch["label"].dtype == torch.int64
    for start in (0, 5, 14):
        assert sorted(batch["label"][start : start + 12].tolist()) == list(range(12))
    assert toys.batch([])["image"].shape == (0, 3, 16, 24)


def test_a_picture_is_the_same_bits_alone_and_in_company() -> None:
    toys = Toybox(32, seed=3, kinds=ALL)
    together = toys.batch(range(42))["image"]
    for i in (0, 9, 25, 41):
        assert torch.equal(together[i], toys.batch([i])["image"][0])
    assert torch.equal(toys.batch([5, 9])["image"][1], toys[9]["image"])


def test_the_number_of_threads_changes_no_bit() -> None:
    toys, before = Toybox(32, kinds=ALL), torch.get_num_threads()
    pictures = []
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            pictures.append(toys.batch(range(14))["image"])
    finally:
        torch.set_num_threads(before)
    assert torch.equal(*pictures)


def test_seed_and_index_make_the_picture() -> None:
    toys = Toybox(32)
    a, again, next_same_kind = (toys.batch([i])["image"] for i in (4, 4, 16))
    assert torch.equal(a, again)
    assert (a - next_same_kind).abs().mean() > 0.02
    assert (a - Toybox(32, seed=1).batch([4])["image"]).abs().mean() > 0.02


def test_the_world_has_not_changed() -> None:
    """Mean colours of the first twelve pictures of seed 0: trained weights and their figures rest on them."""
    means = Toybox(64).batch(range(12))["image"].mean((2, 3))
    expected = torch.tensor(WORLD)
    assert (means - expected).abs().max() < 2e-3


@pytest.mark.parametrize("kind", ALL)
def test_every_kind_shows_a_toy_of_fair_size_in_several_parts(kind: str) -> None:
    toys = Toybox(32, seed=7, kinds=(kind,))
    for i in range(8):
        regions = toys.sample(i)["regions"][0]
        assert 0.12 < (regions >= 2).float().mean() < 0.8
        assert len(regions[regions >= 2].unique()) >= 4


def test_a_sample_carries_everything_in_one_form() -> None:
    toys = Toybox(64, kinds=ALL)
    sample = toys.sample(13, size=(48, 96), views=3)
    assert sample["image"].shape == (3, 3, 48, 96)
    assert sample["regions"].shape == sample["depth"].shape == (3, 48, 96)
    assert sample["regions"].dtype == torch.int64 and sample["depth"].dtype == torch.float32
    assert sample["label"] == 13 and " train on " in sample["caption"]
    assert torch.equal(sample["intrinsics"], torch.tensor([[96.0, 0, 48], [0, 96, 24], [0, 0, 1]]).double())
    assert torch.equal(torch.isinf(sample["depth"]), sample["regions"] == 0)
    assert (sample["depth"] > 0).all()
    assert torch.equal(sample["image"][0], Toybox((48, 96), kinds=ALL)[13]["image"])


def test_a_view_does_not_depend_on_how_many_are_asked() -> None:
    toys = Toybox(24)
    few, many = toys.sample(2, views=2), toys.sample(2, views=4)
    for name in ("image", "depth", "regions", "camera_to_world"):
        assert torch.equal(few[name], many[name][:2])
    turned = [np.arctan2(pose[0, 2], pose[2, 2]) for pose in many["camera_to_world"].numpy()]
    assert len({round(a, 3) for a in turned}) == 4


def lifted(sample: dict[str, Any], view: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the world points (k, 3) of a view's finite pixels and their regions."""
    depth, k = sample["depth"][view].double(), sample["intrinsics"]
    row, column = torch.nonzero(torch.isfinite(depth), as_tuple=True)
    z = depth[row, column]
    x, y = (column + 0.5 - k[0, 2]) / k[0, 0] * z, (row + 0.5 - k[1, 2]) / k[1, 1] * z
    pose = sample["camera_to_world"][view]
    return torch.stack([x, y, z], 1) @ pose[:3, :3].T + pose[:3, 3], sample["regions"][view][row, column]


@pytest.mark.parametrize("index", [0, 3, 4, 8, 10, 12])
def test_a_point_seen_in_one_view_is_where_the_other_view_says(index: int) -> None:
    sample = Toybox(128, kinds=ALL).sample(index, views=9)
    points, regions = lifted(sample, 0)
    other = 8  # 20 degrees around, modulo the whole turn
    pose, k = sample["camera_to_world"][other], sample["intrinsics"]
    seen = (points - pose[:3, 3]) @ pose[:3, :3]
    pixel = (seen @ k.T)[:, :2] / seen[:, 2:]
    inside = ((pixel > 0.5) & (pixel < 127.5)).all(1)
    corner, share = (pixel[inside] - 0.5).floor().long(), (pixel[inside] - 0.5) % 1
    nearness, same = torch.zeros(len(corner)).double(), torch.ones(len(corner)).bool()
    for i, j in ((0, 0), (0, 1), (1, 0), (1, 1)):  # 1 / depth is linear in the pixel on a plane
        weight = (share[:, 0] if i else 1 - share[:, 0]) * (share[:, 1] if j else 1 - share[:, 1])
        at = (other, corner[:, 1] + j, corner[:, 0] + i)
        nearness += weight / sample["depth"][at].double()
        same &= sample["regions"][at] == regions[inside]
    before = (1 / seen[inside, 2] - nearness)[same]  # > 0: it floats before what is seen there
    ground = regions[inside][same] == 1
    assert ground.sum() > 500 and (~ground).sum() > 150
    assert before[ground].abs().max() < 1e-5
    assert (before[~ground] > 2e-3).double().mean() < 0.02
    assert (before[~ground].abs() < 2e-3).double().mean() > 0.5


def test_the_ground_is_at_height_nought() -> None:
    points, regions = lifted(Toybox(64).sample(1, views=1), 0)
    assert points[regions == 1][:, 1].abs().max() < 1e-4
    assert points[regions >= 2][:, 1].max() > 0.5


@pytest.mark.parametrize("size", [8, (8, 200), (131, 9), (1024, 8)])
def test_any_size_and_aspect(size: int | tuple[int, int]) -> None:
    height, width = (size, size) if isinstance(size, int) else size
    picture = Toybox(size, samples=2).batch([6])["image"]
    assert picture.shape == (1, 3, height, width) and torch.isfinite(picture).all()


def test_more_samples_only_smooth_the_edges() -> None:
    rough, fine = (Toybox(64, samples=n).batch(range(12))["image"] for n in (4, 36))
    assert (rough - fine).abs().mean() < 0.02


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Toybox(7), "size must be from 8 to 1024, not 7"),
        (lambda: Toybox(1025), "size must be from 8 to 1024"),
        (lambda: Toybox((64, 2000)), "size must be from 8 to 1024"),
        (lambda: Toybox((64, 64, 3)), "one number or (height, width)"),  # type: ignore[arg-type]
        (lambda: Toybox(64.0), "size must be a whole number, not 64.0"),  # type: ignore[arg-type]
        (lambda: Toybox(True), "whole number"),
        (lambda: Toybox("64"), "whole number"),  # type: ignore[arg-type]
        (lambda: Toybox(samples=0), "samples must be from 1 to 64"),
        (lambda: Toybox(length=0), "length must be from 1"),
        (lambda: Toybox(seed=0.5), "seed must be a whole number"),  # type: ignore[arg-type]
        (lambda: Toybox(kinds=("car", "dragon")), "unknown toybox kind 'dragon'"),
        (lambda: Toybox(kinds="dragon"), "unknown toybox kind 'dragon'"),
        (lambda: Toybox(kinds=()), "kinds is empty"),
        (lambda: Toybox(kinds=("car", "car")), "twice"),
        (lambda: Toybox(device="toaster"), "device 'toaster' is none"),
        (lambda: Toybox(length=5)[5], "index must be from 0 to 4, not 5"),
        (lambda: Toybox(length=5)[-1], "index must be from 0 to 4, not -1"),
        (lambda: Toybox(length=5).batch([0, 9]), "index must be from 0 to 4, not 9"),
        (lambda: Toybox()[1.5], "index must be a whole number"),  # type: ignore[index]
        (lambda: Toybox().sample(0, views=0), "views must be from 1 to 256"),
        (lambda: Toybox().sample(0, size=4), "size must be from 8"),
        (lambda: Toybox().sample(-2), "index must be from 0"),
    ],
)
def test_bad_input_is_refused_in_one_line(make: Any, message: str) -> None:
    with pytest.raises(InputError) as error:
        make()
    assert message in str(error.value) and "\n" not in str(error.value)


def test_iteration_ends_after_the_last_item() -> None:
    assert [item["label"] for item in Toybox(8, length=3)] == [0, 1, 2]
    assert len(list(ToyboxViews(8, spread=(9.0,), length=2))) == 2


def test_numpy_and_tensor_indices_work() -> None:
    toys = Toybox(16)
    assert torch.equal(toys[np.int64(3)]["image"], toys[3]["image"])
    assert torch.equal(toys.batch(torch.tensor([3]).tolist())["image"][0], toys[3]["image"])


WORLD = [
    [0.4074, 0.4479, 0.4971],
    [0.1722, 0.4030, 0.6050],
    [0.3925, 0.4971, 0.4874],
    [0.6696, 0.5293, 0.6431],
    [0.4455, 0.3317, 0.3538],
    [0.2648, 0.2944, 0.0953],
    [0.7318, 0.2497, 0.1457],
    [0.5519, 0.5011, 0.4554],
    [0.5107, 0.3325, 0.0886],
    [0.5199, 0.5459, 0.2990],
    [0.3804, 0.0890, -0.0178],
    [0.6888, 0.6280, 0.4215],
]


@pytest.mark.parametrize("index", [1, 28, 61])
def test_pointed_blocks_are_finite_beside_themselves_too(index: int) -> None:
    assert Toybox((32, 24), seed=2)[index]["image"].isfinite().all()
