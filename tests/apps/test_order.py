import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from belvedere.apps.order import Order, permute


@given(st.integers(1, 3000), st.integers(0, 2**62))
def test_permute_is_a_permutation(size: int, key: int) -> None:
    assert sorted(permute(np.arange(size), size, key)) == list(range(size))


def test_permute_mixes_like_chance() -> None:
    size = 1_000_000
    values = permute(np.arange(size), size, 7)
    assert len(np.unique(values)) == size
    assert abs(np.corrcoef(np.arange(size), values)[0, 1]) < 0.005
    assert (np.abs(np.diff(values)) < size / 100).mean() == pytest.approx(0.02, abs=0.001)
    thirds = np.histogram2d(np.arange(size), values, bins=10)[0]
    assert np.abs(thirds / (size / 100) - 1).max() < 0.06


def test_huge_data_costs_no_more() -> None:
    order = Order(size=2**50, seed=0, batch=64, parts=1)
    assert len(set(order.indices(10**6, 0))) == 64


def test_every_epoch_shows_every_sample_once_in_another_order() -> None:
    order = Order(size=10, seed=3, batch=4, parts=1)
    seen = [index for step in range(5) for index in order.indices(step, 0)]
    assert sorted(seen[:10]) == sorted(seen[10:]) == list(range(10))
    assert seen[:10] != seen[10:]


def test_a_batch_may_be_larger_than_the_data() -> None:
    indices = Order(size=3, seed=0, batch=7, parts=1).indices(1, 0)
    assert len(indices) == 7 and set(indices) == {0, 1, 2}


@pytest.mark.parametrize("parts", [1, 2, 4, 8])
def test_parts_split_the_same_batch(parts: int) -> None:
    order = Order(size=100, seed=1, batch=8, parts=parts)
    whole = Order(size=100, seed=1, batch=8, parts=1).indices(5, 0)
    assert [index for part in range(parts) for index in order.indices(5, part)] == whole
    assert [place for part in range(parts) for place in order.positions(part)] == list(range(8))
