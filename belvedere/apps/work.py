"""The one door: from a request to its result. The command line, batches and the web page all come through here."""

import difflib
import inspect
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import accumulate, count
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from belvedere import seeds
from belvedere.apps import compare, record
from belvedere.apps.importing import uncollected
from belvedere.apps.record import Machine, Record
from belvedere.apps.requests import GenerateRequest
from belvedere.errors import InputError
from belvedere.threads import kept_to

if TYPE_CHECKING:
    import torch
    from PIL import Image

Progress = Callable[[float, int], None]
"""Called with (pictures done, pictures in all); the first is a fraction while a batch is under way."""

Preview = Callable[[list[int], "Callable[[], list[Image.Image]]"], None]
"""Called after every step with the numbers of the pictures under way and what shows how they look by then; a call of
that costs a decoding when the model makes latents."""


class Picture(NamedTuple):
    """One result: the picture and what made it."""

    image: "Image.Image"
    record: Record


@dataclass(frozen=True)
class Job:
    """A request whose model is loaded and whose classes are found. ``request`` holds the values really used.

    Of a request of prompts, these are the classes: ``labels`` their numbers, ``names`` their text. ``concepts``: see
    ``Record``.
    """

    request: GenerateRequest
    pipeline: Any
    weights: str
    labels: tuple[int, ...]
    names: dict[int, str]
    machine: Machine
    concepts: str = ""
    first: int = 0
    """Where the prompts begin among those of a pipeline that is shared with other jobs."""
    room: int | None = None
    """Of its network calls (``generation.rooms``); None: what suits the request."""

    def label(self, index: int) -> int:
        """Return the class id of picture ``index``."""
        return self.labels[index % len(self.labels)]

    def size(self, index: int) -> tuple[int, int]:
        """Return the (height, width) in pixels of picture ``index``."""
        sizes = self.request.sizes
        if not sizes:
            return self.pipeline.default_size
        width, height = sizes[index % len(sizes)]
        return height, width

    @property
    def evaluations(self) -> int | None:
        """How often the network is asked for a picture, guidance aside; None where its solver chooses the steps."""
        steps, solver = self.request.steps, self.request.solver
        return steps if steps is None or solver is None else self.pipeline.evaluations(solver, steps)

    def record(self, index: int, pixels: str = "") -> Record:
        """Return the record of picture ``index``; ``pixels`` is its digest once it is made."""
        label = self.label(index)
        room = self.room if self.room and self.room < self.full_room else 0
        made = self.weights, pixels, self.machine, self.concepts, room
        return Record(self.request, index, label, self.names[label], *made)

    @cached_property
    def full_room(self) -> int:
        """The room of a call that fills the device."""
        import torch

        from belvedere.generation import rooms

        return rooms.full(torch.device(self.request.device))


@dataclass(frozen=True)
class Model:
    """A model as it was loaded for a request: ``prepare`` takes it for others of the same model, dtype and device."""

    pipeline: Any
    weights: str
    folder: Path
    device: "torch.device"
    dtype: "torch.dtype"

    @cached_property
    def names(self) -> dict[int, str]:
        """Of the classes, by id."""
        return _names(self.pipeline)


def load(request: GenerateRequest, *, download: bool = True) -> Model:
    """Find, check and load the request's model; without ``download``, one of the hub is taken from the cache only."""
    from belvedere.checkpoints import store

    folder = store.resolve(request.model, download=download)
    with uncollected():  # nearly all of it is imports
        device = store.choose_device(request.device)
        dtype = store.choose_dtype(request.dtype, device)
        return Model(*store.load_verified(folder, dtype, device), folder, device, dtype)


def prepare(request: GenerateRequest, *, download: bool = True, model: Model | None = None) -> Job:
    """Load the request's model, unless it is given, and resolve the classes; ``InputError`` for whatever does not fit.

    Without ``download``, a model of the hub is taken from the cache only.
    """
    model = model or load(request, download=download)  # first: its imports, without the collector, are theirs too
    from belvedere.apps.prompts import open_prompts
    from belvedere.generation.class_pipeline import ClassPipeline

    pipeline, digest, folder, device = model.pipeline, model.weights, model.folder, model.device
    concepts = ""
    if not isinstance(pipeline, ClassPipeline):
        pipeline, concepts = open_prompts(request, pipeline, folder)
    elif request.prompts:
        raise InputError(f"model {request.model} makes pictures of classes: give --classes, not prompts")
    if pipeline.vae is None and pipeline.network.config.channels not in (1, 3):
        raise InputError(f"model {request.model} makes latents and has no vae to decode them; get the whole model")
    used = _with_sampling(_with_sizes(request, pipeline), pipeline)
    names = dict(enumerate(request.prompts)) or model.names
    labels = tuple(find_class(item, names) for item in request.classes) or tuple(names)
    used = replace(
        used,
        dtype=str(model.dtype).removeprefix("torch."),
        device=str(device),
    )
    return Job(used, pipeline, digest, labels, names, record.this_machine(device), concepts)


def generate(request: GenerateRequest, *, progress: Progress | None = None) -> Iterator[Picture]:
    """Yield the pictures of a request with their records, in order; the model is loaded at the first."""
    yield from run(prepare(request), range(request.count), progress=progress)


def run(
    job: Job, indices: range, *, progress: Progress | None = None, preview: Preview | None = None
) -> Iterator[Picture]:
    """Yield pictures ``indices`` of a job. Picture i is the same whichever others are asked for with it."""
    job = replace(job, room=job.room or _room(job))
    for part in job.pipeline.split([job.size(index) for index in indices], job.room):
        chosen = [(job, index) for index in indices[part.start : part.stop]]
        images = _batch(chosen, part.start, len(indices), progress, preview)
        for (_, index), image in zip(chosen, images, strict=True):
            yield Picture(image, job.record(index, record.pixel_digest(image)))


def _room(job: Job) -> int:
    """Return the room of the calls that suits a request."""
    from belvedere.generation import rooms

    if job.full_room == 1:
        return 1
    return rooms.chosen(job.pipeline, [job.size(index) for index in range(job.request.count)])


def run_call(chosen: Sequence[tuple[Job, int]], *, progress: Progress | None = None) -> list[Picture]:
    """Return picture ``index`` of each (job, index), made in one full network call as ``pipeline.split`` would cut it.

    The jobs have one pipeline and ask for the same but for classes, count, seed and sizes.
    """
    chosen = [(replace(job, room=job.full_room), index) for job, index in chosen]
    made = zip(chosen, _batch(chosen, 0, len(chosen), progress), strict=True)
    return [Picture(image, job.record(index, record.pixel_digest(image))) for (job, index), image in made]


def joined(jobs: Sequence[Job]) -> list[Job]:
    """Return jobs that can share calls (``run_call``) with one pipeline: of prompts, it is one of all their prompts."""
    pipelines = list({id(job.pipeline): job.pipeline for job in jobs}.values())
    if len(pipelines) == 1:
        return list(jobs)
    from belvedere.generation.prompt_pipeline import PromptPipeline

    one = pipelines[0]
    prompts = [prompt for pipeline in pipelines for prompt in pipeline.prompts]
    shared = PromptPipeline(one.pipe, prompts, one.negative, one.sampler.concepts, one.editability)
    starts = accumulate((len(pipeline.prompts) for pipeline in pipelines), initial=0)
    first = dict(zip(map(id, pipelines), starts, strict=False))
    return [replace(job, pipeline=shared, first=first[id(job.pipeline)]) for job in jobs]


def _batch(
    chosen: Sequence[tuple[Job, int]],
    done: int,
    total: int,
    progress: Progress | None,
    preview: Preview | None = None,
) -> "list[Image.Image]":
    from belvedere.apps.previews import pictures

    steps, first = count(1), chosen[0][0]
    pipeline, asked = first.pipeline, first.request

    def report(_pipeline: Any, _step: int, time: Any, values: dict[str, Any]) -> dict[str, Any]:
        if preview:
            preview([index for _, index in chosen], lambda: pictures(pipeline, values, len(chosen)))
        if progress:  # solvers may update the pictures less often than the steps say, or nobody knows how often
            share = next(steps) / (asked.steps or 1) if asked.solver is None else 1 - abs(pipeline.clean_time - time)
            progress(done + len(chosen) * min(1.0, share), total)
        return values

    options = asked.sampling
    if pipeline.any_size:
        options["sizes"] = [job.size(index) for job, index in chosen]
    if asked.extrapolation is not None:
        options["extrapolation"] = asked.extrapolation
    return pipeline(
        [job.first + job.label(index) for job, index in chosen],
        num_inference_steps=asked.steps,
        guidance_scale=asked.guidance,
        generator=[seeds.generator(job.request.seed, "image", index) for job, index in chosen],
        callback_on_step_end=report,
        room=first.room,
        **options,
    ).images


def _with_sizes(request: GenerateRequest, pipeline: Any) -> GenerateRequest:
    """Return the request with the sizes and the extrapolation really used; ``InputError`` for what the model can't."""
    from belvedere.generation.extrapolation import check_extrapolation

    height, width = pipeline.default_size
    if pipeline.any_size:
        used = replace(request, sizes=request.sizes or ((width, height),))
        own = getattr(pipeline.network.config, "extrapolation", None)
        if own is not None:
            used = replace(used, extrapolation=check_extrapolation(request.extrapolation or own))
        elif request.extrapolation is not None:
            raise InputError(f"model {request.model} knows no extrapolation; leave it out")
        for wide, high in used.sizes:
            pipeline.grid((high, wide))
        return used
    if request.extrapolation or any(size != (width, height) for size in request.sizes):
        raise InputError(
            f"model {request.model} makes pictures of {width}x{height} only; leave out size and extrapolation"
        )
    return replace(request, sizes=())  # so that a picture has one origin, whether its size is named or not


def _with_sampling(request: GenerateRequest, pipeline: Any) -> GenerateRequest:
    """Return the request with the steps and the guidance really used; ``InputError`` for what the model can't."""
    from belvedere.generation.guidance import cosine_power_weight

    own = pipeline.config
    used = replace(
        request,
        steps=own.default_steps if request.steps is None else request.steps,
        guidance=own.default_guidance if request.guidance is None else request.guidance,
    )
    known = inspect.signature(type(pipeline).__call__).parameters
    if unknown := [name.replace("_", " ") for name in request.sampling if name not in known]:
        raise InputError(f"model {request.model} knows no {unknown[0]}; leave it out")
    if request.guidance_power is not None and used.guidance is not None:
        cosine_power_weight(0.0, used.guidance, request.guidance_power)  # refuses guidance below 1
    if (request.guidance_channels or 0) > (channels := pipeline.network.config.get("channels", 0)):
        raise InputError(f"guidance channels {request.guidance_channels}: model {request.model} has only {channels}")
    return used if request.solver is None else _with_solver(used, request, pipeline, known["solver"].default)


def _with_solver(used: GenerateRequest, request: GenerateRequest, pipeline: Any, own: str) -> GenerateRequest:
    """Return the request without the solver that the pipeline uses anyway, and without steps where it chooses them."""
    solver = str(request.solver)
    if pipeline.scheduler is not None:
        raise InputError(f"model {request.model} has a scheduler of its own; leave out solver")
    if pipeline.evaluations(solver, 1) is None:
        if request.steps is not None:
            raise InputError(f"solver {solver} chooses its own steps; leave out steps")
        return replace(used, steps=None)
    return replace(used, solver=None) if solver == own else used  # so that a picture has one origin


def _names(pipeline: Any) -> dict[int, str]:
    """Return the class names of a pipeline by id; a model without names has its ids as names."""
    classes = (pipeline.network.config.num_classes or 1) - 1
    if classes < 1:
        raise InputError("this model knows no classes; Belvedere makes pictures from models of classes only")
    given = pipeline.config.id2label or {}
    try:
        names = {int(key): str(name) for key, name in given.items()}
    except (TypeError, ValueError, AttributeError) as error:
        raise InputError("model_index.json: id2label must map class ids to names; get the model again") from error
    if not names:
        return {i: str(i) for i in range(classes)}
    if not all(0 <= i < classes and name.isprintable() and len(name) < 1000 for i, name in names.items()):
        raise InputError(f"model_index.json: id2label must name ids below {classes} in plain text; get the model again")
    return dict(sorted(names.items()))


def find_class(item: str | int, names: dict[int, str]) -> int:
    """Return the id of a class given by id, name, or one of the names in "tench, Tinca tinca"; case does not matter.

    Raises ``InputError`` listing the nearest names, or the ids of an ambiguous name.
    """
    if isinstance(item, int) or item.strip().isdecimal():
        if int(item) in names:
            return int(item)
        raise InputError(f"no class {int(item)}: this model has ids {min(names)} to {max(names)}")
    wanted = item.strip().casefold()
    spoken = {i: [name.casefold(), *(part.strip().casefold() for part in name.split(","))] for i, name in names.items()}
    found = [i for i, forms in spoken.items() if wanted in forms]
    if len(found) == 1:
        return found[0]
    if found:
        raise InputError(f"class {item!r} is ambiguous: choose by id, {' or '.join(map(str, found))}")
    near = difflib.get_close_matches(wanted, [form for forms in spoken.values() for form in forms], n=3)
    known = list(names.values())
    listing = ", ".join(known[:12]) + (f", ... ({len(known)} in all)" if len(known) > 12 else "")
    hint = f"did you mean {' or '.join(dict.fromkeys(near))}? " if near else ""
    raise InputError(f"no class {item!r} in this model: {hint}it knows {listing}")


@dataclass(frozen=True)
class Regenerated:
    """A picture made again: the new one, the old record, and in words what is not as it was (empty = bit-identical)."""

    picture: Picture
    origin: Record
    differences: tuple[str, ...]


def regenerate(
    path: Path, *, model: str | None = None, concepts: Sequence[Path] = (), progress: Progress | None = None
) -> Regenerated:
    """Make the picture in ``path`` again from its record, alone, with the recorded number of threads.

    ``model`` replaces the recorded model's name (it may have moved), ``concepts`` the files of its concepts. A file
    cannot make this machine download: a model of the hub that is not in the cache has to be named. Raises
    ``InputError`` when the file has no record or the model cannot be loaded.
    """
    old, before = record.read(path), compare.read_pixels(path)
    shown: dict[str, Any] = {"prompts": (old.kind,)} if old.request.prompts else {"classes": (old.label,)}
    if concepts:
        shown["concepts"] = tuple(str(file) for file in concepts)
    asked = replace(_for_this_machine(old.request), model=model or old.request.model, **shown)
    with kept_to(max(1, min(old.machine.threads, os.cpu_count() or 1))):
        job = prepare(asked, download=model is not None)
        job = replace(job, room=min(old.room or job.full_room, job.full_room))
        image, new = next(run(job, range(old.index, old.index + 1), progress=progress))
    told = replace(new.request, classes=old.request.classes, prompts=old.request.prompts)
    new = replace(new, label=old.label, request=told)
    return Regenerated(Picture(image, new), old, compare.differences(before, old, image, new))


def _for_this_machine(request: GenerateRequest) -> GenerateRequest:
    import torch

    if not request.device.startswith("cuda"):
        return request
    if torch.cuda.is_available():
        return replace(request, device="cuda")
    return replace(request, device="cpu", dtype="float32" if request.dtype == "float16" else request.dtype)
