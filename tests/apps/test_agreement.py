import re

import pytest

from belvedere.apps import agreement
from belvedere.apps.agreement import Agreed, all_check, prints, require_division
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


def test_what_a_process_finds_alone_it_prints(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "3")
    for rank in "01":  # before they have met all of a machine may find the same
        monkeypatch.setenv("LOCAL_RANK", rank)
        assert prints(InputError("no such file")) == (rank == "0")
    monkeypatch.setattr("torch.distributed.is_initialized", lambda: True)
    assert prints(InputError("no such file"))


def test_all_check_returns_what_the_check_does() -> None:
    assert all_check(lambda: 7) == 7
