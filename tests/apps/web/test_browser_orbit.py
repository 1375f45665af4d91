"""A scene in the browser: built of a toy, turned by dragging and by keys, filmed, made a mesh, found after a reload."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.apps.web.conftest import PHONE, Server

pytestmark = pytest.mark.slow
SEEN = "document.querySelector('#turntable').view"
NO_GPU = """const say = console.error;
console.error = (...words) => String(words[0]).includes('WebGPU') || say(...words);"""
"""The viewer of meshes calls it an error that this browser has no GPU, then draws without."""
BUILT = "document.querySelector('.stage:not(.empty) .note')?.textContent === ''"


def test_a_toy_becomes_a_scene_that_turns(open_page: Callable[..., Any], shoot: Callable[[Any, str], None]) -> None:
    page = open_page("Orbit")
    page.add_init_script(NO_GPU)
    page.reload()
    page.get_by_role("tab", name="Orbit").click()
    page.get_by_role("button", name="Take a toy").click()
    page.wait_for_selector(".stage:not(.empty)")
    page.wait_for_function(BUILT, timeout=180_000)
    stage = page.locator(".stage")
    box = stage.bounding_box()
    page.mouse.move(box["x"] + 200, box["y"] + 150)
    page.mouse.down()
    page.mouse.move(box["x"] + 160, box["y"] + 220, steps=4)
    page.mouse.up()
    assert page.evaluate(SEEN) == {"what": "colour", "angle": 30, "elevation": 20}
    stage.focus()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowDown")
    assert page.evaluate(SEEN) == {"what": "colour", "angle": 45, "elevation": 0}
    page.get_by_label("Depth").check(force=True)
    assert page.evaluate(SEEN)["what"] == "depth"
    page.get_by_role("button", name="View", exact=True).click()
    page.wait_for_selector("#orbit-made figcaption:has-text('depth')")
    page.get_by_role("button", name="Mesh", exact=True).click()
    page.wait_for_selector("canvas")
    page.get_by_label("Colour").check(force=True)
    with page.expect_download() as download:
        page.get_by_role("link", name="Scene file").click()
    assert Path(download.value.path()).stat().st_size > 100_000
    page.wait_for_timeout(5000)  # for the mesh to be drawn
    stage.press("ArrowLeft")
    stage.press("ArrowLeft")
    shoot(page, "studio-orbit")
    page.reload()
    page.get_by_role("tab", name="Orbit").click()
    page.locator(".bv-strip button").first.click()
    page.wait_for_function(BUILT)
    page.set_viewport_size({"width": PHONE[0], "height": PHONE[1]})
    shoot(page, "studio-orbit-phone")


def test_the_same_through_the_client(server: Server) -> None:
    client = pytest.importorskip("gradio_client")
    studio = client.Client(server.url, verbose=False)
    picture = studio.predict(5, api_name="/orbit_toy")
    scene, table = studio.predict(client.handle_file(picture), "nvist-toybox", api_name="/orbit_build")
    assert set(table["sheets"]) == {"colour", "depth", "opacity", "unseen"}
    made = studio.predict(scene, "colour", 0, 0, 8, 60, 64, api_name="/orbit_film")
    assert "film.mp4" in made and scene in made
    with pytest.raises(Exception, match="no such result"):
        studio.predict("nonsense", api_name="/orbit_mesh")
