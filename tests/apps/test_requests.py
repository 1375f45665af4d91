"""Requests: one that exists is within its limits, and says the same after a trip through JSON."""

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from belvedere.apps.requests import MAX_COUNT, MAX_SEED, MAX_STEPS, GenerateRequest
from belvedere.errors import InputError

words = st.text(st.characters(min_codepoint=33, max_codepoint=0x2FF, exclude_categories=["C", "Z"]), min_size=1)
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
)


@given(requests)
def test_json_round_trip(request: GenerateRequest) -> None:
    assert GenerateRequest.from_json(request.to_json()) == request
    assert request.to_json().isascii()


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
    ],
)
def test_a_wrong_value_names_its_field(values: dict[str, object]) -> None:
    with pytest.raises(InputError, match=f"^{next(iter(values))}"):
        GenerateRequest.from_dict(values)


def test_an_unknown_field_is_an_error() -> None:
    with pytest.raises(InputError, match=r"no field 'step'; its fields are model, classes, count"):
        GenerateRequest.from_dict({"step": 3})


@pytest.mark.parametrize("text", ["", "{", "[1]", "null", "[" * 100_000, json.dumps({"count": 1})[:-1]])
def test_what_is_not_a_request_is_refused(text: str) -> None:
    with pytest.raises(InputError, match="request"):
        GenerateRequest.from_json(text)
