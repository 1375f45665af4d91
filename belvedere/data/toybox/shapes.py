"""The four primitives a toy is made of, and short functions that write one down.

Every primitive is a unit shape under an affine map ``world = center + axes @ local``; its own axis is local y:

- ``BALL``: the unit ball, cut below local y = ``form[0]`` (-1 leaves it whole);
- ``CONE``: a capped frustum, y in [-1, 1], of radius ``form[0]`` at the bottom and ``form[1]`` at the top;
- ``BLOCK``: y in [-1, 1], half-widths 1 at the bottom, ``form[0]`` (x) and ``form[1]`` (z) at the top;
- ``RING``: a torus around y of radius 1 and tube radius ``form[0]``.
"""

import math

BALL, CONE, BLOCK, RING = range(4)
PLAIN, STRIPES, CHECKS, WOOD = range(4)

Vector = tuple[float, float, float]
Matrix = tuple[Vector, Vector, Vector]
Primitive = tuple[float, ...]
"""One row of ``FIELDS`` numbers: the shape, then what the slices below name (axes row by row)."""

CENTER, AXES, FORM, COLOR, SECOND = slice(1, 4), slice(4, 13), slice(13, 15), slice(15, 18), slice(18, 21)
SHAPE, TEXTURE, REPEATS, GLOSS, GLOW, FIELDS = 0, 21, 22, 23, 24, 25
UPRIGHT: Matrix = ((1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0))
ALONG_X: Matrix = ((0.0, 1.0, 0.0), (-1.0, 0.0, 0.0), (0.0, 0.0, 1.0))
"""The rotation that lays a primitive's own axis along +x."""
ALONG_Z: Matrix = ((1.0, 0.0, 0.0), (0.0, 0.0, -1.0), (0.0, 1.0, 0.0))
"""The rotation that lays a primitive's own axis along +z."""


def turn(axis: str, degrees: float) -> Matrix:
    """Return the right-handed rotation about world axis ``x``, ``y`` or ``z``."""
    c, s = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    if axis == "x":
        return ((1.0, 0.0, 0.0), (0.0, c, -s), (0.0, s, c))
    if axis == "y":
        return ((c, 0.0, s), (0.0, 1.0, 0.0), (-s, 0.0, c))
    return ((c, -s, 0.0), (s, c, 0.0), (0.0, 0.0, 1.0))


def primitive(
    shape: int,
    at: Vector,
    half: Vector,
    color: Vector,
    form: tuple[float, float] = (1.0, 1.0),
    rotation: Matrix = UPRIGHT,
    *,
    lean: float = 0.0,
    texture: int = PLAIN,
    second: Vector | None = None,
    repeats: float = 3.0,
    gloss: float = 0.15,
    glow: float = 0.0,
) -> Primitive:
    """Return one primitive of half-sizes ``half`` at world position ``at``.

    ``lean`` shifts the top by that many half-widths along local x. ``second`` and ``repeats`` are the other
    colour and the number of repeats of a texture; ``gloss`` in [0, 1] weighs the highlight, ``glow`` in
    [0, 1] the light given off. Colours are RGB in [0, 1].
    """
    x, y, z = half
    a, b, c = rotation
    s = lean * x
    return (
        shape, *at,
        a[0] * x, a[0] * s + a[1] * y, a[2] * z,
        b[0] * x, b[0] * s + b[1] * y, b[2] * z,
        c[0] * x, c[0] * s + c[1] * y, c[2] * z,
        *form, *color, *(second or color), texture, repeats, gloss, glow,
    )  # fmt: skip


def ball(at: Vector, radii: float | Vector, color: Vector, *, cut: float = -1.0, **look: object) -> Primitive:
    """Return an ellipsoid, or the part of it above local y = ``cut``."""
    half = (radii, radii, radii) if isinstance(radii, (int, float)) else radii
    return primitive(BALL, at, half, color, (cut, 0.0), **look)  # type: ignore[arg-type]


def rod(at: Vector, radius: float, half: float, color: Vector, **look: object) -> Primitive:
    """Return a cylinder of half-length ``half``."""
    return primitive(CONE, at, (radius, half, radius), color, (1.0, 1.0), **look)  # type: ignore[arg-type]


def cone(
    at: Vector, bottom: float, top: float, half: float, color: Vector, *, flat: float = 1.0, **look: object
) -> Primitive:
    """Return a frustum of the given radii; ``flat`` scales its local z (an elliptic section)."""
    return primitive(CONE, at, (1.0, half, flat), color, (bottom, top), **look)  # type: ignore[arg-type]


def box(at: Vector, half: Vector, color: Vector, **look: object) -> Primitive:
    """Return a rectangular block."""
    return primitive(BLOCK, at, half, color, (1.0, 1.0), **look)  # type: ignore[arg-type]


def wedge(at: Vector, half: Vector, color: Vector, top: tuple[float, float], **look: object) -> Primitive:
    """Return a block whose top is ``top`` times as wide in local x and z: a prism, a pyramid, a hull."""
    return primitive(BLOCK, at, half, color, top, **look)  # type: ignore[arg-type]


def ring(at: Vector, radius: float, tube: float, color: Vector, **look: object) -> Primitive:
    """Return a torus of the given radius and tube radius."""
    form = (tube / radius, 0.0)
    return primitive(RING, at, (radius, radius, radius), color, form, **look)  # type: ignore[arg-type]
