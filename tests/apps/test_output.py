"""Pictures into files: whole, never over another picture, refused before any work where nothing can be written."""

import errno
import json
import os
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageColor

from belvedere.apps import output, record
from belvedere.apps.record import Record
from belvedere.apps.requests import GenerateRequest
from belvedere.errors import CommonError, InputError
from tests.apps.test_record import EXAMPLE, MACHINE, REQUEST


@pytest.fixture
def image() -> Image.Image:
    return Image.effect_noise((64, 64), 50).convert("RGB")


@contextmanager
def full_disk() -> Iterator[None]:
    """Let no file grow beyond 500 bytes; the test's own output may be one, so keep the block small."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (500, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize(
    ("model", "name"),
    [
        ("dimr-toybox", "dimr-toybox-7-00003.png"),
        ("./runs/mine", "mine-7-00003.png"),
        ("owner/name@main", "name-main-7-00003.png"),
        ("../..", "model-7-00003.png"),
        ("a b/ü$(x)", "x-7-00003.png"),
    ],
)
def test_names(model: str, name: str) -> None:
    assert output.picture_path(Path("out"), model, 7, 3, "png") == Path("out") / name


def test_the_same_picture_may_be_written_again_and_no_other(tmp_path: Path, image: Image.Image) -> None:
    path = tmp_path / "x.png"
    output.check_target(path, EXAMPLE.origin)
    output.save(image, path, EXAMPLE.to_json())
    output.check_target(path, EXAMPLE.origin)
    other = Record(REQUEST, 4, 7, "x", "ab" * 32, "cd" * 32, MACHINE)
    with pytest.raises(InputError, match=r"x\.png exists and is another picture; choose another --out"):
        output.check_target(path, other.origin)
    image.save(path)
    with pytest.raises(InputError, match="another picture"):
        output.check_target(path, EXAMPLE.origin)


def test_a_dangling_link_is_not_written_through(tmp_path: Path) -> None:
    (tmp_path / "x.png").symlink_to(tmp_path / "elsewhere.png")
    with pytest.raises(InputError, match="another picture"):
        output.check_target(tmp_path / "x.png", EXAMPLE.origin)


def test_a_full_disk_leaves_the_old_file(tmp_path: Path, image: Image.Image) -> None:
    path = tmp_path / "x.png"
    path.write_bytes(b"old")
    with pytest.raises(InputError, match=r"cannot write .*x\.png: File too large; choose another"), full_disk():
        output.save(image, path, EXAMPLE.to_json())
    assert path.read_bytes() == b"old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["x.png"]


@pytest.mark.parametrize(
    ("number", "common", "mend"),
    [
        (errno.ENOSPC, True, "No space left on device; make room or choose another place"),
        (errno.EDQUOT, True, "Disk quota exceeded; make room or choose another place"),
        (errno.EACCES, True, "Permission denied; choose another place"),
        (errno.EROFS, True, "Read-only file system; choose another place"),
        (errno.EISDIR, False, "Is a directory; choose another name or place"),
        (errno.ENAMETOOLONG, False, "File name too long; choose another name or place"),
    ],
)
def test_the_system_s_reason_is_passed_on(tmp_path: Path, number: int, common: bool, mend: str) -> None:
    """Other files meet it too, or it is of this one alone."""
    with pytest.raises(InputError) as error, output.writing(tmp_path):
        raise OSError(number, os.strerror(number))
    assert str(error.value) == f"cannot write {tmp_path}: {mend}"
    assert isinstance(error.value, CommonError) == common


def test_a_folder_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"x")
    for folder in (tmp_path / "file", tmp_path / "file/below", Path("/proc/belvedere")):
        with pytest.raises(InputError, match="cannot write"):
            output.check_folder(folder)
    output.check_folder(tmp_path / "new/deep")
    assert not (tmp_path / "new").exists()


def test_figures_are_written_whole_into_a_new_folder(tmp_path: Path) -> None:
    path = tmp_path / "new" / "result.json"
    output.save_figures({"psnr": 31.5}, path)
    assert json.loads(path.read_text()) == {"psnr": 31.5} and list(path.parent.iterdir()) == [path]
    with pytest.raises(TypeError):
        output.save_figures({"psnr": object()}, path)
    assert json.loads(path.read_text()) == {"psnr": 31.5} and list(path.parent.iterdir()) == [path]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
def test_a_folder_of_somebody_else_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "mine"
    folder.mkdir(mode=0o700)
    os.seteuid(65534)
    try:
        with pytest.raises(InputError, match=r"cannot write .*: Permission denied"):
            output.check_folder(folder)
    finally:
        os.seteuid(0)


@pytest.mark.parametrize(
    ("count", "kinds", "across"),
    [
        (1, 12, 1),
        (12, 12, 4),
        (24, 12, 12),
        (48, 12, 12),
        (9, 1, 3),
        (100, 50, 10),
        (128, 2, 2),
        (129, 2, 12),
        (10_000, 12, 100),
    ],
)
def test_columns(count: int, kinds: int, across: int) -> None:
    assert output.columns(count, kinds) == across


def test_a_sheet_shows_every_picture() -> None:
    colours = ["red", "green", "blue", "black", "yellow"]
    page = output.sheet([Image.new("RGB", (64, 64), colour) for colour in colours], colours, 3)
    assert page.size == (3 * 132 + 4, 2 * 148 + 4)
    for i, colour in enumerate(colours):
        centre = 4 + i % 3 * 132 + 64, 4 + i // 3 * 148 + 64
        assert page.getpixel(centre) == Image.new("RGB", (1, 1), colour).getpixel((0, 0))


def test_pictures_of_many_sizes_stand_undistorted_in_cells_of_the_largest() -> None:
    """The largest sides, 64 and 64, are enlarged twice; others stand in the middle, on the caption."""
    sizes, colours = [(64, 32), (32, 64), (16, 16), (48, 24)], ["red", "lime", "blue", "cyan"]
    page = output.sheet([Image.new("RGB", *made) for made in zip(sizes, colours, strict=True)], [""] * 4, 2)
    assert page.size == (2 * 132 + 4, 2 * 148 + 4)
    places = [(4, 68), (168, 4), (52, 248), (152, 232)]
    for size, colour, place in zip(sizes, colours, places, strict=True):
        rows, columns = (np.asarray(page) == ImageColor.getrgb(colour)).all(-1).nonzero()
        assert (columns.min(), rows.min()) == place
        assert (np.ptp(columns) + 1, np.ptp(rows) + 1) == (2 * size[0], 2 * size[1])


@pytest.mark.parametrize(("side", "count", "across"), [(512, 40, 40), (64, 117, 1)])
def test_a_sheet_of_many_large_pictures_is_made_smaller(side: int, count: int, across: int) -> None:
    page = output.sheet([Image.new("RGB", (side, side))] * count, [""] * count, across)
    assert 16_000 < max(page.size) <= 16_383


def test_a_sheet_of_many_pictures_of_few_kinds_is_made() -> None:
    page = output.sheet([Image.new("RGB", (8, 8))] * 1200, [""] * 1200, output.columns(1200, 2))
    assert page.size == (35 * 132 + 4, 35 * 148 + 4)


def test_a_sheet_replaces_a_sheet_and_nothing_else(tmp_path: Path, image: Image.Image) -> None:
    path = tmp_path / "sheet.jpg"
    output.check_sheet(path, 4)
    output.save(image, path, record.sheet_text(GenerateRequest()))
    output.check_sheet(path, 4)
    output.save(image, path, EXAMPLE.to_json())
    with pytest.raises(InputError, match="exists and is not a sheet"):
        output.check_sheet(path, 4)
    for bad in (tmp_path, tmp_path / "x.gif", tmp_path / "x"):
        with pytest.raises(InputError):
            output.check_sheet(bad, 4)
    with pytest.raises(InputError, match="at most 10000"):
        output.check_sheet(tmp_path / "y.png", 10_001)
