"""Films are read back; whatever fails leaves nothing behind; maps mean what they say."""

import resource
import subprocess
import weakref
from collections.abc import Iterator
from pathlib import Path

import imageio_ffmpeg
import numpy as np
import pytest
import torch
from PIL import Image

from belvedere.errors import InputError
from belvedere.synthesis import export
from belvedere.synthesis.export import colour_depth, to_frame, write_depth, write_frames, write_map, write_video

KINDS = ("mp4", "gif", "webp")


def film(count: int, height: int = 48, width: int = 64) -> Iterator[np.ndarray]:
    """Yield frames in which a soft light wanders over a coloured ground."""
    y, x = np.mgrid[:height, :width]
    ground = np.stack([60 + 2 * x, 40 + 3 * y, np.full_like(x, 90)], -1)
    for i in range(count):
        light = 60 * np.exp(-((x - 8 * i) ** 2 + (y - 20) ** 2) / 200)[..., None]
        yield (ground + light).clip(0, 255).astype(np.uint8)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def read_mp4(path: Path) -> tuple[list[np.ndarray], float]:
    reader = imageio_ffmpeg.read_frames(str(path))
    about = next(reader)
    width, height = about["size"]
    return [np.frombuffer(data, np.uint8).reshape(height, width, 3) for data in reader], about["fps"]


def read_animation(path: Path) -> tuple[list[np.ndarray], list[int], int]:
    frames, durations = [], []
    with Image.open(path) as image:
        for i in range(image.n_frames):
            image.seek(i)
            frames.append(np.asarray(image.convert("RGB")))
            durations.append(image.info["duration"])
        return frames, durations, image.info["loop"]


def close(ours: list[np.ndarray], theirs: Iterator[np.ndarray], mean: float) -> None:
    for mine, other in zip(ours, theirs, strict=True):
        assert np.abs(mine.astype(int) - other).mean() < mean


def test_an_mp4_holds_its_frames(tmp_path: Path) -> None:
    write_video(tmp_path / "a.mp4", film(9), fps=12.5)
    frames, fps = read_mp4(tmp_path / "a.mp4")
    assert fps == 12.5
    close(frames, film(9), 2)
    assert names(tmp_path) == ["a.mp4"]


def test_an_mp4_keeps_colours(tmp_path: Path) -> None:
    colours = [(255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255), (0, 0, 0), (200, 100, 50)]
    write_video(tmp_path / "a.mp4", (np.full((32, 32, 3), colour, np.uint8) for colour in colours), fps=1)
    frames, _ = read_mp4(tmp_path / "a.mp4")
    for frame, colour in zip(frames, colours, strict=True):
        assert np.abs(frame.astype(int) - colour).max() <= 4


@pytest.mark.parametrize(("height", "width"), [(47, 64), (48, 63), (1, 1), (160, 90)])
def test_odd_sides_are_made_even(tmp_path: Path, height: int, width: int) -> None:
    write_video(tmp_path / "a.mp4", film(2, height, width))
    frames, _ = read_mp4(tmp_path / "a.mp4")
    assert frames[0].shape == (height + height % 2, width + width % 2, 3)
    close([frame[:height, :width] for frame in frames], film(2, height, width), 4)
    if height % 2:
        assert np.abs(frames[0][-1].astype(int) - frames[0][-2]).mean() < 4


@pytest.mark.parametrize(("kind", "mean", "duration"), [("gif", 4, 80), ("webp", 3, 83)])
def test_an_animation_holds_its_frames(tmp_path: Path, kind: str, mean: float, duration: int) -> None:
    write_video(tmp_path / f"a.{kind}", film(6, 47, 63), fps=12)
    frames, durations, loop = read_animation(tmp_path / f"a.{kind}")
    close(frames, film(6, 47, 63), mean)
    assert loop == 0 and all(abs(found - duration) <= 1 for found in durations)


def test_names_are_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("concat:a.MP4", "-y.mp4", "a b%03d.mp4"):
        write_video(name, film(2))
    assert names(tmp_path) == ["-y.mp4", "a b%03d.mp4", "concat:a.MP4"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("error", [KeyboardInterrupt, ZeroDivisionError, BrokenPipeError])
def test_interrupted_films_leave_nothing(
    tmp_path: Path, kind: str, error: type[BaseException], monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[subprocess.Popen[bytes]] = []

    class Recorded(subprocess.Popen[bytes]):
        def __init__(self, *arguments: object, **keywords: object):
            super().__init__(*arguments, **keywords)  # type: ignore[call-overload]
            started.append(self)

    monkeypatch.setattr(subprocess, "Popen", Recorded)
    path = tmp_path / f"a.{kind}"
    path.write_bytes(b"before")

    def interrupted() -> Iterator[np.ndarray]:
        yield from film(3)
        raise error

    with pytest.raises(error):
        write_video(path, interrupted())
    assert path.read_bytes() == b"before" and names(tmp_path) == [path.name]
    assert [process.returncode is not None for process in started] == [True] * (kind == "mp4")


def noise(count: int) -> Iterator[np.ndarray]:
    draw = np.random.default_rng(0)
    for _ in range(count):
        yield draw.integers(0, 256, (64, 64, 3), np.uint8)


@pytest.mark.parametrize("count", [1, 200])
def test_an_encoder_that_fails(tmp_path: Path, count: int) -> None:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, before[1]))  # as a full disk
    try:
        with pytest.raises(InputError, match=r"cannot write .*a\.mp4"):
            write_video(tmp_path / "a.mp4", noise(count))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert names(tmp_path) == []


def test_without_ffmpeg(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("IMAGEIO_FFMPEG_EXE", str(tmp_path / "none"))
    with pytest.raises(InputError, match="no ffmpeg"):
        write_video(tmp_path / "a.mp4", film(2))
    assert names(tmp_path) == []


def test_an_mp4_takes_frames_one_by_one(tmp_path: Path) -> None:
    kept: list[int] = []

    def counted() -> Iterator[np.ndarray]:
        made: list[weakref.ref[np.ndarray]] = []
        for _ in range(40):
            frame = np.zeros((32, 32, 3), np.uint8)
            made.append(weakref.ref(frame))
            yield frame
            del frame
            kept.append(sum(frame() is not None for frame in made))

    write_video(tmp_path / "a.mp4", counted())
    assert len(kept) == 40 and max(kept) <= 2


def test_wrong_films(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "folder.gif").mkdir()
    for name, fps, message in (
        ("a.avi", 24, r"ends with \.mp4, \.gif, \.webp"),
        ("a", 24, "ends with"),
        ("folder.gif", 24, "name a file"),
        ("a.mp4", 0, "0 frames a second"),
        ("a.mp4", float("nan"), "nan frames a second"),
        ("a.gif", 60, "0.1 to 50"),
    ):
        with pytest.raises(InputError, match=message):
            write_video(tmp_path / name, film(2), fps)
    small, grey = np.zeros((8, 8, 3), np.uint8), np.zeros((8, 8), np.uint8)
    for frames, message in (
        ([], "no frames"),
        ([small, np.zeros((8, 9, 3), np.uint8)], "frame 2 has 9 x 8 pixels, others 8 x 8"),
        ([small, grey], "frame 2: must be"),
        ([small.astype(np.float32)], "frame 1: must be"),
        ([np.zeros((0, 8, 3), np.uint8)], "8 x 0 pixels"),
        ([np.zeros((2, 16_384, 3), np.uint8)], "16384 x 2 pixels"),
    ):
        for kind in KINDS:
            with pytest.raises(InputError, match=message):
                write_video(tmp_path / f"a.{kind}", frames)
    monkeypatch.setattr(export, "MAX_ANIMATION", 199)
    for kind in ("gif", "webp"):
        with pytest.raises(InputError, match=r"more than 199 pixels together: make an \.mp4"):
            write_video(tmp_path / f"a.{kind}", [small] * 4)
    monkeypatch.setattr(export, "MAX_PIXELS", 63)
    with pytest.raises(InputError, match="at most 63 pixels"):
        write_video(tmp_path / "a.mp4", [small])
    assert names(tmp_path) == ["folder.gif"]


def test_frames(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for folder in (tmp_path / "new" / "frames", tmp_path / "empty"):
        assert write_frames(folder, film(3)) == 3
        assert names(folder) == ["0001.png", "0002.png", "0003.png"]
        for path, frame in zip(sorted(folder.iterdir()), film(3), strict=True):
            assert (np.asarray(Image.open(path)) == frame).all()


def test_frames_that_fail_leave_nothing(tmp_path: Path) -> None:
    def interrupted() -> Iterator[np.ndarray]:
        yield from film(2)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_frames(tmp_path / "a", interrupted())
    with pytest.raises(InputError, match="no frames"):
        write_frames(tmp_path / "a", [])
    assert names(tmp_path) == []
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "mine").touch()
    (tmp_path / "link").symlink_to("nowhere")
    for there in (tmp_path / "a", tmp_path / "a" / "mine", tmp_path / "link"):
        with pytest.raises(InputError, match="no empty folder"):
            write_frames(there, film(2))
    assert names(tmp_path / "a") == ["mine"]


def test_frames_of_colours() -> None:
    colour = torch.tensor([[[0.0, 0.5, 1.0], [-1.0, 2.0, 0.2]]], requires_grad=True)
    assert to_frame(colour).tolist() == [[[0, 128, 255], [0, 255, 51]]]


@pytest.mark.parametrize(("scale", "unit"), [(1.0, 1e-4), (6.0, 1e-4), (60.0, 1e-3), (3e6, 1e2)])
def test_depth_maps(tmp_path: Path, scale: float, unit: float) -> None:
    depth = torch.tensor([[1.0, 0.123456, torch.inf], [0.0, 0.5, 0.25]]) * scale
    assert write_depth(tmp_path / "a.png", depth) == pytest.approx(unit)
    with Image.open(tmp_path / "a.png") as image:
        assert image.mode == "I;16" and f"value x {unit:g} is the distance" in image.info["Depth"]
        values = np.asarray(image).astype(float)
    assert values[0, 2] == 0 and values[1, 0] == 1
    there = depth.isfinite() & (depth > 0)
    assert (np.abs(values * unit - depth.numpy())[there.numpy()] <= unit * 0.51).all()


def test_maps(tmp_path: Path) -> None:
    write_map(tmp_path / "a.png", torch.tensor([[0.0, 0.2, 1.0], [1.5, -1.0, 0.5]]))
    with Image.open(tmp_path / "a.png") as image:
        assert image.mode == "L" and np.asarray(image).tolist() == [[0, 51, 255], [255, 0, 128]]


def test_colours_of_depths_are_in_order() -> None:
    depth = torch.linspace(0.5, 3.0, 200).expand(2, -1).clone()
    depth[1] = torch.inf
    frame = colour_depth(depth, near=1.0, far=2.5).astype(float)
    lightness = frame[0] @ [0.30, 0.59, 0.11]
    within = (depth[0] > 1) & (depth[0] < 2.5)
    assert (np.diff(lightness) <= 1).all() and np.diff(lightness[within.numpy()]).sum() < -180
    assert (frame[0, 0] == 255).all() and (frame[0, -1] == frame[0, 170]).all() and lightness[-1] > 20
    assert (frame[1] == 0).all()
    assert len(np.unique(frame[0], axis=0)) > 100 and np.ptp(frame[0], axis=-1).max() > 50


def test_wrong_maps(tmp_path: Path) -> None:
    path, nan = tmp_path / "a.png", torch.tensor([[torch.nan]])
    for write in (write_map, write_depth):
        for values in (torch.zeros(2, 2, 3), torch.zeros(0, 2), nan):
            with pytest.raises(InputError, match=r"a map \("):
                write(path, values)
        with pytest.raises(InputError, match=r"end the name with \.png"):
            write(tmp_path / "a.jpg", torch.zeros(2, 2))
    with pytest.raises(InputError, match="negative"):
        write_depth(path, torch.tensor([[-1.0]]))
    for near, far in ((1.0, 1.0), (0.0, torch.inf), (torch.nan, 1.0)):
        with pytest.raises(InputError, match="near < far"):
            colour_depth(torch.ones(2, 2), near, far)
    assert names(tmp_path) == []
