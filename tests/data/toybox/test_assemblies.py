"""Assemblies: parts at random, which are no toys, so that nothing asks for them by accident."""

import numpy as np
import pytest
import torch

from belvedere.data.toybox import HELD_OUT, KINDS, Toybox
from belvedere.data.toybox.kinds import ASSEMBLIES
from belvedere.data.toybox.scene import build
from belvedere.data.toybox.shapes import BALL, COLOR, RING


@pytest.mark.parametrize("kind", ASSEMBLIES)
def test_every_assembly_stands_on_the_ground_in_at_most_as_many_parts_as_a_toy(kind: str) -> None:
    scenes = build(1, range(60), (kind,))
    counts = np.bincount(scenes.owner, minlength=60)
    assert counts.min() >= 2 and counts.max() <= 21 and len(set(counts)) > 5
    axes = scenes.prims[:, 4:13].reshape(-1, 3, 3)
    assert (np.abs(np.linalg.det(axes)) > 1e-6).all()
    colors = scenes.prims[:, COLOR]
    assert (colors >= 0).all() and (colors <= 1).all()
    round_ = np.isin(scenes.prims[:, 0], (BALL, RING))
    reach = np.where(round_, np.sqrt((axes[:, 1] ** 2).sum(1)), np.abs(axes[:, 1]).sum(1))
    lowest = np.array([(scenes.prims[:, 2] - reach)[scenes.owner == i].min() for i in range(60)])
    assert (lowest < 0.1).all() and lowest.min() > -0.5


def test_they_are_neither_trained_on_unasked_nor_among_the_unseen_kinds() -> None:
    assert not set(ASSEMBLIES) & set(KINDS + HELD_OUT)
    assert Toybox(16).classes == KINDS


def test_they_are_pictures_like_others() -> None:
    toys = Toybox(16, kinds=tuple(ASSEMBLIES), samples=1)
    pictures = toys.batch(range(12))["image"]
    assert len({picture.numpy().tobytes() for picture in pictures}) == 12
    assert torch.equal(toys[4]["image"], pictures[4])
    assert (pictures.flatten(1).std(1) > 0.05).all()
