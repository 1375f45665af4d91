import re

import pytest
import torch.distributed as dist
import typer

from belvedere.apps import agreement
from belvedere.apps.agreement import Agreed, all_check, prints, require_division
from belvedere.apps.cli_common import one_line
from belvedere.apps.config import load_config
from belvedere.errors import InputError


@pytest.mark.parametrize(
    ("name", "mend"),
    [
        ("mae-mvimgnet", "multiple of 8, such as batch=88"),
        ("nvist-mvimgnet", "multiple of 8, such as batch=24"),
        ("neti", "multiple of 32, such as batch=32, or accumulate=1"),
    ],
)
def test_a_batch_that_eight_processes_cannot_share_is_told_what_fits(name: str, mend: str) -> None:
    with pytest.raises(InputError, match=f"{mend}$"):
        require_division(load_config(name), 8)
    for change in re.findall(r"\w+=\d+", mend):
        require_division(load_config(name, [change]), 8)


def test_what_one_process_finds_ends_all_and_the_first_prints_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(agreement, "gather_object", lambda found: [*found, "b.png: damaged", "c.png: damaged"])
    with pytest.raises(Agreed, match=r"b\.png: damaged") as ended:
        all_check(lambda: 7)
    for rank in "01":
        monkeypatch.setenv("RANK", rank)
        assert prints(ended.value) == (rank == "0")


def test_before_processes_have_met_one_of_a_machine_prints(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "3")
    for rank in "01":
        monkeypatch.setenv("LOCAL_RANK", rank)
        assert prints(InputError("no such file")) == (rank == "0")


def test_what_several_processes_find_each_alone_one_prints() -> None:
    """As an ``InputError`` in a loss does: nobody waits there, so none can be asked."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        assert [prints(InputError(line)) for line in ("a.png", "a.png", "b.png")] == [True, False, True]
    finally:
        dist.destroy_process_group()


def test_what_ends_after_the_holder_of_the_store_prints_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    class Gone:
        def add(self, *_: object) -> int:
            raise dist.DistNetworkError("connection reset")

    monkeypatch.setattr(dist, "is_initialized", lambda: True)
    monkeypatch.setattr("torch.distributed.distributed_c10d._get_default_store", Gone)
    assert not prints(InputError("a.png"))


def test_one_of_the_processes_of_a_verb_prints_and_all_refuse(monkeypatch: pytest.MonkeyPatch) -> None:
    for rank, ended in (("0", InputError), ("1", typer.Exit)):
        monkeypatch.setenv("LOCAL_RANK", rank)
        with pytest.raises(ended) as found, one_line():
            raise InputError("a.png")
        assert getattr(found.value, "exit_code", 2) == 2


def test_all_check_returns_what_the_check_does() -> None:
    assert all_check(lambda: 7) == 7
