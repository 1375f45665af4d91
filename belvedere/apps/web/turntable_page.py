"""The turntable on the page: its value comes from the server once, turning it asks for nothing."""

from importlib.resources import files

import gradio as gr

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


def component(name: str, value: object) -> gr.HTML:
    """Return the component whose template, style and script are ``assets/NAME.html``, ``.css`` and ``.js``."""
    assets = files(__package__) / "assets"
    html, css, script = (assets.joinpath(f"{name}.{ending}").read_text() for ending in ("html", "css", "js"))
    return gr.HTML(
        value, html_template=html, css_template=css, js_on_load=script, elem_id=name, apply_default_css=False
    )
