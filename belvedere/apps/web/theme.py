"""How the studio looks: a theme of its own on the fonts of the system, and what a theme cannot say, in CSS.

Nothing is fetched from elsewhere. ``.dark`` is the class that Gradio gives the page in the dark.
"""

import gradio as gr
from gradio.themes.utils import colors, sizes

SANS = ("ui-sans-serif", "system-ui", "Segoe UI", "Roboto", "Helvetica Neue", "Arial", "sans-serif")
MONO = ("ui-monospace", "SFMono-Regular", "Menlo", "Consolas", "monospace")


TERRACOTTA = gr.themes.Color(
    name="terracotta",
    c50="#fdf4ef",
    c100="#fbe5d9",
    c200="#f6cab3",
    c300="#f0a37f",
    c400="#e58a63",
    c500="#c9582c",
    c600="#b4471f",
    c700="#963a19",
    c800="#7a3016",
    c900="#642a16",
    c950="#361309",
)


def make_theme() -> gr.themes.Base:
    """Return the theme: warm grey paper, one accent, round corners, no shadows."""
    theme = gr.themes.Base(
        primary_hue=TERRACOTTA,
        secondary_hue=colors.teal,
        neutral_hue=colors.stone,
        radius_size=sizes.radius_lg,
        spacing_size=sizes.spacing_md,
        font=SANS,
        font_mono=MONO,
    )
    return theme.set(
        body_background_fill="*neutral_50",
        body_background_fill_dark="#171412",
        body_text_color_subdued="*neutral_500",
        block_info_text_color_dark="*neutral_400",
        input_placeholder_color="*neutral_500",
        input_placeholder_color_dark="*neutral_400",
        block_background_fill="white",
        block_background_fill_dark="#211d1a",
        background_fill_secondary_dark="#1c1816",
        block_border_width="1px",
        block_border_color="*neutral_200",
        block_border_color_dark="#37302b",
        border_color_primary_dark="#37302b",
        block_label_background_fill="rgb(255 255 255 / .85)",  # it may lie on a picture
        block_label_background_fill_dark="rgb(33 29 26 / .85)",
        block_label_border_width="0px",
        block_label_text_color="*neutral_600",
        block_label_text_color_dark="*neutral_300",
        block_title_text_weight="600",
        block_shadow="none",
        input_background_fill="*neutral_50",
        input_background_fill_dark="#171412",
        button_primary_background_fill="*primary_600",
        button_primary_background_fill_hover="*primary_700",
        button_primary_background_fill_dark="*primary_600",
        button_primary_background_fill_hover_dark="*primary_700",
        button_primary_text_color="white",
        button_large_text_weight="600",
        button_secondary_background_fill="white",
        button_secondary_background_fill_dark="#211d1a",
        button_secondary_border_color="*neutral_300",
        button_secondary_border_color_dark="#4a413a",
        button_border_width="1px",
        slider_color="*primary_600",
        slider_color_dark="*primary_400",
        checkbox_label_background_fill_selected="*primary_600",
        checkbox_label_background_fill_selected_dark="*primary_600",
        checkbox_label_text_color_selected="white",
        checkbox_background_color_selected="*primary_700",
        checkbox_background_color_selected_dark="*primary_700",
        link_text_color="*primary_700",
        link_text_color_dark="*primary_300",
    )


HEAD = """<style>
.gradio-container > .main.app { max-width: 1280px !important; margin: 0 auto; }
footer .divider { display: none !important; }
.gradio-container :focus-visible { outline: 2px solid var(--primary-600); outline-offset: 2px; }
@media (max-width: 640px) { .gradio-container > .main.app { padding: .6rem !important; } }
</style>"""
"""For what lies around the page's content, where Gradio does not apply its ``css``."""
CSS = """
.html-container { padding: 0 !important; }
.bv-head { display: flex; align-items: baseline; gap: .75rem; flex-wrap: wrap; padding: .25rem 0; }
.bv-head h1 { font-size: 1.6rem; font-weight: 700; letter-spacing: -.02em; margin: 0; }
.bv-head h1 span { color: var(--primary-600); }
.dark .bv-head h1 span { color: var(--primary-400); }
.bv-head p { margin: 0; color: var(--body-text-color-subdued); }
.bv-head button { margin-left: auto; }
.bv-head [role=status] { position: absolute; width: 1px; height: 1px; overflow: hidden; clip-path: inset(50%); }
.bv-head button, .bv-card button, .bv-card a, .bv-link {
  font: inherit; font-size: .85rem; color: var(--link-text-color); background: none; border: 1px solid transparent;
  border-radius: 8px; padding: .15rem .45rem; cursor: pointer; text-decoration: none; }
.bv-head button:hover, .bv-card button:hover, .bv-card a:hover, .bv-link:hover {
  border-color: var(--border-color-primary); }
.bv-empty { border: 1.5px dashed var(--border-color-primary); border-radius: 14px; padding: 2.2rem 1.2rem;
  text-align: center; color: var(--body-text-color-subdued); line-height: 1.55; }
.bv-empty b { color: var(--body-text-color); display: block; margin-bottom: .2rem; font-size: 1.05rem; }
.bv-cards { display: grid; grid-template-columns: repeat(auto-fill, minmax(150px, 1fr)); gap: .8rem; }
.bv-large .bv-cards { grid-template-columns: repeat(auto-fill, minmax(200px, 1fr)); }
.bv-card { margin: 0; border: 1px solid var(--block-border-color); border-radius: 14px; overflow: hidden;
  background: var(--block-background-fill); display: flex; flex-direction: column; }
.bv-card .bv-frame { background: var(--input-background-fill); aspect-ratio: 1; display: grid; place-items: center; }
.bv-card img, .bv-card video { width: 100%; height: 100%; object-fit: contain; display: block; }
.bv-card img.bv-small { image-rendering: pixelated; }
.bv-card figcaption { padding: .45rem .6rem .1rem; font-size: .88rem; overflow-wrap: anywhere; }
.bv-card figcaption small { display: block; color: var(--body-text-color-subdued); }
.bv-card footer { display: flex; flex-wrap: wrap; padding: .1rem .2rem .3rem; }
.bv-figures { display: grid; grid-template-columns: repeat(auto-fill, minmax(128px, 1fr)); gap: .6rem; margin: 0; }
.bv-figures div { border: 1px solid var(--block-border-color); border-radius: 12px; padding: .4rem .7rem;
  background: var(--block-background-fill); }
.bv-figures dt { font-size: .75rem; color: var(--body-text-color-subdued); }
.bv-figures dd { margin: 0; font-weight: 600; font-size: .95rem; }
.bv-sizes { display: grid; grid-template-columns: max-content 1fr max-content; gap: .25rem .8rem; align-items: center;
  font-size: .85rem; margin: .8rem 0; }
.bv-sizes b { grid-column: 1 / -1; font-weight: 600; }
.bv-sizes i { display: block; height: 10px; border-radius: 5px; background: var(--border-color-primary); }
.bv-links { margin: .8rem 0 0; }
.bv-sizes i.own { background: var(--slider-color); }
.bv-strip { display: grid; grid-template-columns: repeat(auto-fill, minmax(84px, 1fr)); gap: .6rem; }
.bv-strip button { display: block; padding: 0; border: 1px solid var(--block-border-color); border-radius: 12px;
  overflow: hidden; background: var(--block-background-fill); color: var(--body-text-color-subdued); cursor: pointer;
  font: inherit; font-size: .75rem; line-height: 1.7; }
.bv-strip button:hover { border-color: var(--slider-color); }
.bv-strip img { display: block; width: 100%; aspect-ratio: 1; object-fit: cover; margin: 0; }
.bv-chips label { border-radius: 999px !important; padding: .25rem .8rem !important; cursor: pointer;
  border: 1px solid var(--button-secondary-border-color) !important; }
.bv-chips label.selected { border-color: transparent !important; }
.bv-chips label input { position: absolute; opacity: 0; pointer-events: none; }
.bv-chips label span { margin: 0 !important; }
.bv-chips label:has(:focus-visible) { outline: 2px solid var(--primary-600); outline-offset: 2px; }
.bv-beside { align-self: end; }
.bv-note { color: var(--body-text-color-subdued); font-size: .9rem; }
.bv-bar { height: 6px; border-radius: 3px; background: var(--border-color-primary); overflow: hidden; margin: .5rem 0; }
.bv-bar i { display: block; height: 100%; background: var(--primary-600); transition: width .2s; }
.bv-table { width: 100%; border-collapse: collapse; font-size: .9rem; }
.bv-table, .bv-table :is(tbody, tr) { border: 0 !important; }
.bv-table th { text-align: left; font-weight: 600; color: var(--body-text-color-subdued); }
.bv-table :is(th, td) { padding: .35rem .9rem .35rem 0 !important; border: 0 !important; vertical-align: top;
  border-bottom: 1px solid var(--border-color-primary) !important; overflow-wrap: break-word; }
.bv-table :is(th, td):not(:last-child) { white-space: nowrap; }
.bv-table td:last-child { overflow-wrap: anywhere; }
.bv-columns { columns: 2 340px; column-gap: 2rem; }
.bv-columns section { break-inside: avoid; }
.bv-scroll { overflow-x: auto; }
.bv-fault { color: #b91c1c; font-weight: 600; }
.dark .bv-fault { color: #fca5a5; }
@media (max-width: 640px) {
  .tab-container button { padding: 0 .4rem !important; font-size: .86rem !important; }
  .bv-head p { display: none; }
  .bv-cards, .bv-large .bv-cards { grid-template-columns: repeat(2, 1fr); gap: .5rem; }
}
@media (prefers-reduced-motion: reduce) { * { transition: none !important; animation: none !important; } }
"""
