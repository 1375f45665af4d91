"""Measuring a concept: are pictures of it like its photographs, and do they show what their prompts say.

Pictures of prompts, the same seeds at every editability, beside two bounds: the same prompts with the super-category's
word and no concept, and the photographs compared with each other. Protocol as in Textual Inversion (arXiv 2208.01618):
similarities are means over all pairs of pictures and photographs, or of each picture and its own prompt.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from PIL import Image

from belvedere.apps import output, work
from belvedere.apps.concept_judges import FIGURES, Comparison, DinoJudge, ToyJudge, open_judge
from belvedere.apps.requests import GenerateRequest
from belvedere.checkpoints.concepts import load_concept
from belvedere.data.concept_photos import open_photo, photo_files, read_templates
from belvedere.data.images import centre_crop
from belvedere.errors import InputError
from belvedere.generation.concept import Concept

PROMPTS = (
    "a photo of a {}",
    "a photo of a {} in the jungle",
    "a photo of a {} on the beach",
    "a photo of a {} in Times Square",
    "a photo of a {} on the moon",
    "a painting of a {} in the style of Monet",
    "an oil painting of a {}",
    "a painting of a {} in the style of Chagall",
    "a manga drawing of a {}",
    "a watercolor painting of a {}",
    "a statue of a {}",
    "an app icon of a {}",
    "a sand sculpture of a {}",
    "colorful graffiti of a {}",
    "a photograph of two {} on a table",
)
"""Scenes and styles of Textual Inversion's evaluation."""
ACROSS = 6
"""Pictures of a row of the sheet."""
BY_DINO = "dino_"
"""What the names of DINO's figures begin with."""
COLUMNS = (*FIGURES, f"{BY_DINO}image_similarity", f"{BY_DINO}held_out_similarity")
"""What is told of the pictures of a row."""


@dataclass(frozen=True)
class Protocol:
    """What is measured of the concept in a file, and with what; the options of ``belvedere evaluate concept``."""

    concept: Path
    photos: Path
    held_out: Path | None = None
    model: str | None = None
    clip: Path | None = None
    dino: Path | None = None
    prompts: tuple[str, ...] = PROMPTS
    count: int = 2
    editability: tuple[float, ...] = (0.0, 0.25, 0.5, 0.75, 1.0)
    seed: int = 0
    steps: int | None = None
    guidance: float | None = None
    dtype: str = "auto"
    device: str = "auto"


Sheet = list[tuple[Image.Image, str]]


def evaluate_concept(plan: Protocol, progress: work.Progress | None = None) -> tuple[dict[str, Any], Sheet]:
    """Return the figures, plain JSON, and the pictures of a sheet with captions, ``ACROSS`` a row.

    ``curve`` has a row for each editability: its truncation and ``COLUMNS``, None where nothing can be said. ``word``
    has those of the super-category's word, ``photographs`` what the photographs have among each other. Raises
    ``InputError`` for photographs that are held out and learned from, and as ``work.prepare`` does.
    """
    concept = load_concept(plan.concept)
    learned, held_out = _photographs(plan)
    job = work.prepare(_request(plan, concept), download=plan.model is not None)
    side = min(job.size(0))
    shown, others = ([centre_crop(open_photo(file), side) for file in files] for files in (learned, held_out))
    spelled = [prompt.replace("{}", concept.super_category) for prompt in plan.prompts]
    comparisons = _comparisons(plan, shown, others, spelled)
    total = job.request.count * (1 + len(plan.editability))
    sheet: Sheet = _row(shown, "photograph")
    jobs = [(f"editability {value:g}", _at(job, value)) for value in plan.editability]
    rows = []
    for number, (name, part) in enumerate([("the word alone", _plain(job, spelled)), *jobs]):
        made = _pictures(part, number, total, progress)
        figures = {key: by.figures(made, concept.super_category) for key, by in comparisons.items()}
        rows.append({"name": name, **_named(figures)})
        sheet += _row(made, name)
    curve = [
        {"editability": value, "truncation": concept.truncation(value), **row}
        for value, row in zip(plan.editability, rows[1:], strict=True)
    ]
    among: dict[str, Any] = {"photographs": len(shown), **({"held_out": len(others)} if others else {})}
    among |= _named({key: by.among() for key, by in comparisons.items()})
    told = {"concept": str(plan.concept), "token": concept.token, "like": concept.super_category}
    used = {key: getattr(job.request, key) for key in ("model", "steps", "guidance", "seed", "dtype", "count")}
    digests = {"weights": job.weights, "concepts": job.concepts}
    asked = {"judge": ", ".join(by.judge.name for by in comparisons.values()), "prompts": list(plan.prompts)}
    return {**told, **used, **digests, **asked, "among": among, "word": rows[0], "curve": curve}, sheet


def _photographs(plan: Protocol) -> tuple[list[Path], list[Path]]:
    learned = photo_files(plan.photos, fewest=1)
    held_out = [] if plan.held_out is None else photo_files(plan.held_out, fewest=1)
    known = {hashlib.sha256(file.read_bytes()).digest() for file in learned}
    for file in held_out:
        if hashlib.sha256(file.read_bytes()).digest() in known:
            raise InputError(f"held out {file}: is among the photographs of {plan.photos}; take it out of one of them")
    return learned, held_out


def _request(plan: Protocol, concept: Concept) -> GenerateRequest:
    for prompt in plan.prompts:
        if prompt.count("{}") != 1:
            raise InputError(f"prompt {prompt[:80]!r}: must have one {{}} where the concept stands")
    if plan.count < 1 or not plan.editability:
        raise InputError("nothing to measure: give one picture a prompt or more, and one editability or more")
    for value in plan.editability:
        concept.truncation(value)
    return GenerateRequest(
        model=plan.model or concept.base.name,
        prompts=tuple(prompt.replace("{}", concept.token) for prompt in plan.prompts),
        count=plan.count * len(plan.prompts),
        concepts=(str(plan.concept),),
        seed=plan.seed,
        steps=plan.steps,
        guidance=plan.guidance,
        dtype=plan.dtype,
        device=plan.device,
    )


def _at(job: work.Job, editability: float) -> work.Job:
    """Return the job at another editability, with the same networks."""
    request = replace(job.request, editability=editability)
    return replace(job, request=request, pipeline=job.pipeline.changed(editability=editability))


def _plain(job: work.Job, prompts: Sequence[str]) -> work.Job:
    """Return the job with these prompts, as many as before, and no concept."""
    request = replace(job.request, prompts=tuple(prompts), concepts=(), editability=0.0)
    pipeline = job.pipeline.changed(prompts=prompts, concepts=(), editability=0.0)
    return replace(job, request=request, pipeline=pipeline, names=dict(enumerate(prompts)), concepts="")


def _pictures(job: work.Job, number: int, total: int, progress: work.Progress | None) -> list[Image.Image]:
    """Return all pictures of part ``number`` of ``total`` pictures in all."""
    count = job.request.count

    def report(done: float, _: int) -> None:
        if progress:
            progress(number * count + done, total)

    return [picture.image for picture in work.run(job, range(count), progress=report)]


def _comparisons(plan: Protocol, *given: Any) -> dict[str, Comparison]:
    """Return the plan's comparisons with what is ``given``, by what their figures' names begin with."""
    judge = open_judge(ToyJudge.name if plan.clip is None else str(plan.clip))
    dino = {} if plan.dino is None else {BY_DINO: Comparison(DinoJudge(plan.dino), *given)}
    return {"": Comparison(judge, *given), **dino}


def _named(found: Mapping[str, Mapping[str, float | None]]) -> dict[str, float | None]:
    """Return the figures of all comparisons under their whole names, without those that DINO cannot tell."""
    every = {f"{prefix}{name}": value for prefix, figures in found.items() for name, value in figures.items()}
    return {name: value for name, value in every.items() if name in COLUMNS}


def _row(pictures: Sequence[Image.Image], name: str) -> Sheet:
    """Return ``ACROSS`` pictures with a caption, the first ones, blank where there are fewer."""
    blank = Image.new("RGB", pictures[0].size, "white")
    chosen = [*pictures[:ACROSS], *[blank] * (ACROSS - len(pictures))]
    return [(image, name if i == 0 else "") for i, image in enumerate(chosen)]


def table(found: Mapping[str, Any]) -> str:
    """Return the figures as text."""
    names = [name for name in COLUMNS if any(row.get(name) is not None for row in (found["word"], *found["curve"]))]
    head = f"{found['token']}, like {found['like']}: {found['count']} pictures a row, measured by {found['judge']}"
    lines = [head, f"{'':22}" + "".join(f"{name.replace('_', ' '):>22}" for name in names)]
    rows = [{"name": "photographs", **found["among"]}, found["word"], *found["curve"]]
    for row in rows:
        values = (row.get(name) for name in names)
        lines.append(f"{row['name']:22}" + "".join(f"{'-' if v is None else format(v, '.4f'):>22}" for v in values))
    return "\n".join(lines)


def check_results(folder: Path) -> None:
    """Raise ``InputError`` unless results can be written to ``folder``; older ones there are replaced."""
    if folder.exists() and not folder.is_dir():
        raise InputError(f"{folder} is a file: name a folder")
    output.check_folder(folder)
    output.check_sheet(folder / "sheet.png", ACROSS)


def save(found: Mapping[str, Any], sheet: Sheet, folder: Path) -> None:
    """Write ``result.json`` and ``sheet.png`` to a folder, each whole or not at all."""
    output.save_figures(found, folder / "result.json")
    images, captions = zip(*sheet, strict=True)
    text = json.dumps({"sheet": {"concept": found["concept"], "judge": found["judge"]}})
    output.save(output.sheet(images, captions, ACROSS), folder / "sheet.png", text)


def parse_values(text: str) -> tuple[float, ...]:
    """Return the numbers in text like "0,0.5,1", rising, each once."""
    try:
        found = tuple(sorted({float(item) for item in text.split(",")}))
    except ValueError as error:
        raise InputError(f"editability {text[:80]!r}: write numbers from 0 to 1 with commas, like 0,0.5,1") from error
    return found


def read_prompts(file: Path | None) -> tuple[str, ...]:
    """Return the prompts in a text file, a line each; without one, ``PROMPTS``."""
    return PROMPTS if file is None else read_templates(str(file))
