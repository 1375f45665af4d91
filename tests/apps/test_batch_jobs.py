"""Job files: what is a job, and what is said of a line that is none."""

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from belvedere.apps.batch_jobs import MAX_LINE, Fault, JobFile, digest, read_jobs
from belvedere.apps.requests import GenerateRequest
from belvedere.errors import InputError

ONE_ROW = "are one row: close its quotes, and break no line in a cell"


def read(tmp_path: Path, content: str | bytes, ending: str = "jsonl", **defaults: object) -> JobFile:
    path = tmp_path / f"jobs.{ending}"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return read_jobs(path, defaults)


def reason(tmp_path: Path, line: str) -> str:
    """Return what is wrong with the second of two lines."""
    found = read(tmp_path, f'{{"classes": "car"}}\n{line}\n')
    assert [job.number for job in found.lines] == [1]
    assert [fault.number for fault in found.faults] == [2]
    return found.faults[0].reason


def test_a_job_is_written_as_on_the_command_line(tmp_path: Path) -> None:
    text = json.dumps({"model": "m", "classes": "car, boat,3", "count": 4, "seed": 7, "size": "48x96,64x64"})
    more = json.dumps({"classes": 3, "steps": 5, "guidance": 2, "name": "mug_a-1", "extrapolation": "none"})
    found = read(tmp_path, f"{text}\n\n  \n{more}")
    assert found.faults == []
    assert [(line.number, line.name) for line in found.lines] == [(1, "000001"), (4, "mug_a-1")]
    assert found.lines[0].request == GenerateRequest(
        "m", ("car", "boat", "3"), count=4, seed=7, sizes=((48, 96), (64, 64))
    )
    assert found.lines[1].request == GenerateRequest(classes=(3,), steps=5, guidance=2, extrapolation="none")


def test_lists_are_taken_as_in_a_request(tmp_path: Path) -> None:
    (line,) = read(tmp_path, '{"classes": ["tench, Tinca tinca", 5], "sizes": [[8, 16]]}').lines
    assert line.request == GenerateRequest(classes=("tench, Tinca tinca", 5), sizes=((8, 16),))


def test_a_prompt_is_one_text(tmp_path: Path) -> None:
    (line,) = read(tmp_path, '{"prompt": "a red car, at night", "negative": "blue"}', classes="car").lines
    assert line.request == GenerateRequest(prompts=("a red car, at night",), negative="blue")


def test_what_a_job_lacks_is_as_the_options_say(tmp_path: Path) -> None:
    options = {"model": "m", "classes": "car,boat", "seed": 9, "device": "cpu", "dtype": "bfloat16", "sizes": "8x8"}
    (line,) = read(tmp_path, '{"classes": "mug", "steps": null}', **options).lines
    assert line.request == GenerateRequest("m", ("mug",), seed=9, device="cpu", dtype="bfloat16", sizes=((8, 8),))


def test_steps_of_the_options_are_for_solvers_that_take_some(tmp_path: Path) -> None:
    text = '{"solver": "dopri5"}\n{"solver": "euler"}\n{"solver": "dopri5", "steps": 7}\n{"seed": 1}'
    assert [line.request.steps for line in read(tmp_path, text, steps=5).lines] == [None, 5, 7, 5]


def test_pictures_are_called_by_job_and_index(tmp_path: Path) -> None:
    found = read(tmp_path, '{"name": "one"}\n{"name": "many", "count": 2}').lines
    assert [found[0].picture(0), found[1].picture(0), found[1].picture(1)] == ["one", "many-00000", "many-00001"]


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("nonsense", "is not JSON: "),
        ('{"classes": "car"', "is not JSON: "),
        ("[" * 5000, "is not JSON: "),
        ('{"seed": ' + "9" * 5000 + "}", "is not JSON: "),
        ("[1]", 'is no JSON object, like {"classes": "car"}'),
        ('{"clases": "car"}', "a job has no field 'clases'; its fields are name, model, classes, count"),
        ('{"device": "cpu"}', "no field 'device'; it is an option of the command"),
        ('{"count": "3"}', "count must be a whole number from 1 to 1000000, not '3'"),
        ('{"count": 0}', "count must be a whole number"),
        ('{"count": true}', "count must be a whole number"),
        ('{"seed": -1}', "seed must be a whole number"),
        ('{"guidance": NaN}', "guidance must be a number"),
        ('{"size": "48"}', "size '48': write WIDTHxHEIGHT"),
        ('{"size": 48}', "sizes must be a list of [width, height]"),
        ('{"classes": true}', "classes must be a list"),
        ('{"classes": "car", "prompt": "a car"}', "classes and prompts"),
        ('{"prompt": "a", "prompts": ["b"]}', "prompt and prompts are one field"),
        ('{"name": "../x"}', "name '../x': write at most 80 letters"),
        ('{"name": ""}', "name '': write"),
        ('{"name": "a.b"}', "name 'a.b': write"),
        ('{"name": "a/b"}', "name 'a/b': write"),
        ('{"name": "a-00001"}', "or ending with a number like -00000"),
        ('{"name": "ä"}', "name 'ä': write"),
        ('{"name": "' + "a" * 81 + '"}', "at most 80"),
        ('{"name": 3}', "name '3': write"),
        ('{"name": "000001"}', "name '000001': line 1 has it already"),
        ('{"classes": "\\u0007"}', "classes must be plain text"),
        ('{"classes": "' + "a" * MAX_LINE + '"}', "is longer than 64 KB"),
    ],
)
def test_a_bad_line_is_told_and_stops_no_other(tmp_path: Path, line: str, words: str) -> None:
    assert words in reason(tmp_path, line)


def test_a_line_after_one_that_is_too_long_is_read(tmp_path: Path) -> None:
    found = read(tmp_path, b"x" * (3 * MAX_LINE) + b"\n{}\n" + b"\xff\xfe\n")
    assert [line.number for line in found.lines] == [2]
    assert [fault.number for fault in found.faults] == [1, 3]


def test_a_byte_order_mark_is_no_fault(tmp_path: Path) -> None:
    assert len(read(tmp_path, b"\xef\xbb\xbf{}\n").lines) == 1
    assert len(read(tmp_path, b"\xef\xbb\xbfseed\n1\n", "csv").lines) == 1


def test_rows_of_csv(tmp_path: Path) -> None:
    rows = ["car,3,1.5,48x96,", '"boat, mug",,,,two', '"a\nb",x,,,', "plane,1", "", ",,,,", "rocket,4,,,"]
    text = "\n".join(["classes,seed,guidance,size,name", *rows])
    found = read(tmp_path, text, "csv")
    assert [(line.number, line.name) for line in found.lines] == [(2, "000002"), (3, "two"), (9, "000009")]
    assert found.lines[0].request == GenerateRequest(classes=("car",), seed=3, guidance=1.5, sizes=((48, 96),))
    assert found.lines[1].request == GenerateRequest(classes=("boat", "mug"))
    assert found.faults[0] == Fault(4, f"lines 4 to 5 {ONE_ROW}")
    assert found.faults[1:] == [Fault(6, "has 2 cells, the first line 5")]


@pytest.mark.parametrize("end", ["", '"tree"\n'])
def test_an_open_quote_is_told(tmp_path: Path, end: str) -> None:
    found = read(tmp_path, f'classes\ncar\n"boat\nmug\n{end}', "csv")
    assert len(found.lines) == 1
    assert found.faults == [Fault(3, f"lines 3 to {5 if end else 4} {ONE_ROW}")]


def test_what_is_no_text_is_told(tmp_path: Path) -> None:
    found = read(tmp_path, b"classes\ncar\n\xff\xfe\nm\0ug\nmug\n", "csv")
    assert [line.number for line in found.lines] == [2, 5]
    assert [fault.number for fault in found.faults] == [3, 4]


def test_rows_of_parquet(tmp_path: Path) -> None:
    path = tmp_path / "jobs.parquet"
    columns = {
        "classes": [["car", "boat"], None, ["mug"]],
        "seed": [3.0, float("nan"), 1.5],
        "size": ["8x16", None, None],
        "guidance": [2.0, None, None],
    }
    pq.write_table(pa.table(columns), path)
    found = read_jobs(path, {"seed": 5})
    assert [line.number for line in found.lines] == [1, 2]
    assert found.lines[0].request == GenerateRequest(classes=("car", "boat"), seed=3, sizes=((8, 16),), guidance=2.0)
    assert found.lines[1].request == GenerateRequest(seed=5)
    assert found.faults == [Fault(3, "seed must be a whole number from 0 to 9223372036854775807, not 1.5")]


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("jobs.jsonl", b"", "holds no jobs; write one a line"),
        ("jobs.jsonl", b"\n\n", "holds no jobs"),
        ("jobs.csv", b"", "holds no jobs"),
        ("jobs.csv", b"classes,seed\n", "holds no jobs"),
        ("jobs.csv", b"car,1\nboat,2\n", "column 'car' is no field of a job; the first line names the columns"),
        ("jobs.csv", b"seed,seed\n1,2\n", "two columns have one name"),
        ("jobs.parquet", b"", "not a readable parquet file"),
        ("jobs.parquet", b"PAR1" * 10, "not a readable parquet file"),
        ("jobs.txt", b"{}", "cannot tell the format; end the name with .jsonl, .csv, .parquet"),
    ],
)
def test_a_file_without_jobs_is_refused(tmp_path: Path, name: str, content: bytes, words: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError) as error:
        read_jobs(tmp_path / name, {})
    assert words in str(error.value) and "\n" not in str(error.value)


def test_a_file_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"missing\.jsonl: cannot be read: No such file"):
        read_jobs(tmp_path / "missing.jsonl", {})
    (tmp_path / "folder.csv").mkdir()
    with pytest.raises(InputError, match=r"folder\.csv: cannot be read: Is a directory"):
        read_jobs(tmp_path / "folder.csv", {})


def test_too_many_pictures_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"more than .* 10000000 pictures; split it"):
        read(tmp_path, '{"count": 1000000}\n' * 11)


def test_the_digest_is_of_file_and_options(tmp_path: Path) -> None:
    path = tmp_path / "jobs.jsonl"
    path.write_text("{}\n")
    first = digest(path, {"seed": 1})
    assert digest(path, {"seed": 1}) == first != digest(path, {"seed": 2})
    path.write_text("{}\n{}\n")
    assert digest(path, {"seed": 1}) != first
