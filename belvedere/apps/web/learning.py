"""Learning a concept in a process of its own, ``belvedere personalize``, whose run's folder tells how far it is.

    FOLDER/lessons/ID/lesson.json            what is learned
                      photographs/           encoded anew
                      thing.safetensors      the concept, once it is learned
                      thing.run/             log, sheets, checkpoints

The page may be left and the server may end: the process keeps a checkpoint when it is told to end, and goes on from it.
"""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from belvedere.apps.locks import LOCK, is_locked
from belvedere.apps.run_folder import RunFolder
from belvedere.apps.web import uploads
from belvedere.apps.web.lesson import OUT, Lesson, Progress, check_word, command, environment, read_log
from belvedere.apps.web.pictures import reduced
from belvedere.apps.web.shelf import ID, fresh_id
from belvedere.apps.web.studio import Studio
from belvedere.checkpoints.text_to_image import TEXT_TO_IMAGE
from belvedere.errors import InputError
from belvedere.files import atomic_write

if TYPE_CHECKING:
    from PIL import Image

BASES = tuple(TEXT_TO_IMAGE)
FEWEST = 2
"""Photographs."""
PHOTOGRAPH_SIDE = 1024
TOLD_TO_END = (-signal.SIGTERM, 128 + signal.SIGTERM)
"""Exit codes of a process that was stopped while it was not learning yet, or no longer."""
GRACE = 60
"""Seconds that a process has to write its checkpoint."""


def classroom_of(studio: Studio) -> "Classroom":
    """Return the classroom of a studio, which its rooms share."""
    return studio.loaded("classroom", None, lambda: Classroom(studio))


class Classroom:
    """The lessons of a studio; one is learned at a time."""

    def __init__(self, studio: Studio):
        self.studio, self.folder = studio, studio.folder / "lessons"
        self._children: dict[str, subprocess.Popen[bytes]] = {}
        self._lock = threading.Lock()
        studio.at_end.append(self.close)

    def begin(self, photographs: Sequence[uploads.Upload], token: str, like: str, base: str, steps: int) -> str:
        """Start a lesson and return its id; ``InputError`` for what cannot be learned, or while one is learned."""
        lesson = Lesson(
            check_word(token, "token"), check_word(like, "super-category"), base, steps, len(photographs), time.time()
        )
        self.studio.model(base)
        if base not in self.studio.offered(*BASES):
            raise InputError(f"model {base} makes no pictures of text: choose another base")
        if steps < 1:
            raise InputError(f"{steps} steps: ask for 1 or more")
        if len(photographs) < FEWEST:
            raise InputError(
                f"{len(photographs)} photographs are too few: give {FEWEST} or more, three to six are best"
            )
        self.studio.limits.check_learning(len(photographs), steps)
        self._check_free()
        pictures = [reduced(uploads.picture(each, self.studio.limits), PHOTOGRAPH_SIDE) for each in photographs]
        self._make_room()
        key = fresh_id()
        self._write(self.folder / key, lesson, pictures)
        self.go_on(key)
        return key

    def go_on(self, id: str) -> None:
        """Start the process of a lesson, from its last checkpoint if there is one."""
        lesson, folder = self.lesson(id), self.folder / id
        with self._lock:
            self._check_free()
            if self._learned(id):
                raise InputError("this is learned already: keep it, or begin another")
            with (folder / "fault.txt").open("wb") as fault:
                child = subprocess.Popen(
                    command(lesson, folder, self.studio.model(lesson.base)),
                    env=environment(self.studio.device), start_new_session=True,
                    stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=fault,
                )  # fmt: skip
            self._children[id] = child
            (folder / "process").write_text(str(child.pid))
        threading.Thread(target=self._watch, args=(id, child), daemon=True).start()

    def stop(self, id: str) -> None:
        """Tell the process of a lesson to write a checkpoint and end; nothing where there is none."""
        self.lesson(id)
        child = self._children.get(id)
        with contextlib.suppress(ProcessLookupError):
            if child is not None and child.poll() is None:
                child.terminate()
            elif self._held(id):  # by the process of a server that ended
                os.kill(int((self.folder / id / "process").read_text()), signal.SIGTERM)

    def close(self) -> None:
        """Stop all processes and wait for their checkpoints."""
        for child in self._children.values():
            if child.poll() is None:
                child.terminate()
        for child in self._children.values():
            with contextlib.suppress(subprocess.TimeoutExpired):
                child.wait(GRACE)

    def empty(self) -> None:
        """Remove every lesson but one that is being learned."""
        with self._lock:
            for id in self.ids():
                if not self._busy(id):
                    shutil.rmtree(self.folder / id, ignore_errors=True)

    def ids(self) -> list[str]:
        """Return the ids of all lessons, the newest first."""
        found = [path.name for path in self.folder.glob("*") if ID.fullmatch(path.name) and self._is_lesson(path.name)]
        return sorted(found, key=lambda id: self.lesson(id).when, reverse=True)

    def newest(self) -> str:
        """Return the id of the lesson that began last, "" when there is none."""
        return next(iter(self.ids()), "")

    def lesson(self, id: str) -> Lesson:
        """Return a lesson; ``InputError`` when there is none of this id."""
        if not isinstance(id, str) or not ID.fullmatch(id) or not self._is_lesson(id):
            raise InputError("there is no such lesson: begin one")
        return Lesson(**json.loads((self.folder / id / "lesson.json").read_text()))

    def look(self, id: str) -> Progress:
        """Return how far a lesson is, by its folder."""
        lesson, run = self.lesson(id), RunFolder(self.folder / id / "thing.run")
        rows = read_log(run.log)
        losses = tuple((int(row["step"]), float(row["loss"])) for row in rows if "loss" in row)
        sheets = tuple(sorted(run.sheets.glob("step-*.png")))
        likeness = {int(row["step"]): float(row["image_similarity"]) for row in rows if "image_similarity" in row}
        left = next((float(row["seconds_left"]) for row in reversed(rows) if "seconds_left" in row), 0.0)
        step, fault = (losses[-1][0] if losses else 0), ""
        if self._busy(id):
            status = "learning"
        elif self._learned(id):
            status = "learned"
        else:
            fault = self._fault(id)
            status = "failed" if fault else "stopped"
        return Progress(lesson, status, step, losses, sheets, likeness, left, fault)

    def concept(self, id: str) -> Path:
        """Return the file of a learned concept: the last one, or ``InputError`` while there is none."""
        self.lesson(id)
        if not self._learned(id):
            raise InputError("it is not learned yet: wait until it is, or go on")
        return self.folder / id / OUT

    def _write(self, folder: Path, lesson: Lesson, pictures: "Sequence[Image.Image]") -> None:
        folder.mkdir(parents=True, mode=0o700)  # for all that comes into it, the run too
        try:
            (folder / "photographs").mkdir()
            for number, picture in enumerate(pictures):
                picture.save(folder / "photographs" / f"{number:02d}.png")
            with atomic_write(folder / "lesson.json") as file:
                file.write(json.dumps(asdict(lesson)).encode())
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise

    def _make_room(self) -> None:
        """Remove the oldest lessons so that one more may be kept, but none that is learned and not on the shelf."""
        kept = {entry.facts.get("lesson") for entry in self.studio.shelf.newest(None, self.studio.limits.results)}
        ids, most = self.ids(), self.studio.limits.lessons
        over = len(ids) + 1 - most
        old = [id for id in reversed(ids) if id in kept or not self._learned(id)]
        if over > len(old):
            raise InputError(f"{most} lessons are learned and not kept: keep one of them, or remove all in Machine")
        for id in old[: max(over, 0)]:
            shutil.rmtree(self.folder / id, ignore_errors=True)

    def _is_lesson(self, id: str) -> bool:
        with contextlib.suppress(PermissionError):  # in a folder of another user
            return (self.folder / id / "lesson.json").is_file()
        return False

    def _learned(self, id: str) -> bool:
        return (self.folder / id / OUT).is_file()

    def _busy(self, id: str) -> bool:
        child = self._children.get(id)
        return (child is not None and child.poll() is None) or self._held(id)  # or by another server's process

    def _held(self, id: str) -> bool:
        """Return whether some process holds the run's folder (``locks.only_run``)."""
        path = self.folder / id / "thing.run" / LOCK
        try:
            return is_locked(path)
        except InputError:  # its words would tell the server's paths
            told = path.relative_to(self.studio.folder)
            raise InputError(f"{told} in the server's folder is another user's: remove that lesson there") from None

    def _check_free(self) -> None:
        if any(map(self._busy, self.ids())):
            raise InputError("another thing is being learned: wait until it is, or stop it")

    def _watch(self, id: str, child: subprocess.Popen[bytes]) -> None:
        try:
            child.wait(self.studio.limits.learning_seconds)
        except subprocess.TimeoutExpired:
            self.stop(id)
            child.wait()

    def _fault(self, id: str) -> str:
        child, path = self._children.get(id), self.folder / id / "fault.txt"
        text = path.read_text(errors="replace") if path.is_file() else ""
        told = [line.split("belvedere: error: ", 1)[1] for line in text.splitlines() if "belvedere: error: " in line]
        if told:
            return told[-1].replace(str(self.folder / id), "the lesson")
        failed = child is not None and child.returncode not in (0, *TOLD_TO_END)
        return "learning ended unexpectedly: see fault.txt of the lesson in the server's folder" if failed else ""
