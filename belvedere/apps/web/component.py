"""Components of our own: a template, its style and its script; and those of Gradio that only show."""

from importlib.resources import files
from pathlib import Path
from typing import TypeVar

import gradio as gr
from gradio.blocks import Block

from belvedere.apps.web.bodies import SHOWN

Shows = TypeVar("Shows", bound=Block)


def component(name: str, value: object) -> gr.HTML:
    """Return the component whose template, style and script are ``assets/NAME.html``, ``.css`` and ``.js``."""
    assets = files(__package__) / "assets"
    html, css, script = (assets.joinpath(f"{name}.{ending}").read_text() for ending in ("html", "css", "js"))
    return gr.HTML(
        value, html_template=html, css_template=css, js_on_load=script, elem_id=name, apply_default_css=False
    )


def showing(block: Shows) -> Shows:
    """Return a component that no event takes: what it shows lies apart from the uploads, and does not count as one."""
    block.GRADIO_CACHE = str(Path(block.GRADIO_CACHE) / SHOWN)
    return block
