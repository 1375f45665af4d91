"""The room Machine as a person meets it."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from belvedere.apps.web.shelf import Shelf
from tests.apps.web.conftest import PHONE, start, stop

pytestmark = pytest.mark.slow


def test_it_tells_of_the_machine(open_page: Callable[..., Any], shoot: Callable[..., None]) -> None:
    page = open_page("Machine")
    page.get_by_text("No faults found.").wait_for()
    for word in ("attention", "torch", "dimr-toybox", "waiting", "kept in"):
        assert page.get_by_text(word).first.is_visible(), word
    shoot(page, "studio-machine")


@pytest.mark.parametrize("dark", [False, True])
def test_it_fits_a_phone(dark: bool, open_page: Callable[..., Any]) -> None:
    page = open_page("Machine", size=PHONE, dark=dark)
    page.get_by_text("No faults found.").wait_for()
    assert page.evaluate("document.documentElement.scrollWidth") <= PHONE[0]


def test_results_go_only_after_asking(open_page: Callable[..., Any], tmp_path: Path) -> None:
    shelf = Shelf(tmp_path / "kept" / "results")
    shelf.put("Make", {"picture.png": b"x"}, {"title": "a car"})
    server = start(tmp_path / "kept")
    try:
        page = open_page("Machine", url=server.url)
        page.get_by_text("1 of at most").wait_for()
        page.get_by_role("button", name="Remove all results").click()
        page.get_by_role("button", name="Keep them").click()
        page.get_by_role("button", name="Remove them").wait_for(state="hidden")
        assert len(Shelf(shelf.folder).newest(None, 9)) == 1
        page.get_by_role("button", name="Remove all results").click()
        page.get_by_role("button", name="Remove them").click()
        page.get_by_text("0 of at most 500").wait_for()  # of results: what waits is 0 of at most 32
        assert Shelf(shelf.folder).newest(None, 9) == []
        page.close()
    finally:
        assert stop(server) == 0
