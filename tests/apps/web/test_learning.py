"""Lessons: what is refused, what a folder tells, and a process that is stopped, goes on and ends with a concept."""

import errno
import fcntl
import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from belvedere.apps.web import concept_results, room_personalise
from belvedere.apps.web.learning import Classroom, classroom_of
from belvedere.apps.web.lesson import OUT, Lesson, Progress, command, environment, read_log
from belvedere.apps.web.limits import Limits
from belvedere.apps.web.shelf import ALPHABET, LASTING
from belvedere.apps.web.studio import Studio
from belvedere.checkpoints import store
from belvedere.checkpoints.concepts import load_concept
from belvedere.errors import InputError
from tests.apps.diffusion_helpers import AUTOENCODER, DIFFUSION, train_config

ID = "a" * 20
LESSON = Lesson("<thing>", "car", "tiny", 10, 3, 1.0)


@pytest.fixture
def classroom(studio: Studio) -> Iterator[Classroom]:
    room = Classroom(studio)
    yield room
    room.close()


@pytest.fixture
def photographs(tmp_path: Path) -> list[str]:
    paths = [tmp_path / f"{i}.png" for i in range(3)]
    for i, path in enumerate(paths):
        Image.new("RGB", (40, 30), (80 * i, 100, 50)).save(path)
    return [str(path) for path in paths]


LIKE = {"step": 2, "image_similarity": 0.618, "recognised": 0.75}
"""What a judge says of a sheet."""


def write(classroom: Classroom, *rows: Any, lesson: Lesson = LESSON, id: str = ID) -> Path:
    """Make the folder of a lesson with these rows in its log."""
    run = classroom.folder / id / "thing.run"
    run.mkdir(parents=True, exist_ok=True)
    (classroom.folder / id / "lesson.json").write_text(json.dumps(vars(lesson)))
    (run / "log.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows) + '{"step": 3, "lo')
    return run


def test_a_folder_tells_how_far_its_lesson_is(classroom: Classroom) -> None:
    run = write(classroom, {"step": 0, "event": "began"}, {"step": 2, "loss": 0.5, "seconds_left": 7.0}, LIKE)
    (run / "sheets").mkdir()
    for step in (1, 2):
        Image.new("RGB", (8, 8)).save(run / "sheets" / f"step-{step:08d}.png")
    found = classroom.look(ID)
    assert (found.status, found.step, found.losses, found.seconds_left) == ("stopped", 2, ((2, 0.5),), 7.0)
    assert [path.name[-5] for path in found.sheets] == ["1", "2"]
    shown = room_personalise.lesson_shown(found)
    assert "likeness 0.62" in shown and shown.count("likeness") == 1  # of the second sheet: nobody judged the first
    assert "step 2 of 10" in shown and "Step 2" in shown and "&lt;thing&gt;" in shown and "<thing>" not in shown


def test_a_lesson_whose_folder_is_held_is_being_learned(classroom: Classroom, photographs: list[str]) -> None:
    run = write(classroom)
    with (run / ".lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        assert classroom.look(ID).status == "learning"
        assert 'aria-busy="true"' in room_personalise.lesson_shown(classroom.look(ID))
        with pytest.raises(InputError, match="another thing is being learned"):
            classroom.go_on(ID)
    assert classroom.look(ID).status == "stopped"
    assert 'aria-busy="false"' in room_personalise.lesson_shown(classroom.look(ID))


def test_a_lesson_of_another_user_is_told_without_the_servers_paths(
    classroom: Classroom, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(classroom)

    def refuse(path: Path, *_: Any) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(InputError, match=rf"lessons/{ID}/thing.run/.lock .* is another user's: remove") as refused:
        classroom._held(ID)
    assert str(classroom.studio.folder) not in str(refused.value)
    monkeypatch.setattr(Path, "is_file", refuse)
    assert classroom.ids() == []


def ended(code: int) -> subprocess.Popen[bytes]:
    """A process that has ended with this code."""
    child = subprocess.Popen([sys.executable, "-c", f"raise SystemExit({code})"])
    child.wait()
    return child


def test_a_lesson_that_another_server_goes_on_with_is_being_learned(classroom: Classroom) -> None:
    run = write(classroom)
    write(classroom, lesson=Lesson("<b>", "car", "tiny", 10, 3, 2.0), id="b" * 20)
    classroom._children[ID] = ended(0)
    with (run / ".lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        assert classroom.look(ID).status == "learning"
        for id in (ID, "b" * 20):  # it is not the newest
            with pytest.raises(InputError, match="another thing is being learned"):
                classroom.go_on(id)
    assert classroom.look(ID).status == "stopped"


@pytest.mark.parametrize(("code", "status"), [(0, "stopped"), (143, "stopped"), (1, "failed")])
def test_a_process_that_is_told_to_end_before_it_learns_has_not_failed(
    classroom: Classroom, code: int, status: str
) -> None:
    write(classroom)
    classroom._children[ID] = ended(code)
    assert classroom.look(ID).status == status


def test_the_end_of_the_server_is_that_of_its_lessons(studio: Studio, classroom: Classroom) -> None:
    child = classroom._children[ID] = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    assert studio.close(1.0)
    assert child.returncode == -15


def test_the_newest_lesson_is_that_which_began_last(classroom: Classroom) -> None:
    assert classroom.newest() == ""
    write(classroom, lesson=Lesson("<b>", "car", "tiny", 10, 3, 2.0), id="b" * 20)
    write(classroom, lesson=Lesson("<c>", "car", "tiny", 10, 3, 1.0), id="c" * 20)
    (classroom.folder / "other").mkdir()
    assert classroom.newest() == "b" * 20


def fill(classroom: Classroom, *learned: int) -> list[str]:
    """Write as many lessons as are kept, the oldest first, of which those of these numbers are learned."""
    ids = [letter * 20 for letter in ALPHABET[: classroom.studio.limits.lessons]]
    for when, id in enumerate(ids):
        write(classroom, lesson=Lesson("<b>", "car", "tiny", 10, 3, float(when)), id=id)
        if when in learned:
            (classroom.folder / id / OUT).write_bytes(b"x")
    return ids


def test_the_oldest_lessons_go_but_those_that_are_learned_and_not_kept(classroom: Classroom) -> None:
    ids = fill(classroom, 0, 1)
    classroom.studio.shelf.put("Personalise", {"a.safetensors": b"x"}, {"kind": LASTING, "lesson": ids[1]})
    classroom._make_room()
    assert sorted(classroom.ids()) == sorted([ids[0], *ids[2:]]), "the one on the shelf"
    write(classroom, lesson=Lesson("<b>", "car", "tiny", 10, 3, 99.0), id="z" * 20)
    classroom._make_room()
    assert sorted(classroom.ids()) == sorted([ids[0], *ids[3:], "z" * 20])


def test_no_lesson_begins_where_one_that_is_learned_would_have_to_go(
    classroom: Classroom, photographs: list[str]
) -> None:
    ids = fill(classroom, *range(20))
    with pytest.raises(InputError, match="20 lessons are learned and not kept: keep one"):
        classroom.begin(photographs, "<thing>", "car", "toybox-diffusion", 4)
    assert sorted(classroom.ids()) == sorted(ids)


def test_emptying_removes_all_lessons_but_one_that_is_being_learned(classroom: Classroom) -> None:
    run = write(classroom)
    write(classroom, id="b" * 20)
    with (run / ".lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        classroom.empty()
        assert classroom.ids() == [ID]
    classroom.empty()
    assert list(classroom.folder.iterdir()) == []


def test_all_lessons_are_offered_whichever_began_last(classroom: Classroom) -> None:
    assert room_personalise._lessons(classroom) == ""
    write(classroom, lesson=Lesson("<b>", "car", "tiny", 10, 3, 2.0), id="b" * 20)
    classroom._write(classroom.folder / ID, LESSON, [Image.new("RGB", (8, 8))])
    shown = room_personalise._lessons(classroom)
    assert shown.index(f'data-use="{"b" * 20}"') < shown.index(f'data-use="{ID}"')
    assert "Open no. 2: &lt;thing&gt;" in shown and shown.count("data:image/webp") == 1


def test_the_rooms_share_one_classroom(studio: Studio) -> None:
    assert classroom_of(studio) is classroom_of(studio)


def test_a_fault_is_told_in_one_line_without_paths(classroom: Classroom) -> None:
    write(classroom)
    folder = classroom.folder / ID
    (folder / "fault.txt").write_text(f"a warning\nbelvedere: error: {folder}/photographs: no word 'car'\n")
    found = classroom.look(ID)
    assert (found.status, found.fault) == ("failed", "the lesson/photographs: no word 'car'")
    assert found.fault in room_personalise.lesson_shown(found).replace("&#x27;", "'")


@pytest.mark.parametrize("id", ["", "../../etc", "A" * 20, "b" * 20, None, 3])
def test_ids_of_no_lesson_are_refused(classroom: Classroom, id: Any) -> None:
    for act in (classroom.look, classroom.go_on, classroom.stop, classroom.concept):
        with pytest.raises(InputError, match="no such lesson"):
            act(id)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"token": "two words"}, "token"),
        ({"token": ""}, "token"),
        ({"token": "x" * 41}, "token"),
        ({"like": "a\nb"}, "super-category"),
        ({"like": 3}, "super-category"),
        ({"base": "/etc"}, "offers no model"),
        ({"steps": 0}, "1 or more"),
        ({"steps": 2001}, "too many"),
    ],
)
def test_what_cannot_be_learned_is_refused_before_anything_is_written(
    classroom: Classroom, photographs: list[str], changes: dict[str, Any], words: str
) -> None:
    asked = {"token": "<thing>", "like": "car", "base": "toybox-diffusion", "steps": 4} | changes
    with pytest.raises(InputError, match=words):
        classroom.begin(photographs, **asked)
    assert not classroom.folder.exists()


def test_the_number_of_photographs_is_bounded(classroom: Classroom, photographs: list[str]) -> None:
    for given, words in ((photographs[:1], "too few"), (photographs * 20, "too many")):
        with pytest.raises(InputError, match=words):
            classroom.begin(given, "<thing>", "car", "toybox-diffusion", 4)


def test_photographs_that_are_refused_leave_nothing(
    classroom: Classroom, photographs: list[str], tmp_path: Path
) -> None:
    (tmp_path / "text.png").write_text("no picture")
    with pytest.raises(InputError, match="PNG, JPEG or WebP"):
        classroom.begin([*photographs, str(tmp_path / "text.png")], "<thing>", "car", "toybox-diffusion", 4)
    assert not classroom.folder.exists()


def test_a_lesson_is_for_its_owner_alone_to_read(classroom: Classroom) -> None:
    folder = classroom.folder / ID
    classroom._write(folder, LESSON, [Image.new("RGB", (8, 8))])
    assert folder.stat().st_mode & 0o777 == 0o700 and classroom.lesson(ID) == LESSON
    with pytest.raises(AttributeError):
        classroom._write(classroom.folder / ("b" * 20), LESSON, ["no picture"])  # type: ignore[list-item]
    assert [path.name for path in classroom.folder.iterdir()] == [ID]


@pytest.mark.parametrize(
    ("device", "seen", "cards"),
    [
        ("auto", None, None),
        ("cpu", "1,2", "1,2"),
        ("cuda", "1,2", "1,2"),
        ("cuda:3", None, "3"),
        ("cuda:1", "4,GPU-5", "GPU-5"),
        ("cuda:2", "4,5", ""),
    ],
)
def test_a_lesson_keeps_to_the_device_of_the_server(
    device: str, seen: str | None, cards: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("ACCELERATE_USE_CPU", raising=False)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if seen is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", seen)
    found = environment(device)
    assert found.get("CUDA_VISIBLE_DEVICES") == cards
    assert ("ACCELERATE_USE_CPU" in found) == (device == "cpu")


def test_text_from_the_page_cannot_become_an_option(tmp_path: Path) -> None:
    line = command(Lesson("--force", "-x", "toybox-diffusion", 8, 3, 1.0), tmp_path, "toybox-diffusion")
    assert "--token=--force" in line and "--like=-x" in line and "--force" not in line


def test_a_line_that_is_being_written_is_left_out(tmp_path: Path) -> None:
    (tmp_path / "log.jsonl").write_text('{"step": 1}\n[1]\n{"step"')
    assert read_log(tmp_path / "log.jsonl") == [{"step": 1}]
    assert read_log(tmp_path / "none") == []


def until(classroom: Classroom, id: str, wanted: Callable[[Progress], bool]) -> Progress:
    end = time.monotonic() + 240
    while not wanted(found := classroom.look(id)):
        assert time.monotonic() < end, found
        time.sleep(0.1)
    return found


@pytest.mark.slow
def test_a_lesson_is_stopped_goes_on_and_ends_with_a_concept(tmp_path: Path, photographs: list[str]) -> None:
    train_config(AUTOENCODER, tmp_path / "vae")
    base = train_config(DIFFUSION | {"vae": str(tmp_path / "vae" / "model")}, tmp_path / "tiny")
    studio = Studio(tmp_path / "studio", "cpu", Limits(), {"tiny": base})
    classroom = Classroom(studio)
    id = classroom.begin(photographs, "<thing>", "car", "tiny", 20)
    with pytest.raises(InputError, match="another thing"):
        classroom.begin(photographs, "<other>", "car", "tiny", 20)
    until(classroom, id, lambda found: found.step >= 2)
    classroom.stop(id)
    stopped = until(classroom, id, lambda found: found.status != "learning")
    assert stopped.status == "stopped" and stopped.step < 20
    with pytest.raises(InputError, match="not learned yet"):
        concept_results.keep(studio, classroom, id)
    classroom.go_on(id)
    done = until(classroom, id, lambda found: found.status != "learning")
    assert done.status == "learned" and done.step == 20 and len(done.sheets) >= 4, done.fault
    kept = concept_results.keep(studio, classroom, id)
    assert concept_results.keep(studio, classroom, id) == kept
    name = concept_results.name_of(studio.shelf.entry(kept))
    assert name == "thing.concept.safetensors"
    assert load_concept(studio.shelf.file(kept, name)).token == "<thing>"
    with pytest.raises(InputError, match="must hold <thing>"):
        concept_results.make(studio, kept, "a photo of a car", 0.0, 1, 0, 2, lambda _: None)
    ids = concept_results.make(studio, kept, "a photo of a <thing>", 0.5, 2, 0, 2, lambda _: None)
    content = studio.shelf.file(ids[0], concept_results.PICTURE).read_bytes()
    assert str(tmp_path / "studio").encode() not in content
    assert [entry.id for entry in concept_results.pictures(studio, 5)] == ids[::-1]
    assert store.verify(base)
