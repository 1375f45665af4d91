"""Learning a concept: from a folder of photographs to one file, by the training loop that everything is trained with.

    PHOTOS, token, like, base ─► the recipe's config ─► train.train_config ─► RUN/model/concept.safetensors ─► OUT

The run's folder stays: log, sheets and checkpoints. The same command goes on where it was stopped.
"""

import os
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from belvedere.apps import output, training_state
from belvedere.apps.config import TrainConfig, load_config
from belvedere.apps.run_folder import RunFolder
from belvedere.apps.tasks_concept import CONCEPT
from belvedere.checkpoints import store
from belvedere.data.concept_photos import ConceptPhotos, left_out, photo_files, read_templates
from belvedere.errors import InputError
from belvedere.files import atomic_write

RECIPE = "neti"
ENDING = ".safetensors"


@dataclass(frozen=True)
class Plan:
    """What is learned and where it goes.

    ``like``: the super-category. ``templates``: objects, styles or a text file. ``regions``: by photograph's name, the
    part that shows the thing, (x, y, width, height). ``recipe``: name of a packaged config or a YAML file, of which
    ``overrides`` replace values. ``run``: folder of the run, by default beside ``out``. ``clip``: folder with a CLIP
    model, which compares every sheet with photographs and prompts. ``steps``: in place of the recipe's, whose decay is
    then no longer than they are.
    """

    photos: Path
    token: str
    like: str
    base: str
    out: Path
    templates: str = "objects"
    regions: Mapping[str, Sequence[int]] | None = None
    recipe: str = RECIPE
    overrides: Sequence[str] = ()
    run: Path | None = None
    clip: Path | None = None
    steps: int | None = None

    @property
    def folder(self) -> RunFolder:
        """Where the run is."""
        return RunFolder(self.run or self.out.with_name(f"{self.out.name.removesuffix(ENDING)}.run"))

    @property
    def learned(self) -> Path:
        """What the run ends with."""
        return self.folder.model / CONCEPT


def personalize(plan: Plan, *, command: str = "", force: bool = False) -> dict[str, Any]:
    """Learn a concept and write its file, whole or not at all; return what was done, as plain JSON.

    ``code`` in it is that of the training (see ``train.train``): unless 0 and finished there is no file yet. Under
    ``accelerate launch`` every process calls this, the first one writes. Raises ``InputError`` for bad input before
    anything is written, and when the base model's files change under it.
    """
    from belvedere.apps.train import train_config

    check_target(plan, force)
    config = make_config(plan)
    base = store.resolve(plan.base)
    before = store.digest(base)
    config = replace(config, model=config.model | {"base_digest": before})
    check_begun(plan, config)
    if (note := left_out(plan.photos)) and os.environ.get("RANK", "0") == "0":
        print(f"{len(photo_files(plan.photos))} photographs{note}", file=sys.stderr)
    code = train_config(config, plan.folder.path, command or "belvedere personalize")
    done: dict[str, Any] = {"code": code, "file": None, "run": str(plan.folder.path), "base": before}
    if store.digest(base) != before:
        raise InputError(f"base {plan.base}: its files changed while the concept was learned; learn it again")
    if code or not finished(plan, config):
        return done
    if os.environ.get("RANK", "0") == "0":
        write_concept(plan.learned, plan.out)
    return {**done, "file": str(plan.out), "bytes": plan.learned.stat().st_size, "steps": _steps(plan)}


def check_target(plan: Plan, force: bool) -> None:
    """Raise ``InputError`` unless the concept's file can be written, and replaces nothing but itself."""
    if plan.out.suffix != ENDING:
        raise InputError(f"{plan.out}: a concept file's name ends in {ENDING}")
    if plan.out.is_dir():
        raise InputError(f"{plan.out} is a folder: name a file in it")
    output.check_folder(plan.out.parent)
    if plan.out.exists() and not force:
        same = plan.learned.is_file() and plan.learned.read_bytes() == plan.out.read_bytes()
        if not same:
            raise InputError(f"{plan.out} exists: choose another -o, or --force to replace it")


def make_config(plan: Plan) -> TrainConfig:
    """Return the recipe's config with the plan in it; ``InputError`` for photographs that cannot serve."""
    recipe = load_config(plan.recipe, [*plan.overrides, *_steps_asked(plan)])
    if recipe.task != "neti":
        raise InputError(f"recipe {plan.recipe} is of task {recipe.task}: choose one of task neti, such as {RECIPE}")
    data = {**recipe.data, "path": str(plan.photos)}
    if plan.templates != "objects" or "templates" not in data:
        data["templates"] = list(read_templates(plan.templates))
    if plan.regions:
        data["regions"] = {name: list(box) for name, box in plan.regions.items()}
    if plan.clip is not None:
        data["judge"] = str(plan.clip)
    given = {"base": plan.base, "token": plan.token, "like": plan.like}
    return replace(recipe, model={**recipe.model, **given, "photographs": _fingerprint(data)}, data=data)


def _steps_asked(plan: Plan) -> list[str]:
    """Return overrides for the steps that the plan asks for: a decay of the recipe's is no longer than they are."""
    if plan.steps is None:
        return []
    asked = [f"steps={plan.steps}"]
    if any(text.startswith("optimizer.decay_steps=") for text in plan.overrides):
        return asked
    decay = load_config(plan.recipe, plan.overrides).optimizer.decay_steps
    return [*asked, f"optimizer.decay_steps={min(decay, plan.steps)}"]


def _fingerprint(data: Mapping[str, Any]) -> str:
    """Return a digest of the photographs, so that a run does not go on with others."""
    known = {key: data[key] for key in ("path", "flip", "regions") if key in data}
    return ConceptPhotos(**known, size=64).digest


def check_begun(plan: Plan, config: TrainConfig) -> None:
    """Raise ``InputError`` when the run's folder holds another concept's run."""
    checkpoints = training_state.checkpoints(plan.folder.checkpoints)
    if not checkpoints or training_state.verify(checkpoints[-1]):
        return
    then = training_state.read_state(checkpoints[-1])["config"]
    names = {"like": "--like", "token": "--token", "base": "--base"}
    names |= {"base_digest": "files of --base", "photographs": "photographs"}
    for key in sorted(then["model"].keys() | config.model.keys()):
        if then["model"].get(key) != config.model.get(key):
            what = names.get(key, f"model.{key}")
            raise InputError(
                f"{plan.folder.path} was begun with other {what}: choose another -o, or remove that folder"
            )


def _steps(plan: Plan) -> int:
    """Return how many steps the run has done."""
    return training_state.step_of(training_state.checkpoints(plan.folder.checkpoints)[-1])


def finished(plan: Plan, config: TrainConfig) -> bool:
    """Return whether the run reached its last step, or ended because it brought nothing better."""
    saved = training_state.checkpoints(plan.folder.checkpoints)
    if not saved or not plan.learned.is_file():
        return False
    progress = training_state.read_progress(saved[-1])
    return progress.step >= config.steps or progress.tired(config.patience)


def write_concept(source: Path, out: Path) -> None:
    """Copy a concept's file, whole or not at all."""
    with output.writing(out):
        out.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(out) as file:
            file.write(source.read_bytes())


def import_official(
    mapper: Path, out: Path, *, embeds: Path | None = None, base: str | None = None, force: bool = False
) -> dict[str, Any]:
    """Write the concept in an official file as one of ours; return what it is, as plain JSON.

    ``embeds``: the ``learned_embeds`` file beside it. ``base``: the model it was learned for, whose digest then goes
    into the file, whose vocabulary ``embeds`` is compared with, and whose tokenizers must not know the concept's token.
    Raises ``InputError`` for what does not fit.
    """
    from belvedere.apps.tasks_concept import open_base
    from belvedere.checkpoints.concepts import save_concept
    from belvedere.checkpoints.official_neti import official_concept
    from belvedere.generation.concept import check_new

    if out.suffix != ENDING or out.is_dir():
        raise InputError(f"{out}: a concept file's name ends in {ENDING}")
    output.check_folder(out.parent)
    if out.exists() and not force:
        raise InputError(f"{out} exists: choose another -o, or --force to replace it")
    frozen = None if base is None else open_base(base, "cpu")
    concept = official_concept(mapper, embeds, frozen.encoders if frozen else ())
    for tokenizer in frozen.tokenizers if frozen else ():
        check_new(tokenizer, concept.token)
    with output.writing(out):
        out.parent.mkdir(parents=True, exist_ok=True)
        save_concept(concept, out)
    facts = {"file": str(out), "token": concept.token, "like": concept.super_category, "base": concept.base.name}
    return {**facts, "checked": frozen is not None}


def parse_regions(texts: Sequence[str]) -> dict[str, tuple[int, int, int, int]]:
    """Return the boxes in texts like "photo.jpg=10,20,300,300", by file name."""
    found: dict[str, tuple[int, int, int, int]] = {}
    for text in texts:
        match = re.fullmatch(r"(.+)=(\d{1,9}),(\d{1,9}),(\d{1,9}),(\d{1,9})", text)
        if not match:
            raise InputError(f"region {text[:80]!r}: write FILE=X,Y,WIDTH,HEIGHT in pixels, like toy.jpg=10,20,300,300")
        x, y, width, height = (int(part) for part in match.groups()[1:])
        found[match[1]] = (x, y, width, height)
    return found


def this_command() -> str:
    """Return the command line of this process, for the run's card."""
    return " ".join(["belvedere", *sys.argv[1:]])
