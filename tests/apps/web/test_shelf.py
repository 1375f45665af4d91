"""Results stay, whole and within bounds, and nothing but them can be had from the shelf."""

import json
import os
import threading
import time
from pathlib import Path

import pytest

from belvedere.apps.web import making
from belvedere.apps.web.limits import Limits
from belvedere.apps.web.shelf import ALPHABET, STALE, Shelf
from belvedere.apps.web.studio import Studio
from belvedere.errors import InputError


def age(folder: Path, seconds: float) -> None:
    """Make a folder look as if it had last changed so long ago."""
    os.utime(folder, (time.time() - seconds,) * 2)


def test_a_result_comes_back_also_after_a_restart(tmp_path: Path) -> None:
    shelf = Shelf(tmp_path / "results")
    first = shelf.put("Make", {"picture.png": b"one"}, {"title": "car"})
    second = shelf.put("Orbit", {"orbit.mp4": b"two", "scene.glb": b"three"}, {})
    assert len(first) == 20 and set(first) <= set(ALPHABET) and first != second
    for there in (shelf, Shelf(tmp_path / "results")):
        assert [entry.id for entry in there.newest(None, 9)] == [second, first]
        assert [entry.id for entry in there.newest("Make", 9)] == [first]
        assert there.newest(None, 1)[0].names == ("orbit.mp4", "scene.glb")
        assert there.entry(first).facts == {"title": "car"} and there.entry(first).room == "Make"
        assert there.file(first, "picture.png").read_bytes() == b"one"
        assert there.used == (2, 11)


def test_the_oldest_go(tmp_path: Path) -> None:
    shelf = Shelf(tmp_path, results=3, result_bytes=100)
    ids = [shelf.put("Make", {"a.png": bytes(10)}, {}) for _ in range(5)]
    assert [entry.id for entry in shelf.newest(None, 9)] == ids[:1:-1]
    large = shelf.put("Make", {"a.png": bytes(85)}, {})
    assert [entry.id for entry in shelf.newest(None, 9)] == [large, ids[-1]]
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([large, ids[-1]])
    with pytest.raises(InputError, match="does not keep"):
        shelf.put("Make", {"a.png": bytes(101)}, {})


def test_concepts_go_after_all_others(tmp_path: Path) -> None:
    shelf = Shelf(tmp_path, results=3)
    concepts = [shelf.put("Personalise", {"a.safetensors": b"x"}, {"kind": "concept"}) for _ in range(2)]
    *_, last = [shelf.put("Make", {"a.png": b"x"}, {}) for _ in range(3)]
    assert [entry.id for entry in shelf.newest(None, 9)] == [last, *concepts[::-1]]
    more = [shelf.put("Personalise", {"a.safetensors": b"x"}, {"kind": "concept"}) for _ in range(2)]
    assert [entry.id for entry in shelf.newest(None, 9)] == [*more[::-1], concepts[1]]
    picture = shelf.put("Make", {"a.png": b"x"}, {})
    assert [entry.id for entry in shelf.newest(None, 9)] == [picture, *more[::-1]], "what is new stays"


def test_emptying_leaves_nothing(tmp_path: Path) -> None:
    shelf = Shelf(tmp_path)
    key = shelf.put("Make", {"a.png": b"x"}, {})
    shelf.empty()
    assert shelf.used == (0, 0) and list(tmp_path.iterdir()) == []
    with pytest.raises(InputError, match="no such result"):
        shelf.file(key, "a.png")


@pytest.mark.parametrize(
    "name",
    ["..", "../a.png", "/etc/passwd", "..\\a.png", "\\\\host\\share", "facts.json", "a.png\0", ".hidden", "A.PNG", "a"],
)
def test_other_names_are_neither_written_nor_read(name: str, tmp_path: Path) -> None:
    shelf = Shelf(tmp_path)
    key = shelf.put("Make", {"a.png": b"x"}, {})
    with pytest.raises(InputError):
        shelf.file(key, name)
    with pytest.raises(ValueError, match="not a name"):
        shelf.put("Make", {name: b"x"}, {})


@pytest.mark.parametrize("key", ["", ".", "..", "a" * 20, "../../etc", None, "\0"])
def test_other_ids_are_refused(key: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such result"):
        Shelf(tmp_path).file(key, "a.png")


def test_a_link_out_of_the_shelf_is_not_followed(tmp_path: Path) -> None:
    secret = tmp_path / "secret.png"
    secret.write_bytes(b"secret")
    shelf = Shelf(tmp_path / "results")
    key = shelf.put("Make", {"a.png": b"x"}, {})
    path = tmp_path / "results" / key / "a.png"
    path.unlink()
    path.symlink_to(secret)
    for there in (shelf, Shelf(tmp_path / "results")):
        with pytest.raises(InputError, match="no such result"):
            there.file(key, "a.png")


def test_what_was_left_half_written_goes_and_foreign_folders_stay(tmp_path: Path) -> None:
    half, foreign, damaged = tmp_path / f".{'a' * 20}.new", tmp_path / "mine", tmp_path / ("b" * 20)
    for folder in (half, foreign, damaged):
        folder.mkdir()
    (damaged / "facts.json").write_text("{")
    age(half, STALE + 1)
    shelf = Shelf(tmp_path)
    assert shelf.newest(None, 9) == []
    shelf.empty()
    assert not half.exists() and foreign.exists() and damaged.exists()


def test_a_result_that_cannot_be_written_leaves_nothing(tmp_path: Path) -> None:
    shelf = Shelf(tmp_path)
    with pytest.raises(TypeError):
        shelf.put("Make", {"a.png": "text"}, {})  # type: ignore[dict-item]
    assert list(tmp_path.iterdir()) == [] and shelf.used == (0, 0)


def test_many_threads_share_it(tmp_path: Path) -> None:
    shelf = Shelf(tmp_path, results=10)
    threads = [
        threading.Thread(target=lambda: [shelf.put("Make", {"a.png": b"x"}, {}) for _ in range(5)]) for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(shelf.newest(None, 99)) == len(list(tmp_path.iterdir())) == 10
    assert all(json.loads((tmp_path / entry.id / "facts.json").read_text()) for entry in shelf.newest(None, 99))


def test_two_studios_on_one_folder_see_each_others_results(tmp_path: Path) -> None:
    one, other = (Studio(tmp_path, "cpu", Limits(results=3)) for _ in range(2))
    first = one.shelf.put("Make", {"a.png": b"x"}, {"title": "car"})
    assert [entry.id for entry in making.earlier(other)] == [first] and other.shelf.used == (1, 1)
    age(one.shelf.folder, 60)  # settled: what is known is not read again ...
    assert [entry.id for entry in making.earlier(one)] == [first]
    second = other.shelf.put("Make", {"a.png": b"yz"}, {})
    assert [entry.id for entry in making.earlier(one)] == [second, first]  # ... until something changes
    assert one.shelf.file(second, "a.png").read_bytes() == b"yz"
    third, fourth = (studio.shelf.put("Orbit", {"a.png": b"x"}, {}) for studio in (one, other))
    for studio in (one, other):
        assert [entry.id for entry in studio.shelf.newest(None, 9)] == [fourth, third, second]  # 3 in the folder
        with pytest.raises(InputError, match="no such result"):
            studio.shelf.entry(first)
    other.shelf.empty()
    assert one.shelf.used == (0, 0)


def test_what_another_server_is_writing_is_left_to_it(tmp_path: Path) -> None:
    half = tmp_path / f".{'a' * 20}.new"
    half.mkdir()
    Shelf(tmp_path)
    assert half.is_dir()


def test_a_folder_that_is_gone_has_no_results(tmp_path: Path) -> None:
    shelf = Shelf(tmp_path / "results")
    key = shelf.put("Make", {"a.png": b"x"}, {})
    (tmp_path / "results").rename(tmp_path / "away")
    assert shelf.newest(None, 9) == []
    (tmp_path / "away").rename(tmp_path / "results")
    assert shelf.entry(key).room == "Make"
