"""``belvedere doctor``: everything it should look at is looked at, and faults are told apart from facts."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from belvedere.apps import doctor
from belvedere.checkpoints import store
from belvedere.kernels import backends, graphs
from belvedere.kernels.backends import BACKENDS, Request, choose


def test_a_sound_machine(capsys: pytest.CaptureFixture[str]) -> None:
    found = doctor.report()
    attention = ["attention", "packed attention", "packed sigmoid attention"]
    assert list(found) == ["machine", "torch", *attention, "kernels", "packages", "models", "folders"]
    assert found["machine"]["cores"] >= 1
    assert all(list(found[kind].values()).count("yes: chosen") == 1 for kind in attention)
    assert doctor.faults(found) == []
    doctor.print_report(found)
    printed = capsys.readouterr().out
    assert "no faults found" in printed
    assert all(name in printed for name in (*doctor.CORE, *doctor.EXTRAS))


def test_every_kind_of_attention_is_explained_by_the_table_that_chooses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    found = doctor.report()
    for kind, activation, packed in (
        ("attention", "softmax", False),
        ("packed attention", "softmax", True),
        ("packed sigmoid attention", "sigmoid", True),
    ):
        request = Request("cpu", activation, packed, bias=False)
        assert list(found[kind]) == [backend.name for backend in BACKENDS]
        assert found[kind][choose(request).name] == "yes: chosen"
    assert found["packed attention"]["triton"] == "no: they need an NVIDIA GPU"
    assert found["packed sigmoid attention"]["sdpa"] == "no: PyTorch's attention has no sigmoid activation"


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is an NVIDIA GPU here")
def test_kernels_that_do_not_run_say_why(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("BELVEDERE_GRAPHS", raising=False)
    kernels = doctor.report()["kernels"]
    assert kernels["fused"] in ("no: there is no NVIDIA GPU here", "no: switched off by BELVEDERE_KERNELS=plain")
    assert kernels["graphs"] == kernels["fused"]
    monkeypatch.setenv("BELVEDERE_GRAPHS", "0")
    assert doctor.report()["kernels"]["graphs"] == "no: switched off by BELVEDERE_GRAPHS=0"


def test_a_gpu_without_a_c_compiler_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("BELVEDERE_GRAPHS", raising=False)
    monkeypatch.delenv("BELVEDERE_KERNELS", raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (9, 0))
    monkeypatch.setattr(backends, "find_spec", lambda name: name)
    monkeypatch.setattr(backends, "_why_not_started", lambda: "Triton does not start: no C compiler")
    look: Any = backends.why_not_fused
    for module in (backends, graphs):
        monkeypatch.setattr(module, "why_not_fused", look.__wrapped__)  # nothing is remembered
    found = doctor.report()
    told = [*found["kernels"].values(), found["packed attention"]["triton"]]
    assert told == ["no: Triton does not start: no C compiler"] * 3


def test_a_missing_optional_package_names_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(doctor.EXTRAS, "no-such-package", "gpu")
    assert "pip install 'belvedere[gpu]'" in doctor.report()["packages"]["no-such-package"]


def test_faults_are_told(
    monkeypatch: pytest.MonkeyPatch, tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(tiny_model, tmp_path / "damaged")
    with (tmp_path / "damaged/network/config.json").open("a") as file:
        file.write(" ")
    monkeypatch.setattr(store, "EMBEDDED", tmp_path)
    monkeypatch.setattr(doctor, "CORE", ("no_such_package",))
    found = doctor.report()
    assert [fault.split(":")[0] for fault in doctor.faults(found)] == ["no_such_package", "damaged"]
    doctor.print_report(found)
    assert "fault: damaged: model damaged: its files do not match" in capsys.readouterr().out
