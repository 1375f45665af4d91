"""The manifest: claims are exclusive, a transaction holds whole or not at all, the dead hold nothing."""

import sqlite3
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from belvedere.apps.batch_jobs import Fault, Line
from belvedere.apps.batch_manifest import Counts, File, Kept, Made, Manifest
from belvedere.apps.batch_plan import Piece, Plan, Planned
from belvedere.apps.requests import GenerateRequest
from belvedere.errors import InputError

ONE = Line(3, "one", GenerateRequest("a"))
TWO = Line(5, "two", GenerateRequest("b", count=4))


def planned(line: Line, weights: str = "") -> Planned:
    return Planned(line, weights, line.request, (8, 8), 4)


def plan() -> Plan:
    pieces = [Piece("a", [[(0, 0)]]), Piece("b", [[(1, 0), (1, 2)], [(1, 1)]]), Piece("b", [[(1, 3)]])]
    return Plan([planned(ONE, "w"), planned(TWO, "v")], [Fault(4, "wrong")], pieces)


@pytest.fixture
def manifest(tmp_path: Path) -> Manifest:
    found = Manifest(tmp_path / "m.sqlite")
    found.store(plan(), {"jobs": "digest", "shard": [1, 1]})
    return found


def made(job: int, number: int) -> Made:
    return Made(job, number, "sha", "pixels", 7, 0.5, "now")


def test_it_holds_what_it_was_given(manifest: Manifest) -> None:
    assert manifest.settings() == {"jobs": "digest", "shard": [1, 1]}
    assert manifest.faults() == [Fault(4, "wrong")]
    assert manifest.jobs() == {
        "one": (ONE.request.to_json(), "w", 1, 0),
        "two": (TWO.request.to_json(), "v", 4, 0),
    }
    assert manifest.numbers("two") == {0, 1, 2, 3} and manifest.numbers("three") == set()
    assert manifest.counts() == Counts(5, 0, 0, 5)


def test_a_claim_prefers_the_model_that_is_loaded(manifest: Manifest) -> None:
    claim = manifest.claim("me", "b")
    assert claim is not None and claim.piece == 1
    assert [[(picture.name, picture.number) for picture in call] for call in claim.calls] == [
        [("two-00000", 0), ("two-00002", 2)],
        [("two-00001", 1)],
    ]
    assert claim.calls[0][0].request == TWO.request and claim.calls[0][0].weights == "v"
    others = [manifest.claim("me", "b"), manifest.claim("me", "b"), manifest.claim("me", "b")]
    assert [other and other.piece for other in others] == [2, 0, None]
    assert others[1] and others[1].calls[0][0].name == "one"


def test_what_is_done_is_not_claimed_again(manifest: Manifest) -> None:
    claim = manifest.claim("me")
    assert claim is not None and claim.piece == 0
    manifest.finish(0, [made(1, 0)], None)
    assert manifest.counts() == Counts(5, 1, 0, 4)
    assert manifest.release([]) == 0
    again = manifest.claim("me")
    assert again is not None and again.piece == 1
    assert list(manifest.kept()) == [Kept(0, "one", 7, "sha")]
    assert [manifest.jobs()[name].done for name in ("one", "two")] == [1, 0]


def test_files_of_many_pictures_are_kept_as_files(manifest: Manifest) -> None:
    manifest.claim("me", "b")
    manifest.finish(1, [made(2, 0), made(2, 1), made(2, 2)], File("pictures-00001.tar", 99, "tar"))
    assert list(manifest.kept()) == [Kept(1, "pictures-00001.tar", 99, "tar")]


def test_the_dead_hold_nothing(manifest: Manifest) -> None:
    for owner in ("dead", "alive"):
        manifest.claim(owner, "b")
    assert manifest.release(["alive"]) == 1
    assert manifest.release(["alive"]) == 0
    again = manifest.claim("me", "b")
    assert again is not None and again.piece == 1


def test_what_failed_is_tried_when_asked_for(manifest: Manifest) -> None:
    manifest.claim("me", "b")
    manifest.fail(1, "no memory")
    assert manifest.counts() == Counts(5, 0, 3, 2)
    assert manifest.failures() == [(1, 3, "no memory")]
    manifest.retry()
    assert manifest.counts() == Counts(5, 0, 0, 5)


def test_what_has_not_failed_goes_first(manifest: Manifest) -> None:
    manifest.fail(0, "no memory")
    manifest.fail(1, "no memory")
    manifest.retry()
    assert manifest.busy(["a"]) and not manifest.busy(["a", "b"])
    claims = [manifest.claim("me", "b"), manifest.claim("me", "", ["b"]), manifest.claim("me", "", ["b"])]
    assert [claim and claim.piece for claim in claims] == [2, 0, None]
    assert manifest.busy(["a", "b"])  # with what is taken
    last = manifest.claim("me")
    assert last and last.piece == 1


def test_what_is_lost_is_made_again(manifest: Manifest) -> None:
    manifest.claim("me")
    manifest.finish(0, [made(1, 0)], None)
    manifest.reopen([0])
    assert manifest.counts().done == 0 and list(manifest.kept()) == []


def test_what_is_lost_of_a_job_without_a_line_is_dropped(manifest: Manifest) -> None:
    manifest.claim("me")
    manifest.finish(0, [made(1, 0)], None)
    manifest.store(Plan(), {}, ["one"], {"one": 0, "two": 9})
    assert manifest.lists(ONE, 0) and not manifest.lists(ONE, 1)
    manifest.reopen([0])
    assert manifest.counts() == Counts(4, 0, 0, 4) and not manifest.lists(ONE, 0)
    assert manifest.lists(TWO, 3) and not manifest.lists(TWO._replace(request=ONE.request), 3)


def test_jobs_come_and_go_while_what_is_done_stays(manifest: Manifest) -> None:
    manifest.claim("me", "b")
    manifest.finish(1, [made(2, 0), made(2, 1), made(2, 2)], None)
    new = Line(1, "three", GenerateRequest("c", count=2))
    assert manifest.next_piece() == 3
    manifest.store(Plan([planned(new, "u")], [], [Piece("c", [[(0, 0), (0, 1)]])]), {"jobs": "new"}, ["one", "two"])
    assert manifest.counts() == Counts(5, 3, 0, 2)
    assert sorted(manifest.jobs()) == ["three", "two"]
    assert manifest.settings() == {"jobs": "new", "shard": [1, 1]}
    claim = manifest.claim("me")
    assert claim is not None and claim.piece == 3
    assert [one.name for one in claim.calls[0]] == ["three-00000", "three-00001"]
    assert manifest.claim("me") is None


def test_what_was_dropped_of_a_job_is_added_again(manifest: Manifest) -> None:
    manifest.claim("me", "b")
    manifest.finish(1, [made(2, 0), made(2, 1), made(2, 2)], None)
    manifest.store(Plan(), {}, ["two"])
    assert manifest.jobs()["two"] == (TWO.request.to_json(), "v", 3, 3) and manifest.numbers("two") == {0, 1, 2}
    manifest.store(Plan([planned(TWO, "others")], [], [Piece("b", [[(0, 3)]])]), {})
    assert manifest.jobs()["two"] == (TWO.request.to_json(), "v", 4, 3)
    claim = manifest.claim("me", "b")
    assert claim is not None and [(one.name, one.weights) for one in claim.calls[0]] == [("two-00003", "v")]


def test_a_plan_that_cannot_be_stored_leaves_nothing(tmp_path: Path) -> None:
    manifest = Manifest(tmp_path / "m.sqlite")
    twice = Plan([planned(ONE), planned(ONE)], [], [])
    with pytest.raises(InputError, match=r"m\.sqlite: UNIQUE constraint failed: jobs\.name; see to the disk"):
        manifest.store(twice, {"jobs": "x"})
    assert manifest.settings() == {} and manifest.jobs() == {}


def test_many_threads_claim_each_piece_once(tmp_path: Path) -> None:
    big = Plan([planned(Line(1, "x", GenerateRequest("a", count=120)))], [], [])
    big.pieces = [Piece("a", [[(0, i)]]) for i in range(120)]
    Manifest(tmp_path / "m.sqlite").store(big, {})
    taken: list[int] = []

    def work(owner: str) -> None:
        own = Manifest(tmp_path / "m.sqlite")
        while claim := own.claim(owner):
            taken.append(claim.piece)
        own.close()

    threads = [threading.Thread(target=work, args=(f"w{i}",)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(taken) == list(range(120))


def test_many_begin_one_at_once(tmp_path: Path) -> None:
    at_once = threading.Barrier(4)

    def begin(path: Path) -> None:
        at_once.wait()
        Manifest(path).close()

    with ThreadPoolExecutor(4) as pool:
        for i in range(40):
            path = tmp_path / f"{i}.sqlite"
            list(pool.map(begin, [path] * 4))  # raises what any of them raises
    assert Manifest(path).settings() == {}


def test_it_can_be_read_by_anybody(manifest: Manifest, tmp_path: Path) -> None:
    manifest.claim("me")
    manifest.finish(0, [made(1, 0)], None)
    query = "SELECT name, line, state, sha256, seconds FROM manifest ORDER BY line, number"
    rows = sqlite3.connect(tmp_path / "m.sqlite").execute(query).fetchall()
    assert rows[0] == ("one", 3, "done", "sha", 0.5)
    assert rows[1] == ("two-00000", 5, "open", None, None) and len(rows) == 5


@pytest.mark.parametrize("content", [b"no database at all" * 100, b"SQLite format 3\0" + b"\xff" * 500])
def test_a_damaged_manifest_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "m.sqlite"
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"m\.sqlite: file is not a database; see to the disk, or move the file away"):
        Manifest(path)
    assert path.read_bytes() == content


def test_a_name_that_leads_elsewhere_is_refused(manifest: Manifest, tmp_path: Path) -> None:
    with sqlite3.connect(tmp_path / "m.sqlite") as other:
        other.execute("UPDATE jobs SET name = '../../one' WHERE name = 'one'")
        other.execute("UPDATE pieces SET file = '/etc/passwd', state = 'done', bytes = 1, sha256 = '' WHERE id = 1")
    with pytest.raises(InputError, match=r"holds the name '\.\./\.\./one', which is none"):
        manifest.claim("me")
    with pytest.raises(InputError, match="holds the name '/etc/passwd'"):
        list(manifest.kept())


def test_another_database_is_refused(tmp_path: Path) -> None:
    other = sqlite3.connect(tmp_path / "m.sqlite")
    other.execute("CREATE TABLE x(y)")
    other.close()
    with pytest.raises(InputError, match="is no manifest of this version"):
        Manifest(tmp_path / "m.sqlite")
