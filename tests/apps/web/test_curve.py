"""The curve of a loss: every value in its place, and a mean that starts with the first."""

import re

import pytest

from belvedere.apps.web.curve import BOTTOM, HEIGHT, LEFT, TOP, WIDTH, loss_curve, running_mean


def test_fewer_than_two_values_are_no_curve() -> None:
    assert loss_curve([], 10) == loss_curve([(1, 0.5)], 10) == ""


def test_values_lie_where_they_belong() -> None:
    svg = loss_curve([(0, 1.0), (50, 0.5), (100, 0.0)], 100)
    points = re.findall(r'points="([^"]*)"', svg)[0].split()
    middle = (TOP + HEIGHT - BOTTOM) / 2
    assert points == [
        f"{LEFT}.0,{TOP}.0",
        f"{(LEFT + WIDTH - 4) / 2:.1f},{middle:.1f}",
        f"{WIDTH - 4}.0,{HEIGHT - BOTTOM}.0",
    ]
    assert ">1.00<" in svg and ">0.00<" in svg and "100 steps" in svg


def test_the_mean_weighs_what_there_is() -> None:
    assert running_mean([(1, 3.0)]) == [3.0]
    assert running_mean([(1, 1.0), (2, 1.0), (3, 1.0)]) == pytest.approx([1.0, 1.0, 1.0])
    low, high = running_mean([(1, 0.0), (2, 1.0)])
    assert low == 0 and high == pytest.approx(0.2 / 0.36)
