"""Where a ray enters and leaves each primitive, in closed form, and the normal there.

Rays live in a primitive's own coordinates: ``q + t d``, with ``q`` and ``d`` three tensors each that broadcast
to (rows, rays). Misses are written as arithmetic (a large penalty) and not as masks: on a CPU, comparisons
and selections cost ten times a multiplication.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from belvedere.data.toybox.shapes import BALL, BLOCK, CONE, RING

MISS = 1e20
"""Weight of the penalty that sends the entry of a missed primitive out of sight."""
TINY = 1e-12
DOUBLE = 1e-9
"""Relative size of a cubic's discriminant below which two of its roots count as one."""

Coordinates = Sequence[Tensor]


def span(shape: int, q: Coordinates, d: Coordinates, form: Tensor) -> tuple[Tensor, Tensor]:
    """Return the entry and exit parameters (rows, rays); ``form`` is (2, rows, 1). A miss has a huge entry."""
    near, far = {BALL: _ball, CONE: _cone, BLOCK: _block, RING: _ring}[shape](q, d, form)
    return near.add((near - far).clamp_(min=0), alpha=MISS), far


def normal(shape: int, p: Coordinates, form: Tensor) -> list[Tensor]:
    """Return the outward normal (not unit) at local points ``p``; edges of blocks are softly rounded."""
    return {BALL: _ball_normal, CONE: _cone_normal, BLOCK: _block_normal, RING: _ring_normal}[shape](p, form)


def _dot(a: Coordinates, b: Coordinates) -> Tensor:
    return (a[0] * b[0]).addcmul_(a[1], b[1]).addcmul_(a[2], b[2])


def _roots(a: Tensor, b: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
    """Roots of a t^2 + 2 b t + c for a > 0; without real roots, an entry far behind the exit."""
    disc = (b * b).addcmul_(a, c, value=-1)
    miss = disc.clamp(max=0).mul_(-MISS)
    root = disc.clamp_(min=0).sqrt_()
    inverse = a.reciprocal()
    near = (b + root).mul_(inverse).neg_().add_(miss)
    return near, root.sub_(b).mul_(inverse)


def _slab(q: Tensor, d: Tensor, low: Tensor | float, high: float) -> tuple[Tensor, Tensor]:
    """Where low <= q + t d <= high; ``TINY`` keeps a parallel ray's answer far away and finite."""
    inverse = (d + TINY).reciprocal_()
    a, b = (low - q).mul_(inverse), (high - q).mul_(inverse)
    return torch.minimum(a, b), torch.maximum(a, b)


def _ball(q: Coordinates, d: Coordinates, form: Tensor) -> tuple[Tensor, Tensor]:
    near, far = _roots(_dot(d, d), _dot(q, d), _dot(q, q).sub_(1))
    enter, leave = _slab(q[1], d[1], form[0], 2.0)
    return torch.maximum(near, enter), torch.minimum(far, leave)


def _cone(q: Coordinates, d: Coordinates, form: Tensor) -> tuple[Tensor, Tensor]:
    """The double cone x^2 + z^2 = (m + g y)^2 between its caps, whose radius is nowhere negative there."""
    middle, grow = (form[0] + form[1]) * 0.5, (form[1] - form[0]) * 0.5
    r, dr = q[1] * grow + middle, d[1] * grow
    a = (d[0] * d[0]).addcmul_(d[2], d[2]).addcmul_(dr, dr, value=-1)
    b = (q[0] * d[0]).addcmul_(q[2], d[2]).addcmul_(r, dr, value=-1)
    c = (q[0] * q[0]).addcmul_(q[2], q[2]).addcmul_(r, r, value=-1)
    enter, leave = _slab(q[1], d[1], -1.0, 1.0)
    disc = (b * b).addcmul_(a, c, value=-1)
    steep = a.clamp(-TINY, TINY).mul_(1 / TINY)  # 1: the ray crosses the side twice; -1: it dives between nappes
    miss = disc.clamp(max=0).mul_(-MISS).mul_(steep.clamp(min=0))
    root = disc.clamp_(min=0).sqrt_()
    inverse = a.abs_().clamp_(min=TINY).reciprocal_().mul_(steep)
    one, two = (root + b).mul_(inverse).neg_(), root.sub_(b).mul_(inverse)
    low, high = torch.minimum(one, two), torch.maximum(one, two)
    shallow = steep.clamp_(min=0)
    # Between the nappes the solid is entered at the cap and left at `low`, or entered at `high`.
    first = (low - enter).mul_(1e12).clamp_(0, 1)
    dive = torch.maximum(enter, high.addcmul(enter - high, first))
    rise = leave.addcmul(torch.minimum(leave, low) - leave, first)
    near = torch.lerp(dive, torch.maximum(enter, low), shallow)
    far = torch.lerp(rise, torch.minimum(leave, high), shallow)
    return near.add_(miss), far


def _block(q: Coordinates, d: Coordinates, form: Tensor) -> tuple[Tensor, Tensor]:
    """Three pairs of planes; those across x and z close in by (1 - form) / 2 per unit of y."""
    near, far = _slab(q[1], d[1], -1.0, 1.0)
    for axis, k in ((0, 0), (2, 1)):
        middle, grow = (1 + form[k]) * 0.5, (form[k] - 1) * 0.5
        h, dh = q[1] * grow + middle, d[1] * grow
        for sign in (1.0, -1.0):
            # inside while sign * p <= h
            gap = torch.add(h, q[axis], alpha=-sign)
            rate = torch.sub(dh, d[axis], alpha=sign).add_(TINY)
            at = gap.div_(rate).neg_()
            heading = rate.mul_(1 / TINY).clamp_(-1, 1)  # 1: the ray comes in through this plane; -1: it goes out
            entering = heading.mul(0.5).add_(0.5)
            near = torch.maximum(near, torch.lerp(torch.full_like(at, -MISS), at, entering))
            far = torch.minimum(far, torch.lerp(at, torch.full_like(at, MISS), entering))
    return near, far


def _ring(q: Coordinates, d: Coordinates, form: Tensor) -> tuple[Tensor, Tensor]:
    """Torus of radius 1: the quartic in the distance s from the point nearest the centre, by Ferrari."""
    q, d = [x.double() for x in q], [x.double() for x in d]
    tube = form[0].double()
    length = _dot(d, d).sqrt_()
    u = [x / length for x in d]
    closest = -_dot(q, u)
    y = q[1] + closest * u[1]
    m = _dot(q, q) - closest * closest
    k = m + 1 - tube * tube
    root = _lowest_root(2 * k - 4 + 4 * u[1] ** 2, 8 * y * u[1], k * k - 4 * (m - y * y))
    near = torch.where(root < 1e10, (root + closest) / length, 1e10)
    return near.float(), (near + tube / length).float()


def _lowest_root(p: Tensor, q: Tensor, r: Tensor) -> Tensor:
    """Return the lowest real root of s^4 + p s^2 + q s + r, 1e20 where there is none (float64)."""
    z = _resolvent(p, q, r).clamp_(min=1e-12)
    w = z.sqrt()
    half = (p + z) / 2
    best = torch.full_like(p, MISS)
    for sign in (1.0, -1.0):
        disc = z - 4 * (half - sign * q / (2 * w))
        root = (-sign * w - disc.clamp(min=0).sqrt()) / 2
        best = torch.where(disc >= 0, torch.minimum(best, root), best)
    s = best.clamp(max=10.0)
    for _ in range(2):
        slope = (4 * s * s + 2 * p) * s + q
        s = s - torch.where(slope.abs() > 1e-9, (((s * s + p) * s + q) * s + r) / slope, 0)
    return torch.where(best < 10.0, s, MISS)


def _resolvent(p: Tensor, q: Tensor, r: Tensor) -> Tensor:
    """Return the largest real root of z^3 + 2 p z^2 + (p^2 - 4 r) z - q^2."""
    a = -p * p / 3 - 4 * r
    b = -2 * p**3 / 27 + 8 * p * r / 3 - q * q
    h = b * b / 4 + a**3 / 27
    spread = (-a / 3).clamp(min=1e-30).sqrt()
    angle = (-b / (2 * spread**3)).clamp(-1, 1).acos()
    three = 2 * spread * (angle / 3).cos()
    size = (b.abs() / 2 + h.clamp(min=0).sqrt()).clamp(min=1e-30).pow(1 / 3)
    u = torch.where(b > 0, -size, size)
    one = u - a / (3 * u)
    return torch.where(h < DOUBLE * b * b, three, one) - 2 * p / 3


def _ball_normal(p: Coordinates, form: Tensor) -> list[Tensor]:
    """The point itself; on the cut, straight down."""
    on_cut = (p[1] - form[0]).mul_(-1e4).add_(2).clamp_(0, 1).mul_(form[0] > -1)
    side = 1 - on_cut
    return [p[0] * side, p[1] * side - on_cut, p[2] * side]


def _cone_normal(p: Coordinates, form: Tensor) -> list[Tensor]:
    grow = (form[1] - form[0]) * 0.5
    on_cap = p[1].abs().sub_(0.9995).mul_(1e5).clamp_(0, 1)
    side = 1 - on_cap
    slope = (p[1] * grow).add_((form[0] + form[1]) * 0.5).mul_(grow)
    return [p[0] * side, p[1] * on_cap - slope * side, p[2] * side]


def _block_normal(p: Coordinates, form: Tensor) -> list[Tensor]:
    """The gradient of a 12-norm of the three face distances: flat faces, edges rounded over their last tenth."""
    grow_x, grow_z = (form[0] - 1) * 0.5, (form[1] - 1) * 0.5
    wide = (p[1] * grow_x).add_((1 + form[0]) * 0.5).clamp_(min=1e-3).reciprocal_()
    deep = (p[1] * grow_z).add_((1 + form[1]) * 0.5).clamp_(min=1e-3).reciprocal_()
    u, v = ((x * scale).clamp_(-2, 2) for x, scale in ((p[0], wide), (p[2], deep)))  # misses, too, stay finite
    a, b, c = _steep(u), _steep(p[1]), _steep(v)
    lean = (a * u).mul_(wide).mul_(grow_x).add_((c * v).mul_(deep).mul_(grow_z))
    return [a.mul_(wide), b.sub_(lean), c.mul_(deep)]


def _steep(x: Tensor) -> Tensor:
    """Return x^13."""
    x2 = x * x
    x4 = x2 * x2
    return x4 * x4 * x4 * x


def _ring_normal(p: Coordinates, form: Tensor) -> list[Tensor]:
    around = (p[0] * p[0]).addcmul_(p[2], p[2]).clamp_(min=TINY).rsqrt_()
    return [p[0] - p[0] * around, p[1], p[2] - p[2] * around]
