"""Python of the README and of the docs runs as it is written, but for numbers that only take time."""

import ast
import re
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from skimage import data

from belvedere.apps import tasks
from belvedere.apps.tasks_concept import open_base
from belvedere.apps.web.scene_results import toy
from belvedere.checkpoints import official
from belvedere.checkpoints.concepts import save_concept
from belvedere.errors import InputError
from tests.generation.neti_models import tiny_pipeline

ROOT = Path(__file__).parents[1]
RUN_ELSEWHERE = ("studio.md",)  # by tests/apps/web/test_docs.py
SHORTER = {
    "README.md": [("num_inference_steps=25", "num_inference_steps=2")],
    "dimr.md": [("num_inference_steps=25", "num_inference_steps=2")],
    "fitv2.md": [
        ("(48, 96)])", "(48, 96)], num_inference_steps=2)"),
        ('solver="dopri5"', 'solver="dopri5", solver_options={"rtol": 0.5, "atol": 0.5}'),
    ],
    "personalization.md": [("guidance_scale=7.5", "guidance_scale=7.5, num_inference_steps=2")],
}
AFTERWARDS = {
    "nvist.md": "assert (views[0].permute(2, 0, 1) - pictures[0]).abs().mean() < 0.05 and len(views) == 8",
    "segpic.md": "assert picture.size == (512, 512)",
    "toybox.md": "assert batch['image'].shape == (24, 3, 64, 64) and batch['label'].shape == (24,)",
    "training.md": "TASKS['mine']({})",
}


def programs() -> dict[str, str]:
    """Return the blocks of Python of each page that has some, joined."""
    pages = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
    blocks = {page.name: re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL) for page in pages}
    return {name: "".join(found) for name, found in blocks.items() if found and name not in RUN_ELSEWHERE}


@pytest.fixture
def names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, Any]]:
    """An empty namespace, in a folder with the files that examples read."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(tasks, "TASKS", dict(tasks.TASKS))
    toy(5).save("toy.png")
    Image.fromarray(data.astronaut()).save("photo.png")
    yield {}


def save_base_and_concept(folder: Path) -> None:
    """Write what the page of concepts reads, with random weights."""
    tiny_pipeline().save_pretrained(folder / "sd")
    concept = open_base(str(folder / "sd"), "cpu").concept("<toy>", "cat", "sd", hidden=32, frequencies=32)
    save_concept(concept, folder / "toy.concept.safetensors")


def run(statement: ast.stmt, names: dict[str, Any]) -> None:
    """Run a statement: published sizes without their memory, reading of published weights until the file is missing."""
    text = ast.unparse(statement)
    place: AbstractContextManager[Any] = torch.device("meta" if "from_variant" in text else "cpu")
    if "load_official" in text:
        place = pytest.raises(InputError, match="no weights file at")
        system, _, *variant = [part.value for part in ast.walk(statement) if isinstance(part, ast.Constant)]
        assert set(variant) <= set(official.IMPORTERS[str(system)].variants)
    with place:
        exec(compile(ast.Module([statement], []), "example", "exec"), names)  # noqa: S102


@pytest.mark.slow
@pytest.mark.parametrize("page", programs())
def test_examples_run_as_they_are_written(page: str, names: dict[str, Any], tmp_path: Path) -> None:
    program = programs()[page]
    for written, shorter in SHORTER.get(page, []):
        assert program.count(written) == 1
        program = program.replace(written, shorter)
    if "./sd" in program:
        save_base_and_concept(tmp_path)
    for statement in ast.parse(program + AFTERWARDS.get(page, "")).body:
        run(statement, names)


def test_there_are_examples_to_run() -> None:
    pages = {"README.md", "dimr.md", "fitv2.md", "nvist.md", "segpic.md", "personalization.md", "toybox.md"}
    assert pages <= set(programs()) and set(SHORTER) | set(AFTERWARDS) <= set(programs())
