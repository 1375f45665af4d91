"""What the tests of batches share: job files, and what is in a folder afterwards."""

import json
from pathlib import Path
from typing import Any

from belvedere.apps.batch import Summary, Watch, run_batch
from belvedere.apps.batch_begin import Batch

OPTIONS = {"device": "cpu"}


def write_jobs(path: Path, *jobs: dict[str, Any] | str) -> Path:
    """Write a JSONL file of these jobs, or lines."""
    path.write_text("".join(f"{job if isinstance(job, str) else json.dumps(job)}\n" for job in jobs))
    return path


def run(jobs: Path, out: Path, watch: Watch | None = None, **options: Any) -> Summary:
    """Run a batch on the CPU."""
    return run_batch(Batch(jobs, out, options.pop("defaults", OPTIONS), **options), watch)


def content(out: Path) -> dict[str, bytes]:
    """Return the files of a batch by name, without its manifest and its lock."""
    found = {path.name: path.read_bytes() for path in out.iterdir() if not path.name.startswith("manifest")}
    return {name: data for name, data in sorted(found.items()) if name != ".lock"}
