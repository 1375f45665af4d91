"""How much a network call holds: the least that takes no further call on a GPU, always the same on a CPU."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from belvedere.errors import InputError
from belvedere.generation import packed_sampling, rooms

CPU, GPU = torch.device("cpu"), torch.device("cuda")
PER_CALL = 8
"""Tokens of a call on a CPU, here."""


class Packed:
    """Cuts as FiTv2's pipeline does."""

    def __init__(self, device: torch.device):
        self.network = SimpleNamespace(device=device)

    def split(self, sizes: Any, room: int | None = None) -> list[range]:
        return packed_sampling.split([high * wide for high, wide in sizes], (room or 1) * PER_CALL)


@pytest.mark.parametrize(
    ("sizes", "room"),
    [
        ([], 1),
        ([(1, 1)], 1),
        ([(2, 4)], 1),
        ([(2, 4)] * 2, 2),
        ([(2, 4)] * 5, 8),
        ([(2, 4)] * 17, 32),
        ([(2, 4)] * 32, 32),
        ([(2, 4)] * 33, 32),  # two full calls; of the next room there would be three
        ([(2, 4)] * 1000, 32),
        ([(40, 40)], 1),  # larger than any call: it has one of its own rows whatever the room
        ([(40, 40), (1, 1)], 1),
    ],
)
def test_a_gpu_has_the_smallest_room_that_takes_no_further_call(sizes: Any, room: int) -> None:
    assert rooms.chosen(Packed(GPU), sizes) == room
    assert rooms.chosen(Packed(CPU), sizes) == 1
    assert rooms.chosen(Packed(CPU), sizes, 4) == 4


@given(st.lists(st.tuples(st.integers(1, 20), st.integers(1, 20)), max_size=40))
def test_no_smaller_room_would_do(sizes: Any) -> None:
    pipeline = Packed(GPU)
    room, calls = rooms.chosen(pipeline, sizes), len(pipeline.split(sizes, rooms.FULL))
    assert len(pipeline.split(sizes, room)) <= calls
    assert room == 1 or len(pipeline.split(sizes, room // 2)) > calls


@pytest.mark.parametrize("room", [0, 33, -1, 2.0, True, "2"])
def test_a_room_that_no_call_has_is_refused(room: Any) -> None:
    with pytest.raises(InputError, match="must be a whole number from 1 to 32"):
        rooms.chosen(Packed(CPU), [(1, 1)], room)
