"""The room Compress: figures that are true, files that open again, and what is refused."""

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from skimage import data

from belvedere.apps.web import compressing, room_compress, room_machine
from belvedere.apps.web.compressing import FILE, PICTURE
from belvedere.apps.web.limits import Limits
from belvedere.apps.web.running import Stopped
from belvedere.apps.web.strokes import importance
from belvedere.apps.web.studio import Studio
from belvedere.checkpoints.codecs import save_codec
from belvedere.compression.bitstream import read
from belvedere.errors import BitstreamError, InputError
from tests.compression.test_segpic import small

SHARP = [{"radius": 0.2, "points": [[0.25, 0.5]]}]


@pytest.fixture(scope="module")
def studio(tmp_path_factory: pytest.TempPathFactory) -> Studio:
    return Studio(tmp_path_factory.mktemp("studio"), "cpu", Limits(upload_pixels=100_000))


@pytest.fixture(scope="module")
def cat(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("pictures") / "cat.png"
    Image.fromarray(data.chelsea()[40:168, 80:272]).save(path)
    return path


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Studio:
    """A studio that also offers a small codec of two rates with random weights."""
    folder = tmp_path_factory.mktemp("own")
    save_codec(small(rates=2), "float16", folder / "codec", {"quality": {"psnr": 7.25}})
    return Studio(folder / "studio", "cpu", models={"mine": folder / "codec"})


def nothing(_: Any) -> None:
    """What is told to nobody."""


def test_figures_are_those_of_the_file(studio: Studio, cat: Path) -> None:
    told: list[float] = []
    done = compressing.compress(studio, str(cat), 3.0, [], told.append)
    content = studio.shelf.file(done.id, FILE).read_bytes()
    assert done.facts["bytes"] == len(content) and done.facts["uploaded"] == cat.stat().st_size
    assert done.facts["bpp"] == pytest.approx(8 * len(content) / (192 * 128))
    assert done.before is not None and done.before.size == done.after.size == (192, 128)
    error = (np.asarray(done.before, float) - np.asarray(done.after, float)) ** 2
    assert done.facts["psnr"] == pytest.approx(10 * np.log10(255**2 / error.mean()))
    assert 0 < told[0] < told[-1] <= 1
    for name, size in done.facts["same_psnr"].items():
        assert 100 < size < cat.stat().st_size, name
    shown = room_compress.figures(studio, done)
    assert studio.url(done.id, FILE) in shown and f"{done.facts['psnr']:.2f} dB" in shown


def test_bits_a_pixel_are_searched_for(studio: Studio, cat: Path) -> None:
    told: list[float] = []
    done = compressing.compress(studio, str(cat), 8.0, [], told.append, bpp=1.0)
    finer = compressing.compress(studio, str(cat), done.facts["quality"] + 0.05, [], nothing)
    assert done.facts["bpp"] <= 1.0 < finer.facts["bpp"]
    searched = [part for part in told if part < compressing.SEARCHED]
    assert len(searched) > 5 and told == sorted(told) and told[-1] <= 1
    assert f"{done.facts['bpp']:.3f} of 1" in room_compress.figures(studio, done)
    before = studio.shelf.used
    for wanted, words in ((0.001, "too few: this picture needs"), (-1, "bpp"), (65, "bpp")):
        with pytest.raises(InputError, match=words):
            compressing.compress(studio, str(cat), 4.0, [], nothing, bpp=wanted)
    assert studio.shelf.used == before


def test_others_are_compared_at_the_smallest_size_that_is_as_good() -> None:
    image = Image.fromarray(data.chelsea()[:96, :96])
    found = compressing.peers(image, 33.0, nothing)
    stream = io.BytesIO()
    for quality in range(1, 96):
        stream = io.BytesIO()
        image.save(stream, "JPEG", quality=quality, subsampling="4:2:0", optimize=True)
        if compressing.psnr(image, Image.open(stream)) >= 33:
            break
    assert found["JPEG"] == len(stream.getvalue())
    assert compressing.peers(Image.new("RGB", (2000, 1000)), 33.0, nothing) == {}


def test_what_is_painted_stays_sharper(studio: Studio, cat: Path) -> None:
    whole = compressing.compress(studio, str(cat), 6.0, [], nothing)
    part = compressing.compress(studio, str(cat), 6.0, SHARP, nothing)
    assert part.facts["bytes"] < whole.facts["bytes"]
    assert part.facts["psnr"] < part.facts["painted_psnr"]
    assert "where painted" in room_compress.figures(studio, part)


def test_regions_of_a_file_are_those_that_are_painted(studio: Studio, cat: Path, tmp_path: Path) -> None:
    """By their white, alone or beside strokes, with no pointer needed; one of another size is refused."""
    both = [*SHARP, {"radius": 0.1, "points": [[0.8, 0.2]]}]
    masks = [Image.fromarray(np.uint8(255 * importance(strokes, (192, 128)))) for strokes in (SHARP, both)]
    for name, mask in zip(("one.png", "both.png", "small.png"), [*masks, masks[0].resize((96, 64))], strict=True):
        mask.save(tmp_path / name)
    painted = [compressing.compress(studio, str(cat), 6.0, strokes, nothing) for strokes in (SHARP, both)]
    for strokes, name, same in (([], "one", 0), ([], "both", 1), (both[1:], "one", 1)):
        done = compressing.compress(studio, str(cat), 6.0, strokes, nothing, regions=tmp_path / f"{name}.png")
        assert done.facts["painted_psnr"] == painted[same].facts["painted_psnr"]
        assert done.after.tobytes() == painted[same].after.tobytes()
    with pytest.raises(InputError, match="the picture of regions has 96 x 64 pixels, the picture 192 x 128: must fit"):
        compressing.compress(studio, str(cat), 6.0, [], nothing, regions=tmp_path / "small.png")


def test_what_is_painted_is_as_sharp_as_bits_allow(studio: Studio, cat: Path) -> None:
    whole = compressing.compress(studio, str(cat), 8.0, [], nothing, bpp=0.5)
    part = compressing.compress(studio, str(cat), 8.0, SHARP, nothing, bpp=0.5)
    assert part.facts["bpp"] <= 0.5 and part.facts["quality"] > whole.facts["quality"]
    assert part.facts["painted_psnr"] > whole.facts["psnr"] > part.facts["psnr"]


def test_a_file_opens_again_as_the_same_picture(studio: Studio, cat: Path) -> None:
    done = compressing.compress(studio, str(cat), 2.0, [], nothing)
    opened = compressing.open_file(studio, studio.shelf.file(done.id, FILE).read_bytes(), nothing)
    with Image.open(studio.shelf.file(opened.id, PICTURE)) as image:
        assert image.tobytes() == done.after.tobytes()
    assert opened.before is None and opened.facts["quality"] == 2
    assert "Download .png" in room_compress.figures(studio, opened)
    assert opened.id in {entry.id for entry in compressing.earlier(studio)}


def test_a_file_that_is_opened_again_is_kept_once(studio: Studio, cat: Path) -> None:
    done = compressing.compress(studio, str(cat), 5.0, [], nothing)
    content, (before, _) = studio.shelf.file(done.id, FILE).read_bytes(), studio.shelf.used
    ids = {compressing.open_file(studio, content, nothing).id for _ in range(3)}
    assert len(ids) == 1 and ids != {done.id} and studio.shelf.used[0] == before + 1
    listed = [entry.id for entry in compressing.earlier(studio)]
    assert ids <= set(listed) and done.id not in listed, "one of each picture"


def test_another_codec_is_chosen_and_opens_its_own_files(own: Studio, cat: Path) -> None:
    assert compressing.codecs(own) == ["segpic-photo", "mine"]
    made = {name: compressing.compress(own, str(cat), 2.0, [], nothing, model=name) for name in compressing.codecs(own)}
    for name, done in made.items():
        content = own.shelf.file(done.id, FILE).read_bytes()
        assert own.digest(name).startswith(read(content)[0].model.hex())
        assert compressing.open_file(own, content, nothing).after.tobytes() == done.after.tobytes()
    with pytest.raises(InputError, match="this model has 1 to 2"):
        compressing.compress(own, str(cat), 3.0, [], nothing, model="mine")
    for name, words in (("dimr-toybox", "is no codec"), ("../mine", "offers no model")):
        with pytest.raises(InputError, match=words):
            compressing.compress(own, str(cat), 2.0, [], nothing, model=name)


def test_a_file_of_a_codec_that_is_not_offered_is_refused(studio: Studio, own: Studio, cat: Path) -> None:
    done = compressing.compress(own, str(cat), 2.0, [], nothing, model="mine")
    with pytest.raises(BitstreamError, match="give the model it was made with"):
        compressing.open_file(studio, own.shelf.file(done.id, FILE).read_bytes(), nothing)


def test_the_page_follows_the_codec(own: Studio) -> None:
    quality, most, last = room_compress._choose(own, "mine", "segpic-photo")
    assert (quality["maximum"], quality["value"], most["visible"], last) == (2, 2, True, "mine")
    assert room_compress._choose(own, "mine", "mine") == [{"__type__": "update"}] * 3
    told = room_machine._models(own)
    assert "<td>mine</td>" in told and "psnr 7.25" in told and "<td>dimr-toybox</td>" in told


def test_the_newest_file_of_each_picture_is_listed(studio: Studio, cat: Path) -> None:
    ids = [compressing.compress(studio, str(cat), quality, [], nothing).id for quality in (1.0, 2.0)]
    listed = [entry.id for entry in compressing.earlier(studio)]
    assert listed[0] == ids[1] and ids[0] not in listed


def test_what_is_no_file_or_picture_is_refused(studio: Studio, cat: Path, tmp_path: Path) -> None:
    done = compressing.compress(studio, str(cat), 2.0, [], nothing)
    content = studio.shelf.file(done.id, FILE).read_bytes()
    before = studio.shelf.used
    with pytest.raises(BitstreamError):
        compressing.open_file(studio, content[:-5], nothing)
    for quality in (0.5, 9.0):
        with pytest.raises(InputError, match="quality"):
            compressing.compress(studio, str(cat), quality, [], nothing)
    Image.new("RGB", (400, 400)).save(tmp_path / "large.png")
    with pytest.raises(InputError, match="100000"):
        compressing.compress(studio, str(tmp_path / "large.png"), 2.0, [], nothing)
    (tmp_path / "text.png").write_text("no picture")
    with pytest.raises(InputError, match="PNG, JPEG or WebP"):
        compressing.compress(studio, str(tmp_path / "text.png"), 2.0, [], nothing)
    assert studio.shelf.used == before


def test_a_file_of_more_pixels_than_the_studio_opens_is_refused_before_it_is_decoded(studio: Studio) -> None:
    from belvedere.compression import bitstream
    from belvedere.compression.tiling import Layout

    layout = Layout()
    header = bitstream.Header(bytes(bitstream.MODEL_BYTES), 4000, 4000, 0, layout, 8, False, b"", b"")
    tiles = [bitstream.Tile(b"", 0)] * layout.count(4000, 4000)
    with pytest.raises(InputError, match="4000 x 4000 pixels, more than"):
        compressing.open_file(studio, bitstream.write(header, tiles), nothing)


@pytest.mark.parametrize("bpp", [0, 1.0])
def test_stopping_keeps_nothing(studio: Studio, cat: Path, bpp: float) -> None:
    told: list[float] = []

    def stop(part: float) -> None:
        told.append(part)
        if len(told) == (3 if bpp else 1):  # in the midst of a search
            raise Stopped

    before = studio.shelf.used
    with pytest.raises(Stopped):
        compressing.compress(studio, str(cat), 2.0, [], stop, bpp=bpp)
    assert studio.shelf.used == before and told[-1] <= 0.5


def test_sizes_are_written_to_be_read() -> None:
    assert [room_compress.size(n) for n in (12, 8900, 1_234_567)] == ["12 bytes", "8.9 kB", "1.23 MB"]
