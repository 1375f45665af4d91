"""The command as a user runs it: results, one-line errors, exit codes, nothing half-written."""

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from belvedere.apps import cli, evaluate, record
from tests.apps.conftest import Done, assert_refused
from tests.apps.test_output import full_disk
from tests.waiting import wait_until

WEIGHTS = "network/diffusion_pytorch_model.safetensors"


@pytest.fixture
def empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder that is the current one."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def copy_without_card(model: Path, folder: Path) -> Path:
    shutil.copytree(model, folder)
    (folder / "card.json").unlink()
    return folder


def test_pictures_a_sheet_and_again(command: Callable[..., Done], tiny_model: Path, tmp_path: Path) -> None:
    out, sheet = tmp_path / "new/pictures", tmp_path / "sheet.webp"
    asked = ("generate", "--model", tiny_model, "-n", 5, "--seed", 3, "--out", out, "--grid", sheet)
    done = command(*asked)
    assert (done.code, done.error) == (0, "")
    assert done.out.startswith(f"5 pictures in {out}, all on {sheet} ({tiny_model}, seed 3")
    names = sorted(path.name for path in out.iterdir())
    assert names == [f"tiny-3-{i:05d}.png" for i in range(5)]
    with Image.open(sheet) as page:
        assert page.width > 3 * 128
    content = {name: (out / name).read_bytes() for name in names}
    result = json.loads(command(*asked, "--json").out)
    assert [entry["class"] for entry in result["pictures"]] == ["car", "boat", "plane", "rocket", "car"]
    assert {name: (out / name).read_bytes() for name in names} == content


def test_help_imports_nothing_heavy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("BELVEDERE_CONFIG")  # nobody's defaults: there is no file
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    program = (
        "import sys, time; sys.argv = ['belvedere', '--help']\n"
        "from belvedere.apps.cli import main\n"
        "try: main()\n"
        "except SystemExit as e: assert not e.code\n"
        "heavy = {'torch', 'diffusers', 'transformers', 'numpy', 'PIL', 'huggingface_hub', 'safetensors', 'yaml'}\n"
        "print(sorted(heavy & set(sys.modules)), time.process_time(), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert "generate" in done.stdout and "regenerate" in done.stdout
    modules, seconds = done.stderr.rsplit(" ", 1)
    assert modules == "[]"
    assert float(seconds) < 0.5


@pytest.mark.parametrize("verb", ["view", "compress", "decompress"])
def test_a_missing_file_is_told_before_networks_are_imported(verb: str, tmp_path: Path) -> None:
    program = "import sys; from belvedere.apps.cli import main\ntry: main()\nfinally: print('diffusers' in sys.modules)"
    call = [sys.executable, "-c", program, verb, "none.png"]
    done = subprocess.run(call, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "False\n")
    assert done.stderr == "belvedere: error: cannot read none.png: No such file or directory\n"


@pytest.mark.parametrize("verb", [[], ["generate"], ["regenerate"], ["train"], ["evaluate", "generation"], ["models"]])
def test_help_has_examples(command: Callable[..., Done], verb: list[str]) -> None:
    done = command(*verb, "--help")
    assert done.code == 0
    assert f"belvedere {' '.join(verb)}" in done.out
    assert not verb or "Examples" in done.out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["-n", "0"], ["count must be a whole number from 1", "not 0"]),
        (["--steps", "0"], ["steps must be a whole number from 1 to 1000"]),
        (["--steps", "1001"], ["steps must be"]),
        (["--steps", "many"], ["--steps", "integer"]),
        (["--seed", "-1"], ["seed must be"]),
        (["--guidance", "nan"], ["guidance must be"]),
        (["--dtype", "float8"], ["dtype must be one of"]),
        (["--device", "toaster"], ["device must be"]),
        (["--format", "gif"], ["--format must be one of png, jpeg, webp"]),
        (["--grid", "sheet.txt"], ["cannot tell the format"]),
        (["--model", "nope"], ["no model 'nope'"]),
        (["--sides", "3"], ["No such option"]),
        (["--size", "16"], ["size '16': write WIDTHxHEIGHT in pixels"]),
        (["--size", "0x16"], ["sizes: a side of 0x16 must be a whole number from 1 to 8192, not 0"]),
        (["--sizes", "16x16,99999x16"], ["sizes: a side of 99999x16 must be"]),
        (["--out", "/proc/belvedere"], ["cannot write /proc/belvedere"]),
    ],
)
def test_bad_options_are_refused_before_any_work(
    command: Callable[..., Done],
    arguments: list[str],
    words: list[str],
    empty_folder: Path,
) -> None:
    assert_refused(command("generate", *arguments), *words)
    assert list(empty_folder.iterdir()) == []


def test_bad_input_is_refused(command: Callable[..., Done], tiny_model: Path, tmp_path: Path) -> None:
    def ask(*arguments: object) -> Done:
        return command("generate", "--model", tiny_model, "--out", tmp_path / "out", *arguments)

    assert_refused(ask("--classes", "car,baot"), "no class 'baot'", "did you mean boat?")
    assert_refused(ask("--classes", "4"), "no class 4: this model has ids 0 to 3")
    assert_refused(ask("--device", "cuda:9"), "no device cuda:9")
    assert_refused(ask("--dtype", "float16", "--device", "cpu"), "float16")
    assert list(tmp_path.iterdir()) == []


def test_pictures_of_many_sizes_and_a_sheet(command: Callable[..., Done], tiny_fitv2: Path, tmp_path: Path) -> None:
    out, sheet = tmp_path / "out", tmp_path / "sheet.png"
    asked = ("generate", "--model", tiny_fitv2, "--out", out)
    assert command(*asked, "-n", 4, "--sizes", "16x16,32x16", "--grid", sheet).code == 0
    sizes = [Image.open(path).size for path in sorted(out.iterdir())]
    assert sizes == [(16, 16), (32, 16)] * 2
    assert Image.open(sheet).size == (2 * 132 + 4, 2 * 84 + 4)
    assert command(*asked, "-n", 1, "--seed", 1, "--size", "16x32").code == 0
    assert Image.open(out / "fitv2-1-00000.png").size == (16, 32)


def test_sizes_that_do_not_fit_the_model_are_refused(
    command: Callable[..., Done], tiny_fitv2: Path, tiny_model: Path, empty_folder: Path
) -> None:
    def ask(model: Path, *arguments: object) -> Done:
        return command("generate", "--model", model, "--out", "out", "--grid", "sheet.png", *arguments)

    assert_refused(ask(tiny_fitv2, "--size", "17x16"), "size 17x16: this model makes multiples of 4 pixels a side")
    assert_refused(ask(tiny_fitv2, "--extrapolation", "magic"), "unknown extrapolation 'magic'", "vision-ntk")
    assert_refused(ask(tiny_model, "--size", "32x16"), "makes pictures of 16x16 only; leave out size")
    assert_refused(ask(tiny_model, "--extrapolation", "pi"), "leave out size and extrapolation")
    assert list(empty_folder.iterdir()) == []


def test_solvers_that_do_not_fit_the_model_are_refused(
    command: Callable[..., Done], tiny_fitv2: Path, tiny_model: Path, empty_folder: Path
) -> None:
    def ask(verb: tuple[str, ...], model: Path, *arguments: object) -> Done:
        return command(*verb, "--model", model, *arguments)

    generate, evaluate = ("generate", "--out", "out"), ("evaluate", "generation")
    for verb in (generate, evaluate):
        count = ("-n", 24) if verb == evaluate else ()
        assert_refused(ask(verb, tiny_fitv2, "--solver", "magic", *count), "unknown solver 'magic'")
        assert_refused(ask(verb, tiny_fitv2, "--solver", "dopri5", "--steps", 9, *count), "leave out steps")
        assert_refused(ask(verb, tiny_model, "--guidance-channels", 3, *count), "knows no guidance channels")
        assert_refused(
            ask(verb, tiny_model, "--guidance-power", 0, *count), "guidance_power must be a number from 0.01"
        )
        for interval, message in (("0.8", "write two numbers, like 0.2,0.8"), ("0.8,0.2", "give the lower one first")):
            assert_refused(ask(verb, tiny_model, "--guidance-interval", interval, *count), message)
    text = ("--prompt", "a red car", "--solver", "euler")
    assert_refused(ask(generate, Path("toybox-diffusion"), *text), "model toybox-diffusion knows no solver")
    assert list(empty_folder.iterdir()) == []


def test_a_solver_of_the_command_is_in_the_record(
    command: Callable[..., Done], tiny_fitv2: Path, tmp_path: Path
) -> None:
    options = ("--solver", "rk4", "--guidance-channels", 2, "--guidance-power", 3, "--guidance", 2)
    options += ("--guidance-interval", "0.2,0.9")
    assert command("generate", "--model", tiny_fitv2, "--out", tmp_path, "-n", 1, *options).code == 0
    (path,) = tmp_path.iterdir()
    asked = {"solver": "rk4", "guidance_power": 3.0, "guidance_channels": 2, "guidance_interval": (0.2, 0.9)}
    assert record.read(path).request.sampling == asked
    assert command("regenerate", path).out.startswith("bit-identical: ")


def test_steps_among_one_s_own_defaults_are_not_for_a_solver_that_takes_none(
    command: Callable[..., Done], tiny_fitv2: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BELVEDERE_GENERATE_STEPS", "3")
    asked = ("generate", "--model", tiny_fitv2, "-n", 1, "--out", tmp_path)
    assert command(*asked, "--seed", 1, "--solver", "dopri5").code == 0
    assert command(*asked, "--seed", 2, "--solver", "euler").code == 0
    assert [record.read(path).request.steps for path in sorted(tmp_path.iterdir())] == [None, 3]


@pytest.mark.parametrize(("options", "steps"), [((), None), (("--steps", 9), 9)])
def test_the_same_holds_of_what_is_measured(
    command: Callable[..., Done], monkeypatch: pytest.MonkeyPatch, options: tuple[object, ...], steps: int | None
) -> None:
    monkeypatch.setenv("BELVEDERE_EVALUATE_GENERATION_STEPS", "3")
    monkeypatch.setattr(evaluate, "evaluate_generation", lambda model, **asked: {"steps": asked["steps"]})
    done = command("evaluate", "generation", "--solver", "dopri5", "--json", *options)
    assert json.loads(done.out) == {"steps": steps}


def test_another_picture_is_not_overwritten(command: Callable[..., Done], tiny_model: Path, tmp_path: Path) -> None:
    asked = ("generate", "--model", tiny_model, "--out", tmp_path, "-n", 2)
    assert command(*asked).code == 0
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert_refused(command(*asked, "--steps", 3), "tiny-0-00000.png exists and is another picture")
    assert command(*asked).code == 0
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_broken_and_foreign_weights_are_refused(command: Callable[..., Done], tiny_model: Path, tmp_path: Path) -> None:
    folder = copy_without_card(tiny_model, tmp_path / "model")
    asked = ("generate", "--model", folder, "--out", tmp_path / "out")
    good = (folder / WEIGHTS).read_bytes()
    (folder / WEIGHTS).write_bytes(good[: len(good) // 2])
    assert_refused(command(*asked), "is damaged", "get it again")
    save_file({"conv.weight": torch.ones(2)}, folder / WEIGHTS)
    assert_refused(command(*asked), "do not fit its config.json", "1 unexpected (conv.weight)")
    torch.save(load_file(tiny_model / WEIGHTS), folder / WEIGHTS)
    assert_refused(command(*asked), "pickle or zip archive renamed .safetensors")
    assert not (tmp_path / "out").exists()


def test_a_full_disk_is_told_and_nothing_is_half_written(
    command: Callable[..., Done], tiny_model: Path, tmp_path: Path
) -> None:
    with full_disk():
        done = command("generate", "--model", tiny_model, "--out", tmp_path / "out", "-n", 3)
    assert_refused(done, "cannot write", "File too large; choose another")
    assert list((tmp_path / "out").iterdir()) == []


@pytest.mark.slow
def test_an_interrupt_leaves_whole_pictures_that_another_process_makes_again(
    command: Callable[..., Done], tiny_model: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    arguments = ["generate", "--model", str(tiny_model), "--out", str(out), "-n", "5000", "--steps", "20"]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        [sys.executable, "-m", "belvedere", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a background job starts with it ignored
    )
    try:
        wait_until(lambda: list(out.glob("*.png")), process, 100)
        process.send_signal(signal.SIGINT)
        written, error = process.communicate(timeout=20)
    finally:
        process.kill()
    assert (process.returncode, written, error) == (130, b"", b"")
    files = sorted(out.iterdir())
    assert 0 < len(files) < 5000
    for i, path in enumerate(files):
        assert path.name == f"tiny-0-{i:05d}.png"
        with Image.open(path) as image:
            assert record.pixel_digest(image) == record.read(path).pixels
    assert command("regenerate", files[0]).out.startswith("bit-identical: ")


def test_regenerate_says_identical_or_what_differs(
    command: Callable[..., Done], tiny_model: Path, other_model: Path, tmp_path: Path
) -> None:
    command("generate", "--model", tiny_model, "--out", tmp_path / "out", "-n", 3)
    path = tmp_path / "out/tiny-0-00002.png"
    same = command("regenerate", path, "--out", tmp_path / "again")
    assert (same.code, same.out) == (0, f"bit-identical: plane, picture 2 of seed 0 by {tiny_model}\n")
    assert (tmp_path / "again/tiny-0-00002.png").read_bytes() == path.read_bytes()
    assert_refused(command("regenerate", path, "--out", tmp_path / "out"), "exists; choose another --out")
    other = command("regenerate", path, "--model", other_model)
    assert other.code == 1
    assert other.out.startswith("differs: plane, picture 2 of seed 0") and "\nweights: " in other.out
    result = json.loads(command("regenerate", path, "--model", other_model, "--json").out)
    assert result["identical"] is False and len(result["differences"]) == 2
    assert_refused(command("regenerate", tmp_path / "none.png"), "no picture at")


def test_models_and_doctor(command: Callable[..., Done], tiny_model: Path) -> None:
    assert command("models").code == 0
    assert command("models", "list", "--json").out == command("models", "--json").out != ""
    shown = command("models", "show", tiny_model)
    assert shown.code == 0 and "recognised 0.25" in shown.out and "(verified)" in shown.out
    assert json.loads(command("models", "show", tiny_model, "--json").out)["intact"] is True
    assert_refused(command("models", "show", "nope"), "no model 'nope'")
    assert json.loads(command("doctor", "--json").out)["machine"]["cores"] >= 1


def test_training_and_evaluation_refuse_bad_input(command: Callable[..., Done], tmp_path: Path) -> None:
    assert_refused(command("train", "no-such-config"), "no-such-config")
    assert_refused(command("train", tmp_path), str(tmp_path))
    assert_refused(command("evaluate", "generation", "-n", "7"))
    assert_refused(command("evaluate", "generation", "--size", "64x64,32x32"), "64x64,32x32 together: give one")
    assert_refused(command("evaluate"), "Missing command")


@pytest.mark.parametrize("verb", ["generation", "captions", "views", "compression"])
def test_a_card_that_is_not_there_is_told_before_anything_is_measured(
    command: Callable[..., Done], tiny_model: Path, tmp_path: Path, verb: str
) -> None:
    model = copy_without_card(tiny_model, tmp_path / "model")
    (tmp_path / "data").mkdir()
    Image.new("RGB", (192, 176)).save(tmp_path / "data" / "a.png")
    options = ("--data", tmp_path / "data", "--peers", "") if verb == "compression" else ()
    done = command("evaluate", verb, "--model", model, *options, "--card")
    assert_refused(done, f"model {model} has no card.json to write into")


@pytest.mark.parametrize("verb", ["captions", "views", "compression"])
def test_results_that_cannot_be_written_are_told_before_anything_is_measured(
    command: Callable[..., Done], tmp_path: Path, verb: str
) -> None:
    (tmp_path / "data").mkdir()
    Image.new("RGB", (192, 176)).save(tmp_path / "data" / "a.png")
    options = ("--data", tmp_path / "data", "--peers", "") if verb == "compression" else ()
    out = tmp_path / "data" / "a.png" / "results"
    done = command("evaluate", verb, "--model", "nowhere", *options, "--out", out)
    assert_refused(done, "cannot write", "a.png", "choose another")


def test_a_card_is_for_figures(command: Callable[..., Done], tiny_model: Path, tmp_path: Path) -> None:
    asked = ("evaluate", "generation", "--model", tiny_model, "--card")
    assert_refused(command(*asked, "--samples", tmp_path), "--card is of a model")
    assert_refused(command(*asked, "--export", tmp_path / "x.npz"), "--export alone measures nothing")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("name", "told"), [("flux", "no attention backend 'flux'"), ("flex", "only for packed softmax")]
)
def test_an_attention_backend_that_cannot_serve_is_refused(
    command: Callable[..., Done],
    tiny_model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    told: str,
) -> None:
    monkeypatch.setenv("BELVEDERE_ATTENTION", name)
    done = command("generate", "--model", str(tiny_model), "-n", "1", "--out", str(tmp_path / "out"))
    assert_refused(done, told, "BELVEDERE_ATTENTION")


def test_an_unexpected_failure_is_one_line(command: Callable[..., Done], monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_name: str) -> None:
        raise ZeroDivisionError("a fault\nof ours")

    monkeypatch.setattr("belvedere.apps.models.facts", fail)
    done = command("models", "show", "x")
    assert done.code == 1
    assert done.error.startswith("belvedere: error: unexpected ZeroDivisionError: a fault of ours (BELVEDERE_DEBUG=1")
    monkeypatch.setenv("BELVEDERE_DEBUG", "1")
    monkeypatch.setattr(sys, "argv", ["belvedere", "models", "show", "x"])
    with pytest.raises(ZeroDivisionError):
        cli.main()


def test_where_python_has_no_unix_modules_it_is_said_what_is_needed(
    command: Callable[..., Done], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_name: str) -> None:
        raise ModuleNotFoundError("No module named 'fcntl'", name="fcntl")

    monkeypatch.setattr("belvedere.apps.models.facts", fail)
    assert_refused(command("models", "show", "x"), "no fcntl in this Python", "need Linux")
