"""A photograph in the browser: made small, painted on, compared, downloaded, and opened again."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from skimage import data

from belvedere.checkpoints.codecs import save_codec
from tests.apps.web.conftest import PHONE, Server, start, stop
from tests.compression.test_segpic import small

pytestmark = pytest.mark.slow
DROP = "[role=tabpanel]:visible input[type=file]"


@pytest.fixture
def cat(tmp_path: Path) -> Path:
    Image.fromarray(data.chelsea()).save(tmp_path / "cat.png")
    return tmp_path / "cat.png"


def ask(page: Any, bpp: float) -> None:
    """Ask for so many bits a pixel at most."""
    number = page.locator("#bvd-bpp input")
    number.fill(str(bpp))
    number.press("Enter")


def test_a_photograph_there_and_back(
    open_page: Callable[..., Any], shoot: Callable[[Any, str], None], server: Server, cat: Path, tmp_path: Path
) -> None:
    page, shelf = open_page("Compress"), server.folder / "results"
    page.locator(DROP).first.set_input_files(cat)
    told = page.locator("#bvd-told")
    told.get_by_text("For the same PSNR").wait_for()
    first = told.inner_text()
    for _ in range(8):
        page.locator("#bvd-quality input[type=range]").press("ArrowRight")
    page.wait_for_function(
        "before => { const told = document.querySelector('#bvd-told');"
        "return told.innerText !== before && !told.querySelector('.bv-bar') }",
        arg=first,
    )
    told.get_by_text("For the same PSNR").wait_for()
    told.locator("dd", has_text=re.compile("^6$")).wait_for()
    kept = len(list(shelf.iterdir()))
    page.locator("#bvd-quality input[type=number]").focus()
    page.locator("#bvd-quality input[type=number]").press("Tab")  # which releases the slider
    page.wait_for_timeout(1000)
    told.get_by_text("For the same PSNR").wait_for()
    assert len(list(shelf.iterdir())) == kept
    shoot(page, "studio-compress")
    ask(page, 0.5)
    told.get_by_text(" of 0.5").wait_for()
    assert page.locator("#bvd-quality input[type=number]").is_disabled()
    ask(page, 0)
    told.get_by_text(" of 0.5").wait_for(state="detached")
    told.get_by_text("For the same PSNR").wait_for()
    box = page.locator(".board").bounding_box()
    page.mouse.move(box["x"] + box["width"] * 0.4, box["y"] + box["height"] * 0.35)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] * 0.6, box["y"] + box["height"] * 0.4, steps=4)
    page.mouse.up()
    told.get_by_text("PSNR where painted").wait_for()
    with page.expect_download() as download:
        page.get_by_role("link", name="Download .bvd").click()
    download.value.save_as(tmp_path / "cat.bvd")
    page.reload()
    page.get_by_role("tab", name="Compress").click()
    page.locator(DROP).first.set_input_files(tmp_path / "cat.bvd")
    told.get_by_text("Opened in").wait_for()
    with page.expect_download() as download:
        page.get_by_role("link", name="Download .png").click()
    with Image.open(download.value.path()) as image:
        assert image.size == (451, 300)
    page.set_viewport_size({"width": PHONE[0], "height": PHONE[1]})
    assert page.evaluate("document.documentElement.scrollWidth") <= PHONE[0]


def test_regions_are_given_by_keys_alone(open_page: Callable[..., Any], cat: Path, tmp_path: Path) -> None:
    mask = Image.new("L", (451, 300))
    mask.paste(255, (100, 50, 250, 200))
    mask.save(tmp_path / "mask.png")
    page = open_page("Compress")
    page.locator(DROP).first.set_input_files(cat)
    told = page.locator("#bvd-told")
    told.get_by_text("For the same PSNR").wait_for()
    page.locator("#bvd-regions > button").press("Enter")
    upload = page.locator("#bvd-regions button[aria-dropeffect]")
    assert upload.evaluate("button => button.tabIndex") == 0
    with page.expect_file_chooser() as chosen:
        upload.press("Enter")
    chosen.value.set_files(tmp_path / "mask.png")
    told.get_by_text("PSNR where painted").wait_for()
    page.locator("#bvd-regions").get_by_label("Clear").press("Enter")
    told.get_by_text("For the same PSNR").wait_for()
    assert told.get_by_text("PSNR where painted").count() == 0


def test_a_search_is_stopped_and_leaves_what_was_there(
    open_page: Callable[..., Any], server: Server, cat: Path
) -> None:
    page, shelf = open_page("Compress"), server.folder / "results"
    page.locator(DROP).first.set_input_files(cat)
    told = page.locator("#bvd-told")
    told.get_by_text("For the same PSNR").wait_for()
    before, figures = sorted(path.name for path in shelf.iterdir()), told.locator(".bv-figures").inner_text()
    ask(page, 0.7)
    told.locator(".bv-bar").wait_for()
    page.get_by_role("tabpanel").get_by_role("button", name="Stop", exact=True).click()
    told.locator(".bv-bar").wait_for(state="detached")
    assert told.locator(".bv-figures").inner_text() == figures
    assert sorted(path.name for path in shelf.iterdir()) == before


def test_another_codec_is_chosen(open_page: Callable[..., Any], cat: Path, tmp_path: Path) -> None:
    save_codec(small(rates=12), "float16", tmp_path / "codec", {})
    server = start(tmp_path / "kept", "--model", f"mine={tmp_path / 'codec'}")
    try:
        client = pytest.importorskip("gradio_client")
        studio = client.Client(server.url, verbose=False)
        asked = {"quality": 9.0, "strokes": [], "api_name": "/compress"}
        _, _, told = studio.predict(client.handle_file(cat), model="mine", **asked)
        assert "<dt>Quality</dt><dd>9</dd>" in told
        with pytest.raises(Exception, match="this model has 1 to 8"):
            studio.predict(client.handle_file(cat), **asked)
        page = open_page("Compress", url=server.url)
        number = page.locator("#bvd-quality input[type=number]")
        assert number.get_attribute("max") == "8"
        page.get_by_role("tabpanel").get_by_label("Model").click()
        page.get_by_role("option", name="mine").click()
        page.wait_for_function("document.querySelector('#bvd-quality input[type=number]').max === '12'")
        page.locator(DROP).first.set_input_files(cat)
        page.locator("#bvd-told").get_by_text("Compressed in").wait_for()
        page.close()
    finally:
        assert stop(server) == 0


def test_the_same_through_the_client(server: Server, cat: Path) -> None:
    client = pytest.importorskip("gradio_client")
    studio = client.Client(server.url, verbose=False)
    strokes = [{"radius": 0.1, "points": [[0.5, 0.4]]}]
    _, _, told = studio.predict(client.handle_file(cat), 2, strokes, api_name="/compress")
    assert "PSNR where painted" in told
    _, _, told = studio.predict(client.handle_file(cat), strokes=[], target_bpp=0.5, api_name="/compress")
    assert " of 0.5" in told
    with pytest.raises(Exception, match="too few: this picture needs"):
        studio.predict(client.handle_file(cat), strokes=[], target_bpp=0.001, api_name="/compress")
    with pytest.raises(Exception, match="from 0 to 1"):
        studio.predict(client.handle_file(cat), 2, [{"radius": 9}], api_name="/compress")
