"""Pictures for the page: small, and as addresses that hold them."""

import base64
import io
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from PIL import Image


def reduced(image: "Image.Image", side: int) -> "Image.Image":
    """Return a picture as RGB in at most ``side`` pixels a side."""
    small = image.convert("RGB")
    small.thumbnail((side, side))
    return small


def webp(image: "Image.Image", quality: int = 88) -> bytes:
    """Return a picture as a WebP file."""
    stream = io.BytesIO()
    image.save(stream, "webp", quality=quality, method=2)
    return stream.getvalue()


def data_uri(image: "Image.Image") -> str:
    """Return a picture as an address that holds it."""
    return f"data:image/webp;base64,{base64.b64encode(webp(image)).decode()}"
