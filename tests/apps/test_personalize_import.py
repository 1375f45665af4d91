"""Official mappers as concept files, by the command."""

import types
from collections.abc import Callable
from pathlib import Path

import pytest

from belvedere.checkpoints.concepts import load_concept
from tests.apps.conftest import Done, assert_refused
from tests.checkpoints.test_official_neti import DATA, encodings, write  # noqa: F401
from tests.generation.neti_models import save_tiny_base

Command = Callable[..., Done]


@pytest.mark.slow
def test_an_official_mapper_becomes_a_concept_file(
    command: Command, tmp_path: Path, encodings: types.ModuleType, monkeypatch: pytest.MonkeyPatch  # noqa: F811
) -> None:  # fmt: skip
    base = save_tiny_base(tmp_path / "base")
    mapper, out = tmp_path / "mapper-final.pt", tmp_path / "cat.safetensors"
    write(mapper, encodings)
    done = command("personalize", "import", mapper, "-o", out, "--base", base)
    assert done.code == 0 and done.out.endswith("<my-cat>, like cat, for CompVis/stable-diffusion-v1-4\n")
    made = load_concept(out)
    assert made.mapper.config.layers == 16 and len(made.base.digests) == 1
    assert_refused(command("personalize", "import", mapper, "-o", out), "exists", "--force")
    assert_refused(command("personalize", "import", tmp_path / "none.pt", "-o", tmp_path / "x.safetensors"), "none.pt")
    assert_refused(command("personalize", "import", mapper, "-o", tmp_path / "x.pt"), "ends in .safetensors")
    monkeypatch.setitem(DATA, "placeholder_token", "Cat")
    write(mapper, encodings)
    refused = command("personalize", "import", mapper, "-o", tmp_path / "x.safetensors", "--base", base)
    assert_refused(refused, "token Cat: the model has this word already")
    assert {path.name for path in tmp_path.iterdir()} == {mapper.name, out.name, base.name}
