"""What is painted on a picture, as numbers: strokes of a round brush, from which the importance of every pixel follows.

A stroke is {"radius": r, "points": [[x, y], ...]} in shares of the picture's width (x, r) and height (y), so that it
fits whatever size the picture is shown in.
"""

from typing import TYPE_CHECKING, Any

from belvedere.errors import InputError

if TYPE_CHECKING:
    import numpy as np

MAX_STROKES = 500
MAX_POINTS = 20_000
"""Of all strokes together."""
_FORM = 'a stroke must be {"radius": r, "points": [[x, y], ...]}, each number from 0 to 1'


def importance(strokes: Any, size: tuple[int, int]) -> "np.ndarray | None":
    """Return 1 where a picture of ``size`` (width, height) is painted, else 0: float32 (h, w); None without strokes.

    Raises ``InputError`` for anything that is no list of strokes within the picture.
    """
    import numpy as np
    from PIL import Image, ImageDraw

    if not strokes:
        return None
    width, height = size
    mask = Image.new("L", size)
    draw = ImageDraw.Draw(mask)
    for radius, points in _checked(strokes):
        reach = radius * width
        places = [(x * width, y * height) for x, y in points]
        draw.line(places, fill=255, width=max(1, round(2 * reach)), joint="curve")
        for x, y in (places[0], places[-1]):
            draw.ellipse((x - reach, y - reach, x + reach, y + reach), fill=255)
    return np.asarray(mask, dtype=np.float32) / 255


def _checked(strokes: Any) -> list[tuple[float, list[tuple[float, float]]]]:
    if not isinstance(strokes, list) or len(strokes) > MAX_STROKES:
        raise InputError(f"what is painted must be a list of at most {MAX_STROKES} strokes")
    found = [_stroke(stroke) for stroke in strokes]
    if sum(len(points) for _, points in found) > MAX_POINTS:
        raise InputError(f"what is painted has more than {MAX_POINTS} points: paint less, or with a larger brush")
    return found


def _stroke(stroke: Any) -> tuple[float, list[tuple[float, float]]]:
    found: dict[str, Any] = stroke if isinstance(stroke, dict) else {}
    radius, points = found.get("radius"), found.get("points")
    if radius is None or not _share(radius) or not isinstance(points, list) or not 0 < len(points) <= MAX_POINTS:
        raise InputError(_FORM)
    if not all(isinstance(p, list) and len(p) == 2 and all(map(_share, p)) for p in points):
        raise InputError(_FORM)
    return float(radius), [(float(x), float(y)) for x, y in points]


def _share(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= 1
