"""The room in which pictures are made: settings on the left, pictures as they form on the right, earlier ones below."""

import random
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import gradio as gr

from belvedere.apps.record import Record
from belvedere.apps.requests import MAX_SEED
from belvedere.apps.web import cards, making, turns, uploads
from belvedere.apps.web.limits import Limits
from belvedere.apps.web.making import CHIPS, Abilities, Making, Settings
from belvedere.apps.web.shelf import Entry
from belvedere.apps.web.studio import BUSY, QUICK, RAW, WORK, Studio
from belvedere.checkpoints import store

SHAPES = {"Square": 1.0, "Portrait 3:4": 3 / 4, "Landscape 4:3": 4 / 3, "Tall 1:2": 1 / 2, "Wide 2:1": 2.0}
EMPTY = cards.empty("Nothing made yet", "Choose what you want to see, then press Make. Pictures form here, and stay.")
NO_MODEL = cards.empty(
    "No model here",
    "This build carries none. Start the studio with --model NAME=FOLDER to make pictures with your own.",
)
RANDOM_SEED = 2**31
SHORTEST = 16
"""Pixels of a side."""


def build(studio: Studio, page: gr.Blocks) -> None:
    """Fill the tab."""
    names = studio.offered(*making.CLASSES)
    if not names:
        gr.HTML(NO_MODEL)
        return
    able = _first(studio, names[0])
    with gr.Row(equal_height=False):
        with gr.Column(scale=2, min_width=300):
            inputs = _settings(names, able, studio.limits)
            with gr.Row():
                stop = gr.Button("Stop", min_width=80, scale=1)
                go = gr.Button("Make", variant="primary", min_width=120, scale=3)
            dropped = uploads.picture_input(
                label="Settings back from a picture: drop it here",
                sources=["upload"], height=150, buttons=[],
            )  # fmt: skip
            told = gr.HTML("", html_template=cards.PLAIN, elem_classes="bv-note")
        with gr.Column(scale=3, min_width=320):
            shown = gr.HTML(EMPTY, elem_classes="bv-large", js_on_load=cards.USE)
            made = gr.JSON(visible=False, label="pictures")
            old = gr.HTML(js_on_load=cards.USE)
    _events(studio, page, inputs, go, stop, dropped, told, shown, made, old)


def _first(studio: Studio, name: str) -> Abilities:
    """Return what a model takes as far as its index tells, so that the page is there before the model is."""
    index = store.read_json(studio.folder_of(name) / "model_index.json")
    labels = index.get("id2label") or {}
    names = tuple(labels[key] for key in sorted(labels, key=int))
    return Abilities(names, (64, 64), 0, index.get("default_steps") or 25, index.get("default_guidance") or 2.0)


def _settings(names: list[str], able: Abilities, limits: Limits) -> list[Any]:
    """Return the components in the order of ``Settings``, and those that follow the model; the last holds its name."""
    model = gr.Dropdown(names, value=names[0], label="Model", interactive=True)
    kinds = gr.CheckboxGroup(
        list(able.names), value=[], label="Kinds", info="None chosen: all of them in turn.", elem_classes="bv-chips"
    )
    words = gr.Textbox("", label="Prompt", lines=2, visible=False, placeholder="a red car on a checkered floor")
    count = gr.Slider(1, limits.count, value=4, step=1, label="How many", elem_id="make-count")
    shape = gr.Radio(list(SHAPES), value="Square", label="Shape", visible=False)
    with gr.Row(visible=False) as sides:
        width = gr.Slider(SHORTEST, limits.side, value=able.size[0], step=8, label="Width", min_width=120)
        height = gr.Slider(SHORTEST, limits.side, value=able.size[1], step=8, label="Height", min_width=120)
    with gr.Row():
        seed = gr.Number(0, label="Seed", precision=0, minimum=0, maximum=MAX_SEED, min_width=120, scale=2)
        other = gr.Button("New seed", min_width=90, scale=1, size="sm", elem_classes="bv-beside")
    with gr.Accordion("More", open=False):
        steps = gr.Slider(1, 100, value=able.steps, step=1, label="Steps", info="More are slower and cleaner.")
        guidance = gr.Slider(
            0, 10, value=able.guidance, step=0.1, label="Guidance", info="How closely it keeps to what is asked."
        )
        negative = gr.Textbox("", label="Lean away from", visible=False)
    other.click(lambda: random.randrange(RANDOM_SEED), None, seed, api_visibility="private", queue=False)
    shape.input(_reshaped, [shape, width, height], [width, height], api_visibility="private", queue=False)
    inputs = [model, kinds, words, negative, width, height, steps, guidance, seed, count]
    return [*inputs, shape, sides, gr.State(names[0])]


def _reshaped(shape: str, width: float, height: float) -> tuple[int, int]:
    """Return the sides of a shape with about as many pixels as before, in units that every model takes."""
    ratio, area = SHAPES[shape], width * height
    sides = ((area * ratio) ** 0.5, (area / ratio) ** 0.5)
    return tuple(max(SHORTEST, round(side / 8) * 8) for side in sides)  # type: ignore[return-value]


def _updates(able: Abilities, settings: Settings, keep_words: bool = False) -> list[Any]:
    """Return what the components of ``_settings`` become.

    ``keep_words``: whether what is written in the boxes for text by then stays, whatever ``settings`` says.
    """
    chips = 0 < len(able.names) <= CHIPS
    unit = max(able.unit, 1)
    words: dict[str, Any] = {
        "label": "Prompt" if able.takes_text else "Kinds, separated by commas",
        "visible": not chips,
    }
    negative: dict[str, Any] = {"visible": able.takes_text}
    if not keep_words:
        words["value"], negative["value"] = settings.words, settings.negative
    low = -(-SHORTEST // unit) * unit
    side: dict[str, Any] = {"minimum": low, "step": unit}
    return [
        settings.model,
        gr.update(
            choices=list(able.names) if chips else [], value=list(settings.kinds) if chips else [], visible=chips
        ),
        gr.update(**words),
        gr.update(**negative),
        gr.update(value=settings.width, **side),
        gr.update(value=settings.height, **side),
        gr.update(value=settings.steps, maximum=max(100, settings.steps)),
        gr.update(value=settings.guidance, maximum=max(10, settings.guidance)),
        settings.seed,
        settings.count,
        gr.update(visible=able.unit > 0, value=None),
        gr.update(visible=able.unit > 0),
        settings.model,
    ]


def _events(
    studio: Studio, page: gr.Blocks, inputs: list[Any], go: Any, stop: Any, dropped: Any, told: Any, shown: Any,
    made: Any, old: Any,
) -> None:  # fmt: skip
    """Say what happens; ``inputs``: see ``_settings``, of which the first ten are what is made of."""
    asked = inputs[:10]

    def make(
        model: str, kinds: list[str], words: str, negative: str, width: float, height: float, steps: float,
        guidance: float, seed: float | None, count: float,
    ) -> Iterator[tuple[str, list[dict[str, Any]]]]:  # fmt: skip
        numbers = int(width), int(height), int(steps), float(guidance), int(seed or 0), int(count)
        settings = Settings(model, tuple(kinds or ()), str(words or ""), str(negative or ""), *numbers)
        what = f"{settings.count} pictures by {settings.model}"
        for news in studio.runner.run(making.ROOM, lambda tell: making.make(studio, settings, tell), what=what):
            yield _shown(news), news.made if news else []

    def opened(model: str) -> Abilities:
        return studio.runner.result(making.ROOM, lambda tell: making.abilities(studio, model), what=f"opened {model}")

    def choose(model: str, shown: str, seed: float, count: float) -> list[Any]:
        if model == shown:  # the list tells of one choice twice: the second answer would undo what was set meanwhile
            return [gr.skip()] * len(inputs)
        able = opened(model)
        settings = Settings(model, (), "", "", *able.size, able.steps, able.guidance, int(seed or 0), int(count))
        return _updates(able, settings, keep_words=able.takes_text)

    def own(model: str) -> dict[str, Any]:
        able = opened(str(model))
        size = {"width": able.size[0], "height": able.size[1]}
        return {"kinds": able.names, **size, "steps": able.steps, "guidance": able.guidance, "prompt": able.takes_text}

    def recalled(read: Callable[[], Record]) -> list[Any]:
        settings, able, words = studio.runner.result(
            making.ROOM, lambda tell: making.recall(studio, read()), what="recalled"
        )
        return [*_updates(able, settings), words]

    def recall(picture: str) -> list[Any]:
        return recalled(lambda: uploads.record(picture, studio.limits))

    def again(event: gr.SelectData) -> list[Any]:
        return recalled(lambda: uploads.record(studio.shelf.file(str(event.value), making.PICTURE), studio.limits))

    def earlier(pictures: list[dict[str, Any]] | None) -> str:
        return _earlier(studio, {picture["id"] for picture in pictures or []})

    def stopped(pictures: list[dict[str, Any]] | None) -> tuple[str, str]:
        ids = {picture["id"] for picture in pictures or []}
        return _finished(studio, ids), _earlier(studio, ids)

    gr.api(own, api_name="choose", **WORK)
    asking = turns.in_turn(go.click, studio, page, shown)
    run = asking.then(make, asked, [shown, made], api_name="make", scroll_to_output=True, **RAW)
    run.success(earlier, made, old, api_visibility="private", **QUICK)
    turns.redrawn(stop, [run], stopped, made, [shown, old], "stop")
    inputs[0].input(choose, [inputs[0], inputs[-1], *inputs[8:10]], inputs, api_visibility="private", **BUSY)
    dropped.upload(recall, dropped, [*inputs, told], api_name="recall", **BUSY)
    for gallery in (shown, old):
        gallery.select(again, None, [*inputs, told], api_visibility="private", **BUSY)
    page.load(earlier, made, old, api_name="results", **QUICK)


def _shown(news: Making | None) -> str:
    """Return what the right side shows of work under way, or of what was made."""
    if news is None:
        return cards.progress(0, "Opening the model")
    each = [
        cards.card(source, title, note, {"PNG": source} if key else None, key)
        for _, (source, title, note, key) in sorted(news.shown.items())
    ]
    done, seconds = len(news.made), time.monotonic() - news.began
    if done == news.total:
        return cards.cards(each)
    left = f", about {seconds / news.done * (news.total - news.done):.0f} s left" if news.done else ""
    bar = cards.progress(news.done / news.total, f"{done} of {news.total} done{left}")
    return bar + cards.cards(each)


def _finished(studio: Studio, ids: set[str]) -> str:
    """Return the pictures that were made before the work was stopped."""
    entries = [entry for entry in reversed(making.earlier(studio)) if entry.id in ids]
    return _kept(studio, entries) if entries else EMPTY


def _earlier(studio: Studio, apart: set[str]) -> str:
    """Return the newest pictures of the shelf, without those that are shown ``apart``."""
    entries = [entry for entry in making.earlier(studio) if entry.id not in apart]
    return f"<h3>Earlier pictures</h3>{_kept(studio, entries)}" if entries else ""


def _kept(studio: Studio, entries: Sequence[Entry]) -> str:
    told = [(str(entry.facts.get("title", "")), str(entry.facts.get("note", ""))) for entry in entries]
    return cards.cards(
        cards.result(studio, entry, title=title, note=note, shown=making.PICTURE, use=True)
        for entry, (title, note) in zip(entries, told, strict=True)
    )
