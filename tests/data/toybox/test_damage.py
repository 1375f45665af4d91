import pytest
import torch

from belvedere.data.toybox import Toybox
from belvedere.data.toybox.damage import blur, bury, damage, melt, recolour, shuffle, smear
from belvedere.seeds import BatchRng

WAYS = [recolour, damage, shuffle, melt, smear, bury, blur]
TOYS = Toybox(32, samples=1).batch(range(24))["image"]


@pytest.mark.parametrize("way", WAYS, ids=lambda f: f.__name__)
def test_a_picture_depends_on_its_own_numbers_alone(way) -> None:  # type: ignore[no-untyped-def]
    together = way(TOYS, BatchRng(3, 7, range(24)))
    alone = way(TOYS[5:6], BatchRng(3, 7, [5]))
    assert together.shape == TOYS.shape and together.isfinite().all()
    torch.testing.assert_close(alone[0], together[5], rtol=1e-5, atol=1e-6)
    assert not torch.equal(way(TOYS, BatchRng(3, 8, range(24))), together)


@pytest.mark.parametrize("way", WAYS[1:], ids=lambda f: f.__name__)
def test_every_picture_is_damaged(way) -> None:  # type: ignore[no-untyped-def]
    assert ((way(TOYS, BatchRng(0, 0, range(24))) - TOYS).abs().mean((1, 2, 3)) > 0.01).all()


def test_shuffle_only_moves_pixels() -> None:
    mixed = shuffle(TOYS, BatchRng(0, 0, range(24)))
    assert torch.equal(mixed.flatten(2).sort(2).values, TOYS.flatten(2).sort(2).values)
    assert (mixed != TOYS).flatten(1).any(1).all()


def test_damage_uses_every_way_and_stays_in_range() -> None:
    rng = BatchRng(1, 2, range(24))
    damaged = damage(TOYS, rng)
    assert damaged.abs().max() <= 1
    for way in WAYS[2:]:
        same = (way(TOYS, rng).clamp(-1, 1) == damaged).flatten(1).all(1)
        assert 0 < same.sum() < 24
