"""The room Make as a person meets it."""

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from belvedere.apps import output, record, work
from belvedere.apps.requests import GenerateRequest
from belvedere.checkpoints import store
from tests.apps.web.conftest import PHONE, SCREENSHOTS, start, stop

pytestmark = pytest.mark.slow

MADE = ".bv-large .bv-card a[download]"


def chip(page: Any, name: str) -> Any:
    return page.locator(".bv-chips label", has_text=name)


def slide(page: Any, label: str, value: int) -> None:
    field = page.get_by_label(f"number input for {label}")
    field.fill(str(value))
    field.press("Tab")


def settle(page: Any, count: int) -> None:
    """Wait until ``count`` pictures are made and shown."""
    page.locator(MADE).nth(count - 1).wait_for()
    page.locator(".bv-bar").wait_for(state="detached")
    page.wait_for_function(
        "[...document.querySelectorAll('.bv-large img')].every(image => image.complete && image.naturalWidth)"
    )


def make(page: Any, count: int) -> None:
    page.get_by_role("button", name="Make", exact=True).click()
    settle(page, count)


def open_more(page: Any) -> None:
    """Open the further settings; before another model is chosen, for what a choice says of fields that were never
    shown is kept until they are, and would come after what is typed at once."""
    page.get_by_text("More", exact=True).click()


def few_steps(page: Any, steps: int = 4) -> None:
    open_more(page)
    slide(page, "Steps", steps)


def choose(page: Any, model: str) -> None:
    page.get_by_label("Model").click()
    page.get_by_role("option", name=model).click()


def test_pictures_form_are_kept_and_give_their_settings_back(
    open_page: Callable[..., Any], shoot: Callable[..., None], tmp_path: Path
) -> None:
    page = open_page("Make")
    page.get_by_text("Nothing made yet").wait_for()
    chip(page, "car").click()
    chip(page, "robot").click()
    page.get_by_label("Seed", exact=True).fill("7")
    slide(page, "How many", 6)
    few_steps(page, 12)
    said = page.locator(".bv-head [role=status]")
    assert said.inner_text() == ""
    page.get_by_role("button", name="Make", exact=True).click()
    page.locator(".bv-large img[src^='data:image/webp']").first.wait_for()
    assert said.inner_text() == "Working"
    settle(page, 6)
    assert said.inner_text() == "Done"
    page.get_by_text("More", exact=True).click()
    shoot(page, "studio-make")

    with page.expect_download() as saved:
        page.locator(MADE).nth(1).click()
    file = tmp_path / "robot.png"
    saved.value.save_as(file)
    assert re.fullmatch(r"belvedere-[a-z0-9]{6}-picture\.png", saved.value.suggested_filename)
    told = record.read(file)
    assert (told.request.classes, told.request.seed, told.index, told.kind) == (("car", "robot"), 7, 1, "robot")

    page.reload()
    page.get_by_role("heading", name="Earlier pictures").wait_for()
    assert page.get_by_label("Seed", exact=True).input_value() == "0"
    page.locator("input[type=file]").first.set_input_files(file)
    page.get_by_text("Settings of picture 2 of 6 (robot)").wait_for()
    assert page.get_by_label("Seed", exact=True).input_value() == "7"
    assert page.get_by_label("number input for How many").input_value() == "6"
    assert [name for name in ("car", "robot", "boat") if chip(page, name).locator("input").is_checked()] == [
        "car",
        "robot",
    ]


def test_a_model_of_any_size_and_a_model_of_text(open_page: Callable[..., Any]) -> None:
    page = open_page("Make")
    open_more(page)
    choose(page, "fitv2-toybox")
    page.get_by_text("Wide 2:1").click()
    page.wait_for_function("document.querySelector('input[aria-label=\"number input for Width\"]').value === '88'")
    slide(page, "Steps", 4)
    slide(page, "Width", 96)
    slide(page, "Height", 48)
    slide(page, "How many", 1)
    make(page, 1)
    assert page.locator(".bv-large img").evaluate("image => [image.naturalWidth, image.naturalHeight]") == [96, 48]

    choose(page, "toybox-diffusion")
    page.get_by_label("Prompt").fill("a red car on grass")
    slide(page, "Steps", 4)
    assert page.get_by_label("Prompt").input_value() == "a red car on grass"
    make(page, 1)
    page.locator(".bv-large figcaption", has_text="a red car on grass").wait_for()


def test_what_is_set_outlasts_a_choice_that_is_made_again(open_page: Callable[..., Any], tmp_path: Path) -> None:
    """Work is done in turn: once the picture is there, every answer to the choices before it has come."""
    server = start(tmp_path / "kept", "--model", f"another={store.resolve('toybox-diffusion', download=False)}")
    try:
        page = open_page("Make", url=server.url)
        open_more(page)
        choose(page, "toybox-diffusion")
        prompt, steps = page.get_by_label("Prompt"), page.get_by_label("number input for Steps")
        prompt.fill("a red car on grass")
        slide(page, "How many", 1)
        slide(page, "Steps", 4)
        choose(page, "toybox-diffusion")
        make(page, 1)
        assert (prompt.input_value(), steps.input_value()) == ("a red car on grass", "4")

        choose(page, "another")
        page.wait_for_function("document.querySelector('input[aria-label=\"number input for Steps\"]').value === '25'")
        assert prompt.input_value() == "a red car on grass"
        page.close()
    finally:
        assert stop(server) == 0


def test_stopping_ends_the_work(open_page: Callable[..., Any]) -> None:
    page = open_page("Make")
    slide(page, "How many", 24)
    few_steps(page, 60)
    page.get_by_role("button", name="Make", exact=True).click()
    page.locator(".bv-large img").first.wait_for()
    page.get_by_role("button", name="Stop").click()
    page.locator(".bv-bar").wait_for(state="detached")
    assert page.get_by_text("forming").count() == 0
    page.get_by_role("tab", name="Machine").click()
    page.locator("tr", has_text="24 pictures by dimr-toybox").filter(has_text="stopped").first.wait_for()
    page.locator("tr", has_text="running").filter(has_text="nothing").wait_for()


def test_a_refusal_is_a_sentence(open_page: Callable[..., Any]) -> None:
    page = open_page("Make")
    choose(page, "toybox-diffusion")
    page.get_by_label("Prompt").wait_for()
    page.get_by_role("button", name="Make", exact=True).click()
    page.get_by_text("This model makes pictures of text: write what you want to see.").wait_for()


def test_a_picture_of_somebody_else_is_refused(open_page: Callable[..., Any], tmp_path: Path) -> None:
    from PIL import Image

    Image.new("RGB", (9, 9)).save(tmp_path / "mine.png")
    page = open_page("Make")
    page.locator("input[type=file]").first.set_input_files(tmp_path / "mine.png")
    page.get_by_text("This picture carries no settings: only pictures made by Belvedere do.").wait_for()


def test_text_of_a_strangers_picture_stays_text(open_page: Callable[..., Any], tmp_path: Path) -> None:
    asked = GenerateRequest("dimr-toybox", ("car",), steps=1, device="cpu")
    picture = next(work.generate(asked))
    told = picture.record
    strange = {
        "kind": replace(told, kind="<b>bold</b>"),
        "model": replace(told, weights="", request=replace(asked, model="<i>model</i>")),
    }
    for name, each in strange.items():
        (tmp_path / f"{name}.png").write_bytes(output.encode(picture.image, "png", each.to_json()))
    page = open_page("Make")
    drop = page.locator("input[type=file]").first
    drop.set_input_files(tmp_path / "kind.png")
    page.get_by_text("Settings of picture 1 of 1 (<b>bold</b>)").wait_for()
    page.get_by_label("Remove Image").or_(page.get_by_label("Clear")).first.click()
    drop.set_input_files(tmp_path / "model.png")
    page.get_by_text("This picture is of model <i>model</i>, which this studio does not offer.").wait_for()


@pytest.mark.parametrize("dark", [False, True])
def test_it_fits_a_phone(dark: bool, open_page: Callable[..., Any], shoot: Callable[..., None]) -> None:
    page = open_page("Make", size=PHONE, dark=dark)
    steps, count = (12, 4) if SCREENSHOTS else (4, 2)
    few_steps(page, steps)
    slide(page, "How many", count)
    make(page, count)
    assert page.evaluate("document.documentElement.scrollWidth") <= PHONE[0]
    if not dark:
        page.get_by_text("More", exact=True).click()
        page.get_by_role("button", name="Make", exact=True).evaluate("button => button.scrollIntoView()")
        shoot(page, "studio-make-phone")


def test_it_can_be_worked_by_keys_alone(open_page: Callable[..., Any]) -> None:
    page = open_page("Make")
    few_steps(page, 2)
    slide(page, "How many", 1)
    box = chip(page, "boat").locator("input")
    box.focus()
    page.keyboard.press("Space")
    assert box.is_checked()
    page.get_by_role("button", name="Make", exact=True).focus()
    page.keyboard.press("Enter")
    settle(page, 1)
    page.locator(".bv-large figcaption", has_text="boat").wait_for()
    use = page.locator(".bv-large [data-use]").first
    use.focus()
    page.keyboard.press("Enter")
    page.get_by_text("Settings of picture 1 of 1 (boat)").wait_for()


def test_pictures_outlive_the_server(open_page: Callable[..., Any], tmp_path: Path) -> None:
    first = start(tmp_path / "kept")
    try:
        page = open_page("Make", url=first.url)
        few_steps(page, 2)
        slide(page, "How many", 2)
        make(page, 2)
        ids = [address.split("/")[-2] for address in page.locator(MADE).evaluate_all("all => all.map(a => a.href)")]
        page.close()
    finally:
        assert stop(first) == 0
    second = start(tmp_path / "kept")
    try:
        page = open_page("Make", url=second.url)
        page.get_by_role("heading", name="Earlier pictures").wait_for()
        found = page.locator(".bv-card a[download]").evaluate_all("all => all.map(a => a.href)")
        assert [address.split("/")[-2] for address in found] == ids[::-1]
        page.close()
    finally:
        assert stop(second) == 0
