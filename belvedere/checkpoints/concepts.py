"""Concept files: one safetensors with the mapper's weights and, in its header, JSON that says what it is and for what.

{"version": 1, "token": "<my-cat>", "super_category": "cat",
 "base": {"name": ..., "text_encoders": [digest, ...]},
 "mapper": {fields of NeTIMapper}, "truncation": {"lowest": 16}}
"""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save

from belvedere.checkpoints.components import build
from belvedere.checkpoints.tensors import header, metadata, one_line, read_state_dict
from belvedere.errors import InputError
from belvedere.files import atomic_write
from belvedere.generation.concept import Base, Concept
from belvedere.generation.concept_pipeline import ConceptSampler
from belvedere.generation.neti import NeTIMapper

KEY = "belvedere_concept"
"""Of the JSON in the header."""
VERSION = 1
MAX_BYTES = 256 << 20
"""Of a concept file; that of SD 1.x has 2.3 MB, of SDXL 9."""
_FIELDS: dict[str, type] = {
    "version": int,
    "token": str,
    "super_category": str,
    "base": dict,
    "mapper": dict,
    "truncation": dict,
}


def save_concept(concept: Concept, path: Path | str) -> None:
    """Write a concept file whole or not at all; the same concept gives the same bytes.

    Raises ``InputError`` for a name that does not end in .safetensors.
    """
    path = Path(path)
    if path.suffix != ".safetensors":
        raise InputError(f"{path}: a concept file's name ends in .safetensors")
    config = {key: value for key, value in concept.mapper.config.items() if not key.startswith("_")}
    facts = {
        "version": VERSION,
        "token": concept.token,
        "super_category": concept.super_category,
        "base": {"name": concept.base.name, "text_encoders": concept.base.digests},
        "mapper": config,
        "truncation": {"lowest": concept.lowest},
    }
    weights = {key: x.detach().to("cpu", torch.float32).contiguous() for key, x in concept.mapper.state_dict().items()}
    with atomic_write(path) as file:
        file.write(save(weights, {KEY: json.dumps(facts, sort_keys=True)}))


def load_concept(path: Path | str) -> Concept:
    """Return the concept in a file; ``Concept.check_base`` tells whether a model is the one it was learned for.

    Raises ``InputError`` for a missing, damaged, hostile or inconsistent file, before memory is taken for its sizes.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"no concept file at {path}; check the path")
    if path.suffix != ".safetensors" or path.stat().st_size > MAX_BYTES:
        raise InputError(f"{path}: a concept file ends in .safetensors and has at most {MAX_BYTES >> 20} MB")
    facts = _facts(path)
    mapper = _mapper(path, facts["mapper"])
    base = facts["base"]
    name, digests, lowest = base.get("name"), base.get("text_encoders"), facts["truncation"].get("lowest")
    if not isinstance(name, str) or not isinstance(digests, list) or not all(isinstance(x, str) for x in digests):
        raise InputError(f"{path}: its 'base' must have a 'name' and a list 'text_encoders'; get the file again")
    if type(lowest) is not int:
        raise InputError(f"{path}: its 'truncation' must have an integer 'lowest'; get the file again")
    return Concept(facts["token"], facts["super_category"], mapper, Base(one_line(name), tuple(digests)), lowest)


def _facts(path: Path) -> dict[str, Any]:
    text = metadata(path).get(KEY)
    if text is None:
        raise InputError(f"{path}: no concept file, its header has no {KEY}; official ones have to be converted")
    try:
        facts = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: {KEY} is not readable JSON ({one_line(error)}); get the file again") from error
    if isinstance(facts, dict) and facts.get("version") not in (None, VERSION):
        raise InputError(f"{path}: version {facts['version']!r} of concept files; this Belvedere reads {VERSION}")
    if not isinstance(facts, dict) or facts.keys() != _FIELDS.keys():
        raise InputError(f"{path}: {KEY} must be an object with {', '.join(_FIELDS)}; get the file again")
    for field, kind in _FIELDS.items():
        if type(facts[field]) is not kind:
            raise InputError(f"{path}: {field} must be a JSON {kind.__name__}; get the file again")
    return facts


def _mapper(path: Path, config: dict[str, Any]) -> NeTIMapper:
    with torch.device("meta"):
        mapper: NeTIMapper = build(NeTIMapper, config, path)
    wanted = {key: tuple(x.shape) for key, x in mapper.state_dict().items()}
    found = header(path)
    if wrong := sorted(key for key in wanted.keys() | found.keys() if wanted.get(key) != found.get(key)):
        raise InputError(f"{path}: tensors missing, unknown or of another shape: {', '.join(wrong[:3])}; get it again")
    weights = read_state_dict(path)
    if wrong := sorted(key for key, x in weights.items() if not x.is_floating_point()):
        raise InputError(f"{path}: tensors that are no floating-point numbers: {', '.join(wrong[:3])}; get it again")
    weights = {key: x.to(torch.float32) for key, x in weights.items()}
    mapper.load_state_dict(weights, assign=True)
    return mapper.requires_grad_(True).eval()


class ConceptPipeline(ConceptSampler):
    """A plain Stable Diffusion pipeline of diffusers whose prompts may hold concepts from files.

    ``ConceptPipeline(StableDiffusionPipeline.from_pretrained(...))``, then ``load_concept`` any number of times; call
    it as the pipeline, and with ``editability``: see ``ConceptSampler``.
    """

    def load_concept(self, path: Path | str) -> Concept:
        """Read a concept file and let prompts hold it; return it. Raises ``InputError`` as ``load_concept`` does, and
        for a concept that does not go with this pipeline."""
        concept = load_concept(path)
        self.add_concept(concept)
        return concept
