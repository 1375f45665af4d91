import io
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from belvedere.data import Dataset
from belvedere.data.folders import ImageFolder, Parquet
from belvedere.data.ragged import unpack_images
from belvedere.errors import InputError


def png(*colours: int, size: tuple[int, int] = (8, 8)) -> bytes:
    """A picture with vertical bars of these grey values."""
    image = Image.new("L", (len(colours), 1))
    image.putdata(colours)
    stream = io.BytesIO()
    image.resize(size, Image.Resampling.NEAREST).save(stream, "PNG")
    return stream.getvalue()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for kind, grey in (("tulip", 255), ("daisy", 0)):
        (tmp_path / kind).mkdir()
        (tmp_path / kind / "a.png").write_bytes(png(grey))
        (tmp_path / kind / "b.PNG").write_bytes(png(0, 255))
        (tmp_path / kind / "notes.txt").write_text("not a picture")
    return tmp_path


def write(path: Path, pictures: list[Any], labels: list[Any] | None, metadata: dict[str, str] | None = None) -> Path:
    table = {"image": [None if p is None else {"bytes": p, "path": "x.png"} for p in pictures]}
    columns = pa.table(table | ({} if labels is None else {"label": labels}))
    pq.write_table(columns.replace_schema_metadata(metadata), path, row_group_size=2)
    return path


def test_folder_classes_are_the_sorted_subfolders(folder: Path) -> None:
    data: Dataset = ImageFolder(folder, 8)
    assert data.classes == ("daisy", "tulip") and len(data) == 4
    batch = data.batch([0, 2])
    assert batch["image"].shape == (2, 3, 8, 8) and batch["image"].dtype == torch.float32
    assert batch["label"].tolist() == [0, 1] and batch["label"].dtype == torch.int64
    assert batch["image"][0].unique().tolist() == [-1] and batch["image"][1].unique().tolist() == [1]


def test_flat_folder_has_no_classes(folder: Path) -> None:
    data = ImageFolder(folder / "tulip", 4)
    assert data.classes == () and len(data) == 2 and data.batch([0, 1])["label"].tolist() == [0, 0]


def test_subfolders_without_pictures_are_no_classes(folder: Path) -> None:
    for name in ("@eaDir", "tulip/@eaDir"):
        (folder / name).mkdir()
        (folder / name / "a.txt").write_text("of another program")
    assert ImageFolder(folder, 8).classes == ("daisy", "tulip")
    assert ImageFolder(folder / "tulip", 8).classes == () and len(ImageFolder(folder / "tulip", 8)) == 2


def test_pictures_both_beside_and_in_subfolders_are_refused(folder: Path) -> None:
    (folder / "c.png").write_bytes(png(0))
    with pytest.raises(InputError, match=r"has 1 pictures, and 4 in subfolders \(daisy, tulip\): put all into one"):
        ImageFolder(folder, 8)


def test_flip_doubles_and_mirrors_the_odd_items(folder: Path) -> None:
    plain, flipped = ImageFolder(folder, 8), ImageFolder(folder, 8, flip=True)
    assert len(flipped) == 8
    for i in range(4):
        assert torch.equal(flipped[2 * i]["image"], plain[i]["image"])
        assert torch.equal(flipped[2 * i + 1]["image"], plain[i]["image"].flip(-1))
        assert flipped[2 * i + 1]["label"] == plain[i]["label"]
    assert not torch.equal(flipped[2]["image"], flipped[3]["image"])


def test_item_equals_its_row_of_a_batch(folder: Path) -> None:
    data = ImageFolder(folder, 8)
    assert torch.equal(data.batch([3, 1])["image"][1], data[1]["image"])
    with pytest.raises(IndexError):
        data[4]


def test_a_corrupt_file_is_named_when_it_is_asked_for(folder: Path) -> None:
    (folder / "daisy" / "a.png").write_bytes(png(0)[:40])
    data = ImageFolder(folder, 8)
    assert data[1]["label"] == 0
    with pytest.raises(InputError, match=r"daisy/a\.png is not a whole"):
        data.batch([1, 0])


def test_what_cannot_be_decoded_is_replaced_by_the_next_picture(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = ImageFolder(folder, 8, flip=True)
    expected = [whole[i] for i in (4, 5)]
    for name in ("daisy/a.png", "daisy/b.PNG"):
        (folder / name).write_bytes(png(0)[:40])
    orders = ([0, 2, 3, 4], [3, 2, 4, 0])
    seen = [ImageFolder(folder, 8, flip=True, max_skipped=2).batch(order) for order in orders]
    assert torch.equal(seen[0]["image"][[2, 1, 3, 0]], seen[1]["image"])  # whatever was asked for before
    assert torch.equal(seen[0]["image"][0], expected[0]["image"]) and seen[0]["label"].tolist() == [1, 1, 1, 1]
    assert torch.equal(seen[0]["image"][2], expected[1]["image"])
    named = capsys.readouterr().err.splitlines()
    assert len(named) == 4 and named[0].startswith("skipped: ") and "daisy/a.png" in named[0]


def test_too_many_that_cannot_be_decoded_end_it(folder: Path) -> None:
    for name in ("daisy/a.png", "daisy/b.PNG"):
        (folder / name).write_bytes(png(0)[:40])
    data = ImageFolder(folder, 8, max_skipped=1)
    with pytest.raises(InputError, match=r"daisy/b\.PNG .* more than 1 cannot be decoded \(data\.max_skipped\)"):
        data[0]
    only = write(folder / "a.parquet", [png(0)[:40]], [0])
    with pytest.raises(InputError, match="none of the 1 pictures"):
        Parquet(only, 8, max_skipped=5)[0]
    with pytest.raises(InputError, match="max_skipped -1"):
        ImageFolder(folder, 8, max_skipped=-1)


def test_a_disk_that_fails_is_no_picture_to_skip(folder: Path) -> None:
    data = ImageFolder(folder, 8, max_skipped=3)
    (folder / "daisy" / "a.png").unlink()
    with pytest.raises(InputError, match="cannot read"):
        data[0]


def test_a_folder_without_pictures_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no PNG"):
        ImageFolder(tmp_path, 8)
    with pytest.raises(InputError, match="no folder"):
        ImageFolder(tmp_path / "missing", 8)
    with pytest.raises(InputError, match="not 0"):
        Parquet(write(tmp_path / "a.parquet", [png(1)], [0]), 0)


@pytest.mark.parametrize("kind", ["folder", "parquet"])
def test_with_a_unit_pictures_keep_their_aspect(tmp_path: Path, kind: str) -> None:
    pictures = [png(0, 255, size=(40, 10)), png(0, 255, size=(6, 9))]
    if kind == "folder":
        for i, picture in enumerate(pictures):
            (tmp_path / f"{i}.png").write_bytes(picture)
        data: Dataset = ImageFolder(tmp_path, 8, flip=True, unit=2)
    else:
        data = Parquet(write(tmp_path / "a.parquet", pictures, None), 8, flip=True, unit=2)
    batch = data.batch([3, 0, 1])
    assert batch["size"].tolist() == [[8, 6], [4, 16], [4, 16]] and batch["label"].tolist() == [0, 0, 0]
    images = unpack_images(batch["image"], batch["size"], 3)
    for image, i in zip(images, (3, 0, 1), strict=True):
        assert torch.equal(image, data[i]["image"])
    assert torch.equal(images[1].flip(2), images[2])
    assert images[1][0, 2, [0, 15]].tolist() == [-1, 1]


def test_a_unit_larger_than_the_size_is_refused(folder: Path) -> None:
    with pytest.raises(InputError, match="a unit of 1 to 8 pixels, not 16"):
        ImageFolder(folder, 8, unit=16)


HUGGING_FACE = {"info": {"features": {"label": {"_type": "ClassLabel", "names": ["no", "yes"]}}}}


@pytest.mark.parametrize(
    ("metadata", "classes"),
    [
        ({"classes": "daisy,rose"}, ("daisy", "rose")),
        ({"huggingface": json.dumps(HUGGING_FACE)}, ("no", "yes")),
        ({"huggingface": "{}"}, ("0", "1")),
        (None, ("0", "1")),
    ],
)
def test_parquet_class_names(tmp_path: Path, metadata: dict[str, str] | None, classes: tuple[str, ...]) -> None:
    data: Dataset = Parquet(write(tmp_path / "a.parquet", [png(0), png(255), png(0)], [0, 1, 0], metadata), 4)
    assert data.classes == classes and len(data) == 3
    batch = data.batch([1, 2])
    assert batch["label"].tolist() == [1, 0] and batch["image"][:, 0, 0, 0].tolist() == [1, -1]


def test_parquet_without_labels_and_with_flip(tmp_path: Path) -> None:
    data = Parquet(write(tmp_path / "a.parquet", [png(0, 255)], None), 8, flip=True)
    assert data.classes == () and len(data) == 2 and data[1]["label"] == 0
    assert torch.equal(data[1]["image"], data[0]["image"].flip(-1))


def test_parquet_shards_follow_one_another(tmp_path: Path) -> None:
    for i, grey in enumerate((10, 20, 30)):
        write(tmp_path / f"train-{i}.parquet", [png(grey)], [i])
    data = Parquet(tmp_path, 4)
    assert data.batch(range(3))["label"].tolist() == [0, 1, 2]
    torch.testing.assert_close(data.batch(range(3))["image"][:, 0, 0, 0], torch.tensor([10, 20, 30]) / 127.5 - 1)


def test_parquet_names_the_broken_row(tmp_path: Path) -> None:
    data = Parquet(write(tmp_path / "a.parquet", [png(0), b"junk", None], [0, 0, 0]), 4)
    assert data[0]["image"].shape == (3, 4, 4)
    with pytest.raises(InputError, match=r"a\.parquet, row 1 is not a whole"):
        data[1]
    with pytest.raises(InputError, match=r"a\.parquet, row 2 has no image"):
        data[2]


def test_parquet_of_another_form_is_refused(tmp_path: Path) -> None:
    def refused(match: str) -> None:
        with pytest.raises(InputError, match=match):
            Parquet(tmp_path / "a.parquet", 4)

    refused("cannot read parquet")
    (tmp_path / "a.parquet").write_bytes(b"PAR1junk")
    refused("cannot read parquet")
    pq.write_table(pa.table({"text": ["a"]}), tmp_path / "a.parquet")
    refused("holds no pictures")
    write(tmp_path / "a.parquet", [png(0)], ["rose"])
    refused("not of integers")
    write(tmp_path / "a.parquet", [png(0)], [-1])
    refused("without a label")
    write(tmp_path / "a.parquet", [png(0)], [5], {"classes": "a,b"})
    refused("label 5 but names only 2")


@pytest.mark.parametrize(("kind", "value"), [(pa.string(), "/etc/passwd"), (pa.int64(), 1 << 36)])
def test_parquet_bytes_are_bytes(tmp_path: Path, kind: pa.DataType, value: Any) -> None:
    image = pa.array([{"bytes": value}], pa.struct([("bytes", kind)]))
    pq.write_table(pa.table({"image": image}), tmp_path / "a.parquet")
    with pytest.raises(InputError, match="a struct 'image' that has binary 'bytes'"):
        Parquet(tmp_path / "a.parquet", 4)


def test_parquet_bytes_may_be_large(tmp_path: Path) -> None:
    image = pa.array([{"bytes": png(255)}], pa.struct([("bytes", pa.large_binary())]))
    pq.write_table(pa.table({"image": image}), tmp_path / "a.parquet")
    assert Parquet(tmp_path / "a.parquet", 4)[0]["image"].unique().tolist() == [1]


def test_parquet_numbers_that_are_no_classes_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="class number 1700000000: at most 1048575"):
        Parquet(write(tmp_path / "a.parquet", [png(0)], [1_700_000_000]), 4)
