"""The page: a header, and a tab for each room."""

from importlib import import_module
from importlib.util import find_spec

import gradio as gr

from belvedere.apps.web.studio import Studio

ROOMS = {
    "Make": "room_make",
    "Personalise": "room_personalise",
    "Orbit": "room_orbit",
    "Compress": "room_compress",
    "Machine": "room_machine",
}
"""Title of each room and the module of this package whose ``build(studio, page)`` fills its tab."""
CACHE = (600, 3600)
"""Seconds: how often Gradio's copies of uploads are looked through, and the age at which they go."""

_HEADER = """<header class="bv-head"><h1>Bel<span>vedere</span></h1>
<p>Make pictures, turn them, keep them small.</p>
<button type="button" aria-label="Change between light and dark">Light / dark</button></header>"""
_LIGHT_OR_DARK = """element.querySelector('button').addEventListener('click',
  () => document.body.classList.toggle('dark'));"""


def build(studio: Studio) -> gr.Blocks:
    """Return the page of a studio."""
    with gr.Blocks(title="Belvedere", analytics_enabled=False, delete_cache=CACHE) as page:
        gr.HTML(_HEADER, js_on_load=_LIGHT_OR_DARK)
        with gr.Tabs():
            for title, name in ROOMS.items():
                module = f"{__package__}.{name}"
                if find_spec(module) is None:
                    continue
                with gr.Tab(title, id=title.lower()):
                    import_module(module).build(studio, page)
    page.has_launched = True  # or Gradio takes any path of the server for an upload when the page is mounted
    page.queue(max_size=studio.limits.waiting, default_concurrency_limit=1, api_open=False)
    return page
