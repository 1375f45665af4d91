"""Configs, camera paths, captures and job files made to mislead."""

import io
import json
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from PIL import Image

from belvedere.apps.batch_jobs import read_jobs
from belvedere.apps.config import load_config
from belvedere.data.cameras import Camera
from belvedere.data.captures import open_capture
from belvedere.data.folders import Parquet
from belvedere.data.latents import Latents
from belvedere.synthesis.camera_paths import read_path
from tests.attacks.corpus import Attack, written

DEEP = "[" * 100_000 + "]" * 100_000
HUGE = "9" * 400
POSE = [[1.0, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]


def documents(folder: Path) -> list[Attack]:
    """Write the files below ``folder``; return the attacks."""
    return [
        *_configs(folder),
        *_paths(folder),
        *_captures(folder),
        *_jobs(folder),
        *_latents(folder),
        *_tables(folder),
    ]


def _configs(folder: Path) -> Iterator[Attack]:
    lines = ["a: &a [x,x,x,x,x,x,x,x,x]"] + [
        f"{b}: &{b} [{','.join([f'*{a}'] * 9)}]" for a, b in zip("abcdefgh", "bcdefghi", strict=True)
    ]
    tags = "task: !!python/object/apply:os.system ['touch mark']\n"
    head = "task: dimr\nmodel: {}\ndata: {}\noptimizer: {lr: 1}\nbatch: 2\n"
    for name, text, message in (
        ("aliases that double", "\n".join([*lines, "steps: *i"]), "it has an alias"),
        ("a tag that calls", tags, "not YAML: could not determine a constructor"),
        ("nested without end", "task: " + DEEP[:40_000], "nested too deeply|not YAML"),
        ("a number of 10000 digits", f"{head}steps: {'9' * 10_000}", "not YAML|must be|is not of type"),
        ("a date that is none", f"{head}steps: 2001-99-99", "not YAML"),
        ("a megabyte", "#" * (1 << 20), "KB a config may have"),
        ("bytes that are no text", b"task: \xff\xfe", "not YAML"),
        ("a control character", "task: \x07", "not YAML"),
        ("an unknown key", f"{head}steps: 3\nengine: os.system", "unknown config key 'engine'"),
        ("a list for a number", f"{head}steps: [1, 2]", "is not of type int"),
        ("two documents", f"{head}steps: 3\n---\n{head}", "not YAML"),
        ("infinity", f"{head}steps: .inf", "is not of type int"),
        ("no steps", f"{head}steps: 0", "must be at least 1"),
    ):
        yield Attack(f"config: {name}", partial(load_config, written(folder / f"config-{name}.yaml", text)), message)


def _camera() -> Camera:
    return Camera(torch.eye(4, dtype=torch.float64), (50.0, 50.0), (32.0, 32.0), (64, 64))


def _paths(folder: Path) -> Iterator[Attack]:
    wrong = "must be|is no path|no JSON"
    poses: dict[str, str] = {
        "of no cameras": "[]",
        "of a million": json.dumps([{"pose": POSE}] * 12_000),
        "nested without end": DEEP,
        "with NaN": json.dumps([{"pose": [[float("nan")] * 4] * 4}]),
        "with a huge number": '[{"position": [' + HUGE + ', 0, 0], "look_at": [0, 0, 1]}]',
        "that is a number": "3",
        "of two ways at once": json.dumps([{"pose": POSE, "look_at": [0, 0, 1]}]),
        "with an unknown key": json.dumps([{"pose": POSE, "import": "os"}]),
        "of another shape": json.dumps([{"pose": POSE[:3]}]),
        "that is no rotation": json.dumps([{"pose": [[9.0, 0, 0, 0], *POSE[1:]]}]),
        "of 9 MB": "[" + " " * (9 << 20) + "]",
        "of lists without end": "[" + "[]," * 1_000_000 + "[]]",
    }
    for name, text in poses.items():
        path = written(folder / f"path-{name}.json", text)
        message = "allowed: make it smaller" if "MB" in name or "lists" in name else f"{wrong}|rotation"
        yield Attack(f"camera path {name}", partial(read_path, path, _camera()), message)


def _captures(folder: Path) -> Iterator[Attack]:
    lens = {"w": 8, "h": 8, "fl_x": 9.0}
    frame = {"file_path": "a.png", "transform_matrix": POSE}
    contents: dict[str, tuple[Any, str]] = {
        "no frames": ({**lens, "frames": []}, "lists no views"),
        "way out": ({**lens, "frames": [{**frame, "file_path": "../../etc/passwd"}]}, "without '..'"),
        "absolute": ({**lens, "frames": [{**frame, "file_path": "/etc/passwd"}]}, "relative path"),
        "drive": ({**lens, "frames": [{**frame, "file_path": "C:\\\\x.png"}]}, "relative path"),
        "missing": ({**lens, "frames": [{**frame, "file_path": "b.png"}]}, "are missing"),
        "link out": ({**lens, "frames": [{**frame, "file_path": "out.png"}]}, "is a link out of"),
        "terapixel": ({**lens, "w": 10**7, "frames": [frame]}, "pixels"),
        "no focal": ({**lens, "fl_x": 0, "frames": [frame]}, "focal"),
        "infinite": ({**lens, "fl_x": float("inf"), "frames": [frame]}, "finite number"),
        "twice": ({**lens, "frames": [frame, frame]}, "no other frame the same"),
        "fisheye": ({**lens, "is_fisheye": True, "frames": [frame]}, "undistort"),
    }
    for name, (content, message) in contents.items():
        root = folder / f"capture-{name}"
        written(root / "transforms.json", json.dumps(content))
        Image.new("RGB", (8, 8)).save(root / "a.png")
        (root / "out.png").symlink_to("/etc/passwd")
        yield Attack(f"capture: {name}", partial(open_capture, root), message)
    root = folder / "capture-endless"
    written(root / "transforms.json", '{"frames": [' + "[]," * 5_000_000 + "0]}")
    yield Attack("capture: lists without end", partial(open_capture, root), "allowed: make it smaller")


def _jobs(folder: Path) -> Iterator[Attack]:
    def faults(reason: str) -> Callable[[object], bool]:
        return lambda found: reason in found.faults[0].reason and not found.lines  # type: ignore[attr-defined]

    for name, text, reason in (
        ("a name that leads out", '{"name": "../../x", "classes": "car"}', "name '../../x'"),
        ("nested without end", DEEP[:60_000], "is not JSON"),
        ("an unknown field", '{"import": "os"}', "has no field 'import'"),
        ("a count beyond all", '{"count": 1' + "0" * 40 + "}", "count must be"),
        ("a line without end", '{"classes": "' + "x" * (1 << 20), "is longer than"),
        ("NaN for guidance", '{"guidance": NaN}', "guidance must be"),
    ):
        path = written(folder / f"jobs-{name}.jsonl", text)
        yield Attack(f"job: {name}", partial(read_jobs, path, {}), "", faults(reason))
    path = written(folder / "jobs.parquet", b"PAR1" + bytes(100) + b"PAR1")
    yield Attack("jobs that are no parquet", partial(read_jobs, path, {}), "not a readable parquet file|cannot be read")
    path = written(folder / "jobs.csv", "classes,__class__\ncar,x\n")
    yield Attack("jobs with a column of none", partial(read_jobs, path, {}), "is no field of a job")


def _latents(folder: Path) -> Iterator[Attack]:
    root = folder / "latents"
    written(root / "00000.safetensors", b"\x80\x02cposix\nsystem\n.")
    written(root / "classes.json", '["x"]')
    yield Attack("latents that are a pickle", partial(Latents, root), "latents in")
    root = folder / "latents-deep"
    written(root / "00000.safetensors", b"")
    written(root / "classes.json", DEEP)
    yield Attack("latents with endless names", partial(Latents, root), "latents in")


def _tables(folder: Path) -> Iterator[Attack]:
    """Parquet files whose columns are of other kinds, or count classes without end."""
    picture = io.BytesIO()
    Image.new("RGB", (8, 8)).save(picture, "PNG")
    encoded = picture.getvalue()
    for name, content, label, message in (
        ("pictures that are text", "/etc/passwd", 0, "has binary 'bytes'"),
        ("pictures that are numbers", 1 << 40, 0, "has binary 'bytes'"),
        ("classes without end", encoded, 1_700_000_000, "class number 1700000000: at most 1048575 allowed"),
        ("a class below none", encoded, -1, "without a label of 0 or more"),
        ("classes that are text", encoded, "x", "is not of integers"),
    ):
        path = folder / f"table-{name}.parquet"
        pq.write_table(pa.table({"image": [{"bytes": content}], "label": [label]}), path)
        yield Attack(f"parquet: {name}", partial(Parquet, path, 8), message)
    path = folder / "table.parquet"
    pq.write_table(pa.table({"image": [{"bytes": encoded}], "label": [1]}), path)
    yield Attack("parquet: a right one", partial(Parquet, path, 8), "", lambda data: data.classes == ("0", "1"))  # type: ignore[attr-defined]
