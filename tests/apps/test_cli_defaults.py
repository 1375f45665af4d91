import errno
import json
import pwd
import subprocess
import sys
from pathlib import Path

import pytest
import typer

from belvedere.apps.cli import app
from belvedere.apps.cli_defaults import defaults_file, read_defaults
from belvedere.errors import InputError

COMMAND = typer.main.get_command(app)
GIVEN = """
generate: {steps: 50, size: 48x96, json: true, prompt: [a car, a boat], pack-size: 7}
evaluate:
  generation: {count: 480}
models: {json: true}
"""


def write(folder: Path, text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "defaults.yaml").write_text(text)
    monkeypatch.setenv("BELVEDERE_CONFIG", str(folder / "defaults.yaml"))


def test_options_by_their_long_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, GIVEN, monkeypatch)
    assert read_defaults(COMMAND) == {
        "generate": {"steps": 50, "sizes": "48x96", "as_json": True, "prompt": ["a car", "a boat"], "pack_size": 7},
        "evaluate": {"generation": {"count": 480}},
        "models": {"as_json": True},
    }


@pytest.mark.parametrize("text", ["", "# nothing yet"])
def test_an_empty_file_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    write(tmp_path, text, monkeypatch)
    assert read_defaults(COMMAND) == {}


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("generate: {stepz: 3}", "unknown config key 'generate.stepz': did you mean 'steps'?"),
        ("generat: {steps: 3}", "unknown config key 'generat': did you mean 'generate'?"),
        ("train: {prepare: {no-flip: true}}", "key 'train.prepare.no-flip': did you mean 'flip'?"),
        ("version: true", "unknown config key 'version'"),
        ("generate: 3", "must have keys and values"),
        ("generate: {steps: {a: 1}}", "generate.steps: must be a text, a number"),
        ("generate: {steps: [", "not YAML"),
        ("!!python/object/apply:os.system [ls]", "not YAML"),
        ("x" * (1 << 18 | 1), "has more than"),
        ("generate: &a [1]\nview: *a", "it has an alias"),
        ("[" * 40 + "]" * 40, "nested deeper"),
        ("[generate]", "must be a mapping"),
    ],
)
def test_what_is_wrong_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, told: str) -> None:
    write(tmp_path, text, monkeypatch)
    with pytest.raises(InputError, match=r"defaults\.yaml") as error:
        read_defaults(COMMAND)
    assert told in str(error.value)


def test_a_named_file_has_to_be_there_and_the_usual_one_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BELVEDERE_CONFIG", str(tmp_path / "none.yaml"))
    with pytest.raises(InputError, match=r"none\.yaml: No such file"):
        read_defaults(COMMAND)
    monkeypatch.delenv("BELVEDERE_CONFIG")
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    assert defaults_file() is None and read_defaults(COMMAND) == {}
    usual = tmp_path / "belvedere" / "config.yaml"
    usual.parent.mkdir()
    usual.write_text("models: {json: true}")
    assert defaults_file() == usual and read_defaults(COMMAND) == {"models": {"as_json": True}}


def test_a_home_that_cannot_be_reached_has_no_defaults(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(path: Path) -> bool:
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.delenv("BELVEDERE_CONFIG")
    monkeypatch.delenv("XDG_CONFIG_HOME", raising=False)
    with monkeypatch.context() as patch:
        patch.setattr(Path, "is_file", refused)
        assert read_defaults(COMMAND) == {}
    monkeypatch.delenv("HOME")
    monkeypatch.setattr(pwd, "getpwuid", {}.__getitem__)  # no entry in the table of users either
    assert read_defaults(COMMAND) == {}


def test_yes_and_no_are_values(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, "train: {prepare: {flip: false}}", monkeypatch)
    monkeypatch.setenv("BELVEDERE_SERVE_NO_OPEN", "1")
    assert read_defaults(COMMAND) == {"train": {"prepare": {"flip": False}}}
    monkeypatch.setenv("BELVEDERE_SERVE_OPEN", "false")
    assert read_defaults(COMMAND)["serve"] == {"open_page": "false"}


def told(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "belvedere", *arguments], capture_output=True, text=True)


def test_written_before_environment_before_file_before_built_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path, "generate: {model: file, seed: 3, pack: tar}", monkeypatch)
    monkeypatch.setenv("BELVEDERE_GENERATE_SEED", "-4")
    out = str(tmp_path / "out")
    assert "seed must be a whole number" in told("generate", "--out", out).stderr  # the environment's
    done = told("generate", "--out", out, "--seed", "5")
    assert "file" in done.stderr and done.returncode == 2  # the file's model; its pack is no mistake without --jobs
    done = told("generate", "--out", out, "--seed", "5", "--model", "written")
    assert "written" in done.stderr and done.returncode == 2
    monkeypatch.setenv("BELVEDERE_GENERATE_SIZE", "4by4")
    monkeypatch.setenv("BELVEDERE_GENERATE_PROMPT", "a car")
    assert read_defaults(COMMAND)["generate"] | {"pack": ""} == {
        "model": "file",
        "seed": "-4",
        "pack": "",
        "sizes": "4by4",
        "prompt": ["a car"],
    }
    monkeypatch.setenv("BELVEDERE_MODELS_JSON", "1")
    for name in ("VERSION", "INSTALL_COMPLETION", "SHOW_COMPLETION"):  # of these there are no defaults
        monkeypatch.setenv(f"BELVEDERE_{name}", "1")
    assert json.loads(told("models").stdout)
