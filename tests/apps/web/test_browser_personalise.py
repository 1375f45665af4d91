"""A toy in the browser: learned in a few steps, found after a reload, kept, and shown in a prompt."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from belvedere.data.images import to_image
from belvedere.data.toybox.dataset import KINDS
from belvedere.data.toybox.palette import COLORS
from belvedere.data.toybox.render import image
from belvedere.data.toybox.scene import Look, build, cameras
from belvedere.data.toybox.shapes import COLOR, REPEATS, SECOND, STRIPES, TEXTURE
from tests.apps.web.conftest import DESKTOP, PHONE, SCREENSHOTS, start, stop
from tests.apps.web.test_learning import ID, LESSON

pytestmark = pytest.mark.slow
STEPS = 160 if SCREENSHOTS else 4
GROUNDS = ("cream", "grey", "sand", "mint")


@pytest.fixture
def photographs(tmp_path: Path) -> list[Path]:
    """Pictures of a mug with stripes that no toy has, from several sides and on several floors."""
    scenes = build(3, [KINDS.index("mug")] * len(GROUNDS), KINDS, [Look("pink", ground) for ground in GROUNDS])
    prims = scenes.prims.copy()
    painted = (prims[:, COLOR] == COLORS["pink"]).all(1)
    prims[painted, COLOR], prims[painted, SECOND] = (0.72, 0.80, 0.14), (0.30, 0.62, 0.20)
    prims[painted, TEXTURE], prims[painted, REPEATS] = STRIPES, 3.0
    turns = np.linspace(-0.35, 0.35, len(GROUNDS))
    views = image(replace(scenes, prims=prims), cameras(scenes, turns), (64, 64), 4, torch.device("cpu"))
    paths = [tmp_path / f"mug{i}.png" for i in range(len(GROUNDS))]
    for path, view in zip(paths, views, strict=True):
        to_image(view).save(path)
    return paths


def fill(page: Any, field: str, value: int) -> None:
    number = page.locator(f"{field} input[type=number]")
    number.fill(str(value))
    number.press("Tab")


def test_a_toy_is_learned_kept_and_shown(
    open_page: Callable[..., Any], shoot: Callable[[Any, str], None], photographs: list[Path]
) -> None:
    page = open_page("Personalise")
    page.locator("#lesson-photographs input[type=file]").set_input_files(photographs)
    page.locator("#lesson-photographs").get_by_text("mug3").wait_for()
    page.get_by_label("What it is").fill("mug")
    fill(page, "#lesson-steps", STEPS)
    page.get_by_role("button", name="Learn", exact=True).click()
    page.locator("#lesson").get_by_text(f"of {STEPS}").wait_for()
    page.reload()
    page.get_by_role("tab", name="Personalise").click()
    page.wait_for_function(
        "steps => document.querySelector('#lesson-steps input[type=number]').value === steps", arg=str(STEPS)
    )
    assert page.get_by_label("What it is").input_value() == "mug"
    page.locator("#lesson svg").wait_for(timeout=180_000)
    page.locator("#lesson").get_by_text("Learned; Keep").wait_for(timeout=900_000)
    page.locator("#lessons button").first.click()  # the newest, which is shown already
    page.get_by_role("button", name="Keep").click()
    page.get_by_role("link", name="Download <thing>").wait_for()
    with page.expect_download() as download:
        page.get_by_role("link", name="Download <thing>").click()
    assert download.value.suggested_filename.endswith("thing.concept.safetensors")
    fill(page, "#try-steps", 25 if SCREENSHOTS else 4)
    page.locator("#try-concept").click()
    page.locator("#concept-pictures figure").nth(3).wait_for(timeout=120_000)
    page.locator("#concept-pictures .bv-bar").wait_for(state="detached", timeout=120_000)
    page.set_viewport_size({"width": DESKTOP[0], "height": DESKTOP[1] + 290})
    page.evaluate("scrollTo(0, 0)")
    shoot(page, "studio-personalise")
    page.set_viewport_size({"width": PHONE[0], "height": PHONE[1]})
    assert page.evaluate("document.documentElement.scrollWidth") <= PHONE[0]


def test_a_lesson_that_is_not_learned_now_is_no_work(open_page: Callable[..., Any], tmp_path: Path) -> None:
    lesson = tmp_path / "kept" / "lessons" / ID
    lesson.mkdir(parents=True)
    (lesson / "lesson.json").write_text(json.dumps(vars(LESSON)))
    server = start(tmp_path / "kept")
    try:
        page = open_page("Personalise", url=server.url)
        page.locator("#lesson").get_by_text("Stopped; Go on").wait_for()
        assert page.locator(".bv-head [role=status]").inner_text() == ""
    finally:
        stop(server)
