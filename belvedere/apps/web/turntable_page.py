"""The turntable on the page: its value comes from the server once, turning it asks for nothing."""

import gradio as gr

from belvedere.apps.web.component import component

COLUMNS = 24
"""Angles of the ring, evenly spaced, the picture's own the first."""
RISES = (20, 0, -20)
"""Elevations in degrees, a row each."""


def turntable() -> gr.HTML:
    """Return the component that shows the sheets of ``turntable.Ring``: dragged, or turned by arrow keys and sliders.

    Its value is {"sheets": {way: address}, "columns", "rises", "aspect": width / height, "note"}, {} at first. In the
    page, ``document.querySelector("#turntable").view`` is what is shown: {what, angle, elevation}.
    """
    return component("turntable", {})
