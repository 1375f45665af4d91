"""The solver and the shape of the guidance of a request: what they make is made again, what does not fit is refused."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from diffusers import FlowMatchEulerDiscreteScheduler

from belvedere.apps import work
from belvedere.apps.requests import OWN_STEPS, GenerateRequest
from belvedere.errors import InputError
from belvedere.generation.flow_sampling import SOLVERS
from tests.apps.test_work import digests, written
from tests.conftest import save_tiny_model


@pytest.fixture(scope="module")
def asked(tiny_model: Path) -> GenerateRequest:
    return GenerateRequest(str(tiny_model), ("boat", 3), seed=7, steps=2, device="cpu")


@pytest.fixture(scope="module")
def mixed(tiny_fitv2: Path) -> GenerateRequest:
    sizes = ((16, 16), (32, 16))
    return GenerateRequest(str(tiny_fitv2), ("boat", 3), count=2, seed=7, steps=8, device="cpu", sizes=sizes)


@pytest.fixture(scope="module")
def plain(mixed: GenerateRequest) -> list[work.Picture]:
    return list(work.generate(mixed))


@pytest.fixture(scope="module")
def noisy(tmp_path_factory: pytest.TempPathFactory) -> GenerateRequest:
    """Of a model that learned noise on the schedule of the published networks."""
    folder = save_tiny_model(tmp_path_factory.mktemp("models") / "noisy", 0, "epsilon", "scaled_linear")
    return GenerateRequest(str(folder), ("boat", 3), count=9, seed=7, steps=7, device="cpu")


SAMPLING: list[dict[str, Any]] = [
    {"solver": "euler"},
    {"solver": "rk4"},
    {"solver": "sde-heun"},
    {"solver": "dopri5", "steps": None},
    {"guidance_power": 2.0},
    {"guidance_channels": 1},
    {"guidance_interval": (0.3, 0.9)},
    {"solver": "heun", "guidance_power": 3.0, "guidance_channels": 2},
]


@pytest.mark.parametrize("values", SAMPLING, ids=str)
def test_a_solver_and_a_guidance_make_pictures_of_their_own_that_are_made_again(
    mixed: GenerateRequest, plain: list[work.Picture], tmp_path: Path, values: dict[str, Any]
) -> None:
    asked = replace(mixed, **values)
    made = list(work.generate(asked))
    assert digests(made) != digests(plain)
    used = made[1].record.request
    assert used.sampling == asked.sampling and used.steps == asked.steps
    done = work.regenerate(written(made[1], tmp_path))
    assert done.differences == () and done.picture.record == made[1].record


def test_the_published_solver_makes_pictures_that_are_made_again(noisy: GenerateRequest, tmp_path: Path) -> None:
    asked = replace(noisy, solver="published", guidance_power=2.0)
    made = list(work.generate(asked))
    assert made[8].record.request.sampling == {"solver": "published", "guidance_power": 2.0}
    assert not {*digests(made)} & {*digests(work.generate(noisy))}
    done = work.regenerate(written(made[8], tmp_path))
    assert done.differences == () and done.picture.record == made[8].record


def test_what_is_done_anyway_is_not_told(mixed: GenerateRequest, plain: list[work.Picture]) -> None:
    named = list(work.generate(replace(mixed, solver="multistep", guidance_interval=(0.0, 1.0))))
    assert [picture.record for picture in named] == [picture.record for picture in plain]


@pytest.mark.parametrize(
    ("solver", "steps", "evaluations"),
    [
        (None, 5, 5),
        ("euler", 5, 5),
        ("heun", 5, 10),
        ("rk4", 5, 4 * 4 + 2),
        ("sde-heun", 5, 11),
        ("dopri5", None, None),
    ],
)
def test_evaluations_are_known_but_for_an_adaptive_solver(
    mixed: GenerateRequest, solver: str | None, steps: int | None, evaluations: int | None
) -> None:
    """The last step of rk4 is one of midpoint where a network predicts clean pictures."""
    assert work.prepare(replace(mixed, solver=solver, steps=steps)).evaluations == evaluations


def test_the_solvers_that_choose_their_own_steps_are_known_by_name(mixed: GenerateRequest) -> None:
    pipeline = work.load(mixed).pipeline
    assert [name for name in SOLVERS if pipeline.evaluations(name, 5) is None] == list(OWN_STEPS)


@pytest.mark.parametrize(
    ("request_of", "values", "message"),
    [
        ("mixed", {"solver": "magic"}, "unknown solver 'magic': choose from multistep, euler, "),
        ("mixed", {"solver": "dopri5"}, "solver dopri5 chooses its own steps; leave out steps"),
        ("mixed", {"guidance": 0.5, "guidance_power": 2.0}, "cosine guidance needs scale >= 1 and power > 0"),
        ("mixed", {"guidance_channels": 4}, "guidance channels 4: model .* has only 3"),
        ("asked", {"solver": "magic"}, "unknown solver 'magic': choose multistep or published"),
        ("asked", {"solver": "published"}, "'published' needs a network of the scaled_linear schedule"),
        ("asked", {"guidance_channels": 3}, "knows no guidance channels; leave it out"),
    ],
)
def test_a_solver_and_a_guidance_that_do_not_fit_are_refused_before_any_work(
    request: pytest.FixtureRequest, request_of: str, values: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        work.prepare(replace(request.getfixturevalue(request_of), **values))


def test_a_scheduler_of_the_model_s_own_leaves_no_solver_to_choose(asked: GenerateRequest) -> None:
    model = work.load(asked)
    model.pipeline.scheduler = FlowMatchEulerDiscreteScheduler()
    with pytest.raises(InputError, match="has a scheduler of its own; leave out solver"):
        work.prepare(replace(asked, solver="multistep"), model=model)


def assert_rises(request: GenerateRequest) -> None:
    seen: list[float] = []
    list(work.generate(request, progress=lambda done, total: seen.append(done / total)))
    assert seen == sorted(seen) and len(seen) > 4
    assert 0 <= seen[0] < 0.5 and seen[-1] == pytest.approx(1, abs=1e-3)


def test_progress_rises_with_solvers_whose_steps_are_others(mixed: GenerateRequest, noisy: GenerateRequest) -> None:
    assert_rises(replace(mixed, steps=None, solver="dopri5"))
    assert_rises(replace(noisy, steps=20, solver="published"))
