"""What the room Make does: from settings to pictures on the shelf, and from a picture back to its settings."""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from belvedere.apps import output, work
from belvedere.apps.requests import GenerateRequest
from belvedere.apps.web.pictures import data_uri, reduced
from belvedere.apps.web.shelf import Entry
from belvedere.apps.web.studio import Studio
from belvedere.checkpoints.components import PIPELINES
from belvedere.checkpoints.text_to_image import TEXT_TO_IMAGE
from belvedere.errors import InputError

if TYPE_CHECKING:
    from PIL import Image

    from belvedere.apps.record import Record
    from belvedere.apps.work import Job, Model

ROOM = "Make"
PICTURE = "picture.png"
"""Name of the file of each result, which carries its record."""
CLASSES = (*PIPELINES, *TEXT_TO_IMAGE)
"""Models that this room offers."""
CHIPS = 40
"""Kinds that can be chosen by a click; of more, they are written."""
EXACT = 2**53 - 1
"""The largest whole number that a browser holds as it is."""
PREVIEW_SIDE = 192
PREVIEW_SECONDS = 0.4
"""Between two previews at least, and four times what one costs."""


@dataclass(frozen=True)
class Settings:
    """What the page asks for. ``kinds``: names, empty = all in turn. ``words``: the prompt of a model of text; else
    more kinds, separated by commas."""

    model: str
    kinds: tuple[str, ...] = ()
    words: str = ""
    negative: str = ""
    width: int = 64
    height: int = 64
    steps: int = 25
    guidance: float = 2.0
    seed: int = 0
    count: int = 4


@dataclass(frozen=True)
class Abilities:
    """What a model takes. ``names``: its kinds, none for one of text; ``unit``: sides are multiples of it, 0 where the
    size, (width, height), is fixed."""

    names: tuple[str, ...]
    size: tuple[int, int]
    unit: int
    steps: int
    guidance: float

    @property
    def takes_text(self) -> bool:
        """Whether it makes pictures of prompts."""
        return not self.names


@dataclass
class Making:
    """Work under way: ``shown`` has, by picture, its source, title and note, and the id of those that are done."""

    done: float = 0.0
    total: int = 1
    began: float = field(default_factory=time.monotonic)
    shown: dict[int, tuple[str, str, str, str]] = field(default_factory=dict)
    made: list[dict[str, Any]] = field(default_factory=list)
    """What is told of each finished picture through the API."""


def load(studio: Studio, name: str) -> "Model":
    """Return an offered model; it is kept for the next request."""
    request = GenerateRequest(studio.model(name), device=studio.device)
    return studio.loaded("generator", name, lambda: work.load(request, download=False))


def warm(studio: Studio) -> None:
    """Load the first model and run one step of it, so that the first picture comes at once."""
    if names := studio.offered(*CLASSES):
        request = GenerateRequest(studio.model(names[0]), steps=1, device=studio.device)
        list(work.run(work.prepare(request, model=load(studio, names[0])), range(1)))


def abilities(studio: Studio, name: str) -> Abilities:
    """Return what an offered model takes."""
    return _abilities(_job(studio, name))


def _abilities(job: "Job") -> Abilities:
    height, width = job.pipeline.default_size
    unit = job.pipeline.unit if job.pipeline.any_size else 0
    names = () if job.request.prompts else tuple(job.names.values())
    return Abilities(names, (width, height), unit, job.request.steps or 1, job.request.guidance or 0.0)


def _takes_text(model: "Model") -> bool:
    from belvedere.generation.class_pipeline import ClassPipeline

    return not isinstance(model.pipeline, ClassPipeline)


def _job(studio: Studio, name: str) -> "Job":
    """Return a job that has the own settings of an offered model."""
    model = load(studio, name)
    request = GenerateRequest(studio.model(name), device=studio.device)
    if _takes_text(model):
        request = replace(request, prompts=("a picture",))
    return work.prepare(request, download=False, model=model)


def request_of(studio: Studio, settings: Settings) -> GenerateRequest:
    """Return the request of a page's settings, the one that the command line would make of them."""
    model = load(studio, settings.model)
    words = settings.words.strip()
    chosen: dict[str, Any] = {}
    if _takes_text(model):
        if not words:
            raise InputError("this model makes pictures of text: write what you want to see")
        chosen = {"prompts": (" ".join(words.split()),), "negative": " ".join(settings.negative.split())}
    else:
        written = [item.strip() for item in words.split(",") if item.strip()]
        chosen = {"classes": tuple(dict.fromkeys([*settings.kinds, *written]))}
    fixed = not getattr(model.pipeline, "any_size", True)
    return GenerateRequest(
        studio.model(settings.model),
        count=settings.count,
        seed=settings.seed,
        steps=settings.steps,
        guidance=settings.guidance,
        device=studio.device,
        sizes=() if fixed else ((settings.width, settings.height),),
        **chosen,
    )


def make(studio: Studio, settings: Settings, tell: Callable[[Making], None]) -> Making:
    """Make pictures and put each on the shelf as soon as it is there; ``tell`` is given how far it is."""
    studio.limits.check_request((settings.width, settings.height), settings.steps, settings.count)
    request = request_of(studio, settings)
    job = work.prepare(request, download=False, model=load(studio, settings.model))
    high, wide = job.size(0)
    studio.limits.check_request((wide, high), settings.steps, settings.count)
    state = Making(total=request.count)

    def news() -> None:  # a copy: the page reads it in another thread
        tell(replace(state, shown=dict(state.shown), made=list(state.made)))

    def progress(done: float, total: int) -> None:
        state.done = done
        news()

    for i, (image, record) in enumerate(
        work.run(job, range(request.count), progress=progress, preview=_previews(job, state))
    ):
        facts = {"title": record.kind, "note": _note(job, i), "seed": request.seed, "index": i, "model": settings.model}
        key = studio.shelf.put(ROOM, {PICTURE: output.encode(image, "png", record.to_json())}, facts)
        url = studio.url(key, PICTURE)
        state.shown[i] = url, record.kind, str(facts["note"]), key
        state.made.append({"id": key, "url": url, "kind": record.kind, "width": image.width, "height": image.height,
                           "seed": request.seed, "index": i, "pixels": record.pixels})  # fmt: skip
        news()
    return state


def _note(job: "Job", index: int) -> str:
    height, width = job.size(index)
    return f"{width} x {height}, seed {job.request.seed}" + (f", no. {index + 1}" if job.request.count > 1 else "")


def _previews(job: "Job", state: Making) -> "Callable[[list[int], Callable[[], Sequence[Image.Image]]], None]":
    """Return what puts pictures under way into ``state``, not so often that it would slow them down."""
    due = time.monotonic()

    def preview(indices: list[int], look: "Callable[[], Sequence[Image.Image]]") -> None:
        nonlocal due
        began = time.monotonic()
        if began < due:
            return
        for i, image in zip(indices, look(), strict=True):
            state.shown[i] = data_uri(reduced(image, PREVIEW_SIDE)), job.names[job.label(i)], "forming", ""
        due = time.monotonic() + max(PREVIEW_SECONDS, 4 * (time.monotonic() - began))

    return preview


def recall(studio: Studio, record: "Record") -> tuple[Settings, Abilities, str]:
    """Return the settings that made a picture, what its model takes, and in words what the page cannot set.

    Raises ``InputError`` for a picture of a model that is not offered here.
    """
    asked, name = record.request, _model_of(studio, record)
    job = _job(studio, name)
    able = _abilities(job)
    width, height = asked.sizes[record.index % len(asked.sizes)] if asked.sizes else able.size
    ids = () if able.takes_text else tuple(work.find_class(item, job.names) for item in asked.classes)
    chips = len(able.names) <= CHIPS
    settings = Settings(
        name,
        tuple(job.names[id] for id in ids) if chips else (),
        record.kind if able.takes_text else "" if chips else ", ".join(map(str, ids)),
        asked.negative,
        width,
        height,
        asked.steps or able.steps,
        able.guidance if asked.guidance is None else asked.guidance,
        asked.seed,
        max(record.index + 1, min(asked.count, studio.limits.count)),
    )
    return settings, able, ". ".join(_told(studio, record, job, ids))


def _model_of(studio: Studio, record: "Record") -> str:
    """Return the offered model that made a picture: by its weights, wherever they lie, else by its name."""
    names = studio.offered(*CLASSES)
    called = [name for name in names if studio.model(name) == record.request.model]
    same = [name for name in names if studio.digest(name) == record.weights]
    found = [name for name in called if name in same] or same or called
    if not found:
        raise InputError(f"this picture is of model {record.request.model}, which this studio does not offer")
    return found[0]


def _told(studio: Studio, record: "Record", job: "Job", ids: Sequence[int]) -> Iterator[str]:
    asked, here = record.request, job.request
    yield f"Settings of picture {record.index + 1} of {asked.count} ({record.kind})"
    if record.index >= studio.limits.count:
        yield f"It comes after the {studio.limits.count} that can be made here at once: use belvedere regenerate"
    if job.weights != record.weights:
        yield "Its model has other weights by now, so another picture will come"
    if asked.concepts:
        yield "It shows a concept, which this room does not know: see Personalise"
    if len(asked.sizes) > 1 or len(asked.prompts) > 1:
        yield "It was one of several sizes or prompts: only its own are set, so another picture will come"
    if len(set(ids)) < len(ids):
        yield "Its kinds repeat, which is not set here, so another picture may come"
    if asked.extrapolation not in (None, here.extrapolation):
        yield f"It was made with --extrapolation {asked.extrapolation}, which is not set here: use belvedere regenerate"
    if asked.sampling:
        told = " ".join(f"--{name.replace('_', '-')} {_written(value)}" for name, value in asked.sampling.items())
        yield f"It was made with {told}, which is not set here: use belvedere regenerate"
    if asked.dtype not in ("auto", here.dtype):
        yield f"It was made in {asked.dtype}, which is not set here, where it is {here.dtype}: use belvedere regenerate"
    if asked.seed > EXACT:
        yield f"Its seed, {asked.seed}, is larger than a browser can hold: use belvedere regenerate"


def _written(value: object) -> str:
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)


def earlier(studio: Studio, count: int = 24) -> list[Entry]:
    """Return the newest pictures of this room."""
    return studio.shelf.newest(ROOM, count)
