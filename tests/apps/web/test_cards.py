"""What a screen reader is told of a card, a bar and a strip."""

from belvedere.apps.web import cards
from belvedere.apps.web.strip import strip


def test_buttons_tell_of_which_picture_they_are() -> None:
    shown = cards.card("a.png", "a <car>", "seed 7, no. 2", {"PNG": "a.png"}, use="x")
    assert 'aria-label="Use settings of a &lt;car&gt;, seed 7, no. 2"' in shown
    assert 'aria-label="Download a &lt;car&gt;, seed 7, no. 2 as PNG"' in shown


def test_a_bar_has_a_name() -> None:
    assert 'role="progressbar" aria-label="1 &lt; 2" aria-valuenow="50"' in cards.progress(0.5, "1 < 2")


def test_only_a_bar_of_work_under_way_is_busy() -> None:
    assert 'aria-busy="true"' in cards.progress(1.0, "1 of 1")
    assert 'aria-busy="false"' in cards.progress(0.5, "Stopped", busy=False)


def test_results_of_one_minute_differ() -> None:
    shown = strip([("x", "a.webp", "12:40"), ("y", "b.webp", "12:40")])
    assert 'aria-label="Open no. 1: 12:40"' in shown and 'aria-label="Open no. 2: 12:40"' in shown
