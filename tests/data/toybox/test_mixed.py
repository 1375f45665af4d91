"""Toys of many sizes: which item has which, and that it is the toy of ``Toybox``."""

from typing import Any

import numpy as np
import pytest
import torch

from belvedere.data.ragged import unpack_images
from belvedere.data.toybox import KINDS, Toybox
from belvedere.data.toybox.mixed import MixedToybox
from belvedere.errors import InputError

SIZES = [[16, 24], [16, 16], [32, 8]]


@pytest.fixture(scope="module")
def toys() -> MixedToybox:
    return MixedToybox(SIZES, seed=3, length=3000, samples=1)


def test_an_item_is_the_toy_of_its_size(toys: MixedToybox) -> None:
    for i in range(8):
        item, other = toys[i], Toybox(toys.size_of(i), seed=3, samples=1)[i]
        assert torch.equal(item["image"], other["image"])
        assert (item["label"], item["caption"]) == (other["label"], other["caption"])


def test_a_batch_is_its_items(toys: MixedToybox) -> None:
    indices = [7, 0, 2999, 7, 3, 12, 5]
    items, batch = [toys[i] for i in indices], toys.batch(indices)
    assert len({toys.size_of(i) for i in indices}) == 3
    assert batch["size"].tolist() == [list(toys.size_of(i)) for i in indices]
    assert batch["label"].tolist() == [item["label"] for item in items] and batch["label"].dtype == torch.int64
    for image, item in zip(unpack_images(batch["image"], batch["size"], 3), items, strict=True):
        assert torch.equal(image, item["image"])


def test_it_has_the_form_of_the_protocol(toys: MixedToybox) -> None:
    assert toys.classes == KINDS and len(toys) == 3000
    empty = toys.batch([])
    assert [empty[name].shape for name in ("image", "size", "label")] == [(0,), (0, 2), (0,)]


def test_the_size_is_by_seed_and_index_alone(toys: MixedToybox) -> None:
    """Numpy's numbers are numbers."""
    sizes = [toys.size_of(i) for i in range(100)]
    other = MixedToybox(SIZES, seed=3, length=100, kinds=("castle", "mug"), samples=9)
    assert [other.size_of(i) for i in range(100)] == sizes
    assert [MixedToybox(SIZES, seed=np.int64(3)).size_of(i) for i in np.arange(100)] == sizes
    assert [MixedToybox(SIZES, seed=4).size_of(i) for i in range(100)] != sizes


def test_a_size_named_twice_comes_twice_as_often_in_every_kind() -> None:
    toys = MixedToybox([[64, 64], [32, 32], [64, 64]])
    large = torch.tensor([toys.size_of(i) == (64, 64) for i in range(12_000)]).view(-1, 12).double()
    assert large.mean().item() == pytest.approx(2 / 3, abs=0.015)
    assert (large.mean(0) - 2 / 3).abs().max() < 0.05


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: MixedToybox([]), "toybox sizes must be a list of [height, width], not []"),
        (lambda: MixedToybox("64x64"), "a list of [height, width], not '64x64'"),
        (lambda: MixedToybox([64, 64]), "a list of [height, width], not [64, 64]"),
        (lambda: MixedToybox(64), "a list of [height, width], not 64"),
        (lambda: MixedToybox([[64]]), "one number or (height, width)"),
        (lambda: MixedToybox([[64, 64], [64, 7]]), "size must be from 8 to 1024, not 7"),
        (lambda: MixedToybox([[64, 64.0]]), "size must be a whole number, not 64.0"),
        (lambda: MixedToybox(SIZES, kinds=("dragon",)), "unknown toybox kind 'dragon'"),
        (lambda: MixedToybox(SIZES, seed=0.5), "seed must be a whole number"),
        (lambda: MixedToybox(SIZES, length=5)[5], "index must be from 0 to 4, not 5"),
        (lambda: MixedToybox(SIZES, length=5).batch([0, -1]), "index must be from 0 to 4, not -1"),
        (lambda: MixedToybox(SIZES).batch([1.5]), "index must be a whole number"),
    ],
)
def test_bad_input_is_refused_in_one_line(make: Any, message: str) -> None:
    with pytest.raises(InputError) as error:
        make()
    assert message in str(error.value) and "\n" not in str(error.value)
