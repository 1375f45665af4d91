"""Pictures can be watched while they form, and watching changes none of them."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from belvedere.apps import work
from belvedere.apps.requests import GenerateRequest
from belvedere.checkpoints import store


def watched(request: GenerateRequest) -> tuple[list[tuple[list[int], list[Image.Image]]], list[work.Picture]]:
    seen: list[tuple[list[int], list[Image.Image]]] = []

    def preview(indices: list[int], look: Callable[[], list[Image.Image]]) -> None:
        seen.append((indices, look()))

    return seen, list(work.run(work.prepare(request), range(request.count), preview=preview))


def distance(one: Image.Image, other: Image.Image) -> float:
    return float(np.abs(np.asarray(one, np.float32) - np.asarray(other, np.float32)).mean())


@pytest.mark.parametrize("kind", ["tiny_model", "tiny_fitv2"])
def test_the_last_preview_is_the_picture_and_none_changes_it(kind: str, request: pytest.FixtureRequest) -> None:
    asked = GenerateRequest(str(request.getfixturevalue(kind)), ("boat", "car"), count=3, seed=3, steps=4, device="cpu")
    seen, made = watched(asked)
    assert [indices for indices, _ in seen] == [[0, 1, 2]] * 4
    for index, picture in enumerate(made):
        assert seen[-1][1][index].size == picture.image.size
        assert distance(seen[-1][1][index], picture.image) < 1
    assert [picture.record.pixels for picture in made] == [picture.record.pixels for picture in work.generate(asked)]


def test_latents_are_decoded_and_foresee_the_picture() -> None:
    if "toybox-diffusion" not in store.embedded():
        pytest.skip("this build carries no toybox-diffusion")
    asked = GenerateRequest("toybox-diffusion", prompts=("a red car on grass",), steps=6, seed=1, device="cpu")
    seen, (picture,) = watched(asked)
    off = [distance(images[0], picture.image) for _, images in seen]
    assert len(off) == 6
    assert off[-1] < 2
    assert off[0] < 60, "the first step foresees the picture, it does not show its noise"


def test_sizes_may_differ(tiny_fitv2: Path) -> None:
    asked = GenerateRequest(str(tiny_fitv2), count=2, steps=2, sizes=((16, 24), (32, 16)), device="cpu")
    seen, made = watched(asked)
    assert [image.size for image in seen[-1][1]] == [picture.image.size for picture in made] == [(16, 24), (32, 16)]
