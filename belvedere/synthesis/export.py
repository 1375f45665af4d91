"""What is seen of a scene, into files: films, frames, and maps of depth, opacity and the like.

A film is .mp4 (H.264, by the ffmpeg that imageio-ffmpeg brings), or an animated .gif or .webp that repeats for ever.
Whatever is written is written whole or not at all.
"""

import itertools
import math
import secrets
import shutil
import subprocess
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import IO

import numpy as np
import torch
from PIL import Image, PngImagePlugin
from torch import Tensor

from belvedere.errors import InputError
from belvedere.files import atomic_write
from belvedere.limits import MAX_PIXELS, WEBP_SIDE

MIN_FPS, MAX_FPS = 0.1, {".mp4": 240, ".gif": 50, ".webp": 240}
"""Frames a second; players slow down a GIF that asks for more."""
MAX_SIDE = WEBP_SIDE
"""Of a frame of a film; H.264 allows one pixel more, which makes it even."""
MAX_ANIMATION = 2**27
"""Pixels of all frames of a GIF or WebP together: their encoders hold them all, at up to 4 bytes."""
DEPTH_UNIT = 1e-4
"""What a step of a 16-bit depth map stands for, in the scene's unit of length, where 65535 of them are enough."""
DARKEST = 0.15
"""Of the colours of depths, that of what is farthest; nothing at all is black."""
CRF, WEBP_QUALITY = 18, 90
"""Of the encoders; at either, loss is hardly seen."""
Frames = Iterator[np.ndarray]


def to_frame(colour: Tensor) -> np.ndarray:
    """Return colours (h, w, 3) in [0, 1] as a frame, uint8 (h, w, 3); what lies outside is clipped."""
    return (colour.detach().clamp(0, 1) * 255).round().to(torch.uint8).cpu().numpy()


def write_video(path: Path | str, frames: Iterable[np.ndarray], fps: float = 24.0) -> None:
    """Write ``frames``, each uint8 (h, w, 3), as a film; the ending says which kind: .mp4, .gif or .webp.

    ``fps``: frames a second; a GIF counts in hundredths of a second and takes the nearest. In an MP4 the last row or
    column of an odd side is repeated: H.264 stores colour for two by two pixels. Frames are taken one by one; for an
    MP4, memory does not grow with their number.

    Raises ``InputError`` for another ending, ``fps`` out of range, no frames, frames that are not alike or too large,
    and when the encoder fails. Then, and when ``frames`` raises, ``path`` is as it was.
    """
    path = Path(path)
    kind = path.suffix.lower()
    if kind not in MAX_FPS or path.is_dir():
        raise InputError(f"{path}: cannot tell the kind of film; name a file that ends with {', '.join(MAX_FPS)}")
    if not MIN_FPS <= fps <= MAX_FPS[kind]:
        raise InputError(f"{fps} frames a second: {MIN_FPS} to {MAX_FPS[kind]} allowed in a {kind} file")
    size, frames = _begin(frames, math.inf if kind == ".mp4" else MAX_ANIMATION, MAX_SIDE)
    with atomic_write(path) as stream:
        if kind == ".mp4":
            _write_mp4(path, stream.name, frames, size, fps)
        else:
            _write_animation(stream, kind, frames, fps)


def write_frames(folder: Path | str, frames: Iterable[np.ndarray]) -> int:
    """Write ``frames``, each uint8 (h, w, 3), as 0001.png, 0002.png, ... of a new folder; return how many there are.

    The folder appears when all of them are written. Raises ``InputError`` where there is one already that is not
    empty, or a link, for no frames, and for frames that are not alike or too large.
    """
    folder = Path(folder)
    if folder.is_symlink() or (folder.exists() and not (folder.is_dir() and not any(folder.iterdir()))):
        raise InputError(f"{folder} exists and is no empty folder: choose another, or empty it")
    _, frames = _begin(frames, math.inf, math.inf)
    temporary = folder.with_name(f".{folder.name}.{secrets.token_hex(4)}.tmp")
    temporary.mkdir(parents=True)
    try:
        count = 0
        for count, frame in enumerate(frames, 1):
            _write_png(temporary / f"{count:04d}.png", frame)
        with suppress(FileNotFoundError):
            folder.rmdir()
        temporary.replace(folder)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    return count


def _begin(frames: Iterable[np.ndarray], most: float, side: float) -> tuple[tuple[int, int], Frames]:
    """Return the (height, width) of frames, and the frames; the first one has been taken and checked by then."""
    checked = _alike(frames, most, side)
    first = next(checked)
    return (first.shape[0], first.shape[1]), itertools.chain([first], checked)


def _alike(frames: Iterable[np.ndarray], most: float, side: float) -> Frames:
    """Yield frames as they come: one at least, all of one size, no more than ``most`` pixels together."""
    shape: tuple[int, ...] = ()
    for count, frame in enumerate(frames, 1):
        if not isinstance(frame, np.ndarray) or frame.dtype != np.uint8 or frame.ndim != 3 or frame.shape[2] != 3:
            raise InputError(f"frame {count}: must be an array (height, width, 3) of uint8")
        shape = shape or frame.shape
        if frame.shape != shape:
            raise InputError(f"frame {count} has {_size(frame)} pixels, others {shape[1]} x {shape[0]}: give one size")
        pixels = shape[0] * shape[1]
        if not 0 < pixels <= MAX_PIXELS or max(shape) > side:
            limits = f"{MAX_PIXELS} pixels" + (f" and sides of {side}" if side < math.inf else "")
            raise InputError(f"frames of {_size(frame)} pixels: give 1 pixel or more, and at most {limits}")
        if count * pixels > most:
            raise InputError(f"frames of more than {most} pixels together: make an .mp4, or fewer or smaller ones")
        yield frame
    if not shape:
        raise InputError("no frames: give one or more")


def _size(frame: np.ndarray) -> str:
    return f"{frame.shape[1]} x {frame.shape[0]}"


def _write_animation(stream: IO[bytes], kind: str, frames: Frames, fps: float) -> None:
    images = (Image.fromarray(frame) for frame in frames)
    duration = 10 * round(100 / fps) if kind == ".gif" else 1000 / fps  # milliseconds
    next(images).save(
        stream, kind[1:], save_all=True, append_images=images, loop=0, duration=duration, quality=WEBP_QUALITY
    )


def _write_mp4(path: Path, target: str, frames: Frames, size: tuple[int, int], fps: float) -> None:
    """Encode frames of ``size`` to the file ``target``, which is to become ``path``."""
    with tempfile.TemporaryFile() as log:
        process = _start_ffmpeg(target, size, fps, log)
        assert process.stdin is not None
        try:
            whole = all(_send(process.stdin, frame) for frame in frames)
            with suppress(BrokenPipeError):
                process.stdin.close()
            process.wait()
        finally:
            process.kill()  # nothing happens when it has ended
            with suppress(OSError):
                process.stdin.close()
            process.wait()
        if process.returncode or not whole:
            log.seek(0)
            lines = log.read(2**16).decode(errors="replace").strip().splitlines()
            reason = lines[-1] if lines else f"ffmpeg ended with code {process.returncode}"
            raise InputError(f"cannot write {path}: {reason}; make room or choose another place")


def _start_ffmpeg(target: str, size: tuple[int, int], fps: float, log: IO[bytes]) -> subprocess.Popen[bytes]:
    """Start an encoder that reads RGB frames. The film has BT.709 colours of limited range, and says so."""
    import imageio_ffmpeg

    height, width = (side + side % 2 for side in size)
    source = ["-f", "rawvideo", "-pixel_format", "rgb24", "-video_size", f"{width}x{height}", "-framerate", str(fps)]
    colours = ["-vf", "scale=out_color_matrix=bt709:out_range=tv,format=yuv420p", "-color_range", "tv"]
    colours += ["-colorspace", "bt709", "-color_primaries", "bt709", "-color_trc", "bt709"]
    encode = ["-c:v", "libx264", "-crf", str(CRF), "-movflags", "+faststart", "-f", "mp4", "-y", f"file:{target}"]
    options = ["-nostdin", "-v", "error", *source, "-i", "pipe:0", *colours, *encode]
    try:
        return subprocess.Popen(
            [imageio_ffmpeg.get_ffmpeg_exe(), *options],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=log,
            start_new_session=True,  # an interrupt from the keyboard is for us alone
        )
    except (RuntimeError, OSError) as error:
        raise InputError("no ffmpeg that runs here: install one, or choose a name ending with .gif or .webp") from error


def _send(pipe: IO[bytes], frame: np.ndarray) -> bool:
    """Hand a frame, its sides made even, to the encoder; return whether it listens."""
    height, width, _ = frame.shape
    even = np.pad(frame, ((0, height % 2), (0, width % 2), (0, 0)), mode="edge")
    try:
        pipe.write(np.ascontiguousarray(even).data)
    except BrokenPipeError:
        return False
    return True


def write_depth(path: Path | str, depth: Tensor) -> float:
    """Write distances (h, w), as ``unseen.surface_depth`` gives them, as a 16-bit grey PNG; return its unit.

    A pixel's value times the unit is the distance along its ray in the scene's unit of length, to the nearest; 0 is
    for infinity, where there is nothing. The unit is ``DEPTH_UNIT``, or the first of ten times, a hundred times, ... it
    in which the farthest fits; the file names it, in a text chunk "Depth". Raises ``InputError`` for negative
    distances and NaN.
    """
    _check_map(depth)
    if not (depth >= 0).all():
        raise InputError("a depth map holds negative distances: give them along the rays, from the camera")
    there = depth.isfinite()
    distances = torch.where(there, depth.detach().double(), 0)
    unit = DEPTH_UNIT
    while distances.max() > 65535 * unit:
        unit *= 10
    values = torch.where(there, (distances / unit).round().clamp(min=1), 0)
    text = f"value x {unit:g} is the distance along the ray, in the scene's unit of length; 0: nothing is there"
    _write_png(path, values.cpu().numpy().astype(np.uint16), {"Depth": text})
    return unit


def write_map(path: Path | str, values: Tensor) -> None:
    """Write a map (h, w) of numbers in [0, 1], of opacity or of what is unseen, as an 8-bit grey PNG: 255 is 1.

    Raises ``InputError`` for other shapes and NaN; what lies outside [0, 1] is clipped.
    """
    _check_map(values)
    _write_png(path, to_frame(values))


def colour_depth(depth: Tensor, near: float, far: float) -> np.ndarray:
    """Return distances (h, w) as a frame, uint8 (h, w, 3), to look at: white at ``near``, darker up to ``far``.

    Infinity is black. The colours are those of cubehelix, whose lightness only ever grows (Green, "A colour scheme for
    the display of astronomical intensity images", Bulletin of the Astronomical Society of India, 2011, equation (2),
    with its default parameters). Raises ``InputError`` unless ``near`` < ``far``.
    """
    _check_map(depth)
    if not -math.inf < near < far < math.inf:
        raise InputError(f"colours for depths from {near} to {far}: give near < far")
    share = ((far - depth.detach().double()) / (far - near)).clamp(0, 1)
    light = torch.where(depth.isfinite(), DARKEST + (1 - DARKEST) * share, 0)
    angle = 2 * math.pi * (0.5 / 3 - 1.5 * light)
    turn = light.new_tensor([[-0.14861, 1.78277], [-0.29227, -0.90649], [1.97294, 0.0]])
    aside = torch.stack([angle.cos(), angle.sin()], -1) @ turn.T  # (h, w, 3)
    return to_frame(light[..., None] + (light * (1 - light) / 2)[..., None] * aside)


def _check_map(values: Tensor) -> None:
    if values.ndim != 2 or not 0 < values.numel() <= MAX_PIXELS or values.isnan().any():
        raise InputError(f"a map {tuple(values.shape)}: must be (height, width), at most {MAX_PIXELS} pixels, no NaN")


def _write_png(path: Path | str, values: np.ndarray, text: dict[str, str] | None = None) -> None:
    """Write (h, w, 3) or (h, w) of uint8, or (h, w) of uint16."""
    path = Path(path)
    if path.suffix.lower() != ".png":
        raise InputError(f"{path}: such pictures are PNG files; end the name with .png")
    chunks = PngImagePlugin.PngInfo()
    for key, value in (text or {}).items():
        chunks.add_text(key, value)
    with atomic_write(path) as stream:
        Image.fromarray(values).save(stream, "png", pnginfo=chunks)
