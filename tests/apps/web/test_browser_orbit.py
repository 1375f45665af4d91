"""A scene in the browser: built of a toy, turned by dragging and by keys, filmed, made a mesh, found after a reload."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from belvedere.apps.web.scene_results import toy
from tests.apps.web.conftest import PHONE, Server

pytestmark = pytest.mark.slow
SEEN = "document.querySelector('#turntable').view"
NO_GPU = """const say = console.error;
console.error = (...words) => String(words[0]).includes('WebGPU') || say(...words);"""
"""The viewer of meshes calls it an error that this browser has no GPU, then draws without."""
PHOTOGRAPH = 0
"""Number of the toy that is photographed."""
BUILT = "document.querySelector('.stage:not(.empty) .note')?.textContent === ''"


def test_a_toy_becomes_a_scene_that_turns(open_page: Callable[..., Any]) -> None:
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
    page.get_by_label("Depth", exact=True).check(force=True)
    assert page.evaluate(SEEN)["what"] == "depth"
    page.get_by_role("button", name="View", exact=True).click()
    page.wait_for_selector("#orbit-made figcaption:has-text('depth')")
    page.get_by_role("button", name="Mesh", exact=True).click()
    page.wait_for_selector("canvas")
    with page.expect_download() as download:
        page.get_by_role("link", name="Scene file").click()
    assert Path(download.value.path()).stat().st_size > 100_000
    page.reload()
    page.get_by_role("tab", name="Orbit").click()
    page.locator(".bv-strip button").first.click()
    page.wait_for_function(BUILT)
    page.set_viewport_size({"width": PHONE[0], "height": PHONE[1]})
    assert page.evaluate("document.documentElement.scrollWidth") <= PHONE[0]


def test_a_photograph_becomes_a_scene_that_is_filmed(
    open_page: Callable[..., Any], shoot: Callable[[Any, str], None], tmp_path: Path
) -> None:
    toy(PHOTOGRAPH).save(tmp_path / "toy.png")
    page = open_page("Orbit")
    page.locator("#orbit-photograph input[type=file]").set_input_files(tmp_path / "toy.png")
    page.wait_for_selector(".stage:not(.empty)")
    page.wait_for_function(BUILT, timeout=180_000)
    page.get_by_text("How the film is made").click()
    for label, value in (("Frames", 24), ("Pixels a side", 96)):
        field = page.get_by_label(f"number input for {label}")
        field.fill(str(value))
        field.press("Tab")
    page.get_by_role("button", name="Film", exact=True).click()
    page.locator("#orbit-made video").wait_for(timeout=120_000)
    stage = page.locator(".stage")
    for way, turns in (("Depth", 0), ("Unseen", 2), ("Colour", 0)):
        page.get_by_label(way, exact=True).check(force=True)
        for _ in range(turns):
            stage.press("ArrowRight")
        page.get_by_role("button", name="View", exact=True).click()
        page.locator("#orbit-made figure", has_text="View").filter(has_text=f"{way.lower()},").wait_for()
    page.get_by_text("How the film is made").click()
    page.evaluate("scrollTo(0, 0)")
    shoot(page, "studio-orbit")


def test_a_scene_that_is_stopped_leaves_none_and_who_waits_is_told(open_page: Callable[..., Any]) -> None:
    page, other = open_page("Orbit"), open_page("Make")
    page.get_by_role("button", name="Take a toy").click()
    page.wait_for_selector(".stage:not(.empty)")
    other.get_by_role("button", name="Make", exact=True).click()
    other.get_by_text("Waiting: 1 before you").wait_for()
    other.get_by_role("button", name="Stop", exact=True).first.click()
    other.get_by_text("Waiting:").wait_for(state="detached")
    page.get_by_role("tabpanel").get_by_role("button", name="Stop", exact=True).click()
    page.wait_for_selector(".stage.empty")
    page.get_by_role("button", name="View", exact=True).click()
    page.get_by_text("No scene yet: drop a photograph, or wait until it is built.").wait_for()


def test_a_photograph_that_is_refused_leaves_the_scene_that_is_open(
    open_page: Callable[..., Any], tmp_path: Path
) -> None:
    page = open_page("Orbit")
    page.get_by_role("button", name="Take a toy").click()
    page.wait_for_function(BUILT)
    page.reload()  # so that there is a place to drop another one
    page.get_by_role("tab", name="Orbit").click()
    page.locator(".bv-strip button").first.click()
    page.wait_for_function(BUILT)
    (tmp_path / "broken.png").write_bytes(b"no picture")
    page.locator("#orbit-photograph input[type=file]").set_input_files(tmp_path / "broken.png")
    page.get_by_text("this is no PNG, JPEG or WebP file").wait_for()
    page.wait_for_function(BUILT)
    page.get_by_role("button", name="View", exact=True).click()
    page.wait_for_selector("#orbit-made figcaption:has-text('colour')")


def test_the_same_through_the_client(server: Server) -> None:
    client = pytest.importorskip("gradio_client")
    studio = client.Client(server.url, verbose=False)
    picture = studio.predict(5, api_name="/orbit_toy")
    scene, table = studio.predict(client.handle_file(picture), "nvist-toybox", api_name="/orbit_build")
    assert set(table["sheets"]) == {"colour", "depth", "opacity", "unseen"}
    made = studio.predict(scene, "colour", 0, 0, 8, 60, 64, api_name="/orbit_film")
    assert "film.mp4" in made and scene in made
    made = studio.predict(scene, api_name="/orbit_mesh")
    mesh = httpx.get(server.url + re.search(r'href="([^"]*\.glb)"', made)[1])
    assert mesh.headers["content-type"] == "model/gltf-binary" and len(mesh.content) < 3_000_000
    with pytest.raises(Exception, match="no such result"):
        studio.predict("nonsense", api_name="/orbit_mesh")
