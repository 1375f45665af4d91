"""The card that people and hubs read: ``README.md`` of a model folder, made of ``card.json`` and ``model_index.json``.

Its head is the metadata of Hugging Face's model cards; what nobody has said, such as a licence, is not in it.
"""

import json
from typing import Any, NamedTuple

NAME = "README.md"


class _Kind(NamedTuple):
    """What a class of models is: the hub's name of its task, tags, and words for people."""

    task: str
    tags: tuple[str, ...]
    title: str


_KINDS = {
    "DiMRPipeline": _Kind("unconditional-image-generation", ("dimr", "class-conditional"), "DiMR: pictures of classes"),
    "FiTv2Pipeline": _Kind(
        "unconditional-image-generation", ("fitv2", "class-conditional"), "FiTv2: pictures of classes, of any size"
    ),
    "SegPICCodec": _Kind("image-to-image", ("segpic", "image-compression"), "SegPIC: pictures as small files"),
    "NViSTModel": _Kind("image-to-3d", ("nvist", "novel-view-synthesis"), "NViST: a scene of one picture"),
    "StableDiffusionPipeline": _Kind("text-to-image", ("stable-diffusion",), "Stable Diffusion: pictures of text"),
    "StableDiffusionXLPipeline": _Kind(
        "text-to-image", ("stable-diffusion-xl",), "Stable Diffusion XL: pictures of text"
    ),
}
_IN_HEAD = {"license": "license", "licence": "license", "base_model": "base_model", "datasets": "datasets"}
"""Facts of a card that have a place in the metadata."""
_APART = ("name", "about", "config", "quality")
"""Facts that have a place of their own in the text."""


def text(facts: dict[str, Any], index: dict[str, Any]) -> str:
    """Return the README of a model; ``facts``: of its card, ``index``: of its ``model_index.json``.

    Of the facts ``name`` is the title, ``about`` the text below it, and ``quality`` and ``config`` come last.
    """
    kind = _KINDS.get(str(index.get("_class_name")))
    head: dict[str, Any] = {"library_name": "belvedere", "tags": ["belvedere", *(kind.tags if kind else ())]}
    head |= {"pipeline_tag": kind.task} if kind else {}
    head |= {name: facts[fact] for fact, name in _IN_HEAD.items() if isinstance(facts.get(fact), str | list)}
    metadata = [f"{key}: {json.dumps(value)}" for key, value in head.items()]  # JSON is YAML
    kind_words = kind.title if kind else str(index.get("_class_name", "A model"))
    title = _cell(facts.get("name") or kind_words)
    told = [kind_words + "."] if facts.get("name") and kind else []
    told += [_cell(facts["about"])] if facts.get("about") else []
    use = 'Load it with `belvedere.load("FOLDER or OWNER/NAME")`; check it with `belvedere models verify`.'
    rows = [f"| {_cell(key)} | {_cell(value)} |" for key, value in facts.items() if key not in _APART]
    table = ["| | |", "|---|---|", *rows] if rows else []
    last = [line for name in ("quality", "config") if name in facts for line in _folded(name, facts[name])]
    parts = [["---", *metadata, "---"], [f"# {title}"], [" ".join(told)], [use], table, last]
    return "\n\n".join("\n".join(lines) for lines in parts if any(lines)) + "\n"


def _folded(name: str, value: Any) -> list[str]:
    """Return a value as JSON that unfolds when its name is clicked."""
    shown = json.dumps(value, indent=1).replace("```", "` ` `")
    return [f"<details><summary>{name}</summary>", "", "```json", shown, "```", "", "</details>", ""]


def _cell(value: Any) -> str:
    shown = value if isinstance(value, str) else json.dumps(value)
    return " ".join(shown.split()).replace("|", "\\|").replace("<", "&lt;")
