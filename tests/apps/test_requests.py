"""Requests: one that exists is within its limits, and says the same after a trip through JSON."""

import json
import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from belvedere.apps.requests import MAX_COUNT, MAX_SEED, MAX_SIDE, MAX_STEPS, GenerateRequest, parse_sizes
from belvedere.errors import InputError

words = st.text(st.characters(min_codepoint=33, max_codepoint=0x2FF, exclude_categories=["C", "Z"]), min_size=1)
sides = st.integers(1, MAX_SIDE)
requests = st.builds(
    GenerateRequest,
    model=words,
    classes=st.lists(words | st.integers(0, 10**6), max_size=20).map(tuple),
    count=st.integers(1, MAX_COUNT),
    seed=st.integers(0, MAX_SEED),
    steps=st.none() | st.integers(1, MAX_STEPS),
    guidance=st.none() | st.floats(0, 100),
    dtype=st.sampled_from(["auto", "bfloat16"]),
    device=st.sampled_from(["auto", "cpu", "cuda:3"]),
    sizes=st.lists(st.tuples(sides, sides), max_size=20).map(tuple),
    extrapolation=st.none() | words,
    solver=st.none() | words,
    guidance_power=st.none() | st.floats(0.01, 100),
    guidance_channels=st.none() | st.integers(1, 1024),
    guidance_interval=st.none() | st.tuples(st.floats(0, 0.5), st.floats(0.5, 1)),
)


@given(requests)
def test_json_round_trip(request: GenerateRequest) -> None:
    assert GenerateRequest.from_json(request.to_json()) == request
    assert request.to_json().isascii()


def test_an_interval_is_written_in_one_way() -> None:
    texts = [GenerateRequest.from_dict({"guidance_interval": value}).to_json() for value in ([0, 0.5], [0.0, 0.5])]
    assert texts[0] == texts[1]
    assert GenerateRequest.from_dict({"guidance_interval": [0, 1]}) == GenerateRequest()


def test_a_request_without_them_is_written_as_before_there_were_solvers() -> None:
    written = (
        '{"model": "dimr-toybox", "classes": ["car", 3], "count": 2, "seed": 7, "steps": 25, "guidance": 2.0, '
        '"dtype": "auto", "device": "auto", "sizes": [], "extrapolation": null, "prompts": [], "negative": "", '
        '"concepts": [], "editability": 0.0'
    )
    asked = GenerateRequest(classes=("car", 3), count=2, seed=7, steps=25, guidance=2.0)
    assert asked.to_json() == written + "}" and asked.sampling == {}
    other = replace(asked, solver="heun", guidance_channels=3)
    assert other.to_json() == written + ', "solver": "heun", "guidance_channels": 3}'
    assert other.sampling == {"solver": "heun", "guidance_channels": 3}


@pytest.mark.parametrize(
    "values",
    [
        {"count": 0},
        {"count": MAX_COUNT + 1},
        {"count": True},
        {"count": 2.0},
        {"seed": -1},
        {"seed": MAX_SEED + 1},
        {"steps": 0},
        {"steps": 1001},
        {"guidance": math.nan},
        {"guidance": math.inf},
        {"guidance": -1},
        {"guidance": 10**400},
        {"guidance": "3"},
        {"classes": "car"},
        {"classes": ["", "car"]},
        {"classes": [-1]},
        {"classes": [None]},
        {"classes": ["car"] * 10_000},
        {"model": ""},
        {"model": "a\nb"},
        {"model": "\x1b[31m"},
        {"model": 3},
        {"dtype": "float8"},
        {"dtype": ["auto"]},
        {"device": "toaster"},
        {"device": "cuda:x"},
        {"sizes": [[0, 64]]},
        {"sizes": [[64, 64], [64, 8193]]},
        {"sizes": "64x64"},
        {"sizes": [64, 64]},
        {"sizes": [[64]]},
        {"sizes": [[64, 64, 64]]},
        {"sizes": [[64, True]]},
        {"sizes": [[64.0, 64]]},
        {"sizes": {"64": 64}},
        {"extrapolation": ""},
        {"extrapolation": 2},
        {"solver": ""},
        {"solver": 2},
        {"guidance_power": 0},
        {"guidance_power": 101},
        {"guidance_power": "2"},
        {"guidance_channels": 0},
        {"guidance_channels": 1.5},
        {"guidance_interval": 0.5},
        {"guidance_interval": [0.5]},
        {"guidance_interval": [0.5, 0.2]},
        {"guidance_interval": [0.5, 1.2]},
        {"guidance_interval": ["0", 1]},
    ],
)
def test_a_wrong_value_names_its_field(values: dict[str, object]) -> None:
    with pytest.raises(InputError, match=f"^{next(iter(values))}"):
        GenerateRequest.from_dict(values)


def test_too_many_sizes_are_refused() -> None:
    with pytest.raises(InputError, match=r"sizes.* too many for one request; split it"):
        GenerateRequest.from_dict({"sizes": [[64, 64]] * 100_000})


@pytest.mark.parametrize("values", [{"count": "\x1b[31m"}, {"guidance": "1\n2"}, {"sizes": [["6\n\x1b[31m", 64]]}])
def test_what_a_message_quotes_is_printable(values: dict[str, object]) -> None:
    with pytest.raises(InputError) as error:
        GenerateRequest.from_dict(values)
    assert str(error.value).isprintable()


@pytest.mark.parametrize(
    ("text", "sizes"),
    [("", ()), ("48x96", ((48, 96),)), (" 48X96 , 64x64,", ((48, 96), (64, 64))), ("0x999999999", ((0, 999999999),))],
)
def test_sizes_are_read_from_text(text: str, sizes: tuple[tuple[int, int], ...]) -> None:
    assert parse_sizes(text) == sizes


@pytest.mark.parametrize("item", ["16", "16x", "x16", "16x16x16", "-1x5", "1.5x2", "16 x 16", "1e3x2", "9999999999x1"])
def test_what_is_not_a_size_is_named(item: str) -> None:
    with pytest.raises(InputError) as error:
        parse_sizes(f"16x16,{item}")
    assert str(error.value) == f"size {item!r}: write WIDTHxHEIGHT in pixels, like 48x96"


def test_an_unknown_field_is_an_error() -> None:
    with pytest.raises(InputError, match=r"no field 'step'; its fields are model, classes, count"):
        GenerateRequest.from_dict({"step": 3})


@pytest.mark.parametrize("text", ["", "{", "[1]", "null", "[" * 100_000, json.dumps({"count": 1})[:-1]])
def test_what_is_not_a_request_is_refused(text: str) -> None:
    with pytest.raises(InputError, match="request"):
        GenerateRequest.from_json(text)
