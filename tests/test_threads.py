"""Pools of threads: how many cores PyTorch takes in them, and elsewhere meanwhile and later."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from threading import Barrier

import pytest
import torch

from belvedere.compression.codec import workers
from belvedere.data.toybox import dataset
from belvedere.threads import kept_to, pool


@pytest.fixture(autouse=True)
def _four_cores() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(4)
    yield
    torch.set_num_threads(before)


def of_a_new_thread() -> int:
    with ThreadPoolExecutor(1) as one:
        return one.submit(torch.get_num_threads).result()


def test_only_the_threads_of_a_pool_keep_to_its_cores() -> None:
    both = Barrier(2)

    def cores(_: int) -> int:
        both.wait(10)
        return torch.get_num_threads()

    with pool(2, 1) as executor:
        assert list(executor.map(cores, range(2))) == [1, 1]
        assert of_a_new_thread() == 4
    assert torch.get_num_threads() == of_a_new_thread() == 4


def test_codecs_that_work_at_once_leave_all_cores_to_those_that_come_after() -> None:
    first, second = ExitStack(), ExitStack()
    with second:
        with first:
            runs = [stack.enter_context(workers(2)) for stack in (first, second)]
            assert [list(run(lambda _: torch.get_num_threads(), range(1))) for run in runs] == [[2], [2]]
        assert torch.get_num_threads() == 4
    assert torch.get_num_threads() == of_a_new_thread() == 4


def test_threads_that_begin_while_toys_are_drawn_have_all_cores() -> None:
    both = Barrier(2)

    def cores(_: object) -> torch.Tensor:
        both.wait(10)  # while a thread of the pool begins, another one's first use may get its cores
        return torch.tensor([torch.get_num_threads(), of_a_new_thread()])

    seen = dataset._side_by_side(cores, [[0], [1]], 2)
    assert [pair.tolist() for pair in seen] == [[1, 4], [1, 4]]


def test_uses_that_overlap_leave_each_thread_as_it_was() -> None:
    """The first ends before the second, which began on a thread that had not used PyTorch yet."""
    begun, ended = Barrier(2), Barrier(2)

    def second() -> tuple[int, int]:
        with kept_to(3):
            begun.wait(10)
            ended.wait(10)
            within = torch.get_num_threads()
        return within, torch.get_num_threads()

    with ThreadPoolExecutor(1) as other:
        with kept_to(2):
            found = other.submit(second)
            begun.wait(10)
            assert torch.get_num_threads() == 2 and of_a_new_thread() == 4
        ended.wait(10)
        assert found.result(10) == (3, 4)
    assert torch.get_num_threads() == of_a_new_thread() == 4


def test_a_use_within_another_gives_the_outer_one_back() -> None:
    with kept_to(2):
        with kept_to(3):
            assert torch.get_num_threads() == 3
        assert torch.get_num_threads() == 2 and of_a_new_thread() == 4
    assert torch.get_num_threads() == of_a_new_thread() == 4
