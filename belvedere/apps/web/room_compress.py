"""The room in which pictures become small files, and small files pictures: compared by a slider, painted on."""

from collections.abc import Iterator
from functools import partial
from typing import Any

import gradio as gr

from belvedere.apps.requests import DEFAULT_CODEC
from belvedere.apps.web import cards, compressing, turns, uploads
from belvedere.apps.web.component import component, showing
from belvedere.apps.web.compressing import FILE, PICTURE, SMALL, Outcome
from belvedere.apps.web.pictures import data_uri
from belvedere.apps.web.running import Tell, in_words
from belvedere.apps.web.strip import results
from belvedere.apps.web.studio import ASIDE, BUSY, QUICK, Studio
from belvedere.compression.segpic_config import usual_quality

EMPTY = cards.empty(
    "Nothing compressed yet",
    "Drop a photograph to make it small, or a .bvd file to open it. You see both, side by side.",
)
NONE_YET = cards.empty("No files yet", "What is compressed stays here, also when the page or the server is closed.")
NO_MODEL = cards.empty("No codec here", "Start the studio with --model NAME=FOLDER to compress with your own.")
PAINTED = "(file, quality, brush, ...rest) => [file, quality, (brush && brush.strokes) || [], ...rest]"
MOVED = PAINTED.replace("=> [file", "=> [document.querySelector('#bvd-quality :active') ? null : file")
"""No file while the slider is dragged: that ends with a release. Keys move it without one."""
FRESH = "(file, quality, brush, most, model) => [file, quality, [], most, model, null]"
Last = tuple[Any, str]
"""What the newest outcome on a page was asked with, None for a file of the shelf, and what is told of it."""


def build(studio: Studio, page: gr.Blocks) -> None:
    """Fill the tab."""
    names = compressing.codecs(studio)
    if not names:
        gr.HTML(NO_MODEL)
        return
    rates = compressing.rates(studio, names[0])
    with gr.Row(equal_height=False):
        with gr.Column(scale=2, min_width=300):
            file = gr.File(
                label="Photograph, or .bvd file", type="filepath", height=130,
                file_types=[".png", ".jpg", ".jpeg", ".webp", f".{uploads.BVD}"],
            )  # fmt: skip
            model = gr.Dropdown(names, value=names[0], label="Model", visible=len(names) > 1)
            quality: Any = gr.Slider(1, step=0.25, label="Quality", elem_id="bvd-quality", **_qualities(rates))
            quality.preprocess = lambda payload: payload  # its range is that of one codec, which itself refuses others
            most = gr.Number(
                0, label="Bits a pixel at most", minimum=0, step=0.05, visible=rates > 1, elem_id="bvd-bpp",
                info="Enter searches for the best quality that fits; 0 for none.",
            )  # fmt: skip
            brush = component("brush", {})
            regions = _regions()
            stop = gr.Button("Stop", size="sm")
            gr.Markdown("### Earlier files")
            old = gr.HTML(js_on_load=cards.USE, apply_default_css=False)
        with gr.Column(scale=3, min_width=320):
            both = showing(gr.ImageSlider(
                label="Before and after", format="png", max_height=520, visible=False, buttons=["fullscreen"],
                elem_id="before-after",
            ))  # fmt: skip
            alone = showing(gr.Image(label="Opened", format="png", visible=False, buttons=["fullscreen"]))
            told = gr.HTML(EMPTY, elem_id="bvd-told", apply_default_css=False)
    chosen, shown = gr.State(names[0]), [both, alone, told, gr.State((None, EMPTY))]
    model.input(
        lambda model, chosen: _choose(studio, model, chosen), [model, chosen], [quality, most, chosen],
        api_visibility="private", **ASIDE,
    )  # fmt: skip
    _events(studio, page, [file, quality, brush, most, model, regions], stop, shown, old)


def _regions() -> gr.File:
    """Return where a picture is dropped, or chosen by keys, that says what is to stay sharp, as painting does."""
    with gr.Accordion("Regions from a file", open=False, elem_id="bvd-regions"):
        return gr.File(
            label="Grey picture of the same size: white stays sharp", type="filepath", height=110,
            file_types=[".png", ".jpg", ".jpeg", ".webp"],
        )  # fmt: skip


def _qualities(rates: int) -> dict[str, Any]:
    """Return what the slider is for a codec that has learned so many rates."""
    told = f"Higher is sharper and larger. 1, 2, ... {rates} were learned; fractions lie between."
    return {"maximum": rates, "value": usual_quality(rates), "visible": rates > 1, "info": told}


def _choose(studio: Studio, model: str, chosen: str) -> list[Any]:
    """Return what the quality, the bits a pixel and ``chosen`` become for a codec, told of twice by the list."""
    if model == chosen:
        return [gr.skip()] * 3
    with in_words():
        rates = compressing.rates(studio, model)
    return [gr.update(**_qualities(rates)), gr.update(value=0, visible=rates > 1), model]


def _events(studio: Studio, page: gr.Blocks, asked: list[Any], stop: Any, shown: list[Any], old: Any) -> None:
    file, quality, brush, most, _, white = asked
    told, last = shown[2:]
    chosen = gr.Textbox(visible=False, label="id")

    def drop(
        file: str,
        quality: float,
        strokes: Any,
        target_bpp: float | None = 0,
        model: str = DEFAULT_CODEC,
        regions: str | None = None,
    ) -> Iterator[list[Any]]:
        """Compress a picture, or open a .bvd file."""

        def work(tell: Tell) -> Outcome:
            data = uploads.read(file, studio.limits, (*uploads.PICTURES, uploads.BVD))
            if uploads.kind_of(data) == uploads.BVD:
                return compressing.open_file(studio, data, tell)
            options: dict[str, Any] = {"bpp": target_bpp or 0, "model": model, "regions": regions}
            return compressing.compress(studio, file, quality, strokes, tell, **options)

        yield from _shown(studio, work, (file, quality, strokes, target_bpp, model, regions))

    def redo(*asked: Any) -> Iterator[list[Any]]:
        """Do it again, unless that is what is shown, or there is no file; the last of ``asked`` is a ``Last``."""
        *wanted, last = asked
        if wanted[0] and last[0] != tuple(wanted):
            yield from drop(*wanted)
        else:
            yield [gr.skip(), gr.skip(), last[1], gr.skip()]

    def board(file: str) -> dict[str, Any]:
        """Return what is painted on: nothing for a .bvd file."""

        def work(tell: Tell) -> dict[str, Any]:
            data = uploads.read(file, studio.limits, (*uploads.PICTURES, uploads.BVD))
            if uploads.kind_of(data) == uploads.BVD:
                return {}
            return {"source": data_uri(compressing.preview(studio, file)), "strokes": []}

        return studio.runner.result(compressing.ROOM, work, what="looked at a picture")

    def again(id: str) -> Iterator[list[Any]]:
        """Open a .bvd file of the shelf."""
        with in_words():
            data = studio.shelf.file(id, FILE).read_bytes()
        yield from _shown(studio, lambda tell: compressing.open_file(studio, data, tell))

    def taken(event: gr.SelectData) -> str:
        return str(event.value)

    def earlier() -> str:
        found = compressing.earlier(studio)
        return results(studio, found, SMALL) if found else NONE_YET

    repeated: dict[str, Any] = {"trigger_mode": "always_last", "api_visibility": "private", **BUSY}
    changes = [quality.release, brush.input, most.submit, white.upload, white.clear]
    moved = turns.in_turn(partial(gr.on, changes), studio, page, told)
    file.upload(lambda: None, None, white, api_visibility="private", **QUICK)
    asking = turns.in_turn(file.upload, studio, page, told)
    looked = asking.then(board, file, brush, api_name="compress_look", **BUSY)
    runs = [
        looked.success(drop, asked, shown, js=FRESH, api_name="compress", **BUSY),
        moved.then(redo, [*asked, last], shown, js=PAINTED, **repeated),
        quality.input(redo, [*asked, last], shown, js=MOVED, **repeated),
        old.select(taken, None, chosen, api_visibility="private", **QUICK).success(
            again, chosen, shown, api_name="compress_open", **BUSY
        ),
    ]
    most.change(lambda bpp: gr.update(interactive=not bpp), most, quality, api_visibility="private", **QUICK)
    for run in runs:
        run.success(earlier, None, old, api_visibility="private", **QUICK)
    turns.redrawn(stop, [looked, *runs], lambda last: last[1], last, told)
    page.load(earlier, None, old, api_name="compress_files", **QUICK)


def _shown(studio: Studio, work: Any, asked: Any = None) -> Iterator[list[Any]]:
    """Yield what the right side shows while work is done, and of its outcome; the last is a ``Last`` of ``asked``."""
    for news in studio.runner.run(compressing.ROOM, work, what="a picture"):
        if not isinstance(news, Outcome):
            yield [gr.skip(), gr.skip(), cards.progress(news or 0, "Compressing" if news else "Opening"), gr.skip()]
            continue
        told = figures(studio, news)
        if news.before is None:
            yield [gr.update(visible=False), gr.update(value=news.after, visible=True), told, (asked, told)]
        else:
            pair = gr.update(value=(news.before, news.after), visible=True)
            yield [pair, gr.update(visible=False), told, (asked, told)]


def figures(studio: Studio, outcome: Outcome) -> str:
    """Return what is told of a file: its figures, what others need for the same, and the links."""
    facts = outcome.facts
    asked = f" of {facts['target_bpp']:g}" if "target_bpp" in facts else ""
    rows = [("Size", size(facts["bytes"])), ("Bits a pixel", f"{facts['bpp']:.3f}{asked}")]
    if "psnr" in facts:
        rows += [("PSNR", f"{facts['psnr']:.2f} dB")]
    if "painted_psnr" in facts:
        rows += [("PSNR where painted", f"{facts['painted_psnr']:.2f} dB")]
    rows += [("Pixels", f"{facts['width']} x {facts['height']}"), ("Quality", f"{facts['quality']:g}")]
    for key, what in (("seconds", "Compressed in"), ("decode_seconds", "Opened in")):
        rows += [(what, f"{facts[key]:.1f} s")] if key in facts else []
    names = studio.shelf.entry(outcome.id).names
    links = "".join(
        f'<a class="bv-link" href="{studio.url(outcome.id, name)}" download>Download .{name.rsplit(".")[-1]}</a>'
        for name in (FILE, PICTURE)
        if name in names
    )
    return f'<dl class="bv-figures">{"".join(map(_figure, rows))}</dl>{_bars(facts)}<p class="bv-links">{links}</p>'


def _figure(row: tuple[str, str]) -> str:
    return f"<div><dt>{row[0]}</dt><dd>{row[1]}</dd></div>"


def _bars(facts: dict[str, Any]) -> str:
    """Return bars of the bytes that others need for the same PSNR."""
    others = facts.get("same_psnr")
    if not others:
        return ""
    each = {"Belvedere": facts["bytes"], **others}
    longest = max(each.values())
    rows = "".join(
        f'<span>{name}</span><i class="{"own" if name == "Belvedere" else ""}" style="width:{100 * n / longest:.1f}%">'
        f"</i><span>{size(n)}</span>"
        for name, n in sorted(each.items(), key=lambda item: item[1])
    )
    return f'<div class="bv-sizes"><b>For the same PSNR</b>{rows}</div>'


def size(count: int) -> str:
    """Return a number of bytes in a form to read."""
    return f"{count} bytes" if count < 1000 else f"{count / 1000:.1f} kB" if count < 1e6 else f"{count / 1e6:.2f} MB"
