"""What the events of all rooms share: who waits is told so, and what fails or is stopped leaves the page whole."""

from collections.abc import Callable
from typing import Any

import gradio as gr

from belvedere.apps.web import cards
from belvedere.apps.web.studio import BUSY, QUICK, Studio


def waiting(page: gr.Blocks) -> int:
    """Return how many requests wait. Gradio publishes it over HTTP alone, by a route of this very server."""
    return len(page._queue)


def place(studio: Studio, page: gr.Blocks) -> str:
    """Return in words how many pieces of work come before one that is asked for now, "" for none."""
    before = waiting(page) + (studio.runner.current is not None)
    return f"Waiting: {before} before you" if before else ""


def in_turn(trigger: Callable[..., Any], studio: Studio, page: gr.Blocks, shown: gr.HTML) -> Any:
    """Return the event after which work is asked for, which says in ``shown`` who comes before it.

    ``trigger``: a component's event, such as ``button.click``.
    """

    def tell() -> Any:
        words = place(studio, page)
        return cards.progress(0, words) if words else gr.skip()

    return trigger(tell, None, shown, api_visibility="private", **QUICK)


def redrawn(stop: gr.Button, runs: list[Any], draw: Callable[..., Any], given: Any, shown: Any, name: str = "") -> None:
    """Let ``stop`` cancel ``runs``, and ``draw(given)`` fill ``shown`` then, and when one of them fails.

    ``name``: what the API calls it; private without.
    """
    for run in runs:
        run.failure(draw, given, shown, api_visibility="private", **QUICK)
    told: dict[str, Any] = {"api_name": name} if name else {"api_visibility": "private"}
    ended = stop.click(draw, given, shown, cancels=runs, **told, **QUICK)
    # Once more in turn, when the work has ended: its last news may come after the answer to the click.
    ended.then(draw, given, shown, api_visibility="private", **BUSY)
