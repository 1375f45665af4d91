"""The sizes of SegPIC: the published network and narrower ones, and what makes a config valid."""

from typing import Any

from belvedere.errors import InputError

STRIDE = 64
"""Pictures are multiples of this many pixels on both sides."""

LARGEST = {
    "channels": 8192,
    "latent": 8192,
    "head": 8192,
    "slices": 64,
    "support": 64,
    "heads": 256,
    "grid": 64,
    "rates": 64,
}
LENGTHS = {"hyper": 4, "prototype": 2, "context": 4, "windows": 2}
"""Fields that are lists of widths, and how many each has."""


USUAL_QUALITY = 4


def usual_quality(rates: int) -> int:
    """Return the quality a network of ``rates``, 0 = one, is used at when none is asked for."""
    return min(USUAL_QUALITY, max(1, rates))


def _width(divisor: int) -> dict[str, Any]:
    """Return the published network with all channels inside divided by ``divisor``."""
    widths = {"channels": 192, "latent": 320, "head": 32}
    lists = {"hyper": (288, 256, 224, 192), "prototype": (128, 96), "context": (224, 176, 128, 64)}
    narrow: dict[str, Any] = {field: width // divisor for field, width in widths.items()}
    return narrow | {field: [width // divisor for width in list_] for field, list_ in lists.items()}


VARIANTS: dict[str, dict[str, Any]] = {
    "SegPIC": _width(1),
    "SegPIC/4": _width(4),
    "SegPIC/8": _width(8),
    "photo": _width(4) | {"latent": 160, "context": [48, 40, 32, 32], "slices": 5, "rates": 8},
}
"""The published network, of one rate; the same at a quarter and an eighth of its width; our small one, of 8 rates."""


def check_config(config: Any) -> None:
    """Raise ``InputError`` unless the fields of a SegPIC's config are known and fit together."""
    for field, top in LARGEST.items():
        least = 0 if field in ("support", "rates") else 1
        if not isinstance(config[field], int) or not least <= config[field] <= top:
            raise InputError(f"{field} {config[field]!r}: must be an integer from {least} to {top}")
    for field, length in LENGTHS.items():
        widths = config[field]
        whole = isinstance(widths, list | tuple) and all(isinstance(width, int) for width in widths)
        if not whole or len(widths) != length or not all(1 <= width <= 8192 for width in widths):
            raise InputError(f"{field} {widths!r}: must be {length} integers from 1 to 8192")
    for field in ("channels", "latent"):
        if config[field] % config.heads or config[field] % 2:
            raise InputError(f"{field} {config[field]}: must be even and a multiple of the {config.heads} heads")
    if config.latent % config.slices:
        raise InputError(f"latent {config.latent}: must be a multiple of the {config.slices} slices")
    for window, side in zip(config.windows, (STRIDE // 4, STRIDE // 16), strict=True):
        if side % window:
            raise InputError(f"windows {list(config.windows)}: the first must divide 16 and the second 4")
