"""``belvedere generate --jobs`` as a user calls it: what is said, what is written, how it ends."""

import json
import sqlite3
from collections.abc import Callable
from pathlib import Path

import pytest

from belvedere.apps import batch_plan, cli_batch
from belvedere.apps.batch_manifest import Manifest
from belvedere.apps.cli_batch import parse_shard
from belvedere.errors import InputError
from tests.apps.batch_helpers import content, write_jobs
from tests.apps.conftest import Done, assert_refused

Command = Callable[..., Done]


@pytest.fixture
def jobs(tiny_model: Path, tmp_path: Path) -> Path:
    model = str(tiny_model)
    return write_jobs(tmp_path / "jobs.jsonl", {"model": model, "count": 5, "seed": 3}, {"model": model, "name": "x"})


def test_a_batch_and_again(command: Command, jobs: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    done = command("generate", "--jobs", jobs, "--out", out, "--device", "cpu")
    assert (done.code, done.error) == (0, "")
    assert done.out.startswith(f"6 of 6 pictures in {out} (6 made in ") and done.out.count("\n") == 1
    assert list(content(out)) == [*(f"000001-{i:05d}.png" for i in range(5)), "x.png"]
    done = command("generate", "--jobs", jobs, "--out", out, "--device", "cpu", "--json")
    facts = json.loads(done.out)
    assert facts["made"] == 0 and facts["counts"] == {"total": 6, "done": 6, "failed": 0, "left": 0}
    assert facts["out"] == str(out) and facts["manifest"] == str(out / "manifest.sqlite")
    assert facts["faults"] == [] and facts["failures"] == [] and facts["stopped"] is False


def test_bad_lines_are_told_and_the_exit_code_tells(command: Command, jobs: Path, tmp_path: Path) -> None:
    with jobs.open("a") as file:
        file.write('nonsense\n{"count": 0}\n')
    done = command("generate", "--jobs", jobs, "--out", tmp_path / "out", "--device", "cpu")
    assert done.code == 1
    assert done.error.splitlines() == [
        f"belvedere: {jobs} line 3: is not JSON: Expecting value: line 1 column 1 (char 0)",
        f"belvedere: {jobs} line 4: count must be a whole number from 1 to 1000000, not 0",
    ]
    assert "6 of 6 pictures" in done.out and ", 2 lines wrong" in done.out
    assert len(content(tmp_path / "out")) == 6


def test_many_bad_lines_are_counted(command: Command, jobs: Path, tmp_path: Path) -> None:
    with jobs.open("a") as file:
        file.write("x\n" * 50)
    done = command("generate", "--jobs", jobs, "--out", tmp_path / "out", "--device", "cpu")
    lines = done.error.splitlines()
    assert len(lines) == 21 and lines[-1].endswith(
        f"30 more lines are wrong; they are in {tmp_path}/out/manifest.sqlite"
    )
    rows = sqlite3.connect(tmp_path / "out/manifest.sqlite").execute("SELECT count(*) FROM faults").fetchone()
    assert rows == (50,)


def test_options_are_for_jobs_that_do_not_say(command: Command, tiny_model: Path, tmp_path: Path) -> None:
    path = tmp_path / "jobs.csv"
    path.write_text("classes,seed\ncar,1\n,2\n")
    options = ("--model", tiny_model, "--classes", "boat,plane", "-n", 2, "--format", "webp", "--device", "cpu")
    done = command("generate", "--jobs", path, *options, "--out", tmp_path / "out")
    assert done.code == 0, done
    from belvedere.apps import record

    kinds = {name: record.read(tmp_path / "out" / name).kind for name in content(tmp_path / "out")}
    assert kinds == {
        "000002-00000.webp": "car",
        "000002-00001.webp": "car",
        "000003-00000.webp": "boat",
        "000003-00001.webp": "plane",
    }


def test_a_dry_run_writes_nothing(command: Command, tiny_model: Path, tiny_fitv2: Path, tmp_path: Path) -> None:
    path = write_jobs(
        tmp_path / "jobs.jsonl",
        {"model": str(tiny_model), "count": 40, "steps": 10},
        {"model": str(tiny_model), "count": 4, "steps": 10, "guidance": 1},
        {"model": str(tiny_fitv2), "count": 8, "steps": 5, "size": "16x16,48x48"},
    )
    before = sorted(tmp_path.iterdir())
    asked = ("generate", "--jobs", path, "--out", tmp_path / "out", "--device", "cpu", "--dry-run")
    done = command(*asked, "--json")
    facts = json.loads(done.out)
    assert done.code == 0 and sorted(tmp_path.iterdir()) == before
    assert (facts["pictures"], facts["done"], facts["faults"]) == (52, 0, [])
    assert facts["evaluations"] == 40 * 10 * 2 + 4 * 10 + 8 * 5 * 2
    assert facts["calls"] == 5 + 1 + 4 + 1
    assert facts["disk"] == 3 * (44 * 256 + 4 * 256 + 4 * 48 * 48)
    assert 0 < facts["seconds"] < 60 and facts["memory"] > 50e6
    command(*asked[:-1])
    again = command(*asked)
    assert again.out.splitlines()[0] == "pictures     0 (52 are there already)"
    assert again.out.count("\n") == 6


def test_solvers_are_options_and_keys_of_jobs(command: Command, tiny_fitv2: Path, tmp_path: Path) -> None:
    path = tmp_path / "jobs.csv"
    path.write_text(
        'seed,solver,guidance_channels,guidance_power,guidance_interval\n1,,,,\n2,dopri,,,\n3,rk4,2,2.5,"0.2,0.9"\n'
    )
    options = ("--model", tiny_fitv2, "--steps", 3, "--solver", "heun", "--guidance-channels", 1, "--device", "cpu")
    done = command("generate", "--jobs", path, *options, "--out", tmp_path / "out")
    assert done.code == 1
    assert done.error.startswith(f"belvedere: {path} line 3: unknown solver 'dopri': choose from multistep, euler, ")
    from belvedere.apps import record

    asked = {name: record.read(tmp_path / "out" / name).request for name in content(tmp_path / "out")}
    assert {name: request.sampling for name, request in asked.items()} == {
        "000002.png": {"solver": "heun", "guidance_channels": 1},
        "000004.png": {
            "solver": "rk4",
            "guidance_power": 2.5,
            "guidance_channels": 2,
            "guidance_interval": (0.2, 0.9),
        },
    }
    assert command("regenerate", tmp_path / "out" / "000004.png").out.startswith("bit-identical: ")


def test_a_dry_run_counts_what_solvers_ask(command: Command, tiny_fitv2: Path, tmp_path: Path) -> None:
    """A step of heun is two evaluations, of rk4 four, its last one two; those of dopri5 are not known."""
    jobs: list[dict[str, object]] = [
        {"count": 3, "steps": 5, "solver": "heun"},
        {"count": 2, "steps": 4, "guidance": 1, "solver": "rk4"},
    ]
    options = ("--model", tiny_fitv2, "--out", tmp_path / "out", "--device", "cpu", "--dry-run")
    path = write_jobs(tmp_path / "jobs.jsonl", *jobs)
    facts = json.loads(command("generate", "--jobs", path, *options, "--json").out)
    assert facts["evaluations"] == 3 * 10 * 2 + 2 * (3 * 4 + 2) and facts["calls"] == 2
    write_jobs(path, *jobs, {"solver": "dopri5"})
    facts = json.loads(command("generate", "--jobs", path, *options, "--json").out)
    assert facts["evaluations"] is None and facts["calls"] == 3 and facts["seconds"] > 0
    assert "network      unknown evaluations of a picture, 3 calls" in command("generate", "--jobs", path, *options).out
    write_jobs(path, {"solver": "dopri5", "steps": 3})
    assert_refused(command("generate", "--jobs", path, *options[:-1]), "line 1: solver dopri5 chooses its own steps")


def test_steps_of_others_are_not_for_a_solver_that_takes_none(
    command: Command, tiny_fitv2: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_jobs(tmp_path / "jobs.jsonl", {"solver": "dopri5"}, {"solver": "euler"})
    asked = ("generate", "--jobs", path, "--model", tiny_fitv2, "--device", "cpu", "--dry-run", "--json")
    found = json.loads(command(*asked, "--steps", 3).out)
    assert found["faults"] == [] and found["pictures"] == 2
    write_jobs(path, {})
    monkeypatch.setenv("BELVEDERE_GENERATE_STEPS", "3")
    found = json.loads(command(*asked, "--solver", "dopri5").out)
    assert found["faults"] == [] and found["pictures"] == 1


def test_a_dry_run_of_a_begun_batch_tells_what_is_left(command: Command, tiny_model: Path, tmp_path: Path) -> None:
    kept, gone, new = (
        {"model": str(tiny_model), "steps": 2, "name": name, "count": count}
        for name, count in (("kept", 10), ("gone", 4), ("new", 30))
    )
    path = write_jobs(tmp_path / "jobs.jsonl", kept, gone)
    asked = ("generate", "--jobs", path, "--device", "cpu", "--out")
    assert command(*asked, tmp_path / "out").code == 0
    write_jobs(path, kept, new)
    facts = json.loads(command(*asked, tmp_path / "out", "--dry-run", "--json").out)
    assert (facts["pictures"], facts["done"], facts["evaluations"], facts["calls"]) == (30, 10, 30 * 2 * 2, 4)
    refused = command(*asked, tmp_path / "out", "--dry-run", "--format", "webp")
    assert_refused(refused, "was begun with format png, not webp")
    write_jobs(path, kept | {"steps": 3})
    done = command(*asked, tmp_path / "out", "--dry-run")
    assert done.code == 1 and "line 1: name 'kept': pictures of other settings have it already" in done.error
    assert done.out.startswith("pictures     0 (10 are there already)\n")
    write_jobs(path, kept, new)
    (tmp_path / "empty").mkdir()
    Manifest(tmp_path / "empty" / "manifest.sqlite").close()
    facts = json.loads(command(*asked, tmp_path / "empty", "--dry-run", "--json").out)
    assert (facts["pictures"], facts["done"], facts["evaluations"], facts["calls"]) == (40, 0, 40 * 2 * 2, 5)


@pytest.mark.parametrize("pack", ["none", "tar"])
def test_a_dry_run_refuses_what_a_run_does(command: Command, jobs: Path, tmp_path: Path, pack: str) -> None:
    asked = ("generate", "--jobs", jobs, "--device", "cpu", "--out", tmp_path / "out", "--pack", pack)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "manifest.sqlite").touch()
    file = tmp_path / "out" / ("x.png" if pack == "none" else "pictures-00000.tar")
    file.write_text("mine")
    for options in (["--dry-run"], []):
        assert_refused(command(*asked, *options), f"{file} exists and is ")
        assert (tmp_path / "out" / "manifest.sqlite").stat().st_size == 0 or not options
    file.unlink()
    assert command(*asked).code == 0
    with jobs.open("a") as lines:
        lines.write('{"name": "y", "model": ' + jobs.read_text().split('"model": ')[1].split(",")[0] + "}\n")
    file = tmp_path / "out" / ("y.png" if pack == "none" else "pictures-00001.tar")
    file.write_text("mine")
    for options in (["--dry-run"], []):
        assert_refused(command(*asked, *options), f"{file} exists and is ")


def test_long_planning_is_told(command: Command, jobs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batch_plan, "NEWS", 0.0)
    monkeypatch.setattr(cli_batch, "NEWS", 0.0)
    done = command("generate", "--jobs", jobs, "--out", tmp_path / "out", "--device", "cpu", "--dry-run")
    assert done.error == "belvedere: planned 0 of 2 lines\nbelvedere: planned 1 of 2 lines\n"


def test_a_sheet_among_one_s_own_defaults_is_no_mistake(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("BELVEDERE_GENERATE_GRID", "sheet.png")
    assert_refused(command("generate", "--jobs", "missing.jsonl"), "missing.jsonl: cannot be read")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--pack", "tar"], "--pack belongs to batches: give --jobs FILE too"),
        (["--dry-run"], "--dry-run belongs to batches"),
        (["--jobs", "missing.jsonl"], "--jobs missing.jsonl: cannot be read: No such file or directory"),
        (["--jobs", "missing.txt"], "cannot tell the format"),
        (["--jobs", "missing.jsonl", "--grid", "x.png"], "--grid shows the pictures of one request"),
        (["--jobs", "missing.jsonl", "--shard", "0/3"], "--shard 0/3: write I/N with 1 <= I <= N"),
        (["--jobs", "missing.jsonl", "--shard", "x"], "--shard 'x': write I/N, like 2/8"),
        (["--jobs", "missing.jsonl", "--pack", "zip"], "--pack must be one of none, tar, parquet"),
        (["--jobs", "missing.jsonl", "--format", "gif"], "--format must be one of png, jpeg, webp"),
    ],
)
def test_what_cannot_be_begun_is_refused(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: list[str], words: str
) -> None:
    monkeypatch.chdir(tmp_path)
    assert_refused(command("generate", *options), words)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("jobs.jsonl", "", "holds no jobs"),
        ("jobs.parquet", "", "not a readable parquet file"),
        ("jobs.csv", "clases,seed\ncar,1\n", "column 'clases' is no field of a job"),
        ("jobs.jsonl", '{"classes": "tank"}\n', "jobs.jsonl line 1: no class 'tank'"),
    ],
)
def test_files_without_a_job_are_refused(
    command: Command, tiny_model: Path, tmp_path: Path, name: str, content: str, words: str
) -> None:
    (tmp_path / name).write_text(content)
    options = ("--model", tiny_model, "--out", tmp_path / "out", "--device", "cpu")
    assert_refused(command("generate", "--jobs", tmp_path / name, *options), words)
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_shards_are_read_from_text() -> None:
    assert (parse_shard(""), parse_shard("2/8")) == ((1, 1), (2, 8))
    for text in ("2", "2/", "/8", "-1/8", "2/8/9", "a/b"):
        with pytest.raises(InputError, match="write I/N"):
            parse_shard(text)
