"""The room that tells what the machine is, does and keeps."""

import time
from html import escape
from typing import Any

import gradio as gr

from belvedere.apps import doctor, models
from belvedere.apps.web import cards
from belvedere.apps.web.learning import Classroom, classroom_of
from belvedere.apps.web.running import in_words
from belvedere.apps.web.studio import Studio
from belvedere.apps.web.turns import waiting
from belvedere.checkpoints import store

WHEN_SEEN = """let seen = false;
const look = () => {{
  if (element.isConnected && element.offsetParent && !document.hidden && {often}) {{ seen = true; trigger('load'); }}
}};
const every = setInterval(() => element.isConnected ? look() : clearInterval(every), 2000);
new IntersectionObserver(look).observe(element);"""
"""``js_on_load`` of a ``gr.HTML`` that asks for its content when it is in sight, once or every two seconds."""
ALWAYS, ONCE = WHEN_SEEN.format(often="true"), WHEN_SEEN.format(often="!seen")
RECENT = 10
"""Pieces of work that are listed."""
ASK = (
    "Remove every result of every room, and every lesson with its photographs but one that is being learned? "
    "This cannot be undone."
)
WORDS = {"done": "done", "stopped": "stopped", "refused": "refused", "failed": "failed, see the log"}


def build(studio: Studio, page: gr.Blocks) -> None:
    """Fill the tab."""
    classroom = classroom_of(studio)
    with gr.Row(equal_height=False):
        with gr.Column(scale=1, min_width=320):
            now = gr.HTML(_heading("Work") + "<p>...</p>", js_on_load=ALWAYS)
            empty = gr.Button("Remove all results ...", size="sm")
            with gr.Group(visible=False) as ask:
                gr.Markdown(ASK, container=True)
                with gr.Row():
                    no = gr.Button("Keep them", size="sm")
                    yes = gr.Button("Remove them", size="sm", variant="stop")
        with gr.Column(scale=1, min_width=320):
            gr.HTML(_heading("Models") + _models(studio))
    found = gr.HTML(_heading("Doctor") + "<p>Looking at this machine ...</p>", js_on_load=ONCE)

    def state() -> str:
        return _now(studio, classroom, waiting(page))

    def examined() -> str:
        with in_words():
            return _heading("Doctor") + _report(doctor.report())

    def emptied() -> tuple[str, Any]:
        with in_words():
            studio.shelf.empty()
            classroom.empty()
        return state(), gr.update(visible=False)

    now.load(state, None, now, api_name="state", queue=False, show_progress="hidden")
    found.load(examined, None, found, api_name="doctor", queue=False, show_progress="hidden")
    empty.click(lambda: gr.update(visible=True), None, ask, api_name="ask", api_visibility="private", queue=False)
    no.click(lambda: gr.update(visible=False), None, ask, api_name="keep", api_visibility="private", queue=False)
    yes.click(emptied, None, [now, ask], api_name="empty", queue=False)


def _heading(text: str) -> str:
    return f"<h3>{escape(text)}</h3>"


def _now(studio: Studio, classroom: Classroom, waiting: int) -> str:
    """Return what runs, waits, was done last, and how much is kept."""
    running, runner = "nothing", studio.runner
    if runner.current:
        room, began = runner.current
        running = f"{room}, for {time.monotonic() - began:.0f} s"
    count, size = studio.shelf.used
    limits = studio.limits
    facts = [
        ("running", running),
        ("waiting", f"{waiting} of at most {limits.waiting}"),
        ("results", f"{count} of at most {limits.results}, {size / 1e6:.1f} MB of {limits.result_bytes / 1e6:.0f} MB"),
        ("lessons", f"{len(classroom.ids())} of at most {limits.lessons}"),
        ("kept in", str(studio.shelf.folder)),
    ]
    recent = [
        (done.room, done.what, f"{done.seconds:.1f} s", WORDS[done.outcome]) for done in list(runner.recent)[:RECENT]
    ]
    table = cards.table(("room", "work", "time", ""), recent) if recent else "<p>Nothing was done yet.</p>"
    return f"{_heading('Work')}{cards.table((), facts)}{_heading('Done last')}{table}"


def _models(studio: Studio) -> str:
    folders = {name: studio.folder_of(name) for name in studio.names}
    if not folders:
        return cards.empty("No models", "This build carries none.")
    told = [
        (name, f"{models.size(folder) / 1e6:.1f} MB", models.quality(store.card(folder)))
        for name, folder in folders.items()
    ]
    return cards.table(("name", "size", "measured"), told)


def _report(found: dict[str, dict[str, Any]]) -> str:
    """Return a report of ``doctor``, faults first."""
    faults = "".join(f'<p class="bv-fault">{escape(fault)}</p>' for fault in doctor.faults(found))
    parts = [
        f"<section><h4>{escape(section)}</h4>"
        + cards.table((), [(name, str(value).removeprefix("!")) for name, value in told.items()])
        + "</section>"
        for section, told in found.items()
    ]
    return (faults or "<p>No faults found.</p>") + f'<div class="bv-columns">{"".join(parts)}</div>'
