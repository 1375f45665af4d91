"""The policy that asks for the same bits each time: what it switches, restores and refuses."""

import os

import pytest
import torch

from belvedere.apps.policy import WORKSPACE, deterministic
from belvedere.errors import InputError


@pytest.fixture(autouse=True)
def no_workspace(monkeypatch: pytest.MonkeyPatch) -> None:
    """Begin without the variable, and leave none behind."""
    monkeypatch.setenv(WORKSPACE, "")
    monkeypatch.delenv(WORKSPACE)


def switches() -> tuple[bool, ...]:
    cudnn, memory = torch.backends.cudnn, torch.utils.deterministic
    asked = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    return *asked, cudnn.benchmark, cudnn.deterministic, memory.fill_uninitialized_memory


def switch(to: tuple[bool, ...]) -> None:
    cudnn, memory = torch.backends.cudnn, torch.utils.deterministic
    torch.use_deterministic_algorithms(to[0], warn_only=to[1])
    cudnn.benchmark, cudnn.deterministic, memory.fill_uninitialized_memory = to[2:]


@pytest.mark.parametrize("before", [(False, False, False, False, True), (True, True, True, False, False)])
def test_it_is_on_within_and_as_before_afterwards(before: tuple[bool, ...]) -> None:
    found = switches()
    try:
        switch(before)
        with pytest.raises(KeyError), deterministic():
            assert switches() == (True, False, False, True, False)
            raise KeyError
        assert switches() == before
        with deterministic(False):
            assert switches() == before
    finally:
        switch(found)


def test_the_workspace_is_fixed_before_cuda_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: False)
    with deterministic(False):
        assert WORKSPACE not in os.environ
    with deterministic():
        assert os.environ[WORKSPACE] == ":4096:8"
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    with deterministic():  # it was fixed in time
        pass
    monkeypatch.setenv(WORKSPACE, ":16:8")
    with deterministic():
        assert os.environ[WORKSPACE] == ":16:8"


@pytest.mark.parametrize(
    ("started", "value", "says"), [(True, None, "CUDA was started without it"), (False, ":0:0", "it is ':0:0'")]
)
def test_another_workspace_is_refused(
    started: bool, value: str | None, says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: started)
    if value is not None:
        monkeypatch.setenv(WORKSPACE, value)
    with pytest.raises(InputError, match=says), deterministic():
        pass
    assert not torch.are_deterministic_algorithms_enabled()


def test_an_operation_without_such_a_form_is_named() -> None:
    places, values = torch.tensor([0, 0]), torch.ones(2)
    with pytest.raises(InputError, match="PyTorch's put_ has no such form here; leave it out"), deterministic():
        torch.zeros(3).put_(places, values)
    with pytest.raises(RuntimeError, match="inconsistent tensor size") as caught, deterministic():
        torch.zeros(2) @ torch.zeros(3)
    assert not isinstance(caught.value, InputError)
