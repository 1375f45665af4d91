"""The one door: picture i depends on (seed, i) alone, and can be made again or its difference told."""

import functools
import json
import re
import shutil
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from belvedere.apps import compare, output, record, work
from belvedere.apps.requests import GenerateRequest
from belvedere.errors import InputError
from belvedere.generation import rooms
from belvedere.generation.fitv2 import FiTv2
from belvedere.generation.fitv2_pipeline import FiTv2Pipeline
from tests.conftest import CLASSES

SIZES = ((16, 16), (32, 16), (8, 24), (48, 48), (4, 4))
"""48x48 fills a network call of its own, 4x4 is one token."""
NAMES = {0: "tench, Tinca tinca", 1: "goldfish", 2: "crane", 3: "crane, a machine", 517: "Great White"}


@pytest.fixture(scope="module")
def asked(tiny_model: Path) -> GenerateRequest:
    return GenerateRequest(str(tiny_model), ("boat", 3), count=20, seed=7, steps=2, device="cpu")


@pytest.fixture(scope="module")
def pictures(asked: GenerateRequest) -> list[work.Picture]:
    return list(work.generate(asked))


@pytest.fixture(scope="module")
def mixed(tiny_fitv2: Path) -> GenerateRequest:
    return GenerateRequest(str(tiny_fitv2), ("boat", 3), count=10, seed=7, device="cpu", sizes=SIZES)


@pytest.fixture(scope="module")
def mixed_pictures(mixed: GenerateRequest) -> list[work.Picture]:
    return list(work.generate(mixed))


def digests(pictures: Iterable[work.Picture]) -> list[str]:
    return [picture.record.pixels for picture in pictures]


def written(picture: work.Picture, folder: Path, kind: str = "png") -> Path:
    path = folder / f"x.{output.FORMATS[kind]}"
    output.save(picture.image, path, picture.record.to_json())
    return path


def test_classes_take_turns_and_every_picture_differs(pictures: list[work.Picture]) -> None:
    assert [picture.record.kind for picture in pictures[:4]] == ["boat", "rocket", "boat", "rocket"]
    assert [picture.record.index for picture in pictures] == list(range(20))
    assert len({picture.record.pixels for picture in pictures}) == 20
    assert pictures[3].record.pixels == record.pixel_digest(pictures[3].image)
    assert pictures[0].image.size == (16, 16)


def test_the_record_holds_what_was_used(asked: GenerateRequest, pictures: list[work.Picture]) -> None:
    assert pictures[5].record.request == replace(asked, guidance=1.5, dtype="float32", device="cpu")


def test_a_picture_does_not_depend_on_how_many_are_made(asked: GenerateRequest, pictures: list[work.Picture]) -> None:
    alone = list(work.generate(replace(asked, count=3)))
    assert [picture.record.pixels for picture in alone] == [picture.record.pixels for picture in pictures[:3]]
    job = work.prepare(asked)
    late = list(work.run(job, range(17, 19)))
    assert [picture.record.pixels for picture in late] == [picture.record.pixels for picture in pictures[17:19]]


def test_few_pictures_tell_the_room_of_their_calls_on_a_gpu_and_are_made_again_in_it(
    mixed: GenerateRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The rows of the calls are looked at: on this machine other ones may have the same bits."""
    monkeypatch.setattr(rooms, "full", lambda device: rooms.FULL)
    real, asked = FiTv2Pipeline.__call__, list[int]()

    @functools.wraps(real)
    def call(self: FiTv2Pipeline, *labels: Any, **options: Any) -> Any:
        asked.append(options["room"])
        return real(self, *labels, **options)

    monkeypatch.setattr(FiTv2Pipeline, "__call__", call)
    few, many = replace(mixed, count=5), replace(mixed, count=300, sizes=SIZES[:3])
    made, full = next(work.generate(few)), next(work.generate(many))
    assert asked == [2, rooms.FULL] and (made.record.room, full.record.room) == (2, 0)
    for picture, room in ((made, 2), (full, rooms.FULL)):
        assert work.regenerate(written(picture, tmp_path)).differences == () and asked[-1] == room
    job = work.prepare(few)
    with monkeypatch.context() as patch:
        patch.setattr(FiTv2, "device", property(lambda self: pytest.fail("walked through for a record")))
        assert replace(job, room=2).record(0).room == 2
    assert [picture.record.room for picture in work.run_call([(job, 0)])] == [0] and asked[-1] == rooms.FULL
    monkeypatch.setattr(rooms, "full", lambda device: 1)
    work.regenerate(written(made, tmp_path))
    assert asked[-1] == 1


def test_a_request_of_a_loaded_model_does_not_walk_through_its_network(
    mixed: GenerateRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A batch prepares a million of them before its first picture."""
    model = work.load(mixed)
    for name in ("dtype", "device"):
        monkeypatch.setattr(FiTv2, name, property(lambda self: pytest.fail("walked")))
    assert work.prepare(mixed, model=model).request.dtype == "float32"


def test_sizes_take_turns_and_every_picture_differs(mixed_pictures: list[work.Picture]) -> None:
    assert [picture.image.size for picture in mixed_pictures] == [*SIZES, *SIZES]
    assert len(set(digests(mixed_pictures))) == 10


def test_a_picture_does_not_depend_on_the_others_of_other_sizes(
    mixed: GenerateRequest, mixed_pictures: list[work.Picture]
) -> None:
    job, expected = work.prepare(mixed), digests(mixed_pictures)
    assert [digests(work.run(job, range(i, i + 1))) for i in range(10)] == [[digest] for digest in expected]
    assert digests(work.run(job, range(9, -1, -1))) == expected[::-1]
    square = digests(work.generate(replace(mixed, sizes=SIZES[:1])))
    assert square[::5] == expected[::5] and square[1] != expected[1]


def test_the_record_holds_the_sizes_and_the_extrapolation_used(
    mixed: GenerateRequest, mixed_pictures: list[work.Picture]
) -> None:
    assert mixed_pictures[9].record.request == replace(
        mixed, steps=3, guidance=1.5, dtype="float32", extrapolation="none"
    )
    assert work.prepare(replace(mixed, sizes=())).request.sizes == ((16, 16),)


def test_extrapolation_changes_sizes_beyond_training_alone(mixed: GenerateRequest) -> None:
    two = replace(mixed, count=2, sizes=((16, 16), (32, 16)))
    plain, turned = list(work.generate(two)), list(work.generate(replace(two, extrapolation="vision-ntk")))
    assert turned[0].record.request.extrapolation == "vision-ntk"
    assert [a == b for a, b in zip(digests(plain), digests(turned), strict=True)] == [True, False]


def test_a_whole_number_guides_as_well(mixed: GenerateRequest) -> None:
    whole, decimal = (work.generate(replace(mixed, count=2, guidance=guidance)) for guidance in (2, 2.0))
    assert digests(whole) == digests(decimal)


@pytest.mark.parametrize("index", [3, 7, 9])
def test_one_of_many_sizes_is_regenerated_bit_for_bit(
    mixed_pictures: list[work.Picture], tmp_path: Path, index: int
) -> None:
    done = work.regenerate(written(mixed_pictures[index], tmp_path))
    assert done.differences == ()
    assert done.picture.image.tobytes() == mixed_pictures[index].image.tobytes()
    assert done.picture.record == mixed_pictures[index].record


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"sizes": ((16, 16), (17, 16))}, "size 17x16: this model makes multiples of 4 pixels a side"),
        ({"sizes": ((16, 2),)}, "size 16x2: this model makes multiples of 4"),
        ({"extrapolation": "magic"}, "unknown extrapolation 'magic': choose from none, pi, "),
    ],
)
def test_what_fitv2_cannot_make_is_refused_before_any_work(
    mixed: GenerateRequest, values: dict[str, object], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        work.prepare(replace(mixed, **values))


@pytest.mark.parametrize("values", [{"sizes": ((16, 32),)}, {"sizes": ((16, 16), (32, 32))}, {"extrapolation": "none"}])
def test_a_model_of_one_size_makes_no_other(asked: GenerateRequest, values: dict[str, object]) -> None:
    with pytest.raises(InputError) as error:
        work.prepare(replace(asked, **values))
    assert str(error.value) == (f"model {asked.model} makes pictures of 16x16 only; leave out size and extrapolation")


def test_a_model_of_one_size_accepts_its_own(asked: GenerateRequest, pictures: list[work.Picture]) -> None:
    """Named or not, it is the same picture, and may be written over itself."""
    (picture,) = work.generate(replace(asked, count=1, sizes=((16, 16),)))
    assert picture.image.tobytes() == pictures[0].image.tobytes()
    assert picture.record.origin == pictures[0].record.origin


def test_a_model_tells_its_names_once(asked: GenerateRequest) -> None:
    model = work.load(asked)
    one, other = (work.prepare(replace(asked, seed=seed), model=model) for seed in (1, 2))
    assert one.names is other.names and list(one.names.values()) == list(CLASSES)


def test_no_classes_means_all_in_turn(tiny_model: Path) -> None:
    made = work.generate(GenerateRequest(str(tiny_model), count=5, steps=1))
    assert [picture.record.kind for picture in made] == [*CLASSES, CLASSES[0]]


def test_progress_rises_to_the_end(asked: GenerateRequest) -> None:
    seen: list[float] = []
    made = list(work.generate(replace(asked, steps=3), progress=lambda done, total: seen.append(done / total)))
    assert len(made) == 20
    assert seen == sorted(seen)
    assert 0 < seen[0] < 1 and seen[-1] == 1
    assert len(seen) == 9  # 3 micro-batches of 3 steps


def test_an_interrupt_comes_through_between_steps(asked: GenerateRequest) -> None:
    def interrupt(done: float, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        list(work.generate(asked, progress=interrupt))


@pytest.mark.parametrize(
    ("item", "found"),
    [
        ("goldfish", 1),
        (" Goldfish ", 1),
        ("Tinca tinca", 0),
        ("tench", 0),
        ("tench, Tinca tinca", 0),
        (517, 517),
        ("2", 2),
    ],
)
def test_a_class_is_found(item: str | int, found: int) -> None:
    assert work.find_class(item, NAMES) == found


@pytest.mark.parametrize(
    ("item", "message"),
    [
        ("gold fish", "no class 'gold fish' in this model: did you mean goldfish"),
        ("xyz", "no class 'xyz' in this model: it knows tench, Tinca tinca, goldfish"),
        ("crane", "class 'crane' is ambiguous: choose by id, 2 or 3"),
        (518, "no class 518: this model has ids 0 to 517"),
        ("4", "no class 4"),
    ],
)
def test_a_class_that_is_not_there_is_explained(item: str | int, message: str) -> None:
    with pytest.raises(InputError, match=message):
        work.find_class(item, NAMES)


@pytest.mark.parametrize("labels", [{"x": "car"}, {"0": "car", "9": "boat"}, {"-1": "car"}, {"0": "\x1b[31m"}])
def test_hostile_class_names_are_refused(tiny_model: Path, tmp_path: Path, labels: dict[str, str]) -> None:
    folder = tmp_path / "model"
    shutil.copytree(tiny_model, folder)
    (folder / "card.json").unlink()
    index = json.loads((folder / "model_index.json").read_text())
    (folder / "model_index.json").write_text(json.dumps({**index, "id2label": labels}))
    with pytest.raises(InputError, match=r"model_index\.json: "):
        work.prepare(GenerateRequest(str(folder)))


@pytest.mark.parametrize("kind", output.FORMATS)
def test_regenerated_bit_for_bit(pictures: list[work.Picture], tmp_path: Path, kind: str) -> None:
    done = work.regenerate(written(pictures[18], tmp_path, kind))
    assert done.differences == ()
    assert done.picture.image.tobytes() == pictures[18].image.tobytes()
    assert done.picture.record == pictures[18].record


def test_other_weights_are_told(pictures: list[work.Picture], tmp_path: Path, other_model: Path) -> None:
    changes = {"png": r"\d+ of 256 pixels differ, by at most \d+ of 255", "jpeg": "the pixels before compression"}
    for kind, change in changes.items():
        done = work.regenerate(written(pictures[2], tmp_path, kind), model=str(other_model))
        assert len(done.differences) == 2
        assert re.match(change, done.differences[0])
        assert done.differences[1].startswith(f"weights: {pictures[2].record.weights[:12]} then, ")


def test_a_changed_record_is_told(pictures: list[work.Picture], tmp_path: Path) -> None:
    image, old = pictures[2]
    changed = replace(old, request=replace(old.request, seed=8))
    done = work.regenerate(written(work.Picture(image, changed), tmp_path))
    assert "pixels differ" in done.differences[0]
    assert done.differences[1:] == ("model, versions and machine are the same: the record was changed",)
    other = replace(old, machine=replace(old.machine, torch="1.0", threads=10**6))
    done = work.regenerate(written(work.Picture(image, other), tmp_path))
    assert done.differences == ()  # other versions that made the same picture are no difference


@pytest.mark.parametrize(
    ("device", "chosen", "told"),
    [
        ("cpu", "", "the record was changed"),
        ("cpu", "plain", "may depend on BELVEDERE_KERNELS, or the record was changed"),
        ("cuda", "", "on a GPU last bits may depend on the pictures made in the same call, or the record was changed"),
    ],
)
def test_what_no_record_holds_is_told(
    pictures: list[work.Picture], monkeypatch: pytest.MonkeyPatch, device: str, chosen: str, told: str
) -> None:
    monkeypatch.setenv("BELVEDERE_KERNELS", chosen)
    image, made = pictures[2]
    old = replace(made, machine=replace(made.machine, device=device))
    _, cause = compare.differences(image, old, image, replace(old, pixels=""))
    assert cause.endswith(told)


def test_changed_pixels_are_told(pictures: list[work.Picture], tmp_path: Path) -> None:
    image, old = pictures[2]
    image = image.copy()
    red, green, blue = image.getpixel((3, 4))
    image.putpixel((3, 4), (red ^ 4, green, blue))
    done = work.regenerate(written(work.Picture(image, old), tmp_path))
    assert done.differences == ("the file was changed after it was made: 1 of 256 pixels differ, by at most 4 of 255",)
    done = work.regenerate(written(work.Picture(image.resize((8, 8)), old), tmp_path))
    assert done.differences == ("the file was changed after it was made: size 8x8 became 16x16",)


def test_versions_are_named_when_the_picture_differs(pictures: list[work.Picture], tmp_path: Path) -> None:
    image, old = pictures[2]
    changed = replace(old, pixels="00" * 32, machine=replace(old.machine, torch="1.0", name="Z80"))
    lines = work.regenerate(written(work.Picture(image, changed), tmp_path)).differences
    assert any(line.startswith("torch: 1.0 then, ") for line in lines)
    assert any(line.startswith("name: Z80 then, ") for line in lines)


def test_a_picture_cannot_make_this_machine_download(pictures: list[work.Picture], tmp_path: Path) -> None:
    image, old = pictures[0]
    away = replace(old, request=replace(old.request, model="somebody/model"))
    with pytest.raises(InputError, match="somebody/model is not on this machine; --model somebody/model fetches it"):
        work.regenerate(written(work.Picture(image, away), tmp_path))


def test_a_truncated_picture_is_refused(pictures: list[work.Picture], tmp_path: Path) -> None:
    path = written(pictures[0], tmp_path)
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(InputError, match="damaged picture"):
        work.regenerate(path)


def test_a_picture_without_a_record_is_refused(tmp_path: Path) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "x.png")
    with pytest.raises(InputError, match="carries no Belvedere record"):
        work.regenerate(tmp_path / "x.png")


def test_the_record_fits_its_json(pictures: list[work.Picture]) -> None:
    assert json.loads(pictures[0].record.to_json())["request"] == {
        **pictures[0].record.request.to_dict(),
        "classes": ["boat", 3],
        "prompts": [],
        "concepts": [],
        "sizes": [],
    }
