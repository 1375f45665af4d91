"""The embedded models draw what they drew: weights, networks and samplers belong together."""

import numpy as np
import pytest
from PIL import Image

from tests.drawn import PICTURES, draw, models

MAX_MEAN = 2.0
"""Of the differences of pixels, of 255: bfloat16 would come to half of one, rows taken for columns to fifteen."""


@pytest.mark.slow
@pytest.mark.parametrize("name", models())
def test_an_embedded_model_draws_what_it_drew(name: str) -> None:
    path = PICTURES / f"{name}.png"
    assert path.exists(), f"{name} has no stored picture: python -m tests.drawn {name}, and look at it"
    with Image.open(path) as stored:
        drawn = np.asarray(draw(name), dtype=float)
        assert np.abs(drawn - np.asarray(stored)).mean() <= MAX_MEAN, f"{name} draws something else than {path.name}"


def test_there_are_models_that_draw() -> None:
    assert {path.stem for path in PICTURES.glob("*.png")} == set(models()) >= {"dimr-toybox", "fitv2-toybox"}
