"""A batch: every picture once, the same bytes in any grouping, after any stop; nothing over what is not its own."""

import errno
import gc
import io
import json
import os
import sqlite3
import subprocess
import sys
import tarfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from belvedere.apps import batch as batch_module
from belvedere.apps import output, record, work
from belvedere.apps.batch import State, Watch, run_batch
from belvedere.apps.batch_begin import Batch, placed
from belvedere.apps.batch_manifest import Manifest
from belvedere.apps.batch_manifest import Picture as Wanted
from belvedere.apps.batch_output import Writer
from belvedere.apps.batch_workers import launched
from belvedere.apps.requests import GenerateRequest
from belvedere.data.folders import Parquet
from belvedere.errors import InputError
from tests.apps.batch_helpers import OPTIONS, content, run, write_jobs
from tests.apps.test_output import full_disk
from tests.apps.test_record import EXAMPLE

SIZES = "16x16,32x16,48x48,8x8"
COUNT = 19
"""Pictures of ``jobs``: ten of one model, nine of the other."""


@pytest.fixture(scope="module")
def jobs(tiny_model: Path, tiny_fitv2: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A job file of two models, of pictures of many sizes, with three bad lines."""
    model, mixed = str(tiny_model), str(tiny_fitv2)
    return write_jobs(
        tmp_path_factory.mktemp("jobs") / "jobs.jsonl",
        {"model": model, "classes": "boat,rocket", "count": 9, "seed": 7, "steps": 2, "name": "toys"},
        {"model": mixed, "count": 4, "seed": 7, "size": SIZES},
        "nonsense",
        {"model": model, "classes": "car", "seed": 1, "steps": 2},
        {"model": model, "classes": "tank"},
        {"model": mixed, "count": 4, "seed": 8, "size": "32x16", "name": "wide"},
        {"model": model, "count": "3"},
        {"model": mixed, "classes": 2, "name": "one"},
    )


@pytest.fixture(scope="module")
def made(jobs: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """What an uninterrupted run leaves."""
    out = tmp_path_factory.mktemp("out") / "new" / "pictures"
    done = run(jobs, out)
    assert (done.made, done.counts.done, done.counts.total, done.counts.failed) == (COUNT, COUNT, COUNT, 0)
    assert [fault.number for fault in done.faults] == [3, 5, 7]
    return content(out)


def stop_after(pieces: int) -> Watch:
    """Return a watch that stops the run when so many pieces were begun."""
    watch = Watch()
    seen: list[State] = []

    def progress(state: State) -> None:
        seen.append(state)
        if len(seen) > pieces:
            watch.stop.set()

    watch.progress = progress
    return watch


@pytest.fixture
def every_look(monkeypatch: pytest.MonkeyPatch) -> None:
    """Progress is told at every chance."""
    monkeypatch.setattr(batch_module, "REPORT_EVERY", 0.0)


def test_pictures_are_those_of_single_requests(made: dict[str, bytes], tiny_model: Path, tiny_fitv2: Path) -> None:
    asked = {
        "toys-{:05d}": GenerateRequest(str(tiny_model), ("boat", "rocket"), count=9, seed=7, steps=2, device="cpu"),
        "000002-{:05d}": GenerateRequest(
            str(tiny_fitv2), count=4, seed=7, sizes=((16, 16), (32, 16), (48, 48), (8, 8)), device="cpu"
        ),
        "000004": GenerateRequest(str(tiny_model), ("car",), seed=1, steps=2, device="cpu"),
        "wide-{:05d}": GenerateRequest(str(tiny_fitv2), count=4, seed=8, sizes=((32, 16),), device="cpu"),
        "one": GenerateRequest(str(tiny_fitv2), (2,), device="cpu"),
    }
    expected = {
        f"{name.format(i)}.png": output.encode(picture.image, "png", picture.record.to_json())
        for name, request in asked.items()
        for i, picture in enumerate(work.generate(request))
    }
    assert made == dict(sorted(expected.items()))


def test_a_picture_of_a_batch_is_made_again(made: dict[str, bytes], tmp_path: Path) -> None:
    (tmp_path / "x.png").write_bytes(made["wide-00003.png"])
    assert work.regenerate(tmp_path / "x.png").differences == ()


def test_the_manifest_says_what_was_made(jobs: Path, made: dict[str, bytes], tmp_path: Path) -> None:
    run(jobs, tmp_path)
    rows = sqlite3.connect(tmp_path / "manifest.sqlite").execute(
        "SELECT name, line, number, state, bytes, pixels, seconds FROM manifest ORDER BY line, number"
    )
    rows = list(rows)
    assert len(rows) == COUNT and rows[0][:4] == ("toys-00000", 1, 0, "done")
    for name, _, _, _, size, pixels, seconds in rows:
        assert size == len(made[f"{name}.png"]) and seconds >= 0
        with Image.open(io.BytesIO(made[f"{name}.png"])) as image:
            assert record.pixel_digest(image) == pixels


def test_nothing_is_made_twice(jobs: Path, made: dict[str, bytes], tmp_path: Path) -> None:
    run(jobs, tmp_path)
    times = {path.name: path.stat().st_mtime_ns for path in tmp_path.glob("*.png")}
    again = run(jobs, tmp_path)
    assert (again.made, again.counts.done, len(again.faults)) == (0, COUNT, 3)
    assert {path.name: path.stat().st_mtime_ns for path in tmp_path.glob("*.png")} == times


@pytest.mark.parametrize("pieces", [0, 1, 3, 6])
def test_a_stopped_batch_goes_on(
    jobs: Path, made: dict[str, bytes], tmp_path: Path, pieces: int, every_look: None
) -> None:
    first = run(jobs, tmp_path, stop_after(pieces))
    assert first.stopped and first.counts.done == first.made < COUNT
    assert len(content(tmp_path)) == first.made
    second = run(jobs, tmp_path)
    assert second.made == COUNT - first.made and not second.stopped
    assert content(tmp_path) == made


@pytest.mark.parametrize("pack", ["tar", "parquet"])
def test_packs_hold_the_same_pictures_and_the_same_bytes(
    jobs: Path, made: dict[str, bytes], tmp_path: Path, pack: str, every_look: None
) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    run(jobs, whole, pack=pack, pack_size=5)
    while run(jobs, parts, stop_after(1), pack=pack, pack_size=5).stopped:
        assert all(name.endswith(pack) for name in content(parts))
    assert content(parts) == content(whole)
    assert len(content(whole)) == 3
    assert pictures_in(whole, pack) == made


def unpacked(tar: tarfile.TarFile, entry: tarfile.TarInfo) -> bytes:
    file = tar.extractfile(entry)
    assert file is not None
    return file.read()


def pictures_in(folder: Path, pack: str) -> dict[str, bytes]:
    found: dict[str, bytes] = {}
    for path in sorted(folder.glob(f"*.{pack}")):
        if pack == "parquet":
            rows = pq.read_table(path).column("image").to_pylist()
            found |= {row["path"]: row["bytes"] for row in rows}
            continue
        with tarfile.open(path) as tar:
            found |= {entry.name: unpacked(tar, entry) for entry in tar if entry.name.endswith(".png")}
    return dict(sorted(found.items()))


def test_a_tar_is_a_web_dataset(jobs: Path, made: dict[str, bytes], tmp_path: Path) -> None:
    run(jobs, tmp_path, pack="tar", pack_size=1000)
    (first, second) = sorted(tmp_path.glob("pictures-*.tar"))
    assert first.name == "pictures-00000.tar" and second.name == "pictures-00001.tar"  # a model each
    with tarfile.open(second) as tar:
        entries = tar.getmembers()
        assert [entry.name.rpartition(".")[2] for entry in entries[:4]] == ["png", "json", "png", "json"]
        assert entries[0].name.rpartition(".")[0] == entries[1].name.rpartition(".")[0]
        assert {(entry.mtime, entry.uid, entry.uname, entry.mode) for entry in entries} == {(0, 0, "", 0o644)}
        about = json.loads(unpacked(tar, entries[1]))
    assert about["request"]["seed"] in (1, 7, 8) and len(about["pixels"]) == 64


def test_parquet_is_what_the_trainer_reads(jobs: Path, made: dict[str, bytes], tmp_path: Path) -> None:
    run(jobs, tmp_path, pack="parquet")
    data = Parquet(tmp_path, size=16)
    assert len(data) == COUNT
    assert data.pixels(0).shape == (3, 16, 16)
    assert sorted(set(data.labels.tolist())) == [0, 1, 2, 3]


def test_another_format_is_written(jobs: Path, tmp_path: Path) -> None:
    run(jobs, tmp_path, kind="webp")
    assert record.read(tmp_path / "toys-00003.webp").request.seed == 7


def test_shards_make_one_set_together(jobs: Path, made: dict[str, bytes], tmp_path: Path) -> None:
    parts = [run(jobs, tmp_path, shard=(i, 3)) for i in (1, 2, 3)]
    assert [part.counts.done for part in parts] == [part.made for part in parts]
    assert sum(part.made for part in parts) == COUNT
    assert content(tmp_path).keys() - made.keys() == {".lock-1-of-3", ".lock-2-of-3", ".lock-3-of-3"}
    assert {name: data for name, data in content(tmp_path).items() if name in made} == made


def test_a_launcher_on_many_machines_shares_like_shards(
    jobs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = {"RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "4"}
    for name, value in values.items():
        monkeypatch.setenv(name, value)
    assert launched() == (1, 4, 1, 2)
    done = run(jobs, tmp_path)
    assert 3 < done.counts.total < 16
    assert (tmp_path / "manifest-2-of-2.sqlite").is_file()
    with pytest.raises(InputError, match="--shard goes with one machine"):
        run(jobs, tmp_path, shard=(1, 2))
    monkeypatch.setenv("RANK", "x")
    with pytest.raises(InputError, match="environment RANK, WORLD_SIZE"):
        run(jobs, tmp_path)


def test_processes_of_one_machine_are_told_by_a_launcher_without_local_names(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("LOCAL_RANK", "LOCAL_WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert launched() == (0, 2, 0, 1)


@pytest.mark.parametrize("device", ["auto", "cuda", "cuda:1"])
def test_each_process_of_a_launcher_has_a_gpu_of_its_own(monkeypatch: pytest.MonkeyPatch, device: str) -> None:
    for name, value in {"RANK": "2", "WORLD_SIZE": "3", "LOCAL_RANK": "2", "LOCAL_WORLD_SIZE": "3"}.items():
        monkeypatch.setenv(name, value)
    batch, chosen = Batch(Path("jobs.jsonl"), Path("out"), {"device": device}), list[int]()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    assert placed(batch).defaults["device"] == "cuda"
    assert chosen == [1 if device == "cuda:1" else 2]
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert placed(batch).defaults["device"] == ("cpu" if device == "auto" else device)


def test_a_mended_line_is_made_and_nothing_else(jobs: Path, made: dict[str, bytes], tmp_path: Path) -> None:
    out, mended = tmp_path / "out", tmp_path / "jobs.jsonl"
    mended.write_text(jobs.read_text())
    run(mended, out)
    mended.write_text(jobs.read_text().replace('"tank"', '"plane"').replace("nonsense", ""))
    done = run(mended, out)
    assert (done.made, [fault.number for fault in done.faults]) == (1, [7])
    assert content(out).keys() - made.keys() == {"000005.png"}
    assert {name: data for name, data in content(out).items() if name in made} == made


def test_a_job_that_was_made_keeps_its_name(jobs: Path, made: dict[str, bytes], tmp_path: Path) -> None:
    out, other = tmp_path / "out", tmp_path / "jobs.jsonl"
    other.write_text(jobs.read_text())
    run(other, out)
    other.write_text(jobs.read_text().replace('"seed": 1,', '"seed": 2,'))
    done = run(other, out)
    assert done.made == 0
    assert done.faults[1].number == 4
    assert done.faults[1].reason == (
        "name '000004': pictures of other settings have it already; "
        "give this job a name, or bring back the lines that stood above it"
    )
    assert content(out) == made


def test_jobs_that_were_not_begun_may_change(jobs: Path, tmp_path: Path, every_look: None) -> None:
    out, other = tmp_path / "out", tmp_path / "jobs.jsonl"
    other.write_text(jobs.read_text())
    assert run(other, out, stop_after(0)).made == 0
    lines = jobs.read_text().splitlines()
    fewer = lines[0].replace('"count": 9', '"count": 3')
    other.write_text(f"{fewer}\n{lines[7]}\n")
    done = run(other, out)
    assert (done.made, done.counts.total, done.faults) == (4, 4, [])
    assert list(content(out)) == ["one.png", "toys-00000.png", "toys-00001.png", "toys-00002.png"]


@pytest.mark.parametrize("shard", [(1, 1), (1, 2)])
@pytest.mark.parametrize("mistake", ["changed", "taken out"])
def test_a_half_made_job_is_finished_after_a_mistake(
    tiny_model: Path, tmp_path: Path, every_look: None, mistake: str, shard: tuple[int, int]
) -> None:
    half = {"model": str(tiny_model), "count": 30, "steps": 2, "name": "half"}
    other = {"model": str(tiny_model), "count": 2, "name": "other"}
    path, whole, out = tmp_path / "jobs.jsonl", tmp_path / "whole", tmp_path / "out"
    right = run(write_jobs(path, half, other), whole, shard=shard)
    first = run(path, out, stop_after(1), shard=shard)
    assert 0 < first.made < first.counts.total
    write_jobs(path, *([half | {"steps": 3}] if mistake == "changed" else []), other)
    notes: list[str] = []
    wrong = run(path, out, replace(stop_after(0), note=notes.append), shard=shard)
    assert [fault.number for fault in wrong.faults] == ([1] if mistake == "changed" else [])
    assert notes == (["half: begun with other settings, and finished with those"] if mistake == "changed" else [])
    assert (wrong.counts.total < first.counts.total) is (mistake == "taken out")
    done = run(write_jobs(path, half, other), out, shard=shard)
    assert done.faults == [] and done.counts == right.counts
    assert content(out) == content(whole)


@pytest.mark.parametrize("verify", [False, True])
def test_what_is_lost_is_made_again(jobs: Path, made: dict[str, bytes], tmp_path: Path, verify: bool) -> None:
    run(jobs, tmp_path)
    (tmp_path / "one.png").unlink()
    (tmp_path / "toys-00008.png").write_bytes(b"short")
    changed = made["wide-00003.png"][:-1] + b"x"
    (tmp_path / "wide-00003.png").write_bytes(changed)
    notes: list[str] = []
    done = run(jobs, tmp_path, Watch(note=notes.append), verify=verify)
    assert done.made >= 2 and any("and others: missing or changed, made again" in note for note in notes)
    if not verify:  # of the right length, so only reading it tells
        assert content(tmp_path)["wide-00003.png"] in (changed, made["wide-00003.png"])
        run(jobs, tmp_path, verify=True)
    assert content(tmp_path) == made


def test_a_lost_pack_is_made_again(jobs: Path, tmp_path: Path) -> None:
    run(jobs, tmp_path, pack="tar", pack_size=8)
    before = content(tmp_path)
    (tmp_path / "pictures-00000.tar").write_bytes(b"")
    run(jobs, tmp_path, pack="tar", pack_size=8)
    assert content(tmp_path) == before


def test_files_of_others_are_not_touched(jobs: Path, tmp_path: Path) -> None:
    (tmp_path / "wide-00003.png").write_text("mine")
    with pytest.raises(InputError, match=r"wide-00003\.png exists and is another picture; choose another --out"):
        run(jobs, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["wide-00003.png"]
    (tmp_path / "pictures-00001.tar").write_text("mine")
    with pytest.raises(InputError, match=r"pictures-00001\.tar exists and is not of this batch; choose another --out"):
        run(jobs, tmp_path, pack="tar", pack_size=5)
    Manifest(tmp_path / "manifest.sqlite").close()  # in which nothing is begun
    with pytest.raises(InputError, match=r"wide-00003\.png exists and is another picture"):
        run(jobs, tmp_path)
    assert (tmp_path / "wide-00003.png").read_text() == "mine"


def test_pictures_whose_manifest_is_lost_are_made_again(tiny_model: Path, tmp_path: Path) -> None:
    asked = {"model": str(tiny_model), "count": 2, "steps": 1, "name": "a"}
    path, out = write_jobs(tmp_path / "jobs.jsonl", asked), tmp_path / "out"
    run(path, out)
    before = content(out)
    (out / "manifest.sqlite").unlink()
    assert run(path, out).made == 2 and content(out) == before
    (out / "manifest.sqlite").unlink()
    with pytest.raises(InputError, match=r"a-00000\.png exists and is another picture"):
        run(write_jobs(path, asked | {"seed": 5}), out)


def test_a_job_that_changes_after_a_kill_is_made(tiny_model: Path, tmp_path: Path, every_look: None) -> None:
    """The picture was in its place, and not yet in the manifest as done."""
    asked = {"model": str(tiny_model), "steps": 1, "name": "a"}
    path, out = write_jobs(tmp_path / "jobs.jsonl", asked), tmp_path / "out"
    run(path, out, stop_after(0))
    (out / "a.png").write_text("of the seed before")
    assert run(write_jobs(path, asked | {"seed": 5}), out).made == 1
    assert record.read(out / "a.png").request.seed == 5


def test_lines_that_come_while_a_batch_begins_are_made(tiny_model: Path, tmp_path: Path) -> None:
    one, two = ({"model": str(tiny_model), "steps": 1, "name": name} for name in ("one", "two"))
    path = write_jobs(tmp_path / "jobs.jsonl", one)
    run(path, tmp_path / "out", Watch(note=lambda line: line.startswith("loading") and write_jobs(path, one, two)))
    assert list(content(tmp_path / "out")) == ["one.png", "two.png"]


def test_what_is_lost_of_a_job_that_is_gone_is_not_made(tiny_model: Path, tmp_path: Path) -> None:
    gone, kept = ({"model": str(tiny_model), "steps": 1, "name": name} for name in ("gone", "kept"))
    path, out = write_jobs(tmp_path / "jobs.jsonl", gone, kept), tmp_path / "out"
    run(path, out)
    before = content(out)
    (out / "gone.png").unlink()
    assert run(write_jobs(path, kept), out).counts.total == 1
    assert list(content(out)) == ["kept.png"]
    with sqlite3.connect(out / "manifest.sqlite") as manifest:
        assert manifest.execute("SELECT name, line FROM manifest").fetchall() == [("kept", 1)]
    assert run(write_jobs(path, kept, gone), out).made == 1 and content(out) == before


def test_a_folder_in_the_way_is_named(tiny_model: Path, tmp_path: Path, every_look: None) -> None:
    path, out = write_jobs(tmp_path / "jobs.jsonl", {"model": str(tiny_model), "name": "a"}), tmp_path / "out"
    run(path, out, stop_after(0))
    (out / "a.png").mkdir()
    with pytest.raises(InputError, match=r"cannot write .*/out/a\.png: Is a directory; choose another name"):
        run(path, out)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"kind": "jpeg"}, "was begun with format png, not jpeg: choose another --out"),
        ({"pack": "tar"}, "was begun with pack none, not tar"),
        ({"defaults": {"device": "cpu", "dtype": "bfloat16"}}, "was begun with dtype float32, not bfloat16"),
    ],
)
def test_another_kind_of_batch_is_refused(
    jobs: Path, tmp_path: Path, options: dict[str, object], words: str, every_look: None
) -> None:
    run(jobs, tmp_path, stop_after(0))
    before = sorted(path.name for path in tmp_path.iterdir())
    with pytest.raises(InputError, match=words):
        run(jobs, tmp_path, **options)
    assert sorted(path.name for path in tmp_path.iterdir()) == before


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"kind": "gif"}, "--format must be one of png, jpeg, webp, not 'gif'"),
        ({"pack": "zip"}, "--pack must be one of none, tar, parquet, not 'zip'"),
        ({"pack_size": 0}, "--pack-size must be a number from 1"),
        ({"shard": (3, 2)}, "--shard 3/2: write I/N with 1 <= I <= N"),
    ],
)
def test_options_out_of_range_are_refused(options: dict[str, object], words: str) -> None:
    with pytest.raises(InputError, match=words):
        Batch(Path("x.jsonl"), Path("out"), **options)  # type: ignore[arg-type]


def test_a_file_of_bad_lines_leaves_nothing(tiny_model: Path, tmp_path: Path) -> None:
    path = write_jobs(tmp_path / "jobs.jsonl", "x", {"model": str(tiny_model), "classes": "tank"})
    with pytest.raises(InputError, match=r"jobs\.jsonl line 1: is not JSON: .* \(2 lines, all wrong\)"):
        run(path, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_another_number_of_threads_makes_the_same_bytes(
    jobs: Path, made: dict[str, bytes], tmp_path: Path, every_look: None
) -> None:
    """The batch is gone on with as many threads as it was begun with."""
    run(jobs, tmp_path, stop_after(1))
    before = torch.get_num_threads()
    torch.set_num_threads(before + 1)
    try:
        run(jobs, tmp_path)
        assert torch.get_num_threads() == before
    finally:
        torch.set_num_threads(before)
    assert content(tmp_path) == made


def test_another_machine_is_told(jobs: Path, tmp_path: Path, every_look: None) -> None:
    run(jobs, tmp_path, stop_after(0))
    with sqlite3.connect(tmp_path / "manifest.sqlite") as manifest:
        manifest.execute(
            "UPDATE settings SET value = replace(value, ?, '1.0') WHERE key = 'machine'", (torch.__version__,)
        )
    notes: list[str] = []
    run(jobs, tmp_path, Watch(note=notes.append))
    assert f"begun with torch 1.0, now {torch.__version__}: last bits and records may differ" in notes


def test_a_failed_call_stops_no_other_and_is_tried_again(
    jobs: Path, made: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fails = failing(monkeypatch, lambda requests: any(request.seed == 1 for request in requests))
    done = run(jobs, tmp_path)
    assert fails and done.counts.failed == 2 and done.counts.done == COUNT - 2
    assert done.failures[0][1] == 2 and "RuntimeError: out of memory" in done.failures[0][2]
    monkeypatch.undo()
    assert run(jobs, tmp_path).made == 2
    assert content(tmp_path) == made


@pytest.mark.parametrize("pack", ["tar", "parquet"])
def test_a_failed_call_of_a_pack_leaves_no_half_of_it(
    jobs: Path, made: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pack: str
) -> None:
    ignored = unraisable(monkeypatch)
    failing(monkeypatch, lambda requests: any(request.seed == 1 for request in requests))
    done = run(jobs, tmp_path, pack=pack, pack_size=1000)
    assert done.counts.failed == 10 and len(content(tmp_path)) == 1
    gc.collect()
    assert ignored == []
    monkeypatch.undo()
    run(jobs, tmp_path, pack=pack, pack_size=1000)
    assert pictures_in(tmp_path, pack) == made


def unraisable(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """Return what is filled with exceptions that Python would print as ignored ones."""
    found: list[object] = []
    monkeypatch.setattr(sys, "unraisablehook", lambda told: found.append(told.exc_value))
    return found


@pytest.mark.parametrize("side", [8, 300])
@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("pack", ["tar", "parquet"])
def test_what_a_full_disk_has_of_a_pack_is_dropped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pack: str, last: bool, side: int
) -> None:
    """Small ones are not flushed before the file is; what is dropped is not flushed at all."""
    ignored = unraisable(monkeypatch)
    _fill_disk(tmp_path, pack, last, Image.effect_noise((side, side), 50))
    gc.collect()
    assert ignored == [] and list(tmp_path.iterdir()) == []


def _fill_disk(folder: Path, pack: str, last: bool, image: Image.Image) -> None:
    writer = Writer(folder, folder, "png", pack)
    with full_disk():
        writer.put(0, [Wanted(1, 0, "x", EXAMPLE.request, "")], [work.Picture(image, EXAMPLE)], 1.0, last)
        if last:
            with pytest.raises(InputError, match=r"cannot write .*: File too large; choose another"):
                writer.finished(wait=True)
        writer.close()


def test_when_all_fails_the_batch_stops(tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = [{"model": str(tiny_model), "steps": steps} for steps in range(1, 6)]
    fails = failing(monkeypatch, lambda requests: True)
    with pytest.raises(InputError, match="3 calls in a row failed, the last with: RuntimeError: out of memory"):
        run(write_jobs(tmp_path / "jobs.jsonl", *asked), tmp_path / "out")
    assert len(fails) == 3


def test_a_model_that_is_gone_holds_up_no_other(
    tiny_model: Path, tiny_fitv2: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, every_look: None
) -> None:
    (tmp_path / "a").symlink_to(tiny_model)
    (tmp_path / "b").symlink_to(tiny_fitv2)
    names = ("a1", "a2", "a3", "a4", "b1", "b2", "b3")
    asked = [{"model": str(tmp_path / name[0]), "steps": int(name[1]), "name": name} for name in names]
    path, out = write_jobs(tmp_path / "jobs.jsonl", *asked), tmp_path / "out"
    run(path, out, stop_after(0))
    (tmp_path / "a").unlink()
    with monkeypatch.context() as patch:
        failing(patch, lambda requests: requests[0].steps == 1)  # of b the first, which is one in a row of b alone
        with pytest.raises(InputError, match="/a: 3 calls in a row failed, the last with: no model"):
            run(path, out)
        assert list(content(out)) == ["b2.png", "b3.png"]
    assert run(path, out).counts.failed == 4
    assert list(content(out)) == ["b1.png", "b2.png", "b3.png"]
    (tmp_path / "a").symlink_to(tiny_model)
    assert run(path, out).made == 4


def test_what_fails_for_ever_does_not_hold_up_what_failed_once(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, every_look: None
) -> None:
    asked = [{"model": str(tiny_model), "steps": steps, "name": f"p{steps}"} for steps in range(1, 7)]
    path, out = write_jobs(tmp_path / "jobs.jsonl", *asked), tmp_path / "out"
    with monkeypatch.context() as patch:
        failing(patch, lambda requests: True)
        for _ in range(2):
            with pytest.raises(InputError, match="3 calls in a row failed"):
                run(path, out)
    failing(monkeypatch, lambda requests: requests[0].steps <= 3)
    assert run(path, out).counts.failed == 3
    assert list(content(out)) == ["p4.png", "p5.png", "p6.png"]


def test_the_last_lines_to_come_are_made_too(tiny_model: Path, tmp_path: Path) -> None:
    """They come while a changed file is planned."""
    one, two, three = ({"model": str(tiny_model), "steps": 1, "name": name} for name in ("one", "two", "three"))
    path, out = write_jobs(tmp_path / "jobs.jsonl", one), tmp_path / "out"
    run(path, out)
    write_jobs(path, one, two)
    run(path, out, Watch(note=lambda line: line.startswith("loading") and write_jobs(path, one, two, three)))
    assert list(content(out)) == ["one.png", "three.png", "two.png"]


def failing(monkeypatch: pytest.MonkeyPatch, which: Callable[[list[GenerateRequest]], bool]) -> list[int]:
    """Let network calls of such requests end as a GPU without memory does; return what is filled with their sizes."""
    fails: list[int] = []
    real = work.run_call

    def run_call(chosen: list[tuple[work.Job, int]], **options: object) -> list[work.Picture]:
        if which([job.request for job, _ in chosen]):
            fails.append(len(chosen))
            raise RuntimeError("out of\nmemory")
        return real(chosen)

    monkeypatch.setattr(work, "run_call", run_call)
    return fails


def test_a_changed_model_is_refused_picture_by_picture(
    tiny_model: Path, other_model: Path, tmp_path: Path, every_look: None
) -> None:
    link = tmp_path / "model"
    link.symlink_to(tiny_model)
    path = write_jobs(tmp_path / "jobs.jsonl", {"model": str(link), "count": 20})
    run(path, tmp_path / "out", stop_after(1))
    link.unlink()
    link.symlink_to(other_model)
    done = run(path, tmp_path / "out")
    assert done.made == 0 and done.counts.failed == 12  # the first call of 8 was made
    assert "is not what the batch was begun with; bring it back" in done.failures[0][2]


@pytest.mark.parametrize("pack", ["none", "tar", "parquet"])
def test_a_disk_that_takes_no_more_is_one_line_and_loses_nothing(
    jobs: Path, made: dict[str, bytes], tmp_path: Path, pack: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The fourth file, or the second pack, cannot be flushed."""
    flushed: list[int] = []
    real = os.fsync

    def fsync(handle: int) -> None:
        flushed.append(handle)
        if len(flushed) > (4 if pack == "none" else 1):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(handle)

    monkeypatch.setattr(os, "fsync", fsync)
    with pytest.raises(InputError) as error:
        run(jobs, tmp_path, pack=pack, pack_size=5)
    assert str(error.value) == f"cannot write {tmp_path}: No space left on device; make room or choose another place"
    monkeypatch.undo()
    assert not list(tmp_path.glob(".worker*"))
    pictures = content(tmp_path) if pack == "none" else pictures_in(tmp_path, pack)
    assert 0 < len(pictures) < COUNT and all(made[name] == data for name, data in pictures.items())
    run(jobs, tmp_path, pack=pack, pack_size=5)
    assert (content(tmp_path) if pack == "none" else pictures_in(tmp_path, pack)) == made


@pytest.mark.parametrize("pack", ["none", "tar", "parquet"])
def test_a_real_full_disk_is_one_line_and_loses_nothing(
    jobs: Path, made: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pack: str
) -> None:
    ignored = unraisable(monkeypatch)
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=144k", "tmpfs", tmp_path], capture_output=True)
    if mounted.returncode:
        pytest.skip("only root may mount a small file system")
    try:
        with pytest.raises(InputError) as error:
            run(jobs, tmp_path, pack=pack, pack_size=5)
        assert "make room" in str(error.value) and "\n" not in str(error.value)
        gc.collect()
        assert ignored == [] and not list(tmp_path.glob(".worker*"))
        pictures = content(tmp_path) if pack == "none" else pictures_in(tmp_path, pack)
        assert all(made[name] == data for name, data in pictures.items())
        subprocess.run(["mount", "-o", "remount,size=8m", tmp_path], check=True)
        run(jobs, tmp_path, pack=pack, pack_size=5)
        assert (content(tmp_path) if pack == "none" else pictures_in(tmp_path, pack)) == made
    finally:
        subprocess.run(["umount", "--lazy", tmp_path], check=True)  # a reader may still close its file


def test_a_folder_that_cannot_be_made_is_one_line(jobs: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(InputError, match=r"cannot write .*file/out: Not a directory; choose another"):
        run(jobs, tmp_path / "file" / "out")


def test_progress_tells_the_whole_batch(jobs: Path, tmp_path: Path, every_look: None) -> None:
    seen: list[State] = []
    run(jobs, tmp_path, Watch(progress=seen.append))
    done = [state.counts.done for state in seen]
    assert done == sorted(done) and done[0] == 0 and done[-1] == COUNT
    assert {state.counts.total for state in seen} == {COUNT}
    assert seen[0].left is None and seen[-1].rate > 0 and seen[-1].left == 0


def test_a_run_beside_another_needs_the_same_jobs(jobs: Path, tmp_path: Path, every_look: None) -> None:
    other = write_jobs(tmp_path / "other.jsonl", json.loads(jobs.read_text().splitlines()[0]))
    out, said = tmp_path / "out", []

    def meanwhile(state: State) -> None:
        if not said:
            with pytest.raises(InputError) as error:
                run(other, out)
            said.append(str(error.value))

    run(jobs, out, Watch(progress=meanwhile))
    assert said == [f"{out}: others are at work on another job file; wait for them, or stop them"]


def test_two_runs_share_a_batch(tiny_fitv2: Path, tmp_path: Path, every_look: None) -> None:
    """One comes while the other has a piece in hand: it makes the rest and waits for that piece."""
    asked = {"model": str(tiny_fitv2), "count": 60, "size": SIZES, "steps": 1}
    jobs, alone, shared = write_jobs(tmp_path / "jobs.jsonl", asked), tmp_path / "alone", tmp_path / "shared"
    second = []

    def meanwhile(state: State) -> None:
        if not second and state.counts.done:
            second.append(run(jobs, shared, stop_after(2)))

    first = run(jobs, shared, Watch(progress=meanwhile))
    assert first.made + second[0].made == 60 and second[0].made
    run(jobs, alone)
    assert content(shared) == content(alone)


def test_what_a_dead_process_had_in_hand_is_taken_over(
    jobs: Path, made: dict[str, bytes], tmp_path: Path, every_look: None
) -> None:
    run(jobs, tmp_path, stop_after(0))
    manifest = Manifest(tmp_path / "manifest.sqlite")
    while manifest.claim("dead"):
        pass
    manifest.close()
    litter = tmp_path / ".worker-0123456789abcdef"
    litter.mkdir()
    (litter / "half.png").write_text("half")
    assert run(jobs, tmp_path).made == COUNT
    assert content(tmp_path) == made and not litter.exists()


def test_requests_of_a_call_may_have_other_seeds_and_sizes(tiny_fitv2: Path) -> None:
    one = GenerateRequest(str(tiny_fitv2), ("car",), seed=1, sizes=((16, 16),), device="cpu")
    two = replace(one, seed=2, classes=("boat",), sizes=((32, 16),))
    model = work.load(one)
    jobs = [work.prepare(request, model=model) for request in (one, two)]
    together = work.run_call([(jobs[0], 0), (jobs[1], 3)])
    alone = [next(work.run(jobs[0], range(1))), next(work.run(jobs[1], range(3, 4)))]
    assert [p.record for p in together] == [p.record for p in alone]


def test_the_environment_is_not_needed(jobs: Path, tmp_path: Path) -> None:
    assert "RANK" not in os.environ
    assert run_batch(Batch(jobs, tmp_path, OPTIONS)).counts.left == 0
