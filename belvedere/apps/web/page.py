"""The page: a header, and a tab for each room."""

import gradio as gr

from belvedere.apps.web import room_compress, room_machine, room_make, room_orbit, room_personalise
from belvedere.apps.web.studio import Studio

ROOMS = {
    "Make": room_make.build,
    "Personalise": room_personalise.build,
    "Orbit": room_orbit.build,
    "Compress": room_compress.build,
    "Machine": room_machine.build,
}
"""What fills each tab, by its title."""
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
            for title, fill in ROOMS.items():
                with gr.Tab(title, id=title.lower()):
                    fill(studio, page)
    page.has_launched = True  # or Gradio takes any path of the server for an upload when the page is mounted
    page.queue(max_size=studio.limits.waiting, default_concurrency_limit=1, api_open=False)
    return page
