"""Tars of samples: what is in them, whatever wrote them, and what is refused."""

import gzip
import io
import json
import tarfile
from pathlib import Path

import pytest
import torch

from belvedere.apps.task import make_dataset
from belvedere.data.folders import ImageFolder
from belvedere.data.webdataset import MAX_NAME, WebDataset, members
from belvedere.errors import InputError
from tests.data.test_folders import png


def write(path: Path, files: dict[str, bytes], form: int = tarfile.PAX_FORMAT) -> Path:
    with tarfile.open(path, "w", format=form) as tar:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


NUMBERED = {"a/1.png": png(0, 255), "a/1.cls": b"2", "a/2.cls": b"0\n", "a/2.png": png(80), "a/notes.md": b"no sample"}


def test_samples_are_members_of_one_name(tmp_path: Path) -> None:
    data = make_dataset({"kind": "webdataset", "path": str(write(tmp_path / "a.tar", NUMBERED)), "size": 8})
    assert len(data) == 2 and data.classes == ("0", "1", "2")
    assert data.batch([1, 0])["label"].tolist() == [0, 2]
    for name in ("a/1.png", "a/2.png"):
        (tmp_path / "plain").mkdir(exist_ok=True)
        (tmp_path / "plain" / name[2:]).write_bytes(NUMBERED[name])
    plain = ImageFolder(tmp_path / "plain", 8)
    assert all(torch.equal(data[i]["image"], plain[i]["image"]) for i in range(2))


def test_a_folder_of_tars_in_the_order_of_names_with_classes_by_name(tmp_path: Path) -> None:
    write(tmp_path / "b.tar", {"1.PNG": png(255), "1.txt": "rosé ".encode(), "1.json": b"{}"})
    write(tmp_path / "a.tar", {"1.png": png(0), "1.txt": b"tulip", "2.jpeg": png(9), "2.txt": "rosé".encode()})
    data = WebDataset(tmp_path, 8, flip=True)
    assert data.classes == ("rosé", "tulip") and data.labels.tolist() == [1, 0, 0] and len(data) == 6
    assert data[4]["image"].unique().tolist() == [1]


def test_json_tells_a_label_or_nothing(tmp_path: Path) -> None:
    labels = [json.dumps({"label": i, "caption": "a toy"}).encode() for i in (1, 0)]
    told = write(tmp_path / "a.tar", {"1.png": png(0), "1.json": labels[0], "2.png": png(0), "2.json": labels[1]})
    assert WebDataset(told, 8).labels.tolist() == [1, 0]
    silent = WebDataset(write(tmp_path / "b.tar", {"1.png": png(0), "1.json": b'{"caption": "a toy"}'}), 8)
    assert silent.classes == () and silent[0]["label"] == 0


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_every_form_of_tar_has_the_same_members(tmp_path: Path, form: int) -> None:
    names = ["short.png", f"{'d' * 90}/{'e' * 60}.png", "last.png"]
    names += [] if form == tarfile.USTAR_FORMAT else [f"{'é' * 150}.png"]
    path = write(tmp_path / "a.tar", {name: name.encode() * 40 for name in names}, form)
    with tarfile.open(path, "a", format=form) as tar:
        for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.DIRTYPE):
            link = tarfile.TarInfo("link.png")
            link.type, link.linkname = kind, "/etc/passwd"
            tar.addfile(link)
    with path.open("rb") as stream:
        found = list(members(stream, path))
        assert [member.name for member in found] == names
        for member in found:
            stream.seek(member.begin)
            assert stream.read(member.size) == member.name.encode() * 40


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"1.txt": b"a"}, "no pictures in"),
        ({"1.png": b"", "1.cls": b"x"}, r"1\.cls is not to be understood"),
        ({"1.png": b"", "1.cls": b"\xff"}, r"1\.cls is not to be understood"),
        ({"1.png": b"", "1.cls": b"-1"}, "number of 0 or more"),
        ({"1.png": b"", "1.json": b'{"label": true}'}, "number of 0 or more"),
        ({"1.png": b"", "1.cls": b"2000000"}, "class number 2000000"),
        ({"1.png": b"", "1.cls": b"1", "2.png": b""}, r"a\.tar, 2\.png has no class, .*a\.tar, 1\.png a class number"),
        ({"1.png": b"", "2.png": b"", "1.cls": b"1", "2.cls": b"0"}, r"a\.tar, 1\.cls has no picture"),
        ({"1.png": b"", "1.cls": b"1", "2.bmp": b"", "2.cls": b"0"}, r"a\.tar, 2\.cls has no picture"),
        ({"1.png": b"", "1.txt": b" " * (1 << 20) + b"a"}, "1048577 bytes, at most 1048576 allowed"),
    ],
)
def test_wrong_samples_are_named_at_once(tmp_path: Path, files: dict[str, bytes], message: str) -> None:
    with pytest.raises(InputError, match=message):
        WebDataset(write(tmp_path / "a.tar", files), 8)


def test_damaged_tars_are_named(tmp_path: Path) -> None:
    whole = write(tmp_path / "a.tar", NUMBERED).read_bytes()

    def refused(content: bytes, message: str) -> None:
        (tmp_path / "b.tar").write_bytes(content)
        with pytest.raises(InputError, match=message):
            WebDataset(tmp_path / "b.tar", 8)

    refused(gzip.compress(whole) * 20, "no tar at byte 0")
    refused(whole[:560], r"ends within a/1\.png")
    refused(whole[:124] + b"7" + whole[125:], "no tar at byte 0")
    refused(signed(whole[:124] + b"-0000001000\0" + whole[136:]), "no tar at byte 0")
    refused(signed(whole[:124] + b"\x80" + b"\xff" * 11 + whole[136:]), "ends within")
    refused(
        signed(whole[:124] + f"{MAX_NAME + 1:011o}\0".encode() + whole[136:156] + b"x" + whole[157:]) * 9, "allowed"
    )
    with pytest.raises(InputError, match="cannot read"):
        WebDataset(tmp_path / "missing.tar", 8)
    with pytest.raises(InputError, match="no pictures in"):
        (tmp_path / "empty").mkdir()
        WebDataset(tmp_path / "empty", 8)


def signed(content: bytes) -> bytes:
    """Return a tar whose first header has a right checksum."""
    total = sum(content[:148] + b" " * 8 + content[156:512])
    return content[:148] + f"{total:06o}\0 ".encode() + content[156:]


@pytest.mark.parametrize("content", [b"5", b"999 path=x\n", b"1 \n", b"9" * 5000 + b" path=x", b"", b"13 path=abcd\n"])
def test_a_strange_pax_header_gives_no_name_or_its_own(tmp_path: Path, content: bytes) -> None:
    plain = write(tmp_path / "a.tar", {"1.png": png(0)}, tarfile.USTAR_FORMAT).read_bytes()
    header = bytearray(plain[:512])
    header[124:136], header[156:157] = f"{len(content):011o}\0".encode(), b"x"
    path = tmp_path / "b.tar"
    path.write_bytes(signed(bytes(header)) + content + bytes(-len(content) % 512) + plain)
    with path.open("rb") as stream:
        (member,) = members(stream, path)
    assert member.name == ("abcd" if content.startswith(b"13") else "1.png")


def test_a_picture_that_cannot_be_decoded_is_named_with_its_tar(tmp_path: Path) -> None:
    data = WebDataset(write(tmp_path / "a.tar", {"1.png": png(0)[:40], "2.png": png(255)}), 8)
    with pytest.raises(InputError, match=r"a\.tar, 1\.png is not a whole"):
        data[0]
    skipping = WebDataset(tmp_path / "a.tar", 8, max_skipped=1)
    assert torch.equal(skipping[0]["image"], data[1]["image"])
