import io
import json
import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from belvedere.apps.evaluate_compression import (
    KODAK,
    bd_rates,
    evaluate_compression,
    pictures_in,
    published,
    save,
    table,
)
from belvedere.errors import InputError
from tests.apps.test_peers import peer, picture


@dataclass
class Steps:
    """A codec for tests: grey levels in as many steps as the quality says, as PNG, the file ``copies`` times."""

    name: str
    qualities: Sequence[float] = (3, 4, 8, 24)
    copies: int = 1
    seen: list[Image.Image] = field(default_factory=list)

    def encode(self, image: Image.Image, quality: float) -> bytes:
        self.seen.append(image)
        step = 255 / (quality - 1)
        stream = io.BytesIO()
        Image.fromarray((np.rint(np.asarray(image) / step) * step).astype(np.uint8)).save(stream, "PNG")
        return stream.getvalue() * self.copies

    def decode(self, content: bytes) -> Image.Image:
        with Image.open(io.BytesIO(content[: len(content) // self.copies])) as image:
            return image.convert("RGB")


class Cropping(Steps):
    def decode(self, content: bytes) -> Image.Image:
        return super().decode(content).crop((0, 0, 170, 170))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two pictures, one with metadata, and a file that is none."""
    path = tmp_path_factory.mktemp("pictures")
    picture(seed=1).save(path / "b.PNG", icc_profile=b"\0" * 9000)
    picture(176, 192, seed=2).save(path / "a.webp", lossless=True)
    (path / "notes.txt").write_text("no picture")
    return path


def test_pictures_of_a_folder(folder: Path, tmp_path: Path) -> None:
    assert [path.name for path in pictures_in(folder)] == ["a.webp", "b.PNG"]
    assert [path.name for path in pictures_in(folder, 1)] == ["a.webp"]
    with pytest.raises(InputError, match=r"holds no pictures: it needs files ending in \.jpeg, \.jpg, \.png, \.webp"):
        pictures_in(tmp_path)
    with pytest.raises(InputError, match=r"notes.txt is no folder"):
        pictures_in(folder / "notes.txt")
    with pytest.raises(InputError, match="cannot measure 0 pictures"):
        pictures_in(folder, 0)


def test_every_byte_counts_and_means_are_of_pictures(folder: Path) -> None:
    coder, pictures = Steps("steps"), pictures_in(folder)
    result = evaluate_compression([coder], pictures)
    assert json.loads(json.dumps(result, allow_nan=False)) == result
    assert result["pictures"] == ["a.webp", "b.PNG"] and len(result["rows"]) == 8
    image = picture(176, 192, seed=2)
    content = coder.encode(image, 3)
    error = np.asarray(image, float) - np.asarray(coder.decode(content), float)
    row = result["rows"][0]
    assert (row["coder"], row["quality"], row["picture"]) == ("steps", 3, "a.webp")
    assert row["bpp"] == 8 * len(content) / (192 * 176)
    assert row["psnr"] == pytest.approx(10 * math.log10(255**2 / np.mean(error**2)))
    assert 0 < row["ms_ssim"] < 1 and row["encode_seconds"] > 0 and row["decode_seconds"] > 0
    point = result["curves"]["steps"][0]
    for name in ("bpp", "psnr", "ms_ssim", "encode_seconds", "decode_seconds"):
        assert point[name] == pytest.approx((row[name] + result["rows"][1][name]) / 2)


def test_coders_get_pixels_without_metadata(folder: Path) -> None:
    coder = Steps("steps", (4,))
    evaluate_compression([coder], pictures_in(folder))
    assert [(image.mode, image.info) for image in coder.seen] == [("RGB", {})] * 2


def test_twice_the_bytes_are_a_bd_rate_of_a_hundred_percent(folder: Path) -> None:
    done: list[tuple[float, int]] = []
    coders = [Steps("once"), Steps("twice", copies=2)]
    result = evaluate_compression(coders, pictures_in(folder), progress=lambda d, n: done.append((d, n)))
    for measure in ("psnr", "ms_ssim"):
        assert result["bd_rate"][measure]["twice"] == {"once": pytest.approx(100)}
        assert result["bd_rate"][measure]["once"] == {"twice": pytest.approx(-50)}
    assert result["notes"] == [] and result["published"]["curves"] == {}
    assert done == [(pytest.approx((i + 1) / 8), 2) for i in range(16)] and done[-1][0] == 2


def test_networks_of_one_rate_are_one_curve(folder: Path) -> None:
    """Of which each alone has too few points for a BD-rate."""
    rates = [Steps(f"net-{quality}", (quality,)) for quality in (24, 3, 8, 4)]
    names = [rate.name for rate in rates]
    result = evaluate_compression([*rates, Steps("twice", copies=2)], pictures_in(folder), together=names)
    assert list(result["curves"]) == ["net-24 and 3 more", "twice"]
    points = result["curves"]["net-24 and 3 more"]
    assert [point["coder"] for point in points] == ["net-3", "net-4", "net-8", "net-24"]
    assert result["bd_rate"]["psnr"]["twice"] == {"net-24 and 3 more": pytest.approx(100)}
    assert {row["coder"] for row in result["rows"]} == {*names, "twice"} and result["notes"] == []
    assert any(line.startswith("         3") and line.endswith("  net-3") for line in table(result).splitlines())
    alone = evaluate_compression([*rates, Steps("twice", copies=2)], pictures_in(folder))
    assert alone["bd_rate"]["psnr"]["twice"] == dict.fromkeys(names)


def test_peers_are_measured_in_the_same_run(folder: Path) -> None:
    jpeg = peer("jpeg")
    result = evaluate_compression([Steps("steps"), jpeg], pictures_in(folder, 1))
    assert list(result["curves"]) == ["steps", jpeg.name]
    assert [point["quality"] for point in result["curves"][jpeg.name]] == list(jpeg.qualities)
    assert result["bd_rate"]["psnr"]["steps"][jpeg.name] > 50


def test_a_lossless_point_is_null_and_has_no_bd_rate(folder: Path) -> None:
    result = evaluate_compression([Steps("exact", (4, 8, 16, 256)), Steps("steps")], pictures_in(folder, 1))
    assert json.loads(json.dumps(result, allow_nan=False)) == result
    assert result["curves"]["exact"][3]["psnr"] is None and result["curves"]["exact"][2]["psnr"] is not None
    assert result["bd_rate"]["psnr"]["exact"] == {"steps": None}
    assert any(
        note.startswith("exact against steps, psnr: BD-rate: ") and "lossless" in note for note in result["notes"]
    )
    assert "inf" in table(result) and not [note for note in result["notes"] if "leave it out" in note]


def test_one_lossless_picture_among_others_is_named(folder: Path, tmp_path: Path) -> None:
    Image.new("RGB", (180, 180), "white").save(tmp_path / "plain.png")
    result = evaluate_compression([Steps("steps", (3,))], [*pictures_in(folder), tmp_path / "plain.png"])
    note = "steps, quality 3: no mean PSNR, since plain.png came back lossless: leave it out"
    assert result["notes"] == [note] and result["curves"]["steps"][0]["psnr"] is None


def test_published_curves_are_for_the_whole_of_kodak_only() -> None:
    pictures = [Path(f"{name}.png") for name in sorted(KODAK)]
    curves = published(pictures)["curves"]
    rates, notes = bd_rates(curves)
    assert rates["psnr"]["SegPIC (published)"]["VTM-17.0 (published)"] == pytest.approx(-8.16, abs=0.025)
    assert rates["ms_ssim"] == {} and notes == [] and set(published(pictures)["source"]) == set(curves)
    assert published(pictures[:23])["curves"] == {}
    assert published([*pictures[:23], Path("kodim25.png")])["curves"] == {}
    assert published([*pictures[:23], Path("kodim01.webp")])["curves"] == {}


def test_bad_input_is_refused_before_any_work(folder: Path, tmp_path: Path) -> None:
    coder = Steps("steps")
    picture(200, 160).save(tmp_path / "small.png")
    (tmp_path / "damaged.png").write_bytes((folder / "b.PNG").read_bytes()[:2000])
    for name, message in (
        ("small", "small.png has 200 x 160 pixels, less than 161 a side"),
        ("damaged", "not a whole"),
    ):
        with pytest.raises(InputError, match=message):
            evaluate_compression([coder], [*pictures_in(folder), tmp_path / f"{name}.png"])
    with pytest.raises(InputError, match="codecs steps, steps: give each a name of its own"):
        evaluate_compression([coder, Steps("steps")], pictures_in(folder))
    with pytest.raises(InputError, match="0 codecs and 2 pictures: give one or more of both"):
        evaluate_compression([], pictures_in(folder))
    assert coder.seen == []


def test_a_coder_that_changes_the_size_is_refused(folder: Path) -> None:
    with pytest.raises(InputError, match=r"\(1, 3, 192, 176\) and \(1, 3, 170, 170\) cannot be compared"):
        evaluate_compression([Cropping("cropping")], pictures_in(folder))


def test_the_table_names_every_figure(folder: Path) -> None:
    result = evaluate_compression([Steps("once"), Steps("twice", copies=2)], pictures_in(folder, 1))
    lines = table(result).splitlines()
    assert lines[0] == "means of 1 picture" and sum(line.endswith("decode s") for line in lines) == 2
    point = result["curves"]["twice"][3]
    assert any(line.split()[:4] == ["24", *(f"{point[n]:.4f}" for n in ("bpp", "psnr", "ms_ssim"))] for line in lines)
    start = lines.index("BD-rate by psnr: percent more bits that the row needs than the column")
    assert [line.split() for line in lines[start + 1 : start + 4]] == [
        ["[1]", "[2]"],
        ["[1]", "once", "-", "-50.00"],
        ["[2]", "twice", "+100.00", "-"],
    ]


def test_results_and_plots_are_written(folder: Path, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    result = evaluate_compression([Steps("steps")], pictures_in(folder, 1))
    result["published"]["curves"] = published([Path(name) for name in KODAK])["curves"]
    paths = save(result, tmp_path / "new" / "out")
    assert [path.name for path in paths] == ["result.json", "plot.png", "plot.svg"]
    assert sorted(paths) == sorted((tmp_path / "new" / "out").iterdir())
    assert json.loads(paths[0].read_text()) == result
    with Image.open(paths[1]) as image:
        assert image.format == "PNG" and image.width == 1800
    assert paths[2].read_text().startswith("<?xml")
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"cannot write .*file"):
        save(result, tmp_path / "file" / "out")


def test_without_matplotlib_the_extra_is_named(monkeypatch: pytest.MonkeyPatch, folder: Path, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    result = evaluate_compression([Steps("steps", (4,))], pictures_in(folder, 1))
    with pytest.raises(InputError, match=r"plots need matplotlib: pip install 'belvedere\[evaluate\]'"):
        save(result, tmp_path)
