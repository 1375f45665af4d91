"""Strokes become importance; whatever else comes is refused."""

from typing import Any

import numpy as np
import pytest

from belvedere.apps.web.strokes import MAX_POINTS, MAX_STROKES, importance
from belvedere.errors import InputError


def test_nothing_painted_is_no_importance() -> None:
    assert importance([], (10, 10)) is None
    assert importance(None, (10, 10)) is None


def test_a_dot_is_a_disc_and_a_stroke_has_round_ends() -> None:
    dot = importance([{"radius": 0.1, "points": [[0.5, 0.5]]}], (200, 100))
    assert dot is not None and dot.shape == (100, 200) and dot.dtype == np.float32
    assert dot.sum() == pytest.approx(np.pi * 20**2, rel=0.06)
    line = importance([{"radius": 0.05, "points": [[0.25, 0.5], [0.75, 0.5]]}], (200, 100))
    assert line is not None
    assert line[50, 50:151].all() and line[50, 42] and not line[50, 36] and not line[35, 100]
    assert set(np.unique(line)) == {0.0, 1.0}


@pytest.mark.parametrize(
    "strokes",
    [
        "all",
        [1],
        [{}],
        [{"radius": 0.1}],
        [{"radius": 2, "points": [[0, 0]]}],
        [{"radius": True, "points": [[0, 0]]}],
        [{"radius": 0.1, "points": []}],
        [{"radius": 0.1, "points": [[0, float("nan")]]}],
        [{"radius": 0.1, "points": [[0, 0, 0]]}],
        [{"radius": 0.1, "points": [["0", 0]]}],
        [{"radius": 0.1, "points": [[0, 0]]}] * (MAX_STROKES + 1),
        [{"radius": 0.1, "points": [[0, 0]] * (MAX_POINTS // 2)}] * 3,
    ],
)
def test_whatever_is_no_list_of_strokes_is_refused(strokes: Any) -> None:
    with pytest.raises(InputError):
        importance(strokes, (10, 10))
