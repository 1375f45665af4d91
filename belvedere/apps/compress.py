"""Compressing files and making pictures of them again: from a request to a result, and from a file to a file."""

import os
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, NamedTuple

from belvedere.apps.output import check_folder, kind_of, writing
from belvedere.apps.requests import CompressRequest
from belvedere.compression.bitstream import QUALITY_STEP, read
from belvedere.errors import InputError
from belvedere.files import atomic_write
from belvedere.limits import WEBP_SIDE

if TYPE_CHECKING:
    import numpy as np
    from PIL import Image

    from belvedere.compression.codec import Codec, Progress
    from belvedere.data.images import Photograph

SUFFIX = ".bvd"
MAX_BYTES = 1 << 30
"""Of a file that is read: far more than any picture within the limits needs."""
OPTIONS: dict[str, dict[str, Any]] = {
    "png": {},
    "jpeg": {"quality": 95, "subsampling": 0},
    "webp": {"lossless": True},
}
"""How decompressed pictures are saved, by format."""

MAX_SIDE = {"jpeg": 65_500, "webp": WEBP_SIDE}
"""Pixels of a side, where the format has a limit that a picture may exceed."""


@dataclass(frozen=True)
class Compressed:
    """A file's bytes and what it took."""

    data: bytes
    bpp: float
    """Bits a pixel of the whole file."""
    quality: float
    seconds: float


def compress(
    photograph: "Photograph",
    codec: "Codec",
    request: CompressRequest,
    importance: "np.ndarray | None" = None,
    progress: "Progress | None" = None,
) -> Compressed:
    """Return a picture as a ``.bvd`` file; ``importance``: see ``belvedere.encode``."""
    from belvedere.compression.codec import encode
    from belvedere.compression.rate_control import encode_to_bpp, encode_to_psnr
    from belvedere.data.images import to_srgb

    image, profile = photograph.image, photograph.profile
    if request.metadata == "none" and profile:
        image, profile = to_srgb(photograph).convert(image.mode), b""
    options: dict[str, Any] = {"importance": importance, "jobs": request.jobs, "progress": progress}
    options |= {"profile": profile, "exif": photograph.exif if request.metadata == "all" else b""}
    began = time.monotonic()
    if request.bpp is not None:
        data = encode_to_bpp(image, codec, request.bpp, **options)
    elif request.psnr is not None:
        data = encode_to_psnr(image, codec, request.psnr, **options)
    else:
        data = encode(image, codec, quality=request.quality, **options)
    header, _ = read(data)
    bpp = len(data) * 8 / (header.width * header.height)
    return Compressed(data, bpp, 1 + header.quality / QUALITY_STEP, time.monotonic() - began)


def compress_file(
    path: Path,
    target: Path,
    load: "Callable[[], Codec]",
    request: CompressRequest,
    regions: Path | None = None,
    progress: "Progress | None" = None,
) -> dict[str, Any]:
    """Compress a picture's file to ``target``, whole or not at all; return what was done, as plain JSON.

    ``load`` is called for the codec once the picture is read.
    """
    from belvedere.data.images import open_photograph

    photograph = open_photograph(path, background=request.background)
    importance = None if regions is None else read_importance(regions, photograph.image.size)
    codec = load()
    with _naming(path):
        done = compress(photograph, codec, request, importance, progress)
    _write(target, lambda file: file.write(done.data))
    facts = {"bytes": len(done.data), "bpp": round(done.bpp, 4), "quality": done.quality}
    return {"file": str(target), **facts, "seconds": round(done.seconds, 2)}


def decompress_file(
    path: Path,
    target: Path,
    load: "Callable[[], Codec]",
    region: tuple[int, int, int, int] | None = None,
    jobs: int = 1,
    progress: "Progress | None" = None,
) -> dict[str, Any]:
    """Make the picture of a ``.bvd`` file in ``target``, whole or not at all; return what was done, as plain JSON.

    ``load`` is called for the codec once the file is known to be whole.
    """
    kind = kind_of(target)
    data = read_file(path)
    with _naming(path):
        header, _ = read(data)
        _check_sides(kind, region[2:] if region else (header.width, header.height))
    codec = load()
    from belvedere.compression.codec import decode

    began = time.monotonic()
    with _naming(path):
        image = decode(data, codec, region=region, jobs=jobs, progress=progress)
    image, kept = _fitting(image, kind)
    _write(target, lambda file: image.save(file, kind, **OPTIONS[kind], **kept))
    seconds = round(time.monotonic() - began, 2)
    return {"file": str(target), "width": image.width, "height": image.height, "seconds": seconds}


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Put the name of a file before what is said of it."""
    try:
        yield
    except InputError as error:
        raise type(error)(f"{path}: {error}") from error


def _check_sides(kind: str, size: tuple[int, ...]) -> None:
    most = MAX_SIDE.get(kind)
    if most is not None and max(size) > most:
        raise InputError(f"{size[0]} x {size[1]} pixels: a {kind} file has at most {most} a side, choose .png")


def _fitting(image: "Image.Image", kind: str) -> "tuple[Image.Image, dict[str, bytes]]":
    """Return a picture as a format has it, and what is to be saved with it.

    WebP has no grey: a profile of grey does not fit there, so its levels become those of sRGB.
    """
    kept = metadata(image)
    if kind == "webp" and image.mode == "L" and "icc_profile" in kept:
        from belvedere.data.images import Photograph, to_srgb

        image = to_srgb(Photograph(image, kept.pop("icc_profile"), b""))
    return image, kept


def metadata(image: "Image.Image") -> dict[str, bytes]:
    """Return what Pillow is to save with a picture."""
    return {key: image.info[key] for key in ("icc_profile", "exif") if image.info.get(key)}


def read_importance(path: Path, size: tuple[int, int]) -> "np.ndarray":
    """Return a map of what matters in a picture of ``size``, by the picture in ``path``: see ``importance_of``."""
    from belvedere.data.images import open_image

    return importance_of(open_image(path), size, str(path))


def importance_of(regions: "Image.Image", size: tuple[int, int], name: str) -> "np.ndarray":
    """Return a map of what matters, float32 (h, w): white of the picture ``regions`` 1, black 0.

    Raises ``InputError`` naming ``name`` unless it is of ``size`` (width, height).
    """
    import numpy as np

    width, height = size
    if regions.size != size:
        given = f"{regions.width} x {regions.height}"
        raise InputError(f"{name} has {given} pixels, the picture {width} x {height}: must fit")
    return np.asarray(regions.convert("L"), dtype=np.float32) / 255


def read_file(path: Path) -> bytes:
    """Return a file's bytes; ``InputError`` when it cannot be read or is far too large."""
    try:
        if path.stat().st_size > MAX_BYTES:
            raise InputError(f"{path} has more than {MAX_BYTES} bytes: no .bvd file has")
        return path.read_bytes()
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from error


def _write(target: Path, content: Callable[[BinaryIO], object]) -> None:
    with writing(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            with atomic_write(target) as file:
                content(file)
        except ValueError as error:  # Pillow's, of what a format cannot hold
            raise InputError(f"cannot write {target}: {error}; choose another format") from error


class Found(NamedTuple):
    """A file that was asked for."""

    path: Path
    place: Path
    """Its folder, seen from the one that was given; empty for a file that was."""


def find(paths: Iterable[Path], endings: Collection[str]) -> list[Found]:
    """Return the files of ``paths``, each once; a folder stands for those below it with one of ``endings``, in order.

    Hidden files and folders and links to folders are passed over. Raises ``InputError`` for a folder without any.
    """
    found: dict[Path, Path] = {}
    for path in paths:
        if not os.path.isdir(path):  # noqa: PTH112 (Path.is_dir raises below a folder that is closed)
            found.setdefault(path, Path())
            continue
        below = sorted(file for file in _below(path) if file.suffix.lower() in endings and file.is_file())
        if not below:
            raise InputError(f"{path} holds no files ending in {', '.join(sorted(endings))}: give a folder that does")
        for file in below:
            found.setdefault(file, file.parent.relative_to(path))
    return [Found(path, place) for path, place in found.items()]


def _below(top: Path) -> Iterator[Path]:
    def refuse(error: OSError) -> None:
        raise InputError(f"cannot read {error.filename}: {error.strerror}") from error

    for folder, names, files in os.walk(top, onerror=refuse):
        names[:] = [name for name in names if not name.startswith(".")]
        yield from (Path(folder, file) for file in files if not file.startswith("."))


def _same(path: Path, other: Path) -> bool:
    try:
        return path.samefile(other)
    except OSError:  # one is not there
        return False


def targets(
    files: Sequence[Found], out: Path | None, suffix: str, *, force: bool = False, skip: bool = False
) -> dict[Path, Path]:
    """Return what each of ``files`` becomes: beside it, at its place in the folder ``out``, or, of one, ``out`` itself.

    ``suffix``: how its name ends. With ``skip`` those whose file is there are left out. Raises ``InputError`` when two
    become the same file, one is there and neither ``force`` nor ``skip``, one would become itself, ``out`` is a file
    of another ending than ``.bvd`` where that is asked for, or a folder cannot be written to.
    """
    if force and skip:
        raise InputError("--force replaces the files that --skip-existing leaves: give one of them")
    single = out is not None and out.suffix and not out.is_dir()
    if single and len(files) > 1:
        raise InputError(f"{len(files)} files cannot become the one file {out}: give a folder")
    if single and out and suffix == SUFFIX != out.suffix.lower():
        raise InputError(f"{out}: end the name with {SUFFIX}, or make the folder first")
    sources: dict[Path, Path] = {}
    for path, place in files:
        target = out if single and out else (out / place if out else path.parent) / f"{path.stem}{suffix}"
        if target in sources:
            both = f"{sources[target]} and {path} would both become {target}"
            raise InputError(f"{both}: rename one, or give one with another --out")
        sources[target] = path
    there = {target for target in sources if target.exists()}
    for target in there:
        if _same(target, sources[target]):
            raise InputError(f"{target} would replace the file that it is made of: choose another --out")
    if force:
        there.clear()
    if there and not skip:
        raise InputError(f"{min(there)} exists: choose another --out, --skip-existing, or --force to replace it")
    found = {path: target for target, path in sources.items() if target not in there}
    for folder in dict.fromkeys(target.parent for target in found.values()):
        check_folder(folder)
    return found
