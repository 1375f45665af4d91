"""Records: written into every format, read back the same, and never trusted."""

import json
import struct
import zlib
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from belvedere.apps import output, record
from belvedere.apps.record import Machine, Record
from belvedere.apps.requests import GenerateRequest
from belvedere.errors import InputError

MACHINE = Machine("cpu", "AMD EPYC", "AVX512", 2, "2.13.0", "0.42.1", "0.1.0")
REQUEST = GenerateRequest(classes=("tench, Tinca tinca", 3), count=4, seed=2**62, steps=25, guidance=1.4)
EXAMPLE = Record(REQUEST, 3, 7, "tench, Tinca tinca é", "ab" * 32, "cd" * 32, MACHINE)
MIXED = replace(EXAMPLE, request=replace(REQUEST, sizes=((48, 96), (96, 48), (64, 64)), extrapolation="vision-ntk"))


@pytest.fixture
def image() -> Image.Image:
    return Image.effect_noise((24, 16), 50).convert("RGB")


@pytest.mark.parametrize("kind", output.FORMATS)
def test_written_and_read_back(tmp_path: Path, image: Image.Image, kind: str) -> None:
    path = tmp_path / f"x.{output.FORMATS[kind]}"
    output.save(image, path, EXAMPLE.to_json())
    assert record.read(path) == EXAMPLE
    with Image.open(path) as found:
        assert found.size == image.size
        assert (record.pixel_digest(found) == record.pixel_digest(image)) is (kind == "png")


@pytest.mark.parametrize("kind", output.FORMATS)
def test_the_largest_request_fits(tmp_path: Path, image: Image.Image, kind: str) -> None:
    request = GenerateRequest(classes=("é" * 25,) * 204)
    large = Record(request, 0, 0, "x", "ab", "cd", MACHINE)
    assert len(large.to_json()) > 30_000
    path = tmp_path / f"x.{output.FORMATS[kind]}"
    output.save(image, path, large.to_json())
    assert record.read(path) == large


def test_the_origin_is_what_decides_the_picture() -> None:
    def changed(**values: Any) -> Record:
        return Record(**{**{name: getattr(EXAMPLE, name) for name in vars(EXAMPLE)}, **values})

    same = GenerateRequest(classes=(), count=900, seed=2**62, steps=25, guidance=1.4)
    assert changed(request=same, pixels="ef").origin == EXAMPLE.origin
    other = GenerateRequest(classes=REQUEST.classes, count=4, seed=2**62, steps=26, guidance=1.4)
    for difference in ({"request": other}, {"index": 4}, {"label": 8}, {"weights": "00"}):
        assert changed(**difference).origin != EXAMPLE.origin


def test_sizes_and_extrapolation_are_read_back() -> None:
    assert Record.from_json(MIXED.to_json()) == MIXED


def test_a_record_from_before_there_were_sizes_is_read() -> None:
    request = {key: value for key, value in asdict(REQUEST).items() if key not in ("sizes", "extrapolation")}
    assert Record.from_json(values(request=request)) == EXAMPLE


def test_a_record_without_them_is_written_as_before_there_were_solvers() -> None:
    plain = json.loads(EXAMPLE.to_json())
    assert list(plain) == ["format", *(name for name in vars(EXAMPLE) if name != "room")]
    assert list(plain["request"])[-2:] == ["concepts", "editability"]
    assert list(json.loads(record.sheet_text(REQUEST))["sheet"])[-1] == "editability"
    chosen = replace(EXAMPLE, request=replace(REQUEST, solver="dopri5", steps=None, guidance_power=2.0))
    assert Record.from_json(chosen.to_json()) == chosen
    assert list(json.loads(chosen.to_json())["request"])[-2:] == ["solver", "guidance_power"]
    small = replace(EXAMPLE, room=4)
    assert Record.from_json(small.to_json()) == small and small.origin == EXAMPLE.origin
    assert chosen.origin != replace(chosen, request=replace(chosen.request, guidance_power=3.0)).origin


def test_the_origin_has_the_picture_s_own_size_alone() -> None:
    """Picture 3 of three sizes has the first."""

    def origin(**changes: Any) -> tuple[object, ...]:
        return replace(MIXED, request=replace(MIXED.request, **changes)).origin

    assert MIXED.origin == origin(sizes=((48, 96),)) == origin(sizes=((1, 1), (2, 2), (3, 3), (48, 96)))
    for sizes in ((), ((96, 48),), ((96, 48), (48, 96), (64, 64))):
        assert origin(sizes=sizes) != MIXED.origin
    assert origin(extrapolation="none") != MIXED.origin


def test_the_digest_is_of_size_and_pixels(image: Image.Image) -> None:
    before = record.pixel_digest(image)
    assert record.pixel_digest(image.copy()) == before
    assert record.pixel_digest(image.reshape((16, 24)) if hasattr(image, "reshape") else image.rotate(90)) != before
    image.putpixel((5, 5), (1, 2, 3))
    assert record.pixel_digest(image) != before


def values(**changes: object) -> str:
    return json.dumps({"format": 1, **asdict(EXAMPLE), **changes})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "not JSON"),
        ("[" * 50_000, "not JSON"),
        ("[]", "not of format 1"),
        (values(format=2), "not of format 1"),
        (values(surprise=1), "wrong fields of record"),
        (values(index=-1), "field index"),
        (values(index="3"), "field index"),
        (values(index=True), "field index"),
        (values(kind="\x1b[31m"), "field kind"),
        (values(weights=None), "field weights"),
        (values(machine={}), "wrong fields of machine"),
        (values(machine={**asdict(MACHINE), "threads": 10**12}), "field threads"),
        (values(request={"steps": 10**6}), "steps must be"),
        (values(request={"command": "rm"}), "no field 'command'"),
        (values(request={"sizes": [[10**9, 1]]}), "sizes: a side of 1000000000x1 must be"),
        (values(request={"sizes": "64x64"}), "sizes must be a list"),
        (record.sheet_text(REQUEST), "a sheet of many pictures"),
    ],
)
def test_a_hostile_record_is_refused(text: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        Record.from_json(text)


def test_the_processor_is_looked_up_once_and_not_for_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    assert record.processor() is record.processor()
    monkeypatch.setattr(record, "processor", lambda: pytest.fail("was looked up"))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "H200")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    made = record.this_machine(torch.device("cuda"))
    assert (made.device, made.name, made.instructions) == ("cuda", "H200", "sm_90")


def test_a_picture_without_a_record_is_refused(tmp_path: Path, image: Image.Image) -> None:
    for name in ("x.png", "x.jpg", "x.webp"):
        image.save(tmp_path / name)
        with pytest.raises(InputError, match="carries no Belvedere record"):
            record.read(tmp_path / name)


def test_a_record_that_is_too_large_is_refused(tmp_path: Path, image: Image.Image) -> None:
    path = tmp_path / "x.png"
    image.save(path, **record.save_options("x" * (record.MAX_RECORD + 1), "png"))
    with pytest.raises(InputError, match="larger than 64 KB"):
        record.read(path)


@pytest.mark.parametrize(
    "content",
    [b"", b"\x89PNG\r\n\x1a\n", b"GIF89a" + bytes(20), b"\xff\xd8\xff\xe1\xff\xff" + bytes(90)],
    ids=["empty", "cut", "gif", "jpeg"],
)
def test_what_is_not_a_picture_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "x.png"
    path.write_bytes(content)
    with pytest.raises(InputError, match="not a readable PNG, JPEG or WebP"):
        record.read(path)


@pytest.mark.parametrize("side", [9000, 30_000, 2**31 - 1])
def test_a_decompression_bomb_is_refused(tmp_path: Path, side: int) -> None:
    header = b"IHDR" + struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    chunks = [struct.pack(">I", 13) + header + struct.pack(">I", zlib.crc32(header)), struct.pack(">I", 0) + b"IDAT"]
    path = tmp_path / "x.png"
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(chunks) + struct.pack(">I", zlib.crc32(b"IDAT")))
    with pytest.raises(InputError, match=r"more than Belvedere opens|not a readable PNG"):
        record.read(path)
