"""Earlier results as a strip of small pictures, each a button that opens its result."""

import time
from collections.abc import Iterable
from html import escape

from belvedere.apps.web.shelf import Entry
from belvedere.apps.web.studio import Studio


def strip(studio: Studio, entries: Iterable[Entry], name: str) -> str:
    """Return the strip; ``name``: of the small picture among each result's files. A button gives the result's id to
    the event ``select`` (see ``cards.USE``)."""
    each = "".join(
        f'<button type="button" data-use="{escape(entry.id)}" aria-label="Open the result of {escape(when(entry))}">'
        f'<img src="{escape(studio.url(entry.id, name))}" alt="" loading="lazy">{escape(when(entry))}</button>'
        for entry in entries
    )
    return f'<div class="bv-strip">{each}</div>'


def when(entry: Entry) -> str:
    """Return when a result was put on the shelf: the hour today, else the day."""
    then, now = time.localtime(entry.when), time.localtime()
    return time.strftime("%H:%M" if then[:3] == now[:3] else "%d %b", then)
