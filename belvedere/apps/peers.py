"""The picture formats a codec of ours is measured against, through Pillow: JPEG, WebP, AVIF, JPEG 2000, JPEG XL."""

import io
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from importlib import import_module, metadata
from typing import Any

from PIL import Image, features

from belvedere.errors import InputError


@dataclass(frozen=True)
class Peer:
    """One format with the settings it is measured at; encoders run on one thread."""

    name: str
    """With the settings that matter."""
    format: str
    """As Pillow calls it."""
    qualities: tuple[float, ...]
    """From about 0.1 to 1.5 bits per pixel on Kodak."""
    options: Mapping[str, Any] = field(default_factory=dict)

    def encode(self, image: Image.Image, quality: float) -> bytes:
        """Return the whole file of an RGB picture. ``quality``: the format's own number, for JPEG 2000 bits per pixel.

        JPEG 2000 is given the rate, as in published comparisons; 24 bits per pixel are a ratio of 1.
        """
        asked = {"quality_layers": [24 / quality]} if self.format == "JPEG2000" else {"quality": quality}
        stream = io.BytesIO()
        image.save(stream, self.format, **asked, **self.options)
        return stream.getvalue()

    def decode(self, content: bytes) -> Image.Image:
        """Return the RGB picture in a file of this format."""
        with Image.open(io.BytesIO(content), formats=(self.format,)) as image:
            return image.convert("RGB")


PEERS = {
    "jpeg": Peer("JPEG 4:2:0", "JPEG", (4, 7, 13, 22, 36, 55, 74), {"subsampling": "4:2:0", "optimize": True}),
    "webp": Peer("WebP method 6", "WEBP", (0, 4, 12, 28, 52, 74, 82), {"method": 6}),
    # The best PSNR of the settings tried: by itself it tunes for the eye (tune=iq) and halves colour (4:2:0).
    "avif": Peer(
        "AVIF speed 6 4:4:4 tune=psnr",
        "AVIF",
        (5, 11, 20, 30, 41, 52, 62),
        {"codec": "aom", "speed": 6, "subsampling": "4:4:4", "max_threads": 1, "advanced": {"tune": "psnr"}},
    ),
    "jpeg2000": Peer(
        "JPEG 2000 9/7",
        "JPEG2000",
        (0.1, 0.2, 0.35, 0.55, 0.8, 1.1, 1.5),
        {"quality_mode": "rates", "irreversible": True, "mct": 1},  # mct: the colour transform, which Pillow leaves out
    ),
    "jxl": Peer("JPEG XL effort 7", "JXL", (0, 7, 22, 45, 62, 74, 84), {"effort": 7, "num_threads": 0}),
}
"""The formats by the name they are asked for."""


def find_peers(names: Iterable[str] = tuple(PEERS)) -> tuple[list[Peer], dict[str, str]]:
    """Return the peers that work on this machine, and of the others by name why they do not.

    A name that is none of ``PEERS`` raises ``InputError``.
    """
    found, missing = [], {}
    for name in dict.fromkeys(names):
        if name not in PEERS:
            raise InputError(f"no format {name!r} to compare with: there are {', '.join(PEERS)}")
        reason = _fault(PEERS[name])
        if reason:
            missing[name] = reason
        else:
            found.append(PEERS[name])
    return found, missing


def _fault(peer: Peer) -> str:
    """Return why a peer cannot be used, after trying it on a small picture; empty when it can."""
    if peer.format == "JXL":
        try:
            import_module("pillow_jxl")  # it registers the format with Pillow
        except ImportError:
            return "pillow-jxl-plugin is not installed: pip install 'belvedere[evaluate]'"
    try:
        peer.decode(peer.encode(Image.new("RGB", (16, 16)), peer.qualities[-1]))
    except Exception as error:  # KeyError: unknown format; ValueError: unknown option; a codec may raise anything
        return f"this build of Pillow cannot write {peer.format} ({type(error).__name__}: {error}); install another"
    return ""


def versions() -> dict[str, str]:
    """Return the versions of Pillow and of the libraries behind the peers, of those that are there."""
    found = {"pillow": metadata.version("pillow")}
    for name in ("libjpeg_turbo", "webp", "avif", "jpg_2000"):
        if version := features.version(name):
            found[name] = version
    with suppress(metadata.PackageNotFoundError):
        found["pillow-jxl-plugin"] = metadata.version("pillow-jxl-plugin")
    return found
