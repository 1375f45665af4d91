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
<button type="button" aria-label="Change between light and dark">Light / dark</button>
<span role="status"></span></header>"""
_SCRIPT = """element.querySelector('button').addEventListener('click',
  () => document.body.classList.toggle('dark'));
const said = element.querySelector('[role=status]');
const busy = () => document.querySelectorAll('.bv-bar[aria-busy=true], .stage .note:not(:empty)').length;
let before = busy();
new MutationObserver(() => {
  const now = busy();
  if (now !== before) said.textContent = now > before ? 'Working' : 'Done';
  before = now;
}).observe(document.body, {childList: true, subtree: true});"""
"""Changes between light and dark, and says aloud, once each, that work begins and that it has ended."""


def build(studio: Studio) -> gr.Blocks:
    """Return the page of a studio."""
    with gr.Blocks(title="Belvedere", analytics_enabled=False, delete_cache=CACHE) as page:
        gr.HTML(_HEADER, js_on_load=_SCRIPT)
        with gr.Tabs():
            for title, fill in ROOMS.items():
                with gr.Tab(title, id=title.lower()):
                    fill(studio, page)
    page.has_launched = True  # or Gradio takes any path of the server for an upload when the page is mounted
    page.queue(max_size=studio.limits.waiting, default_concurrency_limit=1, api_open=False)
    return page
