"""Concepts on the shelf: kept once they are learned, and pictures of prompts that hold them."""

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from belvedere.apps import output, work
from belvedere.apps.requests import GenerateRequest
from belvedere.apps.web import making
from belvedere.apps.web.learning import Classroom
from belvedere.apps.web.running import Tell
from belvedere.apps.web.shelf import LASTING, Entry
from belvedere.apps.web.studio import Studio
from belvedere.errors import InputError

ROOM = "Personalise"
PICTURE, SHEET = "picture.png", "sheet.png"
ENDING = ".concept.safetensors"


def keep(studio: Studio, classroom: Classroom, lesson: str) -> str:
    """Put the concept of a lesson on the shelf, with its newest sheet; return its id. Kept before, it is that one."""
    content, found = classroom.concept(lesson).read_bytes(), classroom.look(lesson)
    if known := next((entry.id for entry in concepts(studio) if entry.facts.get("lesson") == lesson), None):
        return known
    stem = re.sub(r"[^a-z0-9]+", "-", found.lesson.token.lower()).strip("-") or "concept"
    files = {f"{stem}{ENDING}": content}
    if found.sheets:
        files[SHEET] = found.sheets[-1].read_bytes()
    told = {"token": found.lesson.token, "like": found.lesson.like, "base": found.lesson.base}
    return studio.shelf.put(ROOM, files, {"kind": LASTING, "lesson": lesson, "steps": found.step, **told})


def concepts(studio: Studio) -> list[Entry]:
    """Return the kept concepts, the newest first."""
    return [entry for entry in studio.shelf.newest(ROOM, studio.limits.results) if entry.facts.get("kind") == LASTING]


def pictures(studio: Studio, count: int) -> list[Entry]:
    """Return the newest pictures of prompts."""
    found = [entry for entry in studio.shelf.newest(ROOM, studio.limits.results) if PICTURE in entry.names]
    return found[:count]


def name_of(entry: Entry) -> str:
    """Return the name of a concept's file; ``InputError`` for a result that is none."""
    for name in entry.names:
        if name.endswith(ENDING):
            return name
    raise InputError("this result is no concept: choose one of the list")


def make(
    studio: Studio, concept: str, prompt: str, editability: float, count: int, seed: int, steps: int, tell: Tell
) -> list[str]:
    """Make pictures of a prompt that holds a kept concept, put them on the shelf, and return their ids.

    ``tell`` is given (pictures done, in all, ids so far). Raises ``InputError`` for a prompt without the concept's
    token, and whatever the command line refuses.
    """
    entry = studio.shelf.entry(concept)
    name, facts = name_of(entry), entry.facts
    words = " ".join(prompt.split())
    if str(facts["token"]) not in words:
        raise InputError(f"the prompt must hold {facts['token']}, as in: a photo of a {facts['token']}")
    request = GenerateRequest(
        model=studio.model(str(facts["base"])),
        prompts=(words,),
        concepts=(str(studio.shelf.file(concept, name)),),
        editability=editability,
        count=count,
        seed=seed,
        steps=steps,
        device=studio.device,
    )
    studio.limits.check_request((16, 16), steps, count)
    job = work.prepare(request, download=False, model=making.load(studio, str(facts["base"])))
    high, wide = job.size(0)
    studio.limits.check_request((wide, high), steps, count)
    ids: list[str] = []
    for image, record in work.run(job, range(count), progress=lambda done, total: tell((done, total, tuple(ids)))):
        told = replace(record, request=replace(record.request, concepts=(name,)))  # no path of this machine
        content = output.encode(image, "png", told.to_json())
        ids.append(studio.shelf.put(ROOM, {PICTURE: content}, _facts(facts, words, editability, record.index, seed)))
    return ids


def _facts(concept: Mapping[str, Any], prompt: str, editability: float, index: int, seed: int) -> dict[str, Any]:
    told = {"prompt": prompt, "editability": editability, "index": index, "seed": seed}
    return {"kind": "picture", "token": concept["token"], **told}
