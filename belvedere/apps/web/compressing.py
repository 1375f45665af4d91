"""What the room Compress does: a picture becomes a .bvd file and is compared with it, a .bvd file becomes a picture."""

import io
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from belvedere.apps.requests import DEFAULT_CODEC, CompressRequest
from belvedere.apps.web import uploads
from belvedere.apps.web.pictures import reduced, webp
from belvedere.apps.web.running import Tell
from belvedere.apps.web.shelf import Entry
from belvedere.apps.web.strokes import importance
from belvedere.apps.web.studio import Studio
from belvedere.checkpoints import store
from belvedere.checkpoints.components import CODEC
from belvedere.errors import InputError

if TYPE_CHECKING:
    import numpy as np
    from PIL import Image

    from belvedere.apps.peers import Peer
    from belvedere.compression.bitstream import Header
    from belvedere.compression.codec import Codec

ROOM = "Compress"
FILE, PICTURE, SMALL = "picture.bvd", "picture.png", "small.webp"
SHOWN_SIDE = 1600
"""Pixels along the longer side of what the page shows; files are whole."""
PAINTED_SIDE = 720
SEARCHED = 0.9
"""Share of the work that a search is."""
COMPARED_PIXELS = 1_000_000
"""Of the largest picture that JPEG and WebP are tried on."""


@dataclass(frozen=True)
class Outcome:
    """What the page shows. ``before``: None for a file that was opened. ``facts``: plain JSON."""

    id: str
    before: "Image.Image | None"
    after: "Image.Image"
    facts: dict[str, Any] = field(default_factory=dict)


def codecs(studio: Studio) -> list[str]:
    """Return the names of the codecs, the usual one first."""
    return sorted(studio.offered(CODEC), key=lambda name: name != DEFAULT_CODEC)


def codec_of(studio: Studio, header: "Header") -> str:
    """Return the name of the codec that a file was made with; the first one, which refuses it, where it is not here."""
    names = codecs(studio)
    return next((name for name in names if studio.digest(name).startswith(header.model.hex())), names[0])


def rates(studio: Studio, name: str) -> int:
    """Return how many rates a codec has learned, the highest quality, by its config alone."""
    return max(1, store.read_json(studio.folder_of(name) / "network" / "config.json")["rates"])


def load(studio: Studio, name: str) -> "Codec":
    """Return an offered codec; it is kept for the next request."""
    from belvedere.checkpoints.codecs import load_codec

    return studio.loaded("codec", name, lambda: load_codec(studio.model(name), studio.device))


def preview(studio: Studio, upload: uploads.Upload) -> "Image.Image":
    """Return an uploaded picture in the size in which it is painted on."""
    return reduced(uploads.picture(upload, studio.limits), PAINTED_SIDE)


def compress(
    studio: Studio,
    upload: uploads.Upload,
    quality: float,
    strokes: Any,
    tell: Tell,
    *,
    bpp: float = 0,
    model: str = DEFAULT_CODEC,
    regions: uploads.Upload = None,
) -> Outcome:
    """Compress an uploaded picture, put the file on the shelf, and decode it; ``tell`` gets shares of the work.

    ``strokes``: what is to stay sharp (``strokes.importance``); the rest then has the lowest quality. ``bpp``: instead
    of ``quality``, the best one is searched for that needs no more bits a pixel. ``model``: an offered codec.
    ``regions``: an uploaded grey picture of the same size, whose white is to stay sharp beside what is painted.

    Raises ``InputError`` for a picture, quality, bpp, strokes or regions out of range, and for fewer bits than the
    lowest quality needs.
    """
    from belvedere.apps.compress import compress as run
    from belvedere.compression.codec import decode

    data = uploads.read(upload, studio.limits)
    photograph = uploads.photograph(upload, studio.limits)
    request = CompressRequest(studio.model(model), None if bpp else quality, bpp or None, device=studio.device)
    share = SEARCHED if bpp else 0.5
    codec, before = load(studio, model), photograph.image
    painted = _importance(studio, strokes, regions, before.size)
    done = run(photograph, codec, request, painted, lambda part, of: tell(share * part / of))
    began = time.monotonic()
    after = decode(done.data, codec, progress=lambda part, of: tell(share + (1 - share) * part / of))
    facts: dict[str, Any] = {
        "width": before.width,
        "height": before.height,
        "uploaded": len(data),
        "bytes": len(done.data),
        "bpp": done.bpp,
        "quality": done.quality,
        "seconds": done.seconds,
        "decode_seconds": time.monotonic() - began,
        "psnr": psnr(before, after),
    }
    if bpp:
        facts["target_bpp"] = bpp
    if painted is not None and painted.any():
        facts["painted_psnr"] = psnr(before, after, painted > 0)
    facts["same_psnr"] = peers(before.convert("RGB"), facts["psnr"], tell) if painted is None else {}
    id = studio.shelf.put(ROOM, {FILE: done.data, SMALL: _small(after)}, {**facts, "picture": _digest(before)})
    return Outcome(id, reduced(before, SHOWN_SIDE), reduced(after, SHOWN_SIDE), facts)


def _importance(studio: Studio, strokes: Any, regions: uploads.Upload, size: tuple[int, int]) -> "np.ndarray | None":
    """Return what matters of a picture by strokes, by an uploaded picture of regions, or both; None by neither."""
    import numpy as np

    from belvedere.apps.compress import importance_of

    painted = importance(strokes, size)
    if not regions:
        return painted
    white = importance_of(uploads.photograph(regions, studio.limits).image, size, "the picture of regions")
    return white if painted is None else np.maximum(white, painted)


def open_file(studio: Studio, data: bytes, tell: Tell) -> Outcome:
    """Decode a .bvd file by the codec it was made with, and put it and its picture on the shelf, once.

    Raises a ``BitstreamError`` for what is no such file of an offered codec.
    """
    from belvedere.apps.compress import OPTIONS, metadata
    from belvedere.compression.bitstream import QUALITY_STEP, read
    from belvedere.compression.codec import decode

    header, _ = read(data)
    if header.width * header.height > studio.limits.upload_pixels:
        raise InputError(f"the file holds {header.width} x {header.height} pixels, more than the studio opens")
    began = time.monotonic()
    image = decode(data, load(studio, codec_of(studio, header)), progress=lambda part, of: tell(part / of))
    facts = {
        "width": image.width,
        "height": image.height,
        "bytes": len(data),
        "bpp": len(data) * 8 / (image.width * image.height),
        "quality": 1 + header.quality / QUALITY_STEP,
        "decode_seconds": time.monotonic() - began,
    }
    known = _same(studio, data)
    id = next((entry.id for entry in known if PICTURE in entry.names), "")
    if not id:
        stream = io.BytesIO()
        image.save(stream, "png", **OPTIONS["png"], **metadata(image))
        picture = known[0].facts["picture"] if known else _digest(image)
        files = {FILE: data, PICTURE: stream.getvalue(), SMALL: _small(image)}
        id = studio.shelf.put(ROOM, files, {**facts, "picture": picture})
    return Outcome(id, None, reduced(image, SHOWN_SIDE), facts)


def _same(studio: Studio, data: bytes) -> list[Entry]:
    """Return the results whose file has these bytes."""
    alike = [
        entry for entry in studio.shelf.newest(ROOM, studio.limits.results) if entry.facts.get("bytes") == len(data)
    ]
    return [entry for entry in alike if studio.shelf.file(entry.id, FILE).read_bytes() == data]


def psnr(before: "Image.Image", after: "Image.Image", where: "np.ndarray | None" = None) -> float:
    """Return the PSNR of two pictures in dB, of all pixels or those where a map (h, w) is true; at most 99."""
    import numpy as np
    import torch

    from belvedere.compression.rate_distortion import psnr as measure

    a, b = (np.array(image.convert("RGB")) for image in (before, after))
    if where is not None:
        a, b = a[where], b[where]
    return min(99.0, measure(torch.from_numpy(a), torch.from_numpy(b)))


def peers(image: "Image.Image", wanted: float, tell: Tell) -> dict[str, int]:
    """Return the bytes that JPEG and WebP need for a PSNR of ``wanted`` dB, of those that reach it.

    Nothing for pictures of more than ``COMPARED_PIXELS``.
    """
    from belvedere.apps.peers import PEERS

    if image.width * image.height > COMPARED_PIXELS:
        return {}
    found = {name: _smallest(PEERS[peer], image, wanted, tell) for name, peer in (("JPEG", "jpeg"), ("WebP", "webp"))}
    return {name: size for name, size in found.items() if size is not None}


def _smallest(peer: "Peer", image: "Image.Image", wanted: float, tell: Tell) -> int | None:
    low, high, found = 1, 96, None
    while low < high:
        tell(1.0)
        quality = (low + high) // 2
        content = peer.encode(image, quality)
        if psnr(image, peer.decode(content)) >= wanted:
            high, found = quality, len(content)
        else:
            low = quality + 1
    return found


def earlier(studio: Studio, count: int = 8) -> list[Entry]:
    """Return the newest file of each picture."""
    found: dict[str, Entry] = {}
    for entry in studio.shelf.newest(ROOM, studio.limits.results):
        found.setdefault(str(entry.facts.get("picture")), entry)
    return list(found.values())[:count]


def _small(image: "Image.Image") -> bytes:
    return webp(reduced(image, 256))


def _digest(image: "Image.Image") -> str:
    from belvedere.apps.record import pixel_digest

    return pixel_digest(image)
