"""Earlier results as a strip of small pictures, each a button that opens its result."""

import time
from collections.abc import Iterable
from html import escape

from belvedere.apps.web.shelf import Entry
from belvedere.apps.web.studio import Studio


def strip(each: Iterable[tuple[str, str, str]]) -> str:
    """Return the strip of (id, address of a small picture, words): a button gives its id to the event ``select`` (see
    ``cards.USE``)."""
    buttons = "".join(
        f'<button type="button" data-use="{escape(id)}" aria-label="{escape(f"Open no. {number}: {words}")}">'
        f'<img src="{escape(source)}" alt="" loading="lazy">{escape(words)}</button>'
        for number, (id, source, words) in enumerate(each, 1)
    )
    return f'<div class="bv-strip">{buttons}</div>'


def results(studio: Studio, entries: Iterable[Entry], name: str) -> str:
    """Return the strip of results on the shelf; ``name``: of the small picture among each one's files."""
    return strip((entry.id, studio.url(entry.id, name), when(entry.when)) for entry in entries)


def when(then: float) -> str:
    """Return a time, in seconds since 1970: the hour today, else the day."""
    told, now = time.localtime(then), time.localtime()
    return time.strftime("%H:%M" if told[:3] == now[:3] else "%d %b", told)
