"""Crops of photographs: a function of the index, maps that follow their pictures, what is refused."""

import io
import os
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from belvedere.data.photographs import CELLS, PanopticPhotographs, Photographs
from belvedere.errors import InputError


def halves(width: int, height: int, split: int) -> np.ndarray:
    """A map of two regions, 3 left and 200 right of ``split``."""
    return np.where(np.arange(width) < split, 3, 200).astype(np.uint8)[None].repeat(height, 0)


def encoded(pixels: np.ndarray) -> dict[str, bytes]:
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG")
    return {"bytes": stream.getvalue()}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """Three photographs whose brightness is their map; the last is small and has none."""
    maps = [halves(120, 90, 60), halves(80, 140, 30), halves(40, 30, 20)]
    rows = {
        "image": [encoded(np.stack([m, m, m], 2)) for m in maps],
        "regions": [*(encoded(m) for m in maps[:2]), None],
    }
    pq.write_table(pa.table(rows), tmp_path / "photos.parquet")
    return tmp_path / "photos.parquet"


def test_an_item_is_the_same_whenever_it_is_asked_for(file: Path) -> None:
    data = Photographs([file], 32, crops=5)
    assert len(data) == 15
    batch = data.batch([3, 0, 3])
    assert batch["image"].shape == (3, 3, 32, 32) and batch["regions"].dtype == torch.int64
    assert torch.equal(batch["image"][0], batch["image"][2])
    assert torch.equal(batch["image"][1], torch.as_tensor(data[0]["image"]))
    assert not torch.equal(Photographs([file], 32, crops=5, seed=1)[3]["image"], data[3]["image"])


def test_maps_follow_their_pictures(file: Path) -> None:
    data = Photographs([file], 32, crops=40, scale=1.0)
    for item in (data[i] for i in range(80)):
        bright = (item["image"][0] > 0).long()
        labels = item["regions"]
        assert labels.min() == 0 and torch.equal(labels, bright if bright.unique().numel() == 2 else labels * 0)


def test_crops_differ_in_place_scale_and_turn(file: Path) -> None:
    data = Photographs([file], 32, crops=40)
    widths = {int((data[i]["regions"] == 0).sum()) for i in range(40)}
    firsts = {bool(data[i]["image"][0, 0, 0] > 0) for i in range(40)}
    assert len(widths) > 5 and firsts == {True, False}


def test_without_a_map_the_cells_of_a_grid_are_the_regions(file: Path) -> None:
    item = Photographs([file], 32, crops=1)[2]
    assert item["image"].shape == (3, 32, 32)  # scaled up
    assert item["regions"].unique().numel() == CELLS**2
    assert "regions" not in Photographs([file], 32, crops=1, regions=False)[2]


def test_a_crop_has_the_cells_of_the_whole_photograph(tmp_path: Path) -> None:
    side = 32 * CELLS  # crops of a cell's size, which touch four cells at most
    pixels = np.arange(side, dtype=np.uint8)[:, None, None].repeat(side, 1).repeat(3, 2)  # brightness is the row
    pq.write_table(pa.table({"image": [encoded(pixels)]}), tmp_path / "photo.parquet")
    data = Photographs([tmp_path / "photo.parquet"], 32, crops=20, scale=1.0)
    seen = set()
    for item in (data[i] for i in range(20)):
        rows = ((item["image"][0, :, 0] + 1) * 127.5).round().long() // 32  # the cell of each row
        borders = item["regions"][:, 0].diff() != 0
        assert torch.equal(borders, rows.diff() != 0)
        seen.add(int(item["regions"].max()))
    assert seen <= {0, 1, 3} and 3 in seen


def test_panoptic_maps_tell_regions_by_all_three_colours(tmp_path: Path) -> None:
    for folder in ("images", "maps"):
        (tmp_path / folder).mkdir()
    colours = np.zeros((64, 64, 3), np.uint8)
    colours[:32, :, 0], colours[32:, :32, 1], colours[32:, 32:, 2] = 7, 7, 7
    Image.fromarray(colours).save(tmp_path / "maps" / "a.png")
    Image.new("RGB", (64, 64), "white").save(tmp_path / "images" / "a.jpg")
    data = PanopticPhotographs(tmp_path / "images", tmp_path / "maps", size=64)
    assert data[0]["regions"].unique(return_counts=True)[1].tolist().count(1024) == 2
    assert len(data) == 400
    visits = [PanopticPhotographs(tmp_path / "images", tmp_path / "maps", size=48)[i]["regions"] for i in range(3)]
    assert not torch.equal(visits[0], visits[1]) and not torch.equal(visits[1], visits[2])
    (tmp_path / "maps" / "a.png").unlink()
    with pytest.raises(InputError, match=r"1 photographs have no map.*a\.png"):
        PanopticPhotographs(tmp_path / "images", tmp_path / "maps")


def test_a_map_of_another_size_is_refused(tmp_path: Path) -> None:
    rows = {"image": [encoded(np.zeros((40, 40, 3), np.uint8))], "regions": [encoded(np.zeros((40, 41), np.uint8))]}
    pq.write_table(pa.table(rows), tmp_path / "photos.parquet")
    with pytest.raises(InputError, match="must be of one size"):
        Photographs([tmp_path / "photos.parquet"], 32)[0]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"paths": []}, "list of parquet files"),
        ({"paths": "photos.parquet"}, "list of parquet files"),
        ({"paths": ["none.parquet"]}, "cannot read photographs from none.parquet"),
        ({"size": 0}, "1 to 4096 pixels"),
        ({"crops": 0}, "1 crop or more"),
        ({"scale": 0}, "above 0"),
    ],
)
def test_what_is_refused(file: Path, options: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        Photographs(**({"paths": [file], "size": 32} | options))  # type: ignore[arg-type]


def test_a_file_without_photographs_is_refused(tmp_path: Path) -> None:
    pq.write_table(pa.table({"image": [1, 2]}), tmp_path / "numbers.parquet")
    with pytest.raises(InputError, match="holds no photographs"):
        Photographs([tmp_path / "numbers.parquet"], 32)


@pytest.mark.parametrize("kind", [np.uint8, np.uint16])
def test_maps_of_either_depth_tell_regions(tmp_path: Path, kind: type) -> None:
    rows = {"image": [encoded(np.zeros((40, 40, 3), np.uint8))], "regions": [encoded(halves(40, 40, 20).astype(kind))]}
    pq.write_table(pa.table(rows), tmp_path / "photos.parquet")
    regions = Photographs([tmp_path / "photos.parquet"], 40, scale=1.0)[0]["regions"]
    assert regions.unique(return_counts=True)[1].tolist() == [800, 800]


@pytest.mark.parametrize("column", ["image", "regions"])
def test_encoded_pictures_are_bytes(tmp_path: Path, column: str) -> None:
    good, number = pa.array([encoded(np.zeros((40, 40, 3), np.uint8))]), pa.array([{"bytes": 1 << 36}])
    pq.write_table(pa.table({"image": good} | {column: number}), tmp_path / "photos.parquet")
    with pytest.raises(InputError, match="has binary 'bytes'"):
        Photographs([tmp_path / "photos.parquet"], 32)


def test_a_pipe_is_no_photograph(tmp_path: Path) -> None:
    for folder in ("images", "maps"):
        (tmp_path / folder).mkdir()
        Image.new("RGB", (64, 64)).save(tmp_path / folder / "a.png")
        os.mkfifo(tmp_path / folder / "b.png")
    assert PanopticPhotographs(tmp_path / "images", tmp_path / "maps", size=64).count == 1
