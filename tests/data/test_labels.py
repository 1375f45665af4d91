"""Labels of one dataset in the numbers of another."""

import pytest

from belvedere.data.labels import Relabelled
from belvedere.data.toybox import Toybox


def test_labels_count_other_classes() -> None:
    toys = Toybox(16, kinds=("mug", "car"))
    asked = Relabelled(toys, ("boat", "car", "tree", "mug"))
    assert len(asked) == len(toys)
    assert asked.batch(range(4))["label"].tolist() == [3, 1, 3, 1] == [asked[i]["label"] for i in range(4)]
    assert asked[1]["image"].equal(toys[1]["image"]) and asked.batch([1])["image"].equal(toys.batch([1])["image"])


def test_classes_that_are_not_among_them_are_refused() -> None:
    with pytest.raises(ValueError):
        Relabelled(Toybox(16, kinds=("mug",)), ("boat",))
