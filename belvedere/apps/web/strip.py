"""Earlier results as a strip of small pictures, each a button that opens its result."""

import time
from collections.abc import Iterable
from html import escape

from belvedere.apps.web.shelf import Entry
from belvedere.apps.web.studio import Studio

STYLE = """<style>
.bv-strip { display: grid; grid-template-columns: repeat(auto-fill, minmax(84px, 1fr)); gap: .6rem; }
.bv-strip button { display: block; padding: 0; border: 1px solid var(--block-border-color); border-radius: 12px;
  overflow: hidden; background: var(--block-background-fill); color: var(--body-text-color-subdued); cursor: pointer;
  font: inherit; font-size: .75rem; line-height: 1.7; }
.bv-strip button:hover { border-color: var(--slider-color); }
.bv-strip img { display: block; width: 100%; aspect-ratio: 1; object-fit: cover; margin: 0; }
</style>"""


def strip(studio: Studio, entries: Iterable[Entry], name: str) -> str:
    """Return the strip; ``name``: of the small picture among each result's files. A button gives the result's id to
    the event ``select`` (see ``cards.USE``)."""
    each = "".join(
        f'<button type="button" data-use="{escape(entry.id)}" aria-label="Open the result of {escape(when(entry))}">'
        f'<img src="{escape(studio.url(entry.id, name))}" alt="" loading="lazy">{escape(when(entry))}</button>'
        for entry in entries
    )
    return f'{STYLE}<div class="bv-strip">{each}</div>'


def when(entry: Entry) -> str:
    """Return when a result was put on the shelf: the hour today, else the day."""
    then, now = time.localtime(entry.when), time.localtime()
    return time.strftime("%H:%M" if then[:3] == now[:3] else "%d %b", then)
