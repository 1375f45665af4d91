"""Results stay, whole and within bounds, and nothing but them can be had from the shelf."""

import json
import threading
from pathlib import Path

import pytest

from belvedere.apps.web.shelf import ALPHABET, Shelf
from belvedere.errors import InputError


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
