"""The card that people and hubs read: ``README.md`` of a model folder, made of ``card.json`` and ``model_index.json``.

Its head is the metadata of Hugging Face's model cards; what nobody has said, such as a licence, is not in it.
"""

import json
from typing import Any

NAME = "README.md"
_KINDS = {
    "DiMRPipeline": ("unconditional-image-generation", ["dimr", "class-conditional"]),
    "FiTv2Pipeline": ("unconditional-image-generation", ["fitv2", "class-conditional"]),
    "SegPICCodec": ("image-to-image", ["segpic", "image-compression"]),
    "NViSTModel": ("image-to-3d", ["nvist", "novel-view-synthesis"]),
    "StableDiffusionPipeline": ("text-to-image", ["stable-diffusion"]),
    "StableDiffusionXLPipeline": ("text-to-image", ["stable-diffusion-xl"]),
}
"""Of each class: the hub's name of the task, and tags."""
_IN_HEAD = {"license": "license", "licence": "license", "base_model": "base_model", "datasets": "datasets"}
"""Facts of a card that have a place in the metadata."""


def text(facts: dict[str, Any], index: dict[str, Any]) -> str:
    """Return the README of a model; ``facts``: of its card, ``index``: of its ``model_index.json``."""
    task, tags = _KINDS.get(str(index.get("_class_name")), (None, []))
    head: dict[str, Any] = {"library_name": "belvedere", "tags": ["belvedere", *tags]}
    head |= {"pipeline_tag": task} if task else {}
    head |= {name: facts[fact] for fact, name in _IN_HEAD.items() if isinstance(facts.get(fact), str | list)}
    lines = [f"{key}: {json.dumps(value)}" for key, value in head.items()]  # JSON is YAML
    rows = [f"| {_cell(key)} | {_cell(value)} |" for key, value in facts.items()]
    table = ["| | |", "|---|---|", *rows] if rows else []
    title = _cell(facts.get("name") or str(index.get("_class_name", "a model")))
    use = 'Load it with `belvedere.load("FOLDER or OWNER/NAME")`; check it with `belvedere models verify`.'
    return "\n".join(["---", *lines, "---", "", f"# {title}", "", use, "", *table, ""])


def _cell(value: Any) -> str:
    shown = value if isinstance(value, str) else json.dumps(value)
    return " ".join(shown.split()).replace("|", "\\|").replace("<", "&lt;")
