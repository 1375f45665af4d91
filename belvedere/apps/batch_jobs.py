"""Job files: one request a line of JSON, a row of CSV or a row of parquet, with the command line's own names.

    {"classes": "car,boat", "count": 4, "seed": 7, "size": "48x96", "name": "toys"}

A job is checked by the code that checks the command line's options. One that is wrong becomes a ``Fault`` with the
number of its line and does not stop the others. What a job does not say is as the command's options say.
"""

import csv
import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, NamedTuple

from belvedere.apps.requests import OWN_STEPS, GenerateRequest, parse_interval, parse_sizes
from belvedere.errors import InputError

MAX_LINE = 64 << 10
"""Bytes of a line: twice a request."""
MAX_JOBS = 1_000_000
MAX_PICTURES = 10_000_000
"""Of all jobs together."""
MAX_PARQUET = 1 << 30
"""Bytes of a parquet file's columns, unpacked."""

_ALIASES = {"prompt": "prompts", "concept": "concepts", "size": "sizes"}
_OF_THE_COMMAND = ("dtype", "device")
_NAME = re.compile(r"(?!.*-\d{5,}$)[A-Za-z0-9_][A-Za-z0-9_-]{0,79}")
"""What keeps to its folder on any system, is one key of WebDataset, and is no picture's of a job of several."""
_TYPES = {entry.name: getattr(entry.type, "__name__", str(entry.type)) for entry in fields(GenerateRequest)}
FIELDS = ("name", *(name for name in _TYPES if name not in (*_OF_THE_COMMAND, *_ALIASES.values())), *_ALIASES)
"""What a job may hold."""

Values = dict[str, Any]


class Line(NamedTuple):
    """A job: the number of its line, the name of its pictures, and what is asked for."""

    number: int
    name: str
    request: GenerateRequest

    def picture(self, index: int) -> str:
        """Return the name of picture ``index``."""
        return picture_name(self.name, self.request.count, index)


class Fault(NamedTuple):
    """A line that cannot be done, and why."""

    number: int
    reason: str


@dataclass(frozen=True)
class JobFile:
    """A job file as read: the jobs, and the lines that are none. ``digest``: of the file before it was read."""

    lines: list[Line]
    faults: list[Fault]
    digest: str


def picture_name(job: str, count: int, index: int) -> str:
    """Return the name of picture ``index`` of the ``count`` of a job: the job's own for a single picture."""
    return job if count == 1 else f"{job}-{index:05d}"


def name_of_line(number: int) -> str:
    """Return the name of a job that has none of its own."""
    return f"{number:06d}"


def digest(path: Path, defaults: Mapping[str, Any]) -> str:
    """Return the SHA-256 of a job file and of the options that complete it."""
    total = hashlib.sha256(json.dumps(defaults, sort_keys=True).encode() + b"\n")
    with _reading(path), path.open("rb") as file:
        while block := file.read(1 << 20):
            total.update(block)
    return total.hexdigest()


def read_jobs(path: Path, defaults: Mapping[str, Any]) -> JobFile:
    """Return the jobs of a ``.jsonl``, ``.csv`` or ``.parquet`` file; ``defaults``: fields for jobs without them.

    A job's ``name`` is what its pictures are called: letters, digits, ``-`` and ``_``; without one it is the number of
    its line (of a parquet file: of its row, from 1). Two jobs of one name are a fault of the second. Raises
    ``InputError`` for a file that cannot be read, has no jobs or too many, or has a column that no request has.
    """
    if path.suffix not in _READERS:
        raise InputError(f"--jobs {path}: cannot tell the format; end the name with {', '.join(_READERS)}")
    before = digest(path, defaults)
    lines: list[Line] = []
    faults: list[Fault] = []
    names: dict[str, int] = {}
    pictures = 0
    with _reading(path):
        for number, values in _READERS[path.suffix](path):
            try:
                if isinstance(values, str):
                    raise InputError(values)
                line = _line(number, values, defaults)
                if line.name in names:
                    raise InputError(f"name {line.name!r}: line {names[line.name]} has it already; give another")
            except InputError as error:
                faults.append(Fault(number, str(error)))
                continue
            lines.append(line)
            names[line.name] = number
            pictures += line.request.count
            if len(lines) > MAX_JOBS or pictures > MAX_PICTURES:
                raise InputError(f"--jobs {path}: more than {MAX_JOBS} jobs or {MAX_PICTURES} pictures; split it")
    if not lines and not faults:
        raise InputError(f"--jobs {path}: holds no jobs; write one a line, like {_EXAMPLES[path.suffix]}")
    return JobFile(lines, faults, before)


def _line(number: int, values: Values, defaults: Mapping[str, Any]) -> Line:
    if unknown := [key for key in values if key not in (*FIELDS, *_ALIASES.values())]:
        hint = "; it is an option of the command, for all jobs" if unknown[0] in _OF_THE_COMMAND else ""
        raise InputError(f"a job has no field {str(unknown[0])[:80]!r}{hint}; its fields are {', '.join(FIELDS)}")
    given = {key: value for key, value in values.items() if value is not None and key != "name"}
    for alias, field in _ALIASES.items():
        if alias in given and field in given:
            raise InputError(f"{alias} and {field} are one field: leave one out")
    name: Any = values.get("name")
    if name is not None and not (isinstance(name, str) and _NAME.fullmatch(name)):
        raise InputError(
            f"name {str(name)[:80]!r}: write at most 80 letters, digits, - and _, not beginning with - or ending "
            "with a number like -00000"
        )
    asked = {_ALIASES.get(key, key): value for key, value in given.items()}
    own = {key: _own_form(key, value) for key, value in {**defaults, **asked}.items()}
    if "prompts" in asked and "classes" not in asked:
        own.pop("classes", None)
    if asked.get("solver") in OWN_STEPS and "steps" not in asked:
        own.pop("steps", None)
    return Line(number, name or name_of_line(number), GenerateRequest.from_dict(own))


def _own_form(name: str, value: Any) -> Any:
    """Return a value as ``GenerateRequest.from_dict`` takes it, where a job may write it as the command line does."""
    if name == "classes" and isinstance(value, str):
        return [item.strip() for item in value.split(",") if item.strip()]
    if name == "sizes" and isinstance(value, str):
        return [list(size) for size in parse_sizes(value)]
    if name == "guidance_interval" and isinstance(value, str):
        return parse_interval(value)
    if _TYPES[name].startswith("tuple") and isinstance(value, str | int) and not isinstance(value, bool):
        return [value]
    return value


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Turn what the system says against reading ``path`` into an ``InputError``."""
    try:
        yield
    except OSError as error:
        reason = " ".join(str(error.strerror or error).split())
        raise InputError(f"--jobs {path}: cannot be read: {reason}") from error


def _json_lines(path: Path) -> Iterator[tuple[int, Values | str]]:
    with path.open("rb") as file:
        number = 0
        while line := file.readline(MAX_LINE + 1):
            number += 1
            if len(line) > MAX_LINE:
                while line and not line.endswith(b"\n"):
                    line = file.readline(MAX_LINE)
                yield number, f"is longer than {MAX_LINE >> 10} KB; split the job"
            elif line.strip():
                yield number, _json_values(line)


def _json_values(line: bytes) -> Values | str:
    try:
        values = json.loads(line.decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        return f"is not JSON: {error or 'too deep'}"
    return values if isinstance(values, dict) else 'is no JSON object, like {"classes": "car"}'


def _csv_rows(path: Path) -> Iterator[tuple[int, Values | str]]:
    with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
        rows = csv.reader(file, strict=True)
        columns: list[str] | None = None
        while True:
            number = rows.line_num + 1
            try:
                cells = next(rows)
            except StopIteration:
                return
            except csv.Error as error:
                yield number, _many_lines(number, rows.line_num) or f"is not CSV: {error}"
                continue
            if columns is None:
                columns = _header(path, [cell.strip() for cell in cells])
            elif any(cells):
                yield number, _many_lines(number, rows.line_num) or _csv_values(columns, cells)


def _many_lines(first: int, last: int) -> str:
    """Return what is wrong with a row that is not on one line."""
    return f"lines {first} to {last} are one row: close its quotes, and break no line in a cell" if last > first else ""


def _header(path: Path, columns: list[str]) -> list[str]:
    """Return the names of a table's columns, if they are fields of a job."""
    unknown = [name for name in columns if name not in (*FIELDS, *_ALIASES.values())]
    if unknown or len(set(columns)) < len(columns):
        what = f"column {unknown[0][:80]!r} is no field of a job" if unknown else "two columns have one name"
        raise InputError(f"--jobs {path}: {what}; the first line names the columns, of {', '.join(FIELDS)}")
    return columns


def _csv_values(columns: list[str], cells: list[str]) -> Values | str:
    if len(cells) != len(columns):
        return f"has {len(cells)} cells, the first line {len(columns)}"
    filled = {name: cell.strip() for name, cell in zip(columns, cells, strict=True) if cell.strip()}
    return {name: _number(name, cell) for name, cell in filled.items()}


def _number(name: str, cell: str) -> Any:
    """Return a cell as the number that its column asks for; as it is when it is none, so that the request says so."""
    kind = _TYPES.get(name, "str").removesuffix(" | None")
    try:
        return {"int": int, "float": float}.get(kind, str)(cell)
    except ValueError:
        return cell


def _parquet_rows(path: Path) -> Iterator[tuple[int, Values | str]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        file = pq.ParquetFile(path)
        about = file.metadata
        unpacked = sum(about.row_group(i).total_byte_size for i in range(about.num_row_groups))
        if about.num_rows > MAX_JOBS or unpacked > MAX_PARQUET:
            raise InputError(f"--jobs {path}: {about.num_rows} rows of {unpacked} bytes are too many; split it")
        columns = _header(path, file.schema_arrow.names)
        rows = (row for batch in file.iter_batches(1024, columns=columns) for row in batch.to_pylist())
        for number, row in enumerate(rows, 1):
            yield number, {name: _whole(name, value) for name, value in row.items()}
    except pa.ArrowException as error:
        raise InputError(f"--jobs {path}: not a readable parquet file ({str(error).splitlines()[0][:120]})") from error


def _whole(name: str, value: Any) -> Any:
    """Return a whole number where pandas has made a float of it, because other rows have none; None for its NaN."""
    if isinstance(value, float) and value != value:
        return None
    if isinstance(value, float) and _TYPES.get(name, "").startswith("int") and value.is_integer():
        return int(value)
    return value


_READERS = {".jsonl": _json_lines, ".csv": _csv_rows, ".parquet": _parquet_rows}
_EXAMPLES = {
    ".jsonl": '{"classes": "car", "seed": 7}',
    ".csv": "car,7 below classes,seed",
    ".parquet": "classes: car, seed: 7",
}
