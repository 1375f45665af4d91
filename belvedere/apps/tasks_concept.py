"""The task of a concept: a mapper learns from a few photographs, before a base model that stays as it is."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from belvedere.apps.concept_judges import Comparison, open_judge
from belvedere.apps.config import ExportConfig, TrainConfig
from belvedere.apps.task import Task, make_dataset, save_grid
from belvedere.apps.training_state import atomic_directory, digest
from belvedere.apps.written import check_keys
from belvedere.data import Dataset
from belvedere.data.concept_photos import TEMPLATES, ConceptPhotos, photo_files
from belvedere.data.images import to_image
from belvedere.errors import InputError
from belvedere.generation.concept import Concept
from belvedere.seeds import generator

CONCEPT = "concept.safetensors"
CARD = "card.json"
"""In the folder that a run exports, these and nothing else."""
OURS = ("base", "base_digest", "token", "like", "start", "photographs")
"""Keys of ``model`` that are no field of ``NeTIMapper``."""
SHOWN = ("a photo of a {}", "a photo of a {} on the beach", "an oil painting of a {}", "a {} in the snow")
"""Prompts of a sheet, a row each."""
LOOKED = 64
"""At least so many draws of noise and time are looked at, shared by the held-out photographs."""
SEEDS = (42, 420, 501, 5456)
"""And its columns, as published."""


class Latents:
    """A dataset of what the base's autoencoder makes of photographs, each encoded once: crops are fixed."""

    classes: tuple[str, ...] = ()

    def __init__(self, moments: Tensor):
        self.moments = moments

    def __len__(self) -> int:
        return len(self.moments)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Return ``moments`` (2 c, h, w) and ``label`` 0."""
        return {"moments": self.moments[index], "label": 0}

    def batch(self, indices: Sequence[int]) -> dict[str, Tensor]:
        """Return ``moments`` (b, 2 c, h, w) and ``label`` int64 (b,)."""
        return {"moments": self.moments[list(indices)], "label": torch.zeros(len(indices), dtype=torch.int64)}


def neti_task(config: TrainConfig) -> Task:
    """NeTI: ``model`` has ``base`` (embedded name, folder or hub id of a Stable Diffusion model), ``token``, ``like``
    (the super-category), ``start`` (published, or word: at the super-category), ``base_digest`` and ``photographs``
    (their digests, which are checked) and fields of ``NeTIMapper``. ``data`` is that of ``ConceptPhotos``, without
    ``size`` the base's own, and has ``templates`` (objects, styles or a list), ``shown``, the prompts of sheets, and
    ``judge``, who compares sheets with photographs and prompts: a folder with a CLIP model, or toybox-classifier (none:
    nobody does)."""
    from belvedere.generation.neti import NeTIMapper
    from belvedere.generation.neti_training import Lesson, parameter_groups

    check_keys(config.loss, (), "loss.")
    fields, data = _fields(config.model, NeTIMapper), dict(config.data)
    templates, shown = _sentences(data, "templates", TEMPLATES["objects"]), _sentences(data, "shown", SHOWN)
    judge = data.pop("judge", None)
    if isinstance(data.get("path"), str | Path):
        photo_files(data["path"])  # before a large model is loaded
    base = open_base(fields.pop("base"), begun_with=fields.pop("base_digest", None))
    photos = cast(ConceptPhotos, make_dataset({"size": base.size, **data}))
    if (seen := fields.pop("photographs", None)) not in (None, photos.digest):
        raise InputError(f"{data.get('path')}: not the photographs that this concept was begun with (digest {seen})")
    name = str(config.model["base"])
    concept = base.concept(fields.pop("token"), fields.pop("like"), name, **fields)
    lesson = Lesson(base, concept, templates)
    Lesson(base, concept, shown)
    comparison = None if judge is None else _comparison(judge, photos, shown, concept.super_category)
    return Task(
        model=concept.mapper,
        dataset=Latents(_moments(base, photos)),
        held_out=_held_out(base, {"size": base.size, **data, "regions": {}, **config.held_out})
        if config.evaluate_every
        else None,
        loss=lesson.loss,
        groups=parameter_groups,
        export=lambda mapper, folder, facts: _export(concept, mapper, folder, facts),
        check_target=_check_target,
        sheet=lambda mapper, path: _sheet(base, concept, mapper, shown, config.export, path, comparison),
    )


def _moments(base: Any, photos: Dataset) -> Tensor:
    """Return what the base's autoencoder makes of all photographs: (n, 2 c, h, w), on the CPU."""
    return base.moments(photos.batch(range(len(photos)))["image"]).cpu()


def _held_out(base: Any, data: dict[str, Any]) -> Latents:
    """Return the photographs of ``data`` as held-out samples, each so often that ``LOOKED`` draws are made."""
    photos = make_dataset(data)
    return Latents(_moments(base, photos).repeat(-(-LOOKED // len(photos)), 1, 1, 1))


def open_base(name: str, device: str = "auto", begun_with: str | None = None) -> Any:
    """Return the ``FrozenBase`` of an embedded name, a folder or a hub id, in float32.

    Raises ``InputError`` where its digest is not the one that a concept was ``begun_with``.
    """
    from belvedere.checkpoints import store
    from belvedere.checkpoints.text_to_image import TEXT_TO_IMAGE
    from belvedere.generation.neti_training import FrozenBase

    folder = store.resolve(name)
    if store.read_json(folder / "model_index.json").get("_class_name") not in TEXT_TO_IMAGE:
        raise InputError(f"model {name} makes no pictures of text: give a Stable Diffusion model as base")
    pipe, found = store.load_verified(folder, torch.float32, store.choose_device(device))
    if begun_with not in (None, found):
        raise InputError(f"base {name}: not the model that this concept was begun with (digest {begun_with})")
    return FrozenBase(pipe)


def _fields(values: Mapping[str, Any], mapper: Any) -> dict[str, Any]:
    """Return the section ``model``, its keys known and its texts there."""
    import inspect

    own = [name for name in inspect.signature(mapper).parameters if name not in ("widths", "target_norms")]
    check_keys(values, (*OURS, *own), "model.")
    for name in ("base", "token", "like"):
        if not isinstance(values.get(name), str) or not values[name]:
            raise InputError(f"config needs the text 'model.{name}'; belvedere personalize gives it")
    return dict(values)


def _sentences(data: dict[str, Any], name: str, default: Sequence[str]) -> Sequence[str]:
    """Take the sentences ``name`` out of the section ``data``."""
    given = data.pop(name, default)
    if isinstance(given, str):
        if given not in TEMPLATES:
            raise InputError(f"config data.{name} {given!r}: choose from {', '.join(TEMPLATES)} or give a list")
        return TEMPLATES[given]
    if not isinstance(given, list | tuple) or not given or not all(isinstance(text, str) for text in given):
        raise InputError(f"config data.{name}: must be a list of sentences with {{}} for the concept")
    return given


def _export(concept: Concept, mapper: Any, folder: Path, facts: dict[str, Any]) -> str:
    """Write the concept's file and its card; return the digest of the file."""
    from belvedere.checkpoints.concepts import save_concept

    with atomic_directory(folder) as temporary:
        save_concept(replace(concept, mapper=mapper), temporary / CONCEPT)
        found = digest(temporary / CONCEPT)
        (temporary / CARD).write_text(json.dumps(facts | {"digest": found}, indent=2) + "\n")
    return found


def _check_target(folder: Path) -> None:
    """Raise ``InputError`` for a folder with anything but a concept and its card: all of it will be replaced."""
    if folder.exists() and not folder.is_dir():
        raise InputError(f"{folder} is a file: choose another folder for the run")
    found = {path.name for path in folder.iterdir()} if folder.exists() else set()
    if strange := sorted(found - {CONCEPT, CARD}):
        raise InputError(f"{folder} holds {strange[0]}, which is no part of a concept: take it away")


def _comparison(name: Any, photos: ConceptPhotos, shown: Sequence[str], like: str) -> Comparison:
    """Return what compares pictures with the photographs and with their prompts, the ones of ``shown`` in turn."""
    if not isinstance(name, str) or not name:
        raise InputError(f"config data.judge {name!r}: give a folder with a CLIP model, or toybox-classifier")
    seen = [to_image(pixels / 127.5 - 1) for pixels in photos.pixels]
    return Comparison(open_judge(name), seen, (), [template.replace("{}", like) for template in shown])


@torch.no_grad()
def _sheet(
    base: Any,
    concept: Concept,
    mapper: Any,
    shown: Sequence[str],
    export: ExportConfig,
    path: Path,
    comparison: Comparison | None,
) -> dict[str, float]:
    """Write a sheet: a row a prompt, a column a seed, always the same; return the figures of its pictures."""
    from belvedere.generation.neti_training import sampler

    make, rows = sampler(base.to(mapper.device), concept, mapper), []
    for template in shown:
        made = make(
            template.replace("{}", concept.token),
            num_images_per_prompt=len(SEEDS),
            num_inference_steps=export.default_steps,
            guidance_scale=export.default_guidance,
            generator=[generator("concept sheet", seed) for seed in SEEDS],
            output_type="pt",
        )
        rows.append(made.images.float().cpu())
    save_grid(torch.cat(rows), len(SEEDS), path)
    if comparison is None:
        return {}
    made = [to_image(picture * 2 - 1) for picture in torch.stack(rows, 1).flatten(0, 1)]  # the prompts in turn
    figures = comparison.figures(made, concept.super_category)
    return {name: value for name, value in figures.items() if value is not None}
