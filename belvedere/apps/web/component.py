"""Components of our own: a template, its style and its script."""

from importlib.resources import files

import gradio as gr


def component(name: str, value: object) -> gr.HTML:
    """Return the component whose template, style and script are ``assets/NAME.html``, ``.css`` and ``.js``."""
    assets = files(__package__) / "assets"
    html, css, script = (assets.joinpath(f"{name}.{ending}").read_text() for ending in ("html", "css", "js"))
    return gr.HTML(
        value, html_template=html, css_template=css, js_on_load=script, elem_id=name, apply_default_css=False
    )
