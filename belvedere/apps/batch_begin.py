"""The beginning of a batch: where it stands, what has changed since, and whether what is done is still there."""

import hashlib
import os
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from belvedere.apps import batch_jobs, output, record
from belvedere.apps.batch_jobs import Fault, Line
from belvedere.apps.batch_manifest import Kept, Manifest
from belvedere.apps.batch_output import PACKS, check_place, pack_name
from belvedere.apps.batch_plan import Plan, Shelf, in_part, make_plan
from belvedere.apps.batch_workers import launched
from belvedere.errors import InputError

Note = Callable[[str], None]


@dataclass(frozen=True)
class Batch:
    """What to make: the job file, fields for jobs that lack them, and how the pictures are kept.

    ``kind``: png, jpeg or webp. ``pack``: none, tar or parquet, with ``pack_size`` pictures a file, or a few more.
    ``shard`` (i, n): only the i-th of n parts. ``verify``: read what is done and make again what is not as it was.
    """

    jobs: Path
    out: Path
    defaults: dict[str, Any] = field(default_factory=dict)
    kind: str = "png"
    pack: str = "none"
    pack_size: int = 1000
    shard: tuple[int, int] = (1, 1)
    verify: bool = False

    def __post_init__(self) -> None:
        if self.kind not in output.FORMATS:
            raise InputError(f"--format must be one of {', '.join(output.FORMATS)}, not {self.kind!r}")
        if self.pack not in PACKS:
            raise InputError(f"--pack must be one of {', '.join(PACKS)}, not {self.pack!r}")
        if not 1 <= self.pack_size <= 1_000_000:
            raise InputError(f"--pack-size must be a number from 1 to 1000000, not {self.pack_size}")
        if not 1 <= self.shard[0] <= self.shard[1] <= 10_000:
            raise InputError(f"--shard {self.shard[0]}/{self.shard[1]}: write I/N with 1 <= I <= N <= 10000, like 2/8")

    @property
    def part(self) -> str:
        """What sets the files of this shard apart."""
        return "" if self.shard[1] == 1 else "-{}-of-{}".format(*self.shard)

    @property
    def manifest(self) -> Path:
        """The manifest's file."""
        return self.out / f"manifest{self.part}.sqlite"


def placed(batch: Batch) -> Batch:
    """Return the batch with the device and the shard of this process, as a launcher or the options say."""
    import torch

    process, _, machine, machines = launched()
    if machines > 1 and batch.shard[1] > 1:
        raise InputError("--shard goes with one machine: the launcher has its own; give one of them")
    shard = (machine + 1, machines) if machines > 1 else batch.shard
    device = batch.defaults.get("device", "auto")
    if device in ("auto", "cuda") and torch.cuda.is_available():
        device = f"cuda:{process % torch.cuda.device_count()}"
    elif device == "auto":
        device = "cpu"
    kind, _, number = device.partition(":")
    if kind == "cuda" and number and torch.cuda.is_available() and int(number) < torch.cuda.device_count():
        torch.cuda.set_device(int(number))  # so that no record says which of the machine's GPUs it was
        device = kind
    return replace(batch, shard=shard, defaults={**batch.defaults, "device": device})


def first_plan(batch: Batch, shelf: Shelf) -> Plan:
    """Return the plan of a batch that is not begun; ``InputError`` when nothing of it can be made."""
    found = batch_jobs.read_jobs(batch.jobs, batch.defaults)
    plan = planned(batch, found.lines, found.faults, shelf)
    if not plan.pieces:
        if not plan.faults:
            raise InputError(f"--shard {batch.shard[0]}/{batch.shard[1]}: no picture falls to it; use fewer shards")
        first = plan.faults[0]
        more = f" ({len(plan.faults)} lines, all wrong)" if len(plan.faults) > 1 else ""
        raise InputError(f"{batch.jobs} line {first.number}: {first.reason}{more}")
    try:
        check_place(batch.out, _targets(batch, plan, 0))
    except InputError:
        if not batch.manifest.exists():  # else another process began the batch in the meantime: they are its pictures
            raise
    return plan


def planned(
    batch: Batch,
    lines: Sequence[Line],
    faults: Sequence[Fault],
    shelf: Shelf,
    there: Mapping[str, Collection[int]] | None = None,
) -> Plan:
    size = None if batch.pack == "none" else batch.pack_size
    plan = make_plan(lines, shelf, batch.shard, size, there)
    plan.faults = sorted([*faults, *plan.faults])
    return plan


def _targets(batch: Batch, plan: Plan, first: int) -> set[str]:
    """Return the names of the files that a plan, whose first piece is ``first``, makes."""
    if batch.pack != "none":
        return {pack_name(first + i, batch.pack, batch.part) for i in range(len(plan.pieces))}
    ending = output.FORMATS[batch.kind]
    places = (place for piece in plan.pieces for call in piece.calls for place in call)
    return {f"{plan.jobs[job].line.picture(index)}.{ending}" for job, index in places}


def opened(batch: Batch, plan: Plan | None, shelf: Shelf, others: set[str], note: Note) -> Manifest:
    """Return the manifest, begun or brought up to date; the caller holds the batch, ``others`` are at work."""
    import torch

    manifest = Manifest(batch.manifest)
    try:
        begun = manifest.settings()
        now = _settings(batch)
        if not begun:
            manifest.store(plan or first_plan(batch, shelf), now)
            begun = now
        _agree(batch, begun, now, note)
        if torch.get_num_threads() != begun["threads"]:  # sums, and records, may depend on it
            torch.set_num_threads(begun["threads"])
            shelf.forget()
        if begun["jobs"] != now["jobs"] or (manifest.faults() and not others):
            if others:
                raise InputError(f"{batch.out}: others are at work on another job file; wait for them, or stop them")
            _replan(batch, manifest, now, shelf, note)
        manifest.release(others)
        if not others:
            manifest.retry()
            _recover(batch, manifest, note)
        return manifest
    except BaseException:
        manifest.close()
        raise


def _settings(batch: Batch) -> dict[str, Any]:
    import torch

    from belvedere.checkpoints import store

    device = store.choose_device(batch.defaults["device"])
    machine = record.this_machine(device)
    return {
        "jobs": batch_jobs.digest(batch.jobs, batch.defaults),
        "format": batch.kind,
        "pack": batch.pack,
        "shard": list(batch.shard),
        "device": device.type,
        "dtype": str(store.choose_dtype(batch.defaults.get("dtype"), device)).removeprefix("torch."),
        "threads": torch.get_num_threads(),
        "machine": {key: getattr(machine, key) for key in ("name", "instructions", "torch", "diffusers", "belvedere")},
    }


def _agree(batch: Batch, begun: dict[str, Any], now: dict[str, Any], note: Note) -> None:
    """Raise ``InputError`` when a batch was begun in a way that makes other files; say so when the machine is other."""
    for key in ("format", "pack", "shard", "device", "dtype"):
        if begun.get(key) != now[key]:
            raise InputError(f"{batch.out} was begun with {key} {begun.get(key)}, not {now[key]}: choose another --out")
    for key, value in now["machine"].items():
        if begun["machine"].get(key) != value:
            note(f"begun with {key} {begun['machine'].get(key)}, now {value}: last bits and records may differ")


def _replan(batch: Batch, manifest: Manifest, now: dict[str, Any], shelf: Shelf, note: Note) -> None:
    """Bring the manifest up to a job file that has changed: what is done stays, new jobs are added, others go.

    A job that has pictures keeps its settings; what was dropped of one that is back is added again.
    """
    known, found = manifest.jobs(), batch_jobs.read_jobs(batch.jobs, batch.defaults)
    dropped = known.keys() - {line.name for line in found.lines}
    fresh, faults = [], list(found.faults)
    there: dict[str, set[int]] = {}
    for line in found.lines:
        old = known.get(line.name)
        if old is None:
            fresh.append(line)
        elif old.request == line.request.to_json():
            if old.pictures < len(in_part(line, batch.shard)):
                fresh.append(line)
                there[line.name] = manifest.numbers(line.name)
        elif old.done:
            reason = f"name {line.name!r}: pictures of other settings have it already; give this job another name"
            faults.append(Fault(line.number, reason))
            if old.done < old.pictures:
                note(f"{line.name}: begun with other settings, and finished with those")
        else:
            fresh.append(line)
            dropped.add(line.name)
    plan = planned(batch, fresh, faults, shelf, there)
    check_place(batch.out, _targets(batch, plan, manifest.next_piece()))
    manifest.store(plan, {"jobs": now["jobs"]}, dropped)


def _recover(batch: Batch, manifest: Manifest, note: Note) -> None:
    """Open again the pieces whose files are not there as they were made; nobody else is at work."""
    ending = "" if batch.pack != "none" else f".{output.FORMATS[batch.kind]}"
    sizes = {entry.name: entry.stat().st_size for entry in os.scandir(batch.out) if entry.is_file()}

    def good(kept: Kept) -> bool:
        name = f"{kept.name}{ending}"
        if sizes.get(name) != kept.bytes:
            return False
        if not batch.verify:
            return True
        with (batch.out / name).open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest() == kept.sha256

    kept = list(manifest.kept())
    if batch.verify:
        note(f"reading {len(kept)} files")
    with ThreadPoolExecutor(4) as pool:
        lost = [one for one, whole in zip(kept, pool.map(good, kept), strict=True) if not whole]
    if lost:
        note(f"{lost[0].name}{ending}{' and others' * (len(lost) > 1)}: missing or changed, made again")
        manifest.reopen({one.piece for one in lost})
