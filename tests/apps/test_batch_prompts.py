"""Jobs of prompts: other prompts share network calls, and every picture is that of its request alone."""

from pathlib import Path

import pytest

from belvedere.apps import output, work
from belvedere.apps.batch_jobs import read_jobs
from belvedere.apps.batch_plan import Shelf, make_plan
from belvedere.apps.requests import GenerateRequest
from tests.apps.batch_helpers import OPTIONS, content, run, write_jobs
from tests.generation.neti_models import save_tiny_base


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(save_tiny_base(tmp_path_factory.mktemp("models") / "sd"))


@pytest.fixture
def jobs(model: str, tmp_path: Path) -> Path:
    common = {"model": model, "steps": 2}
    return write_jobs(
        tmp_path / "jobs.jsonl",
        common | {"prompt": "a red car", "seed": 1},
        common | {"prompts": ["a boat", "a cat"], "count": 3, "seed": 2, "name": "two"},
        common | {"prompt": "a red car", "negative": "blue"},
        common | {"prompt": "a cat", "size": "32x16"},
        common | {"classes": "car"},
        common | {"prompt": "word " * 200},
    )


def test_prompts_share_calls_and_change_nothing(jobs: Path, model: str, tmp_path: Path) -> None:
    plan = make_plan(read_jobs(jobs, OPTIONS).lines, Shelf())
    calls = [sorted({plan.jobs[job].line.number for job, _ in call}) for piece in plan.pieces for call in piece.calls]
    assert sorted(calls) == [[1, 2], [3], [4]]
    done = run(jobs, tmp_path / "out")
    assert [fault.number for fault in done.faults] == [5, 6]
    assert "makes pictures of text: give --prompt" in done.faults[0].reason
    asked = {
        "000001": GenerateRequest(model, prompts=("a red car",), seed=1, steps=2, device="cpu"),
        "two-{:05d}": GenerateRequest(model, prompts=("a boat", "a cat"), count=3, seed=2, steps=2, device="cpu"),
        "000003": GenerateRequest(model, prompts=("a red car",), negative="blue", steps=2, device="cpu"),
        "000004": GenerateRequest(model, prompts=("a cat",), sizes=((32, 16),), steps=2, device="cpu"),
    }
    expected = {
        f"{name.format(i)}.png": output.encode(picture.image, "png", picture.record.to_json())
        for name, request in asked.items()
        for i, picture in enumerate(work.generate(request))
    }
    assert content(tmp_path / "out") == expected
