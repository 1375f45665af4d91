"""Compressing and decompressing files: what is written where, what is kept, one line for each refusal."""

import io
import json
import os
import sys
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageCms

from belvedere.apps.compress import find, targets
from belvedere.apps.requests import CompressRequest, parse_region
from belvedere.checkpoints import codecs
from belvedere.checkpoints.codecs import load_codec, save_codec
from belvedere.compression import bitstream
from belvedere.compression.codec import Codec, decode, encode
from belvedere.compression.tiling import Layout
from belvedere.data.folders import SUFFIXES
from belvedere.data.images import Photograph, open_photograph, to_srgb
from belvedere.errors import InputError
from belvedere.files import atomic_write
from tests.apps.conftest import Done, assert_refused, fill_cards, fill_results
from tests.compression.test_codec import photograph
from tests.compression.test_segpic import small
from tests.data.test_images import ADOBE, profile

Command = Callable[..., Done]
opened = cache(load_codec)


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a small codec of four rates with random weights."""
    folder = tmp_path_factory.mktemp("models") / "codec"
    save_codec(small(rates=4), "float16", folder, {"steps": 0})
    return folder


@pytest.fixture(autouse=True)
def _opened_once(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the command find this codec open; it opens others, and copies of this one, itself."""

    def load(name: str, *options: str) -> Codec:
        return (opened if name == str(model) else load_codec)(name, *options)

    monkeypatch.setattr(codecs, "load_codec", load)


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    path = tmp_path / "photo.png"
    photograph().save(path)
    return path


def test_there_and_back(command: Command, model: Path, photo: Path, tmp_path: Path) -> None:
    done = command("compress", photo, "-o", tmp_path / "small.bvd", "--quality", 3, "--model", model, "--json")
    (facts,) = json.loads(done.out)["done"]
    assert facts["bytes"] == (tmp_path / "small.bvd").stat().st_size and facts["quality"] == 3
    done = command("decompress", tmp_path / "small.bvd", "-o", tmp_path / "again.png", "--model", model)
    assert done.code == 0 and "again.png: 100x70" in done.out
    with Image.open(tmp_path / "again.png") as image:
        assert image.size == (100, 70)
    done = command(
        "decompress", tmp_path / "small.bvd", "-o", tmp_path / "part.png", "--model", model, "--region", "9,8,7,6"
    )
    assert done.code == 0
    whole, part = (np.array(Image.open(tmp_path / name)) for name in ("again.png", "part.png"))
    assert (part == whole[8:14, 9:16]).all()


def test_a_model_that_is_saved_and_loaded_reads_its_files(model: Path) -> None:
    data = encode(photograph(), load_codec(model), quality=2)
    assert (np.array(decode(data, load_codec(model))) == np.array(decode(data, load_codec(str(model))))).all()


def test_several_files_stand_beside_their_pictures(command: Command, model: Path, tmp_path: Path) -> None:
    names = ["a.png", "b.webp", "c.jpg"]
    for name in names:
        photograph(80, 64).save(tmp_path / name)
    (tmp_path / "bad.png").write_bytes(b"no picture")
    done = command("compress", *(tmp_path / name for name in (*names[:1], "bad.png", *names[1:])), "--model", model)
    assert done.code == 1 and "bad.png is not a whole" in done.error
    assert done.error.endswith("belvedere: 1 of 4 files could not be done: see above\n")
    assert sorted(path.name for path in tmp_path.glob("*.bvd")) == ["a.bvd", "b.bvd", "c.bvd"]
    done = command("decompress", *sorted(tmp_path.glob("*.bvd")), "--out", tmp_path / "out", "--model", model)
    assert done.code == 0 and sorted(path.name for path in (tmp_path / "out").iterdir()) == ["a.png", "b.png", "c.png"]


@pytest.mark.parametrize("verb", ["compress", "decompress"])
def test_when_no_file_could_be_done_the_input_is_bad(command: Command, model: Path, tmp_path: Path, verb: str) -> None:
    for name in ("a.png", "b.png"):
        (tmp_path / name).write_bytes(b"nothing")
    done = command(verb, tmp_path / "a.png", tmp_path / "b.png", "--out", tmp_path / "out", "--model", model, "--json")
    assert done.code == 2 and done.error.endswith("none of 2 files could be done: see above\n")
    assert json.loads(done.out)["done"] == []


@pytest.fixture
def pair(tmp_path: Path) -> list[Path]:
    """Two pictures."""
    paths = [tmp_path / "a.png", tmp_path / "b.png"]
    for path in paths:
        photograph(80, 64).save(path)
    return paths


def test_of_several_each_that_cannot_be_done_is_named(command: Command, model: Path, pair: list[Path]) -> None:
    done = command("compress", *pair, "--target-psnr", 99, "--model", model)
    first, second, last = done.error.splitlines()
    assert "a.png: 99 dB are more than" in first and "b.png: 99 dB are more than" in second and "none of 2" in last


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--model", "nowhere"), ("no model 'nowhere'",)),
        (("--quality", 9), ("quality 9: this model has 1 to 4",)),
        (("--out", "a.png/small"), ("cannot write", "a.png/small")),
    ],
)
def test_what_every_file_would_meet_is_told_once(
    command: Command, model: Path, pair: list[Path], options: tuple[object, ...], words: tuple[str, ...],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.chdir(pair[0].parent)
    assert_refused(command("compress", *pair, "--model", model, *options), *words)
    assert sorted(path.name for path in pair[0].parent.iterdir()) == ["a.png", "b.png"]


def test_a_full_disk_ends_the_run_and_what_is_done_is_told(
    command: Command, model: Path, pair: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: Path) -> object:
        if path.name == "b.bvd":
            raise OSError(28, "No space left on device")
        return atomic_write(path)

    monkeypatch.setattr("belvedere.apps.compress.atomic_write", full)
    photograph().save(tmp_path / "c.png")
    done = command("compress", *pair, tmp_path / "c.png", "--model", model, "--json")
    assert done.code == 2 and done.error.count("\n") == 1 and "b.bvd: No space left" in done.error
    told = json.loads(done.out)
    assert [Path(facts["file"]).name for facts in told["done"]] == ["a.bvd"]
    assert [fault["file"] for fault in told["failed"]] == [str(pair[1])] and told["left"] == [str(tmp_path / "c.png")]
    assert f"belvedere: error: {told['failed'][0]['reason']}\n" == done.error
    assert not (tmp_path / "c.bvd").exists()


def test_a_target_that_cannot_be_written_stops_no_other(command: Command, model: Path, pair: list[Path]) -> None:
    pair[0].with_suffix(".bvd").mkdir()
    long = pair[0].with_name("x" * 240 + ".png")
    photograph().save(long)
    done = command("compress", *pair, long, "--model", model, "--force", "--json")
    assert done.code == 1 and "a.bvd: Is a directory" in done.error and "File name too long" in done.error
    told = json.loads(done.out)
    assert [Path(facts["file"]).name for facts in told["done"]] == ["b.bvd"]
    assert [fault["file"] for fault in told["failed"]] == [str(pair[0]), str(long)] and told["left"] == []


def test_going_on_ends_as_the_whole_would(command: Command, model: Path, pair: list[Path]) -> None:
    """Of several files some are done: whether by this run or an earlier one."""
    bad = [pair[0].with_name(name) for name in ("bad.png", "worse.png")]
    for path in bad:
        path.write_bytes(b"no picture")
    for files in ([*pair, bad[0]], [*pair, *bad]):
        for skipped in ([], pair):
            asked = ["--skip-existing"] if skipped else ["--force"]
            done = command("compress", *files, "--model", model, *asked, "--json")
            told = json.loads(done.out)
            assert done.code == 1 and f"{len(files) - 2} of {len(files)} files could not be done" in done.error
            assert [fault["file"] for fault in told["failed"]] == [str(path) for path in files[2:]]
            assert told["skipped"] == [str(path) for path in skipped] and len(told["done"]) == 2 - len(skipped)


def test_an_interrupted_batch_goes_on(command: Command, model: Path, pair: list[Path]) -> None:
    command("compress", pair[0], "--model", model)
    there = pair[0].with_suffix(".bvd")
    before = there.stat()
    assert_refused(command("compress", *pair, "--model", model), "a.bvd exists", "--skip-existing")
    found = json.loads(command("compress", *pair, "--model", model, "--skip-existing", "--json").out)
    assert found["skipped"] == [str(pair[0])] and len(found["done"]) == 1 and there.stat() == before
    done = command("compress", *pair, "--model", model, "--skip-existing")
    assert done.code == 0 and done.out == "2 of 2 files were there already\n"
    assert_refused(command("compress", *pair, "--model", model, "--skip-existing", "--force"), "--force", "give one")
    files = [path.with_suffix(".bvd") for path in pair]
    pair[0].unlink()
    done = command("decompress", *files, "--model", model, "--skip-existing")
    assert done.code == 0 and "a.png: 80x64" in done.out and "1 of 2 files were there already" in done.out


def test_folders_keep_the_places_of_their_pictures(command: Command, model: Path, tmp_path: Path) -> None:
    tree, elsewhere = tmp_path / "tree", tmp_path / "elsewhere"
    for name in ("tree/c.png", "tree/b/d.JPG", "tree/.trash/e.png", "tree/.f.png", "elsewhere/g.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        photograph(80, 64).save(tmp_path / name)
    (tree / "link").symlink_to(elsewhere)
    (tree / "notes.txt").write_text("no picture")
    out, again = tmp_path / "out", tmp_path / "again"
    twice = tree / "b" / "d.JPG"
    done = command("compress", tree, elsewhere / "g.png", twice, "--out", out, "--model", model, "--json")
    files = [out / name for name in ("b/d.bvd", "c.bvd", "g.bvd")]
    assert [facts["file"] for facts in json.loads(done.out)["done"]] == [str(path) for path in files]
    done = command("decompress", out, "--out", again, "--model", model, "--json")
    pictures = [again / name for name in ("b/d.png", "c.png", "g.png")]
    assert [facts["file"] for facts in json.loads(done.out)["done"]] == [str(path) for path in pictures]
    refused = command("decompress", tree, "--model", model)
    assert_refused(refused, f"{tree} holds no files ending in .bvd: give a folder that does")
    assert_refused(command("compress", tree, "--regions", tree / "c.png", "--model", model), "--regions belongs to one")


def test_names_that_are_no_utf_8_end_no_batch(
    command: Command, model: Path, pair: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    odd = pair[0].rename(os.fsdecode(os.fsencode(pair[0].parent) + b"/a\xff.png"))
    out = io.TextIOWrapper(io.BytesIO(), encoding="utf-8")
    monkeypatch.setattr(sys, "stdout", out)
    assert command("compress", odd, pair[1], "--model", model).code == 0
    out.seek(0)
    assert [line.partition(b": ")[0][-6:] for line in out.buffer] == [b"/a\xff.bvd"[-6:], b"/b.bvd"]


def test_a_codec_of_one_rate_needs_no_quality(command: Command, photo: Path, tmp_path: Path) -> None:
    save_codec(small(), "float16", tmp_path / "one", {})
    (facts,) = json.loads(command("compress", photo, "--model", tmp_path / "one", "--json").out)["done"]
    assert facts["quality"] == 1
    (tmp_path / "data").mkdir()
    photograph(192, 176).save(tmp_path / "data" / "a.png")
    asked = ("evaluate", "compression", "--data", tmp_path / "data", "--model", tmp_path / "one", "--peers", "")
    (points,) = json.loads(command(*asked, "--json").out)["curves"].values()
    assert [point["quality"] for point in points] == [1]
    assert "PyTorch, encoders of other formats with one\n" in command(*asked).out


def test_metadata_is_kept_as_asked(command: Command, model: Path, tmp_path: Path) -> None:
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    exif = Image.Exif()
    exif[0x0112], exif[0x010E] = 6, "a view"
    photograph().save(tmp_path / "photo.jpg", icc_profile=profile, exif=exif)
    for keep in ("colour", "all", "none"):
        command(
            "compress", tmp_path / "photo.jpg", "-o", tmp_path / f"{keep}.bvd", "--metadata", keep, "--model", model
        )
        command("decompress", tmp_path / f"{keep}.bvd", "-o", tmp_path / f"{keep}.png", "--model", model)
        with Image.open(tmp_path / f"{keep}.png") as image:
            assert image.size == (70, 100)  # turned as the orientation says
            assert image.info.get("icc_profile") == (None if keep == "none" else profile)
            found = image.getexif()
            assert found.get(0x010E) == ("a view" if keep == "all" else None) and 0x0112 not in found


@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_without_its_profile_a_picture_keeps_its_colours(
    command: Command, model: Path, tmp_path: Path, mode: str
) -> None:
    image = photograph(mode=mode)
    wide = profile(ADOBE, [563])
    told = Photograph(image, wide if mode == "RGB" else wide[:16] + b"GRAY" + wide[20:], b"")
    to_srgb(told).convert(mode).save(tmp_path / "srgb.png")
    image.save(tmp_path / "told.png", icc_profile=told.profile)
    for name in ("srgb", "told"):
        command("compress", tmp_path / f"{name}.png", "--metadata", "none", "--model", model)
    same = (tmp_path / "srgb.bvd").read_bytes() == (tmp_path / "told.bvd").read_bytes()
    assert same and (mode == "L" or not np.array_equal(to_srgb(told), image))


def test_grey_stays_grey_and_transparency_is_named(command: Command, model: Path, tmp_path: Path) -> None:
    photograph(mode="L").save(tmp_path / "grey.png")
    command("compress", tmp_path / "grey.png", "--model", model)
    assert command("decompress", tmp_path / "grey.bvd", "-o", tmp_path / "again.png", "--model", model).code == 0
    with Image.open(tmp_path / "again.png") as image:
        assert image.mode == "L"
    clear = photograph().convert("RGBA")
    clear.putpixel((3, 4), (0, 0, 0, 0))
    clear.save(tmp_path / "clear.png")
    assert_refused(command("compress", tmp_path / "clear.png", "--model", model), "transparent", "--background white")
    assert command("compress", tmp_path / "clear.png", "--model", model, "--background", "white").code == 0
    refused = command("compress", tmp_path / "clear.png", "--model", model, "--background", "wheat-ish", "--force")
    assert_refused(refused, "wheat-ish", "is no colour")


def test_grey_of_a_profile_becomes_srgb_in_webp(command: Command, model: Path, tmp_path: Path) -> None:
    """WebP has no grey, and a profile of grey fits no colours."""
    linear = profile(ADOBE, [256]).replace(b"rTRC", b"kTRC")
    photograph(mode="L").save(tmp_path / "a.png", icc_profile=linear[:16] + b"GRAY" + linear[20:])
    command("compress", tmp_path / "a.png", "--model", model)
    for ending in ("png", "webp"):
        command("decompress", tmp_path / "a.bvd", "-o", tmp_path / f"again.{ending}", "--model", model)
    kept, webp = open_photograph(tmp_path / "again.png"), open_photograph(tmp_path / "again.webp")
    assert kept.profile and not webp.profile
    np.testing.assert_array_equal(np.asarray(webp.image), np.asarray(to_srgb(kept)))
    assert np.asarray(webp.image)[..., 0].mean() > np.asarray(kept.image).mean() + 5


def test_regions_get_the_bits(command: Command, model: Path, photo: Path, tmp_path: Path) -> None:
    Image.new("L", (100, 70), 0).save(tmp_path / "nothing.png")
    Image.new("L", (99, 70), 255).save(tmp_path / "other.png")
    for name, options in (("all", []), ("none", ["--regions", tmp_path / "nothing.png"])):
        command("compress", photo, "-o", tmp_path / f"{name}.bvd", "--quality", 4, "--model", model, *options)
    assert (tmp_path / "none.bvd").stat().st_size < (tmp_path / "all.bvd").stat().st_size
    refused = command(
        "compress", photo, "-o", tmp_path / "x.bvd", "--model", model, "--regions", tmp_path / "other.png"
    )
    assert_refused(refused, "other.png", "99 x 70", "100 x 70")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--quality", "9"), ("quality 9", "1 to 4")),
        (("--quality", "0"), ("quality", "from 1")),
        (("--quality", "2", "--target-bpp", "1"), ("one of",)),
        (("--target-bpp", "0.001"), ("too few", "needs")),
        (("--target-psnr", "99"), ("more than this model reaches",)),
        (("--metadata", "some"), ("colour, all, none",)),
        (("--jobs", "0"), ("jobs",)),
        (("--model", "dimr-toybox"), ("no codec",)),
        (("--device", "tpu"), ("device",)),
        (("-o", "missing/../photo.png", "--force"), ("photo.png: end the name with .bvd, or make the folder first",)),
    ],
)
def test_what_does_not_fit_is_one_line(
    command: Command,
    model: Path,
    photo: Path,
    options: tuple[str, ...],
    words: tuple[str, ...],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(photo.parent)
    (photo.parent / "missing").mkdir()
    assert_refused(command("compress", photo, "--model", model, *options), *words)
    assert not list(photo.parent.glob("*.bvd"))


@pytest.mark.parametrize("content", [b"", b"\x89PNG\r\n\x1a\n123", b"\x89BVD\x01"])
def test_files_that_are_none_are_one_line_before_a_model_is_loaded(
    command: Command, tmp_path: Path, content: bytes
) -> None:
    (tmp_path / "bad.bvd").write_bytes(content)
    assert_refused(command("decompress", tmp_path / "bad.bvd", "--model", "no/such"), "bad.bvd")
    assert_refused(command("decompress", tmp_path / "none.bvd", "--model", "no/such"), "none.bvd", "cannot read")
    assert [path.name for path in tmp_path.iterdir()] == ["bad.bvd"]


def test_a_file_of_another_model_is_one_line(command: Command, model: Path, photo: Path, tmp_path: Path) -> None:
    save_codec(small(rates=2), "float16", tmp_path / "other", {})
    command("compress", photo, "--model", tmp_path / "other")
    assert_refused(command("decompress", tmp_path / "photo.bvd", "--model", model, "--force"), "photo.bvd", "model")


def test_an_exported_model_reads_the_files_of_the_one_it_was_made_from(
    command: Command, model: Path, photo: Path, tmp_path: Path
) -> None:
    command("compress", photo, "--model", model)
    assert command("models", "export", model, "-o", tmp_path / "kept", "--dtype", "float16").code == 0
    asked = ("decompress", tmp_path / "photo.bvd", "-o", tmp_path / "again.png", "--model")
    assert command(*asked, tmp_path / "kept").code == 0


@pytest.mark.parametrize(("ending", "most"), [("webp", 16_383), ("jpg", 65_500)])
def test_a_side_too_long_for_a_format_is_told_before_a_model_is_loaded(
    command: Command, tmp_path: Path, ending: str, most: int
) -> None:
    for name, width in (("fits", most), ("wide", most + 1)):
        header = bitstream.Header(b"12345678", width, 500, 0, Layout(), 4)
        tiles = [bitstream.Tile(b"", 0)] * header.layout.count(width, 500)
        (tmp_path / f"{name}.bvd").write_bytes(bitstream.write(header, tiles))
    asked = ("--model", "nowhere", "-o", tmp_path / f"x.{ending}")
    assert_refused(command("decompress", tmp_path / "wide.bvd", *asked), f"{most + 1} x 500 pixels", f"at most {most}")
    for possible in ((tmp_path / "fits.bvd",), (tmp_path / "wide.bvd", "--region", f"1,0,{most},9")):
        assert_refused(command("decompress", *possible, *asked), "no model 'nowhere'")
    assert_refused(command("decompress", tmp_path / "wide.bvd", "--model", "nowhere"), "no model 'nowhere'")


def test_more_exif_than_a_format_holds_is_one_line(command: Command, model: Path, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x010E] = "x" * 70_000
    photograph().save(tmp_path / "photo.png", exif=exif)
    command("compress", tmp_path / "photo.png", "--metadata", "all", "--model", model)
    asked = ("decompress", tmp_path / "photo.bvd", "--model", model, "-o")
    assert_refused(command(*asked, tmp_path / "again.jpg"), "EXIF data is too long; choose another format")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["photo.bvd", "photo.png"]
    assert command(*asked, tmp_path / "again.webp").code == 0


@pytest.mark.slow
def test_a_codec_is_measured_beside_the_usual_formats(
    command: Command, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "data").mkdir()
    photograph(192, 176).save(tmp_path / "data" / "a.png")
    out = tmp_path / "result"
    options = ("--data", tmp_path / "data", "--model", model, "--qualities", "4,1", "--peers", "jpeg", "--out", out)
    done = command("evaluate", "compression", *options, "--card", "--json")
    found = json.loads(done.out)
    ours = found["curves"][str(model)]
    assert found["models"] == {str(model): opened(str(model)).digest.hex()} and found["machine"]["torch"]
    assert [point["quality"] for point in ours] == [1, 4] and ours[0]["bpp"] < ours[1]["bpp"]
    size = len(encode(photograph(192, 176), load_codec(model), quality=4))
    assert ours[1]["bpp"] == pytest.approx(size * 8 / (192 * 176))
    assert {path.name for path in out.iterdir()} == {"result.json", "plot.png", "plot.svg"}
    assert json.loads((model / "card.json").read_text())["quality"]["count"] == 1
    assert_refused(command("evaluate", "compression", *options, "--qualities", "1,x"), "1,x", "commas")
    fill_cards(monkeypatch)
    done = command("evaluate", "compression", *options, "--card", "--json")
    assert done.code == 2 and "No space left on device" in done.error
    assert [point["quality"] for point in json.loads(done.out)["curves"][str(model)]] == [1, 4]
    fill_results(monkeypatch)
    done = command("evaluate", "compression", *options, "--json")
    assert done.code == 2 and "cannot write" in done.error and "No space left on device" in done.error
    assert [point["quality"] for point in json.loads(done.out)["curves"][str(model)]] == [1, 4]


def test_codecs_of_one_rate_are_one_curve(command: Command, tmp_path: Path) -> None:
    models = [tmp_path / "low", tmp_path / "high"]
    for folder in models:
        save_codec(small(), "float16", folder, {})
    (tmp_path / "data").mkdir()
    photograph(192, 176).save(tmp_path / "data" / "a.png")
    asked = ("evaluate", "compression", "--data", tmp_path / "data", "--qualities", 1, "--peers", "")
    named = [f"--model={folder}" for folder in (*models, models[0])]
    found = json.loads(command(*asked, *named, "--json").out)
    ((name, points),) = found["curves"].items()
    assert name == f"{models[0]} and 1 more"
    assert sorted(point["coder"] for point in points) == sorted(map(str, models))
    assert_refused(command(*asked, *named, "--card"), "--card is of one model: give one --model")


def test_a_codec_is_no_generator(command: Command, model: Path) -> None:
    assert_refused(command("generate", "--model", model), "is a codec", "belvedere compress")


def test_targets(tmp_path: Path) -> None:
    paths = [Path("a/x.jpg"), Path("b/y.jpg")]
    pair = find(paths, SUFFIXES)
    assert list(targets(pair, None, ".bvd").items()) == [(paths[0], Path("a/x.bvd")), (paths[1], Path("b/y.bvd"))]
    assert list(targets(pair, Path("new"), ".bvd").values()) == [Path("new/x.bvd"), Path("new/y.bvd")]
    with pytest.raises(InputError, match="cannot become the one file"):
        targets(pair, Path("z.bvd"), ".bvd")
    with pytest.raises(InputError, match=r"a/x\.jpg and b/x\.png would both become new/x\.bvd: .* another --out"):
        targets(find([Path("a/x.jpg"), Path("b/x.png")], SUFFIXES), Path("new"), ".bvd")
    with pytest.raises(InputError, match="give one of them"):
        targets(pair, None, ".bvd", force=True, skip=True)
    (tmp_path / "b").mkdir()
    for name in ("a.bvd", "b/a.bvd", "c.png"):
        (tmp_path / name).touch()
    tree = find([tmp_path], [".bvd"])
    assert list(targets(tree, None, ".png").values()) == [tmp_path / "a.png", tmp_path / "b/a.png"]
    for suffix, name in ((".bvd", "a.bvd"), (".png", "c.png")):
        for options in ({"force": True}, {"skip": True}):
            with pytest.raises(InputError, match=f"{name} would replace the file that it is made of"):
                targets(find([tmp_path / name], []), None, suffix, **options)
    many, began = find([Path(f"{i}.jpg") for i in range(20_000)], SUFFIXES), time.monotonic()
    assert len(targets(many, Path("new"), ".bvd", force=True)) == 20_000
    assert time.monotonic() - began < 10  # comparing each with each takes minutes


@pytest.mark.parametrize("text", ["", "1,2,3", "1,2,3,-4", "a,b,c,d", "1,2,3,4,5", "1" * 10 + ",0,0,0"])
def test_regions_that_are_none(text: str) -> None:
    with pytest.raises(InputError, match="X,Y,WIDTH,HEIGHT"):
        parse_region(text)


def test_a_request_is_within_its_limits() -> None:
    assert parse_region(" 1, 2,3 ,4") == (1, 2, 3, 4)
    for wrong in ({"quality": "3"}, {"bpp": -1}, {"psnr": float("nan")}, {"jobs": True}, {"background": ""}):
        with pytest.raises(InputError):
            CompressRequest(**wrong)  # type: ignore[arg-type]
