"""Who waits is told so, and whatever computes can be stopped, and leaves the page whole when it fails."""

import threading
from collections.abc import Callable, Iterator
from typing import Any

import gradio as gr
import pytest
from PIL import Image

from belvedere.apps.web import compressing, page, room_machine, room_personalise, turns
from belvedere.apps.web.compressing import FILE, Outcome
from belvedere.apps.web.learning import Classroom, classroom_of
from belvedere.apps.web.lesson import Lesson
from belvedere.apps.web.studio import Studio

STOPPED = (
    *("make", "personalise_try", "orbit_build", "orbit_toy", "orbit_view", "orbit_film", "orbit_mesh"),
    *("compress", "compress_look", "compress_open"),
)
"""What shows a bar, by its name in the API."""
REFUSING = ("personalise_stop", "personalise_go_on", "personalise_keep", "personalise_recall", "orbit_open", "written")
ASKED = ("make", "personalise_begin", "personalise_try", "orbit_build", "orbit_toy", "orbit_view", "compress_look")


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Studio, gr.Blocks]]:
    """A studio and its page."""
    studio = Studio(tmp_path_factory.mktemp("studio"), "cpu")
    yield studio, page.build(studio)
    studio.runner.close()


def event(blocks: gr.Blocks, name: str) -> Any:
    """Return an event by its name in the API, or that of its function."""
    return next(fn for fn in blocks.fns.values() if name in (fn.api_name, fn.name))


@pytest.fixture
def busy(built: tuple[Studio, gr.Blocks]) -> Iterator[None]:
    """Somebody else's work is under way."""
    begun, gate = threading.Event(), threading.Event()
    running = built[0].runner.run("Make", lambda tell: (begun.set(), gate.wait(20)))
    next(running)
    assert begun.wait(20)
    yield
    gate.set()
    list(running)


def test_nobody_waits_for_nothing(built: tuple[Studio, gr.Blocks]) -> None:
    assert turns.place(*built) == ""
    assert event(built[1], "tell").fn() == gr.skip()


@pytest.mark.usefixtures("busy")
def test_who_waits_is_told_how_many_come_before(built: tuple[Studio, gr.Blocks]) -> None:
    assert turns.place(*built) == "Waiting: 1 before you"
    assert "Waiting: 1 before you" in event(built[1], "tell").fn()


@pytest.mark.parametrize("name", ASKED)
def test_what_is_asked_for_is_answered_before_its_turn(name: str, built: tuple[Studio, gr.Blocks]) -> None:
    asked = event(built[1], name)
    before = built[1].fns[asked.trigger_after]
    assert asked.concurrency_id == "work" != before.concurrency_id and before.outputs


@pytest.mark.parametrize("name", REFUSING)
def test_a_refusal_is_shown_without_a_turn(name: str, built: tuple[Studio, gr.Blocks]) -> None:
    told = event(built[1], name)
    assert told.queue, "the page shows no error of an event that is not queued"
    assert told.concurrency_id == "aside" and told.concurrency_limit is None


@pytest.mark.parametrize("name", STOPPED)
def test_what_shows_a_bar_is_stopped_and_drawn_again_when_it_fails(name: str, built: tuple[Studio, gr.Blocks]) -> None:
    run = event(built[1], name)
    assert any(run._id in fn.cancels for fn in built[1].fns.values())
    failed = [fn for fn in built[1].fns.values() if fn.trigger_after == run._id and fn.trigger_only_on_failure]
    assert len(failed) == 1 and not failed[0].queue and failed[0].outputs


def test_a_picture_is_not_compressed_again_as_it_is_shown(
    built: tuple[Studio, gr.Blocks], monkeypatch: pytest.MonkeyPatch
) -> None:
    studio, blocks = built
    facts = {"bytes": 1, "bpp": 1.0, "width": 8, "height": 8, "quality": 4.0}
    id, image, done = studio.shelf.put("Compress", {FILE: b"x"}, facts), Image.new("RGB", (8, 8)), list[float]()

    def compress(studio: Studio, file: str, quality: float, *_: Any, **__: Any) -> Outcome:
        done.append(quality)
        return Outcome(id, image, image, facts)

    monkeypatch.setattr(compressing, "compress", compress)
    monkeypatch.setattr(compressing.uploads, "read", lambda *_: b"")
    redo: Callable[..., Any] = event(blocks, "redo").fn
    asked = ("a.png", 4, [], 0, "segpic-photo", None)
    *_, told, last = list(redo(*asked, (None, "nothing yet")))[-1]
    assert done == [4] and studio.url(id, FILE) in told
    assert list(redo(*asked, last)) == [[gr.skip(), gr.skip(), told, gr.skip()]]
    assert list(redo(None, *asked[1:], last)) == [[gr.skip(), gr.skip(), told, gr.skip()]]
    assert done == [4]
    list(redo("a.png", 5, *asked[2:], last))
    assert done == [4, 5]


def test_lessons_are_counted_and_go_with_all_results(built: tuple[Studio, gr.Blocks]) -> None:
    studio, blocks = built
    classroom: Classroom = classroom_of(studio)
    classroom._write(classroom.folder / ("a" * 20), Lesson("<b>", "car", "tiny", 9, 1, 1.0), [Image.new("RGB", (8, 8))])
    assert "<td>1 of at most 20</td>" in room_machine._now(studio, classroom, 0)
    shown, _ = event(blocks, "emptied").fn()
    assert "<td>0 of at most 20</td>" in shown and classroom.ids() == []
    assert room_personalise._lessons(classroom) == ""
