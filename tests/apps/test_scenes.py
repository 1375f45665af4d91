"""From a picture to a scene: what the picture tells of its camera, and scenes in files."""

import io
import math
import struct
import zlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from belvedere.apps.requests import ViewRequest
from belvedere.apps.scenes import Scene, build_scene, exif_fov, fit_picture, open_scene, read_scene
from belvedere.checkpoints.views import open_scene_model
from belvedere.data.images import open_photograph, to_srgb, to_tensor
from belvedere.data.toybox.views import ToyboxViews
from belvedere.errors import InputError
from belvedere.synthesis.field import Field
from belvedere.synthesis.render import render_view
from tests.apps.view_helpers import DISTANCE, FOV, SIZE, ball, network, request, save_model, toy
from tests.data.test_images import ADOBE, profile


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("models") / "scenes")


def exif(focal: object, orientation: int = 1) -> Image.Exif:
    data = Image.Exif()
    data[0x0112] = orientation
    data.get_ifd(0x8769)[0xA405] = focal
    return data


def volumes(scene: Scene) -> torch.Tensor:
    assert scene.field.planes is not None and scene.field.lines is not None
    return torch.cat([scene.field.planes.flatten(), scene.field.lines.flatten()])


def half_angle(camera_or_fov: float) -> float:
    return math.tan(math.radians(camera_or_fov) / 2)


def test_a_picture_becomes_the_scene_that_the_network_makes_of_it(model: Path, tmp_path: Path) -> None:
    toy(SIZE).save(tmp_path / "toy.png")
    scene = build_scene(tmp_path / "toy.png", request(model=str(model)))
    pixels = to_tensor(toy(SIZE))[None].float() / 255
    focal = 1 / 2 / half_angle(FOV)
    with torch.no_grad():
        expected = network()(pixels, torch.tensor([[DISTANCE, focal]]))
    assert torch.equal(volumes(scene), torch.cat([expected.planes.flatten(), expected.lines.flatten()]))
    assert (scene.near, scene.far, scene.samples) == (1.0, 3.0, 8)
    assert scene.camera.position.tolist() == [0, 0, -DISTANCE]
    assert scene.camera_facts == pytest.approx({"distance": DISTANCE, "fov": FOV, "pitch": 0, "near": 1, "far": 3})


def test_the_pitch_is_that_of_the_ground_unless_it_is_asked_for(tmp_path: Path) -> None:
    batch = ToyboxViews(64, spread=(0.0,), seed=4321).batch(range(12))
    pitches = -batch["poses"][:, 0, 1, 2].asin().rad2deg()  # y of the direction of view
    steepest = int(pitches.argmax())
    pixels = ((batch["image"][steepest] + 1) * 127.5).round().byte().permute(1, 2, 0)
    Image.fromarray(pixels.numpy()).save(tmp_path / "toy.png")
    found = build_scene(tmp_path / "toy.png", ViewRequest()).pitch
    assert found == pytest.approx(pitches[steepest].item(), abs=3)
    assert found > open_scene_model("nvist-toybox").pitch + 4
    assert build_scene(tmp_path / "toy.png", ViewRequest(pitch=5.0)).pitch == 5


def test_what_is_asked_for_comes_before_what_the_model_says(model: Path, tmp_path: Path) -> None:
    toy(SIZE).save(tmp_path / "toy.png")
    asked = {"distance": 2.5, "fov": 30.0, "pitch": 12.0, "near": 0.0, "far": 4.0}
    scene = build_scene(tmp_path / "toy.png", request(model=str(model), **asked))
    assert scene.camera_facts == pytest.approx(asked)
    assert not torch.equal(volumes(scene), volumes(build_scene(tmp_path / "toy.png", request(model=str(model)))))


@pytest.mark.parametrize(("size", "share"), [((96, 72), 1.0), ((300, 64), 1.0), ((24, 96), 32 / 96), ((30, 40), 1.0)])
def test_the_middle_is_taken(size: tuple[int, int], share: float) -> None:
    """Where a picture is wider only its sides are lost; where it is taller, what is left has a narrower view."""
    image = Image.fromarray(np.zeros((size[1], size[0], 3), np.uint8))
    image.putpixel((size[0] // 2, size[1] // 2), (255, 255, 255))
    fitted, camera = fit_picture(image, SIZE, 2.0, 50.0, FOV)
    assert (fitted.height, fitted.width) == camera.size == SIZE
    assert SIZE[0] / 2 / camera.focal[1] == pytest.approx(share * half_angle(50))
    brightest = np.unravel_index(np.asarray(fitted)[..., 0].argmax(), SIZE)
    assert abs(brightest[0] + 0.5 - camera.principal[1]) < 1 and abs(brightest[1] + 0.5 - camera.principal[0]) < 1
    assert fit_picture(image, SIZE, 2.0, None, FOV)[1].focal[1] == pytest.approx(SIZE[0] / 2 / half_angle(FOV))


def test_the_focal_length_of_35_mm_film() -> None:
    """On film of 36 x 24 mm a picture of 3:2 fills the frame; others have its diagonal."""
    assert half_angle(exif_fov(exif(50).tobytes(), (360, 240)) or 0) == pytest.approx(12 / 50)
    assert half_angle(exif_fov(exif(50).tobytes(), (240, 360)) or 0) == pytest.approx(18 / 50)
    side = math.hypot(36, 24) / math.sqrt(2)
    assert half_angle(exif_fov(exif(28).tobytes(), (80, 80)) or 0) == pytest.approx(side / 2 / 28)
    for nothing in (b"", b"Exif\0\0MM", exif(50).tobytes()[:30], exif(0).tobytes(), Image.Exif().tobytes()):
        assert exif_fov(nothing, (80, 80)) is None


def test_a_picture_tells_its_focal_length_and_which_way_is_up(model: Path, tmp_path: Path) -> None:
    image = toy((72, 54))
    image.save(tmp_path / "plain.png")
    image.save(tmp_path / "told.png", exif=exif(50))
    image.rotate(90, expand=True).save(tmp_path / "lying.png", exif=exif(50, orientation=6))
    plain, told, lying = (
        build_scene(tmp_path / f"{name}.png", request(model=str(model))) for name in ("plain", "told", "lying")
    )
    fov = exif_fov(exif(50).tobytes(), (54, 72))
    assert plain.camera_facts["fov"] == pytest.approx(FOV) and told.camera_facts["fov"] == pytest.approx(fov)
    assert lying.origin == told.origin and torch.equal(volumes(lying), volumes(told))
    assert plain.origin == told.origin and not torch.equal(volumes(plain), volumes(told))
    asked = build_scene(tmp_path / "told.png", request(model=str(model), fov=33.0))
    assert asked.camera_facts["fov"] == pytest.approx(33)


def test_a_network_that_knows_one_field_of_view_shows_the_picture_as_it_is(tmp_path: Path) -> None:
    """It makes the same scene whatever the camera, so a camera that sees more would show the toy smaller."""
    model = save_model(tmp_path / "model", focal=False)
    image = toy((72, 54))
    image.save(tmp_path / "plain.png")
    image.save(tmp_path / "told.png", exif=exif(26))
    plain, told = (build_scene(tmp_path / f"{name}.png", request(model=str(model))) for name in ("plain", "told"))
    assert plain.camera_facts == told.camera_facts and told.camera_facts["fov"] == pytest.approx(FOV)
    assert torch.equal(volumes(plain), volumes(told))
    with pytest.raises(InputError, match=r"--fov: .*model takes every picture for one of 40 degrees; leave it out"):
        build_scene(tmp_path / "plain.png", request(model=str(model), fov=61.0))


def test_colours_are_those_of_the_profile(model: Path, tmp_path: Path) -> None:
    told = profile(ADOBE, [563])
    toy((72, 54)).save(tmp_path / "told.png", icc_profile=told)
    to_srgb(open_photograph(tmp_path / "told.png")).save(tmp_path / "plain.png")
    a, b = (build_scene(tmp_path / f"{name}.png", request(model=str(model))) for name in ("told", "plain"))
    assert a.origin == b.origin
    toy((72, 54)).save(tmp_path / "bare.png")
    assert build_scene(tmp_path / "bare.png", request(model=str(model))).origin != a.origin


def test_grey_and_transparent_pictures(model: Path, tmp_path: Path) -> None:
    grey, clear = toy().convert("L"), toy().convert("RGBA")
    clear.paste((9, 9, 9, 0), (0, 0, 20, 20))
    white = toy()
    white.paste((255, 255, 255), (0, 0, 20, 20))
    pairs = {"grey": (grey, grey.convert("RGB")), "clear": (clear, white)}
    for name, images in pairs.items():
        for i, image in enumerate(images):
            image.save(tmp_path / f"{name}{i}.png")
        a, b = (build_scene(tmp_path / f"{name}{i}.png", request(model=str(model))) for i in range(2))
        assert a.origin == b.origin


def png_header(width: int, height: int) -> bytes:
    """A PNG that says it has so many pixels, and has none."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(b"")), (b"IEND", b"")]
    parts = [
        struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body)) for name, body in chunks
    ]
    return b"".join([b"\x89PNG\r\n\x1a\n", *parts])


def encoded(size: tuple[int, int]) -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", size).save(stream, "PNG")
    return stream.getvalue()


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"no picture", "is not a whole PNG, JPEG or WebP picture"),
        (b"", "is not a whole"),
        (png_header(9000, 9000), "9000 x 9000 pixels: at most"),
        (png_header(100_000, 100_000), "too many pixels: at most"),
        (encoded((1, 1)), "1 x 1 pixels: give a picture of 16 a side"),
        (encoded((20_000, 1)), "20000 x 1 pixels: give a picture of 16 a side"),
        (encoded((500, 400))[:200], "is not a whole"),
    ],
)
def test_pictures_that_are_refused_before_a_model_is_looked_for(content: bytes, words: str, tmp_path: Path) -> None:
    (tmp_path / "bad.png").write_bytes(content)
    with pytest.raises(InputError, match=r"bad\.png.*" + words):
        open_scene(tmp_path / "bad.png", ViewRequest(model="no/such"))


def test_a_scene_there_and_back(tmp_path: Path) -> None:
    scene = ball()
    scene.save(tmp_path / "ball.safetensors", "made by hand")
    again = open_scene(tmp_path / "ball.safetensors", request())
    assert torch.equal(volumes(again), volumes(scene)) and again.field.facts["record"] == "made by hand"
    assert again.camera_facts == pytest.approx(scene.camera_facts) and again.samples == scene.samples
    assert len(again.origin["scene"]) == 64
    options = {"near": 1.0, "far": 3.0, "samples": 16}
    views = [render_view(s.field, s.camera, **options).colour for s in (scene, again)]
    assert torch.allclose(*views, atol=1e-6)
    asked = {"distance": 2.5, "fov": 30.0, "pitch": 12.0, "near": 0.0, "far": 4.0}
    assert read_scene(tmp_path / "ball.safetensors", request(**asked)).camera_facts == pytest.approx(asked)


@pytest.mark.parametrize(
    ("facts", "words"),
    [
        ({}, "does not tell height"),
        ({"fov": 200}, "does not tell fov"),
        ({"fov": True}, "does not tell fov"),
        ({"near": "1"}, "does not tell near"),
        ({"samples": 10**30}, "does not tell samples"),
        ({"distance": -1}, "does not tell distance"),
        ({"near": 3, "far": 3}, "near must be below far"),
    ],
)
def test_scenes_that_do_not_say_how_to_look_at_them(facts: dict[str, object], words: str, tmp_path: Path) -> None:
    scene = ball()
    whole = {**scene.camera_facts, "samples": 8, "height": 8, "width": 8} if facts else {}
    replace(scene.field, facts=whole | facts).save(tmp_path / "s.safetensors")
    with pytest.raises(InputError, match=words):
        open_scene(tmp_path / "s.safetensors", request())


def test_files_that_are_no_scene(model: Path, tmp_path: Path) -> None:
    (tmp_path / "bad.safetensors").write_bytes(b"\xff" * 100)
    field = ball().field
    assert field.planes is not None and field.lines is not None
    Field(field.planes.repeat(2, 1, 1, 1, 1), field.lines.repeat(2, 1, 1, 1), field.decoder).save(
        tmp_path / "two.safetensors"
    )
    weights = model / "network" / "diffusion_pytorch_model.safetensors"
    for path, words in (
        (tmp_path / "none.safetensors", "no scene at"),
        (tmp_path / "bad.safetensors", "damaged or no scene"),
        (tmp_path / "two.safetensors", "holds 2 scenes"),
        (weights, "is no scene"),
    ):
        with pytest.raises(InputError, match=words):
            open_scene(path, request())
