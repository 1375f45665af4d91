"""The beginning of a batch: where it stands, what has changed since, and whether what is done is still there."""

import hashlib
import os
from collections.abc import Callable, Collection, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from belvedere.apps import batch_jobs, output, record
from belvedere.apps.batch_jobs import Fault, JobFile, Line
from belvedere.apps.batch_manifest import Kept, Manifest
from belvedere.apps.batch_output import PACKS, pack_name
from belvedere.apps.batch_plan import Plan, Shelf, in_part, make_plan
from belvedere.apps.batch_workers import launched
from belvedere.apps.requests import GenerateRequest
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


def first_plan(batch: Batch, shelf: Shelf, note: Note) -> Plan:
    """Return the plan of a batch that is not begun; ``InputError`` when nothing of it can be made."""
    found = batch_jobs.read_jobs(batch.jobs, batch.defaults)
    plan = planned(batch, found.lines, found.faults, shelf, note=note)
    plan.digest = found.digest
    if not plan.pieces:
        if not plan.faults:
            raise InputError(f"--shard {batch.shard[0]}/{batch.shard[1]}: no picture falls to it; use fewer shards")
        first = plan.faults[0]
        more = f" ({len(plan.faults)} lines, all wrong)" if len(plan.faults) > 1 else ""
        raise InputError(f"{batch.jobs} line {first.number}: {first.reason}{more}")
    try:
        check_place(batch, plan, shelf)
        plan.place_is_free = True
    except InputError:
        if not batch.manifest.exists():  # else another process may have begun it: ``opened`` looks, alone
            raise
    return plan


def planned(
    batch: Batch,
    lines: Iterable[Line],
    faults: Iterable[Fault],
    shelf: Shelf,
    there: Mapping[str, Collection[int]] | None = None,
    note: Note = lambda line: None,
) -> Plan:
    size = None if batch.pack == "none" else batch.pack_size
    plan = make_plan(lines, shelf, batch.shard, size, there, note)
    plan.faults = sorted([*faults, *plan.faults])
    return plan


def check_place(batch: Batch, plan: Plan, shelf: Shelf, manifest: Manifest | None = None) -> None:
    """Raise ``InputError`` when a file that ``plan`` makes for the first time would take the place of another.

    What the manifest lists may be there, and so may a picture that its record calls the same.
    """
    ending = PACKS[batch.pack] or f".{output.FORMATS[batch.kind]}"
    there = {path.name for path in batch.out.glob(f"*{ending}")}
    if not there:
        return
    if batch.pack != "none":
        first = manifest.next_piece() if manifest else 0
        packs = (pack_name(first + i, batch.pack, batch.part) for i in range(len(plan.pieces)))
        if name := next((name for name in packs if name in there), ""):
            place = batch.out / name
            raise InputError(f"{place} exists and is not of this batch; choose another --out, or move it away")
        return
    for job, index in (place for piece in plan.pieces for call in piece.calls for place in call):
        line = plan.jobs[job].line
        name = f"{line.picture(index)}{ending}"
        if name in there and not (manifest and manifest.lists(line, index)):
            output.check_target(batch.out / name, shelf.job(line.request).record(index).origin)


def opened(batch: Batch, plan: Plan | None, shelf: Shelf, others: set[str], note: Note) -> Manifest:
    """Return the manifest, begun or brought up to date; the caller holds the batch, ``others`` are at work."""
    import torch

    manifest = Manifest(batch.manifest)
    try:
        begun = manifest.settings()
        now = settings(batch)
        if not begun:
            plan = plan or first_plan(batch, shelf, note)
            if not plan.place_is_free:
                check_place(batch, plan, shelf)
            begun = now | {"jobs": plan.digest}
            manifest.store(plan, begun)
        agree(batch, begun, now, note)
        if torch.get_num_threads() != begun["threads"]:  # sums, and records, may depend on it
            torch.set_num_threads(begun["threads"])
            shelf.forget()
        if begun["jobs"] != now["jobs"] or (manifest.faults() and not others):
            if others:
                raise InputError(f"{batch.out}: others are at work on another job file; wait for them, or stop them")
            _replan(batch, manifest, shelf, note)
        manifest.release(others)
        if not others:
            manifest.retry()
            _recover(batch, manifest, note)
        return manifest
    except BaseException:
        manifest.close()
        raise


def settings(batch: Batch) -> dict[str, Any]:
    """Return what a batch is begun with: the digest of its jobs, how it is kept, and the machine."""
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


def agree(batch: Batch, begun: dict[str, Any], now: dict[str, Any], note: Note) -> None:
    """Raise ``InputError`` when a batch was begun in a way that makes other files; say so when the machine is other."""
    for key in ("format", "pack", "shard", "device", "dtype"):
        if begun.get(key) != now[key]:
            raise InputError(f"{batch.out} was begun with {key} {begun.get(key)}, not {now[key]}: choose another --out")
    for key, value in now["machine"].items():
        if begun["machine"].get(key) != value:
            note(f"begun with {key} {begun['machine'].get(key)}, now {value}: last bits and records may differ")


@dataclass
class Change:
    """What a job file asks of a batch that is begun."""

    lines: list[Line] = field(default_factory=list)
    """The jobs, each with the settings that its pictures have."""
    faults: list[Fault] = field(default_factory=list)
    fresh: dict[str, Line] = field(default_factory=dict)
    """Of the jobs, by name, those that pictures have to be planned of."""
    there: dict[str, set[int]] = field(default_factory=dict)
    """Numbers of their pictures that need no plan."""
    dropped: set[str] = field(default_factory=set)
    """Jobs of which nothing more is made as it was planned."""

    def adds(self, line: Line, index: int) -> bool:
        """Return whether a picture has to be planned."""
        return line.name in self.fresh and index not in self.there.get(line.name, ())


def changed(batch: Batch, manifest: Manifest, found: JobFile, note: Note) -> Change:
    """Return what a job file asks of a batch: what is done stays, new jobs are added, others go.

    A job that has pictures keeps its settings; what was dropped of one that is back is added again.
    """
    known, change = manifest.jobs(), Change(faults=list(found.faults))
    change.dropped = known.keys() - {line.name for line in found.lines}
    for line in found.lines:
        old = known.get(line.name)
        if old and old.request != line.request.to_json() and old.done:
            change.lines.append(line._replace(request=GenerateRequest.from_json(old.request)))
            change.faults.append(Fault(line.number, _taken(line)))
            if old.done < old.pictures:
                note(f"{line.name}: begun with other settings, and finished with those")
            continue
        change.lines.append(line)
        if old is None:
            change.fresh[line.name] = line
        elif old.request != line.request.to_json():
            change.fresh[line.name] = line
            change.dropped.add(line.name)
        elif old.pictures < len(in_part(line, batch.shard)):
            change.fresh[line.name] = line
            change.there[line.name] = manifest.numbers(line.name)
    return change


def _taken(line: Line) -> str:
    mend = "give this job another name"
    if line.name == batch_jobs.name_of_line(line.number):
        mend = "give this job a name, or bring back the lines that stood above it"
    return f"name {line.name!r}: pictures of other settings have it already; {mend}"


def _replan(batch: Batch, manifest: Manifest, shelf: Shelf, note: Note) -> None:
    """Bring the manifest up to a job file that has changed, or changes meanwhile."""
    digest = ""
    while digest != batch_jobs.digest(batch.jobs, batch.defaults):
        found = batch_jobs.read_jobs(batch.jobs, batch.defaults)
        change = changed(batch, manifest, found, note)
        plan = planned(batch, change.fresh.values(), change.faults, shelf, change.there, note)
        check_place(batch, plan, shelf, manifest)
        numbers = dict.fromkeys(change.dropped, 0) | {line.name: line.number for line in found.lines}
        manifest.store(plan, {"jobs": found.digest}, change.dropped, numbers)
        digest = found.digest


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
        names = f"{lost[0].name}{ending}{' and others' * (len(lost) > 1)}"
        note(f"{names}: missing or changed, made again if the job file still has the job")
        manifest.reopen({one.piece for one in lost})
