"""Results as HTML: what is told of them is escaped, addresses are our own."""

from collections.abc import Iterable, Mapping
from html import escape

from belvedere.apps.web.shelf import Entry
from belvedere.apps.web.studio import Studio

SMALL = 128
"""Pixels a side below which a picture is shown in whole pixels."""
PLAIN = "{{value}}"
"""``html_template`` of a ``gr.HTML`` that shows its value as plain text."""
USE = "element.addEventListener('click', event => { const button = event.target.closest('[data-use]'); \
if (button) trigger('select', {value: button.dataset.use, index: 0}); });"
"""``js_on_load`` of a ``gr.HTML``: a button with ``data-use="TEXT"`` in it becomes the event ``select``, whose
``gr.SelectData.value`` is TEXT."""


def empty(title: str, text: str) -> str:
    """Return what is shown where there is nothing yet: what will be here, and how to get it."""
    return f'<div class="bv-empty"><b>{escape(title)}</b>{escape(text)}</div>'


def progress(share: float, text: str, *, busy: bool = True) -> str:
    """Return a bar that is full at ``share`` 1, with a line of text. ``busy``: the work is under way."""
    percent = round(100 * min(1.0, max(0.0, share)))
    told = f'role="progressbar" aria-label="{escape(text)}" aria-valuenow="{percent}" aria-busy="{str(busy).lower()}"'
    return f'<div>{escape(text)}<div class="bv-bar" {told}><i style="width:{percent}%"></i></div></div>'


def card(
    source: str,
    title: str,
    note: str = "",
    downloads: Mapping[str, str] | None = None,
    use: str = "",
    small: bool = False,
) -> str:
    """Return one picture with what is told of it.

    ``source``: address or data URI; one that ends in .mp4 becomes a film. ``downloads``: address by label. ``use``:
    what a button "Use settings" gives to the event ``select`` (see ``USE``); none when empty. ``small``: shown in whole
    pixels.
    """
    if source.endswith(".mp4"):
        shown = f'<video src="{escape(source)}" muted loop autoplay playsinline controls></video>'
    else:
        pixels = ' class="bv-small"' if small else ""
        shown = f'<img{pixels} src="{escape(source)}" alt="{escape(title)}" loading="lazy">'
    whole = escape(f"{title}, {note}" if note else title)
    links = [
        f'<a href="{escape(url)}" download aria-label="Download {whole} as {escape(label)}">{escape(label)}</a>'
        for label, url in (downloads or {}).items()
    ]
    if use:
        label = f"Use settings of {whole}"
        links.append(f'<button type="button" data-use="{escape(use)}" aria-label="{label}">Use settings</button>')
    foot = f"<footer>{''.join(links)}</footer>" if links else ""
    told = f"<small>{escape(note)}</small>" if note else ""
    caption = f"<figcaption>{escape(title)}{told}</figcaption>"
    return f'<figure class="bv-card"><div class="bv-frame">{shown}</div>{caption}{foot}</figure>'


def cards(each: Iterable[str]) -> str:
    """Return cards side by side."""
    return f'<div class="bv-cards">{"".join(each)}</div>'


def result(studio: Studio, entry: Entry, *, title: str, note: str = "", shown: str, use: bool = False) -> str:
    """Return the card of a result on the shelf: ``shown``, one of its files, and all of them to download."""
    downloads = {name.rsplit(".", 1)[-1].upper(): studio.url(entry.id, name) for name in entry.names}
    return card(studio.url(entry.id, shown), title, note, downloads, entry.id if use else "")


def table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """Return a table of plain text."""
    cells = "".join(f"<th>{escape(cell)}</th>" for cell in head)
    top = f"<tr>{cells}</tr>" if cells else ""
    body = "".join(f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in row)}</tr>" for row in rows)
    return f'<div class="bv-scroll"><table class="bv-table">{top}{body}</table></div>'
