"""What shares a network call: as much as fits, in an order that depends on nothing but the jobs."""

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from belvedere.apps import batch_plan
from belvedere.apps.batch_jobs import Fault, Line
from belvedere.apps.batch_plan import Plan, Shelf, first_fit, in_shard, make_plan
from belvedere.apps.requests import GenerateRequest
from belvedere.generation.packed_sampling import split

SIZES = ((16, 16), (32, 16), (48, 48), (8, 8), (96, 64))
"""16, 32, 144, 4 and 384 tokens: the third and the last have a call each."""


def lines(*requests: GenerateRequest) -> list[Line]:
    return [Line(i, f"{i:06d}", request) for i, request in enumerate(requests, 1)]


def calls(plan: Plan) -> list[list[tuple[int, int]]]:
    return [call for piece in plan.pieces for call in piece.calls]


def first_fit_decreasing(lengths: list[int], capacity: int) -> int:
    """Return the number of bins that the textbook's algorithm needs."""
    rooms: list[int] = []
    for length in sorted(lengths, reverse=True):
        if 2 * length > capacity:
            rooms.append(0)
            continue
        fits = [i for i, room in enumerate(rooms) if room >= length]
        if fits:
            rooms[fits[0]] -= length
        else:
            rooms.append(capacity - length)
    return len(rooms)


@pytest.mark.parametrize(
    "lengths",
    [[], [4], [64] * 7, [96, 64] * 20, [100, 100, 56, 1, 128, 129, 300], [*range(1, 200)], [90] * 9 + [38] * 9],
)
def test_bins_are_those_of_first_fit_decreasing(lengths: list[int]) -> None:
    order = list(first_fit(lengths, 256))
    assert sorted(order) == list(range(len(lengths)))
    bins = split([lengths[i] for i in order], 256)
    assert len(bins) == first_fit_decreasing(lengths, 256)
    assert all(sum(lengths[order[i]] for i in part) <= 256 or len(part) == 1 for part in bins)


def test_mixed_sizes_fill_calls_that_neighbours_would_not(tiny_fitv2: Path) -> None:
    model = str(tiny_fitv2)
    asked = lines(*(GenerateRequest(model, count=10, sizes=(size,), device="cpu") for size in ((40, 36), (76, 8))))
    tokens = (90, 38)
    filled = [[tokens[job] for job, _ in call] for call in calls(make_plan(asked, Shelf()))]
    assert filled == [[90, 90, 38, 38]] * 5
    assert len(split([90] * 10 + [38] * 10, 256)) == 7


def test_jobs_share_calls_when_only_their_own_fields_differ(tiny_model: Path) -> None:
    model = str(tiny_model)
    asked = lines(
        GenerateRequest(model, ("car",), count=10, seed=1, device="cpu"),
        GenerateRequest(model, ("boat",), count=3, seed=2, device="cpu", steps=4),
        GenerateRequest(model, ("boat",), count=9, seed=3, device="cpu", steps=2),
        GenerateRequest(model, ("boat",), count=2, seed=4, device="cpu", steps=2, guidance=1.5),
    )
    plan = make_plan(asked, Shelf())
    found = [sorted({job for job, _ in call}) for call in calls(plan)]
    assert found == [[0], [0, 1], [2], [2, 3]]  # steps 4 and guidance 1.5 are the model's own
    assert [len(call) for call in calls(plan)] == [8, 5, 8, 3]
    assert [job.line.number for job in plan.jobs] == [1, 2, 3, 4]


@pytest.mark.parametrize("values", [{"solver": "euler"}, {"guidance_power": 2.0}, {"guidance_channels": 2}], ids=str)
def test_jobs_of_other_solvers_or_guidance_share_no_call(tiny_fitv2: Path, values: dict[str, Any]) -> None:
    plain = GenerateRequest(str(tiny_fitv2), count=2, device="cpu")
    named, own = replace(plain, solver="multistep", seed=1), replace(plain, **values)
    plan = make_plan(lines(plain, own, named, replace(own, seed=1)), Shelf())
    assert [sorted({job for job, _ in call}) for call in calls(plan)] == [[0, 2], [1, 3]]


def test_every_picture_is_in_one_call(tiny_fitv2: Path, tiny_model: Path) -> None:
    asked = lines(
        GenerateRequest(str(tiny_fitv2), count=31, sizes=SIZES, device="cpu"),
        GenerateRequest(str(tiny_model), count=40, device="cpu"),
        GenerateRequest(str(tiny_fitv2), count=5, seed=3, device="cpu"),
    )
    plan = make_plan(asked, Shelf())
    every = Counter(place for call in calls(plan) for place in call)
    assert set(every.values()) == {1} and plan.pictures == 76 == len(every)
    assert [piece.model for piece in plan.pieces] == sorted(piece.model for piece in plan.pieces)
    assert make_plan(asked, Shelf()) == plan


def test_pieces_are_calls_of_one_model_up_to_a_size(tiny_model: Path, other_model: Path) -> None:
    asked = lines(*(GenerateRequest(str(model), count=100, device="cpu") for model in (tiny_model, other_model)))
    plan = make_plan(asked, Shelf(), piece_size=40)
    assert [sum(map(len, piece.calls)) for piece in plan.pieces] == [40, 40, 20] * 2


def test_shards_are_disjoint_and_cover_all(tiny_model: Path) -> None:
    asked = lines(GenerateRequest(str(tiny_model), count=200, device="cpu"), GenerateRequest(str(tiny_model)))
    parts = [make_plan(asked, Shelf(), (i, 3)) for i in (1, 2, 3)]
    names = [[plan.jobs[job].line.picture(i) for call in calls(plan) for job, i in call] for plan in parts]
    every = [name for part in names for name in part]
    assert sorted(every) == [*(asked[0].picture(i) for i in range(200)), "000002"]
    assert all(40 < len(part) < 95 for part in names)
    assert all(in_shard(name, (i, 3)) for i, part in enumerate(names, 1) for name in part)


def test_what_is_there_needs_no_plan(tiny_model: Path) -> None:
    asked = lines(*(GenerateRequest(str(tiny_model), count=count, device="cpu") for count in (20, 3)))
    plan = make_plan(asked, Shelf(), there={"000001": set(range(1, 20)), "000002": {0, 1, 2}, "others": {0}})
    assert calls(plan) == [[(0, 0)]] and [job.line for job in plan.jobs] == asked[:1]


def test_it_is_told_how_far_the_plan_is(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batch_plan, "NEWS", 0.0)
    notes: list[str] = []
    make_plan(lines(*[GenerateRequest(str(tiny_model), device="cpu")] * 2), Shelf(), note=notes.append)
    assert notes == ["planned 0 of 2 lines", "planned 1 of 2 lines"]


def test_what_a_model_cannot_do_is_a_fault_of_its_line(tiny_model: Path, tmp_path: Path) -> None:
    loaded: list[str] = []
    model, missing = str(tiny_model), str(tmp_path / "missing")
    asked = lines(
        GenerateRequest(missing, device="cpu"),
        GenerateRequest(model, ("tank",), device="cpu"),
        GenerateRequest(model, ("car",), device="cpu"),
        GenerateRequest(model, sizes=((8, 8),), device="cpu"),
        GenerateRequest(missing, ("car",), device="cpu"),
    )
    plan = make_plan(asked, Shelf(loaded.append))
    assert [job.line.number for job in plan.jobs] == [3]
    assert [fault.number for fault in plan.faults] == [1, 2, 4, 5]
    assert plan.faults[1] == Fault(2, "no class 'tank' in this model: it knows car, boat, plane, rocket")
    assert plan.faults[0].reason == plan.faults[3].reason and "no model" in plan.faults[0].reason
    assert sorted(loaded) == sorted([model, missing])  # each once
