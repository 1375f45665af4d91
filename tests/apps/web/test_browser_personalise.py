"""A toy in the browser: learned in a few steps, found after a reload, kept, and shown in a prompt."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from belvedere.apps.web.scene_results import toy
from tests.apps.web.conftest import PHONE

pytestmark = pytest.mark.slow
STEPS = 4


@pytest.fixture
def photographs(tmp_path: Path) -> list[Path]:
    paths = [tmp_path / f"toy{i}.png" for i in range(3)]
    for i, path in enumerate(paths):
        toy(12 * i).save(path)
    return paths


def test_a_toy_is_learned_kept_and_shown(
    open_page: Callable[..., Any], shoot: Callable[[Any, str], None], photographs: list[Path]
) -> None:
    page = open_page("Personalise")
    page.locator("#lesson-photographs input[type=file]").set_input_files(photographs)
    page.locator("#lesson-photographs").get_by_text("toy2").wait_for()
    steps = page.locator("#lesson-steps input[type=number]")
    steps.fill(str(STEPS))
    steps.press("Tab")
    page.get_by_role("button", name="Learn", exact=True).click()
    page.locator("#lesson").get_by_text(f"of {STEPS}").wait_for()
    page.reload()
    page.get_by_role("tab", name="Personalise").click()
    page.locator("#lesson svg").wait_for(timeout=180_000)
    page.locator("#lesson").get_by_text("Learned; Keep").wait_for(timeout=300_000)
    page.get_by_role("button", name="Keep").click()
    page.get_by_role("link", name="Download <thing>").wait_for()
    with page.expect_download() as download:
        page.get_by_role("link", name="Download <thing>").click()
    assert download.value.suggested_filename.endswith("thing.concept.safetensors")
    page.locator("#try-steps input[type=number]").fill("4")
    page.locator("#try-steps input[type=number]").press("Tab")
    page.locator("#try-concept").click()
    page.locator("#concept-pictures figure").nth(3).wait_for(timeout=120_000)
    shoot(page, "studio-personalise")
    page.set_viewport_size({"width": PHONE[0], "height": PHONE[1]})
    shoot(page, "studio-personalise-phone")
