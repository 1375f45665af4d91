"""Scenes on the shelf: made of a photograph, and what is made of them: views, films, meshes."""

import time
from typing import TYPE_CHECKING, Any

from belvedere.apps.requests import SHOWN, ViewRequest
from belvedere.apps.web import uploads
from belvedere.apps.web.pictures import data_uri, reduced, webp
from belvedere.apps.web.running import Tell
from belvedere.apps.web.shelf import Entry
from belvedere.apps.web.studio import Studio
from belvedere.apps.web.turntable_page import COLUMNS, RISES
from belvedere.checkpoints.components import SCENES
from belvedere.errors import InputError

if TYPE_CHECKING:
    from PIL import Image

ROOM = "Orbit"
SCENE, PHOTOGRAPH = "scene.safetensors", "photograph.webp"
MADE = {"view": "png", "film": "mp4", "mesh": "glb"}
"""What can be made of a scene, and the ending of its file."""

Table = dict[str, Any]
"""The value of a ``turntable``."""


def models(studio: Studio) -> list[str]:
    """Return the names of the models that make scenes."""
    return studio.offered(SCENES)


def build(studio: Studio, upload: uploads.Upload, model: str, tell: Tell) -> tuple[str, Table]:
    """Make a scene of an uploaded photograph, put it on the shelf, and return its id and its turntable.

    ``tell`` is given an id of no result yet, "", and the turntable as far as it is.
    """
    from belvedere.apps.scenes import open_scene
    from belvedere.apps.view import record_text
    from belvedere.apps.web.turntable import render_ring
    from belvedere.data.images import to_srgb

    began = time.monotonic()
    photograph = uploads.photograph(upload, studio.limits)
    image = to_srgb(photograph)
    request = ViewRequest(studio.model(model), device=studio.device)
    with studio.scratch() as folder:
        image.save(folder / "photograph.png", exif=photograph.exif or None)
        scene = open_scene(folder / "photograph.png", request)
        scene.save(folder / SCENE, record_text(scene, request))
        content = (folder / SCENE).read_bytes()
    height, width = scene.camera.size
    table = layout(width / height)

    def report(done: int, total: int, sheets: "dict[str, Image.Image] | None") -> None:
        if sheets:
            table["sheets"] = {what: data_uri(sheet) for what, sheet in sheets.items()}
        tell(("", {**table, "note": f"{done} of {total} views"}))

    sheets = render_ring(scene, report)
    files = {SCENE: content, PHOTOGRAPH: webp(reduced(image, 256))}
    files |= {f"{what}.webp": webp(sheet) for what, sheet in sheets.items()}
    facts = {"kind": "scene", "model": model, "aspect": width / height, "seconds": time.monotonic() - began}
    id = studio.shelf.put(ROOM, files, {**facts, **scene.camera_facts})
    return id, opened(studio, id)


def layout(aspect: float) -> Table:
    """Return how the sheets of a turntable are cut."""
    return {"columns": COLUMNS, "rises": list(RISES), "aspect": aspect, "note": ""}


def opened(studio: Studio, id: str) -> Table:
    """Return the turntable of a scene on the shelf; ``InputError`` when it is not there."""
    studio.shelf.file(id, SCENE)
    facts = studio.shelf.entry(id).facts
    return {**layout(float(facts["aspect"])), "sheets": {what: studio.url(id, f"{what}.webp") for what in SHOWN}}


def check_scene(id: str) -> None:
    """Raise ``InputError`` where no scene was built or opened."""
    if not id:
        raise InputError("no scene yet: drop a photograph, or wait until it is built")


def make(studio: Studio, id: str, kind: str, request: ViewRequest, tell: Tell) -> str:
    """Make a view, a film or a mesh (``MADE``) of a scene on the shelf, put it there too, and return its id."""
    from belvedere.apps.view import view

    check_scene(id)
    if kind not in MADE:
        raise InputError(f"cannot make {str(kind)[:40]!r} of a scene: choose {', '.join(MADE)}")
    if kind == "mesh" and (known := mesh(studio, id)):
        return known
    if request.size:
        studio.limits.check_film(request.size, request.frames or 1)
    began, name = time.monotonic(), f"{kind}.{MADE[kind]}"
    with studio.scratch() as folder:
        view(studio.shelf.file(id, SCENE), folder / name, request, progress=lambda done, of: tell((done, of)))
        files = {path.name: path.read_bytes() for path in sorted(folder.iterdir())}
    facts = {"kind": kind, "scene": id, "what": request.what, "seconds": time.monotonic() - began}
    return studio.shelf.put(ROOM, files, {**facts, "angle": request.angle, "elevation": request.elevation})


def newest(studio: Studio, count: int, scene: str | None = None) -> list[Entry]:
    """Return the newest scenes; or what was made of the one of this id."""
    found = studio.shelf.newest(ROOM, studio.limits.results)
    return [entry for entry in found if entry.facts.get("scene") == scene][:count]


def mesh(studio: Studio, scene: str) -> str:
    """Return the id of a scene's mesh, "" when there is none yet."""
    found = newest(studio, studio.limits.results, scene)
    return next((entry.id for entry in found if entry.facts["kind"] == "mesh"), "")


def toy(number: int) -> "Image.Image":
    """Return picture ``number``, from 0 on, of the toybox."""
    from belvedere.data.images import to_image
    from belvedere.data.toybox import Toybox

    if isinstance(number, bool) or not isinstance(number, int) or not 0 <= number < 1_000_000:
        raise InputError("the number of a toy must be a whole one from 0 to 999999")
    return to_image(Toybox(320, seed=7)[number]["image"])
