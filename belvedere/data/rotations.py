"""Rotations in three dimensions: unit quaternions (w, x, y, z), matrices, and what lies between two of them."""

import torch
from torch import Tensor


def matrix_from_quaternion(quaternion: Tensor) -> Tensor:
    """Return the rotation matrices (..., 3, 3) of quaternions (..., 4), w first, of any length but zero."""
    w, x, y, z = (quaternion / quaternion.norm(dim=-1, keepdim=True)).unbind(-1)
    rows = [
        1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y),
        2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x),
        2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y),
    ]  # fmt: skip
    return torch.stack(rows, -1).unflatten(-1, (3, 3))  # (..., row, column)


def quaternion_from_matrix(rotation: Tensor) -> Tensor:
    """Return the unit quaternion (4,), w first, of a rotation matrix (3, 3), its largest part positive.

    The matrix gives the outer product 4 q q^T; its row of the largest diagonal entry is q without cancellation
    (Shepperd, "Quaternion from rotation matrix", 1978).
    """
    (a, b, c), (d, e, f), (g, h, i) = rotation.tolist()
    outer = torch.tensor(
        [
            [1 + a + e + i, h - f, c - g, d - b],
            [h - f, 1 + a - e - i, b + d, c + g],
            [c - g, b + d, 1 - a + e - i, f + h],
            [d - b, c + g, f + h, 1 - a - e + i],
        ],
        dtype=rotation.dtype,
    )
    row = outer[outer.diagonal().argmax()]
    return row / row.norm()


def slerp(first: Tensor, second: Tensor, t: float) -> Tensor:
    """Return the rotation (3, 3) a share ``t`` of the shorter way from one to another, at constant speed.

    Spherical linear interpolation of quaternions (Shoemake 1985, "Animating rotation with quaternion curves").
    """
    a, b = quaternion_from_matrix(first), quaternion_from_matrix(second)
    b = torch.where(a @ b < 0, -b, b)
    angle = 2 * torch.atan2((a - b).norm(), (a + b).norm())
    if angle < 1e-9:
        return first
    return matrix_from_quaternion(torch.sin((1 - t) * angle) * a + torch.sin(t * angle) * b)
