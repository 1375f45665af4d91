"""From a request with prompts to the pipeline that makes its pictures: the model, the concepts and their digests."""

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from belvedere.apps.requests import MAX_GUIDANCE, MAX_STEPS, GenerateRequest
from belvedere.errors import InputError

if TYPE_CHECKING:
    from belvedere.generation.prompt_pipeline import PromptPipeline


def open_prompts(request: GenerateRequest, pipe: Any, folder: Path) -> "tuple[PromptPipeline, str]":
    """Return the pipeline of a request's prompts, and the digests of its concepts.

    ``pipe``: the Stable Diffusion pipeline in ``folder``. Raises ``InputError`` for a request without prompts, concepts
    that cannot be read or are of another base, and prompts that do not fit.
    """
    from belvedere.checkpoints.concepts import load_concept
    from belvedere.generation.prompt_pipeline import PromptPipeline

    if not request.prompts:
        raise InputError(f"model {request.model} makes pictures of text: give --prompt TEXT, not classes")
    concepts = [load_concept(path) for path in request.concepts]
    pipeline = PromptPipeline(
        pipe, request.prompts, request.negative, concepts, request.editability, **defaults(folder)
    )
    return pipeline, " ".join(file_digest(Path(path)) for path in request.concepts)


def defaults(folder: Path) -> dict[str, Any]:
    """Return ``default_steps`` and ``default_guidance`` where a model's card tells how it was exported."""
    from belvedere.checkpoints import store

    config = store.card(folder).get("config")
    export = config.get("export") if isinstance(config, dict) else None
    told = export if isinstance(export, dict) else {}
    steps, guidance = told.get("default_steps"), told.get("default_guidance")
    found: dict[str, Any] = {}
    if isinstance(steps, int) and 1 <= steps <= MAX_STEPS:
        found["default_steps"] = steps
    if isinstance(guidance, int | float) and 0 <= guidance <= MAX_GUIDANCE:
        found["default_guidance"] = float(guidance)
    return found


def file_digest(path: Path) -> str:
    """Return the SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
