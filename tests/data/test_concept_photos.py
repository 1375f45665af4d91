"""Photographs of a concept: upright, square with their aspect kept, and refused where they cannot serve."""

from pathlib import Path

import pytest
import torch
from PIL import Image

from belvedere.data.concept_photos import TEMPLATES, ConceptPhotos, left_out, photo_files, read_templates, square
from belvedere.data.images import open_photograph, to_srgb
from belvedere.errors import InputError
from tests.data.test_images import ADOBE, profile
from tests.generation.neti_models import save_photographs


def test_a_photograph_is_cut_to_its_middle_and_not_squashed(tmp_path: Path) -> None:
    """A circle stays one: as wide as high, in the middle."""
    for name in ("a.png", "b.png"):
        image = Image.new("L", (96, 48))
        image.paste(255, (36, 12, 60, 36))
        image.convert("RGB").save(tmp_path / name)
    photos = ConceptPhotos(tmp_path, size=24)
    white = photos[0]["image"][0] > 0
    assert white.any(0).sum() == white.any(1).sum() == 12
    assert white[6:18, 6:18].all()


def test_mirror_images_are_the_odd_items(tmp_path: Path) -> None:
    photos = ConceptPhotos(save_photographs(tmp_path), size=16)
    assert len(photos) == 6 and photos.classes == ()
    assert torch.equal(photos[3]["image"], photos[2]["image"].flip(2))
    assert not torch.equal(photos[3]["image"], photos[2]["image"])
    batch = photos.batch([2, 0])
    assert torch.equal(batch["image"], torch.stack([photos[2]["image"], photos[0]["image"]]))
    assert batch["image"].min() >= -1 and batch["image"].max() <= 1 and batch["label"].tolist() == [0, 0]
    assert len(ConceptPhotos(tmp_path, size=16, flip=False)) == 3
    with pytest.raises(IndexError):
        photos[6]


def test_exif_turns_a_photograph(tmp_path: Path) -> None:
    """Stored lying on its side, top to the left: what is at the left of the file is at the top of the picture."""
    image = Image.new("RGB", (32, 32), "black")
    image.paste("white", (0, 0, 8, 32))
    exif = Image.Exif()
    exif[0x0112] = 6
    for name in ("a.jpg", "b.jpg"):
        image.save(tmp_path / name, exif=exif, quality=95)
    pixels = ConceptPhotos(tmp_path, size=32)[0]["image"][0]
    assert pixels[:6].mean() > 0.9 and pixels[10:].mean() < -0.9


def test_colours_are_those_of_the_profile(tmp_path: Path) -> None:
    """A photograph of Adobe RGB is learned as the same brought to sRGB, not as its bare levels."""
    told, plain, bare = (tmp_path / name for name in ("told", "plain", "bare"))
    for folder in (told, plain):
        folder.mkdir()
    for file in photo_files(save_photographs(bare, 2)):
        with Image.open(file) as image:
            image.save(told / file.name, icc_profile=profile(ADOBE, [563]))
        to_srgb(open_photograph(told / file.name)).save(plain / file.name)
    pixels = {folder: ConceptPhotos(folder, size=24).pixels for folder in (told, plain, bare)}
    assert torch.equal(pixels[told], pixels[plain]) and not torch.equal(pixels[told], pixels[bare])


def test_an_animation_is_no_photograph(tmp_path: Path) -> None:
    first, second = (Image.new("RGB", (16, 16), colour) for colour in ("red", "blue"))
    first.save(tmp_path / "a.webp", save_all=True, append_images=[second])
    second.save(tmp_path / "b.webp")
    with pytest.raises(InputError, match=r"a\.webp is an animation"):
        ConceptPhotos(tmp_path, size=16)


def test_a_region_is_what_is_cut(tmp_path: Path) -> None:
    save_photographs(tmp_path, 2)
    whole, part = (ConceptPhotos(tmp_path, size=8, regions=regions) for regions in (None, {"0.png": (4, 4, 14, 14)}))
    assert (part[0]["image"][2] > 0.2).all() and not (whole[0]["image"][2] > 0.2).all()
    assert torch.equal(part[2]["image"], whole[2]["image"])
    assert part.digest != whole.digest


@pytest.mark.parametrize(
    ("region", "box"),
    [((10, 10, 4, 8), (8, 10, 16, 18)), ((0, 0, 2, 6), (0, 0, 6, 6)), ((0, 18, 40, 6), (8, 0, 32, 24))],
)
def test_the_square_around_a_region(region: tuple[int, ...], box: tuple[int, ...]) -> None:
    """Its side is the longer one of the region, or what the picture has; it stays within the picture."""
    image = Image.effect_noise((40, 24), 90)
    assert square(image, region, "x").tobytes() == image.crop(box).tobytes()


def test_the_digest_is_of_the_files_whatever_the_size(tmp_path: Path) -> None:
    save_photographs(tmp_path)
    digest = ConceptPhotos(tmp_path, size=16).digest
    assert ConceptPhotos(tmp_path, size=32).digest == digest != ConceptPhotos(tmp_path, size=16, flip=False).digest
    Image.new("RGB", (20, 20)).save(tmp_path / "1.png")
    assert ConceptPhotos(tmp_path, size=16).digest != digest


def test_what_cannot_serve_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no folder .*nowhere"):
        ConceptPhotos(tmp_path / "nowhere")
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(InputError, match="no PNG, JPEG or WebP files in"):
        ConceptPhotos(tmp_path)
    save_photographs(tmp_path, 1)
    with pytest.raises(InputError, match=r"one photograph in .* is too few: give 2 or more"):
        ConceptPhotos(tmp_path)
    assert len(photo_files(tmp_path, fewest=1)) == 1
    (tmp_path / "bad.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    with pytest.raises(InputError, match=r"bad\.png is not a whole PNG, JPEG or WebP picture"):
        ConceptPhotos(tmp_path)
    save_photographs(tmp_path / "good")
    for size in (4, 100_000):
        with pytest.raises(InputError, match="give 8 to 4096"):
            ConceptPhotos(tmp_path / "good", size=size)
    for regions, message in (
        ({"9.png": (0, 0, 4, 4)}, r"region of 9\.png: .* no such photograph"),
        ({"0.png": (30, 0, 20, 4)}, "is not within its 40 x 24 pixels"),
        ({"0.png": (0, 0, 0, 4)}, "is not within"),
        ({"0.png": (0, 0, 4)}, "must be x, y, width and height"),
    ):
        with pytest.raises(InputError, match=message):
            ConceptPhotos(tmp_path / "good", size=16, regions=regions)


def test_photographs_of_other_kinds_are_named(tmp_path: Path) -> None:
    for name in (".DS_Store", "0.txt", "captions.JSON"):
        (tmp_path / name).touch()
    (tmp_path / "folder.heic").mkdir()
    assert left_out(tmp_path) == ""
    (tmp_path / "IMG_1.HEIC").touch()
    with pytest.raises(InputError, match=r"give a folder that has some; left out: IMG_1\.HEIC: save as JPEG$"):
        photo_files(tmp_path)
    save_photographs(tmp_path, 1)
    for name in ("a.tif", "b.tif", "c.tif"):
        (tmp_path / name).touch()
    with pytest.raises(
        InputError, match=r"too few: .*; left out: IMG_1\.HEIC, a\.tif, b\.tif and 1 more: save as JPEG$"
    ):
        ConceptPhotos(tmp_path)


def test_templates(tmp_path: Path) -> None:
    assert [len(set(templates)) for templates in TEMPLATES.values()] == [27, 19]
    assert all(template.count("{}") == 1 for templates in TEMPLATES.values() for template in templates)
    assert read_templates("styles") == TEMPLATES["styles"]
    (tmp_path / "mine.txt").write_text("a {}\n\n  the {} \n")
    assert read_templates(str(tmp_path / "mine.txt")) == ("a {}", "the {}")
    with pytest.raises(InputError, match="no templates 'people': give objects, styles or a text file"):
        read_templates("people")
    (tmp_path / "empty.txt").write_text("\n")
    with pytest.raises(InputError, match="0 lines"):
        read_templates(str(tmp_path / "empty.txt"))
    (tmp_path / "binary.txt").write_bytes(b"\xff\xfe{}")
    with pytest.raises(InputError, match="not readable text"):
        read_templates(str(tmp_path / "binary.txt"))
