"""The room in which a photograph becomes a scene: turned by dragging, filmed, taken away as a mesh."""

from collections.abc import Iterator
from typing import Any

import gradio as gr
from gradio.processing_utils import save_bytes_to_cache

from belvedere.apps.requests import ViewRequest
from belvedere.apps.web import cards, scene_results, turns, uploads
from belvedere.apps.web.component import showing
from belvedere.apps.web.running import Tell, in_words
from belvedere.apps.web.shelf import Entry
from belvedere.apps.web.strip import results
from belvedere.apps.web.studio import ASIDE, BUSY, QUICK, Studio
from belvedere.apps.web.turntable_page import turntable
from belvedere.errors import InputError

NO_MODEL = cards.empty("No model here", "Start the studio with --model NAME=FOLDER to make scenes with your own.")
NONE_YET = cards.empty("No scenes yet", "What is built stays here, also when the page or the server is closed.")
OPENING = "Opening the model"
DICE = "() => [Math.floor(Math.random() * 10000)]"
SEEN = """(id, ...rest) => { const view = document.querySelector('#turntable').view || {};
return [id, view.what || 'colour', view.angle || 0, view.elevation || 0, ...rest.slice(3)]; }"""
"""Puts in what the turntable shows before the server is asked."""


def build(studio: Studio, page: gr.Blocks) -> None:
    """Fill the tab."""
    names = scene_results.models(studio)
    if not names:
        gr.HTML(NO_MODEL)
        return
    with gr.Row(equal_height=False):
        with gr.Column(scale=2, min_width=300):
            photograph = uploads.picture_input(
                label="Photograph", sources=["upload", "clipboard"], height=260,
                format="png", buttons=[], elem_id="orbit-photograph",
            )  # fmt: skip
            model = gr.Dropdown(names, value=names[0], label="Model", visible=len(names) > 1)
            with gr.Row():
                stop = gr.Button("Stop", min_width=80, scale=1)
                toy = gr.Button("Take a toy", variant="primary", min_width=120, scale=3)
            with gr.Accordion("How the film is made", open=False):
                frames = gr.Slider(8, studio.limits.frames, value=36, step=1, label="Frames", info="24 a second.")
                arc = gr.Slider(30, 360, value=360, step=10, label="Degrees", info="Below 360 it swings to and fro.")
                side = gr.Slider(64, 512, value=160, step=16, label="Pixels a side")
            gr.Markdown("### Earlier scenes")
            old = gr.HTML(js_on_load=cards.USE, apply_default_css=False)
        with gr.Column(scale=3, min_width=320):
            table = turntable()
            scene = gr.Textbox(visible=False, label="scene")
            with gr.Row():
                take = gr.Button("View", min_width=90)
                film = gr.Button("Film", min_width=90)
                mesh = gr.Button("Mesh", min_width=90)
            solid = showing(gr.Model3D(label="Mesh", visible="hidden", height=340, interactive=False))
            made = gr.HTML(elem_id="orbit-made", apply_default_css=False)
    last = gr.State("")
    builds = _scene_events(studio, page, photograph, model, toy, scene, last, table, old, made, solid)
    makes = _made_events(studio, page, scene, take, film, mesh, [frames, arc, side], made, solid)
    shown = [scene, table, made]
    turns.redrawn(stop, [*builds, *makes], lambda scene, last: _ended(studio, scene, last), [scene, last], shown)


def _scene_events(
    studio: Studio, page: gr.Blocks, photograph: Any, model: Any, toy: Any, scene: Any, last: Any, table: Any, old: Any,
    made: Any, solid: Any,
) -> list[Any]:  # fmt: skip
    """Say how scenes come: of a photograph, of a toy, from the shelf. Return the events that compute.

    ``last`` becomes the id of the scene that was open before one is built.
    """
    number = gr.Number(0, precision=0, visible=False, label="number")
    private: dict[str, Any] = {"api_visibility": "private", **QUICK}

    def begin(scene: str, last: str) -> tuple[str, str, dict[str, Any], str]:
        """Return what the page shows of a scene that is not built yet, after the one that is ``last`` by then."""
        return "", scene or last, {"note": turns.place(studio, page) or OPENING}, ""

    def build(photograph: str, model: str) -> Iterator[tuple[str, dict[str, Any]]]:
        def work(tell: Tell) -> tuple[str, dict[str, Any]]:
            return scene_results.build(studio, photograph, model, tell)

        for news in studio.runner.run(scene_results.ROOM, work, what="a scene of a photograph"):
            yield news or ("", {"note": OPENING})

    def toy_picture(number: int) -> Any:
        return studio.runner.result(scene_results.ROOM, lambda tell: scene_results.toy(number), what="a toy")

    def open_scene(scene: str) -> tuple[dict[str, Any], str, Any]:
        with in_words():
            table = scene_results.opened(studio, scene)
        return table, _made(studio, scene), gr.update(value=None, visible="hidden")

    def chosen(event: gr.SelectData) -> str:
        return str(event.value)

    def earlier() -> str:
        return _earlier(studio)

    open_now, empty = [scene, last], [scene, last, table, made]
    begun = photograph.upload(begin, open_now, empty, **private).then(
        build, [photograph, model], [scene, table], api_name="orbit_build", **BUSY
    )
    drawn = toy.click(begin, open_now, empty, **private).then(
        toy_picture, number, photograph, js=DICE, api_name="orbit_toy", **BUSY
    )
    again = drawn.success(build, [photograph, model], [scene, table], api_visibility="private", **BUSY)
    for built in (begun, again):
        built.success(open_scene, scene, [table, made, solid], **private).then(earlier, None, old, **private)
    old.select(chosen, None, scene, **private).success(
        open_scene, scene, [table, made, solid], api_name="orbit_open", **ASIDE
    )
    page.load(earlier, None, old, api_name="orbit_scenes", **QUICK)
    return [begun, drawn, again]


def _made_events(
    studio: Studio, page: gr.Blocks, scene: Any, take: Any, film: Any, mesh: Any, shape: list[Any], made: Any,
    solid: Any,
) -> list[Any]:  # fmt: skip
    """Say what is made of a scene; ``shape`` of a film: frames, degrees, pixels a side. Return the events."""
    what = gr.Textbox("colour", visible=False, label="what")
    angle, elevation = (gr.Number(0, visible=False, label=name) for name in ("angle", "elevation"))

    def begin(scene: str) -> Any:
        """Refuse at once where there is no scene, and tell who waits."""
        with in_words():
            scene_results.check_scene(scene)
        words = turns.place(studio, page)
        return cards.progress(0, words) + _made(studio, scene) if words else gr.skip()

    def make(scene: str, kind: str, **asked: Any) -> Iterator[str]:
        with in_words():
            request = ViewRequest(device=studio.device, **asked)

        def work(tell: Tell) -> str:
            return scene_results.make(studio, scene, kind, request, tell)

        for news in studio.runner.run(scene_results.ROOM, work, what=f"a {kind} of a scene"):
            if not isinstance(news, str):
                done, total = news or (0, 1)
                yield cards.progress(done / total, f"Making the {kind}") + _made(studio, scene)
        yield _made(studio, scene)

    def view_of(scene: str, what: str, angle: float, elevation: float) -> Iterator[str]:
        yield from make(scene, "view", what=what, angle=float(angle), elevation=float(elevation))

    def film_of(
        scene: str, what: str, angle: float, elevation: float, frames: float, arc: float, side: float
    ) -> Iterator[str]:
        size = (int(side), int(side))
        shown = {"what": what, "elevation": float(elevation), "frames": int(frames), "arc": float(arc), "size": size}
        yield from make(scene, "film", **shown)

    def mesh_of(scene: str) -> Iterator[str]:
        yield from make(scene, "mesh")

    def mesh_file(scene: str) -> Any:
        with in_words():
            data = studio.shelf.file(scene_results.mesh(studio, scene), "mesh.glb").read_bytes()
        copy = save_bytes_to_cache(data, "mesh.glb", solid.GRADIO_CACHE)  # Gradio serves nothing of the shelf
        return gr.update(value=copy, visible=True)

    seen = [scene, what, angle, elevation]
    viewed, filmed, solved = (
        button.click(begin, scene, made, api_visibility="private", **ASIDE) for button in (take, film, mesh)
    )
    events = [
        viewed.success(view_of, seen, made, js=SEEN, api_name="orbit_view", **BUSY),
        filmed.success(film_of, [*seen, *shape], made, js=SEEN, api_name="orbit_film", **BUSY),
        solved.success(mesh_of, scene, made, api_name="orbit_mesh", **BUSY),
    ]
    # Not by the generator, whose last value comes twice: the viewer would drop the mesh that it is loading.
    events[-1].success(mesh_file, scene, solid, api_visibility="private", **QUICK)
    return events


def _ended(studio: Studio, scene: str, last: str) -> tuple[Any, Any, str]:
    """Return the scene, its turntable and what was made of it, when work has failed or was stopped.

    The scene that is open stays; where one was being built, it is the one before, or none where that is gone too.
    """
    if scene:
        return gr.skip(), gr.skip(), _made(studio, scene)
    try:
        return last, scene_results.opened(studio, last), _made(studio, last)
    except InputError:
        return "", {}, ""


def _made(studio: Studio, scene: str) -> str:
    """Return the cards of what was made of a scene, and the link to its own file."""
    if not scene:
        return ""
    own = f'<a class="bv-link" href="{studio.url(scene, scene_results.SCENE)}" download>Scene file (.safetensors)</a>'
    found = scene_results.newest(studio, 8, scene)
    return f'<p style="margin-bottom: .6rem">{own}</p>' + cards.cards(_card(studio, scene, entry) for entry in found)


def _card(studio: Studio, scene: str, entry: Entry) -> str:
    kind = str(entry.facts["kind"])
    name = f"{kind}.{scene_results.MADE[kind]}"
    shown = studio.url(scene, scene_results.PHOTOGRAPH) if kind == "mesh" else studio.url(entry.id, name)
    note = f"{entry.facts['what']}, {entry.facts['seconds']:.1f} s"
    return cards.card(shown, kind.capitalize(), note, {name.rsplit(".", 1)[-1].upper(): studio.url(entry.id, name)})


def _earlier(studio: Studio) -> str:
    """Return the newest scenes of the shelf."""
    found = scene_results.newest(studio, 8)
    return results(studio, found, scene_results.PHOTOGRAPH) if found else NONE_YET
